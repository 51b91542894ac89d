"""Colour jitter and greyscale in the arithmetic of Pillow: blends in float32 cut off to bytes, hue through bytes.

Shapes: planes (3, N) of red, green and blue, which vectorise.
"""

from __future__ import annotations

import numpy as np

from swav_ray.data.kernels.basis import F32, F64, FACTOR, GREY, I32, JITTER, ORDER, U1, U2, U3, U8, U32, U64, compile


@compile("uint8(uint8, uint8, uint8)")
def _luma(red, green, blue):
    return U8(U32(I32(red) * I32(19595) + I32(green) * I32(38470) + I32(blue) * I32(7471) + I32(0x8000)) >> U32(16))


@compile("uint8(float32, uint8, float32)")
def _blend(base, value, factor):
    """From ``base`` (0) to ``value`` (1) and beyond, cut off to a byte."""
    mixed = base + factor * (F32(value) - base)
    mixed = mixed if mixed > F32(0) else F32(0)
    return U8(I32(mixed if mixed < F32(255) else F32(255)))


@compile("void(uint8[:, ::1], float32, float32)")
def _blend_all(planes, base, factor):
    """Brightness with base 0; contrast with the mean of the greys."""
    values = planes.reshape(-1)
    for i in range(values.size):
        values[i] = _blend(base, values[i], factor)


@compile("int64(uint8[:, ::1])")
def _mean_grey(planes):
    red, green, blue = planes[0], planes[1], planes[2]
    total = np.int64(0)
    for i in range(red.size):
        total += _luma(red[i], green[i], blue[i])
    return int(total / red.size + 0.5)


@compile("void(uint8[:, ::1], float32)")
def _saturate(planes, factor):
    """Saturation; with factor 0 greyscale."""
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.size):
        grey = F32(_luma(red[i], green[i], blue[i]))
        red[i], green[i], blue[i] = _blend(grey, red[i], factor), _blend(grey, green[i], factor), _blend(grey, blue[i], factor)


@compile("float32(float32, float32, float32)")
def _channel(turn, saturation, value):
    """A channel half a turn away from where it vanishes has ``turn`` 765; 1530 to the turn. Half a level is added."""
    turn = turn - F32(1530) if turn >= F32(1530) else turn
    back = F32(1020) - turn
    share = turn if turn < back else back
    share = share if share > F32(0) else F32(0)
    share = share if share < F32(255) else F32(255)
    return value * (F32(1) - saturation * (share * F32(1 / 255))) + F32(0.5)


@compile("void(uint8[:, ::1], int32)")
def _shift_hue(planes, shift):
    """Hue, saturation and value as bytes, ``shift`` added to the hue, and back to red, green and blue.

    Where this computes otherwise than Pillow, it gives the same bytes for all 16.7 million colours (tests).
    """
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.size):
        r, g, b = F32(red[i]), F32(green[i]), F32(blue[i])
        high = r if r > g else g
        high = high if high > b else b
        low = r if r < g else g
        low = low if low < b else b
        spread = high - low
        # In sixths of a turn: the place of the highest channel, off by one less the share that the middle one lacks.
        lacks = (high + high + low - (r + g + b)) / spread if spread > F32(0) else F32(1)
        place = F32(0) if r == high else (F32(2) if g == high else F32(4))
        onward = g != low if r == high else (b != low if g == high else r != low)
        sixths = place + F32(1) - lacks if onward else place - F32(1) + lacks
        turn = F64(sixths) * (1 / 6) + 1.0
        turn = turn - 1.0 if turn >= 1.0 else turn
        red[i] = U8(I32(F32(turn) * F32(255)) + shift)  # wraps around, as it should
        green[i] = U8(I32(spread / (high if high > F32(0) else F32(1)) * F32(255)))
        blue[i] = U8(I32(high))
    for i in range(red.size):
        hue, saturation, value = F32(red[i]) * F32(6), F32(green[i]) * F32(1 / 255), F32(blue[i])
        red[i] = U8(I32(_channel(hue + F32(1275), saturation, value)))
        green[i] = U8(I32(_channel(hue + F32(765), saturation, value)))
        blue[i] = U8(I32(_channel(hue + F32(255), saturation, value)))


@compile("void(uint8[::1], uint8[:, ::1], int64[::1], float64[::1])")
def colour(pixels, planes, whole, real):
    """Jitter in the drawn order, then greyscale, of interleaved ``pixels``; ``planes`` is room for them."""
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.size):  # a known step lets these loops vectorise
        at = U64(i) * U3
        red[i], green[i], blue[i] = pixels[at], pixels[at + U1], pixels[at + U2]
    if whole[JITTER]:
        for operation in whole[ORDER : ORDER + 4]:
            factor = real[FACTOR + operation]
            if operation == 3:
                if factor != 0.0:
                    _shift_hue(planes, I32(factor * 255))
            elif factor == 1.0:
                pass
            elif operation == 0:
                _blend_all(planes, F32(0), F32(factor))
            elif operation == 1:
                _blend_all(planes, F32(_mean_grey(planes)), F32(factor))
            else:
                _saturate(planes, F32(factor))
    if whole[GREY]:
        _saturate(planes, F32(0))
    for i in range(red.size):
        at = U64(i) * U3
        pixels[at], pixels[at + U1], pixels[at + U2] = red[i], green[i], blue[i]
