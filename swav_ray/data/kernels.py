"""The crops of one picture from its decoded bytes, compiled by numba: what `reference.py` asks of Pillow, bit for bit.

Imported only by `compiled.py`, which says where the machine code is kept. Every function has one signature, releases
the lock, and follows Pillow's arithmetic: fixed-point weights and bytes between the passes of the resize, blends in float32
cut off to bytes after each operation, hue through bytes, a Gaussian as three box passes.

Shapes: C crops of one size, S side in pixels, N = S * S. Pixels lie interleaved, rows of red, green, blue; colour works on
planes (3, N), which vectorise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

# Columns of the draws of one crop (`multicrop.columns`).
TOP, LEFT, HEIGHT, WIDTH, FLIP, JITTER, GREY, ORDER = range(8)  # whole numbers; ORDER takes four columns
FACTOR, SIGMA, ANGLE = 0, 4, 5  # real numbers; FACTOR takes four columns
SLACK = 1  # bytes after the last pixel that may be read or overwritten

B, D, F, I, U = np.uint8, np.float64, np.float32, np.int32, np.uint64
W = np.uint32
U1, U2, U3 = U(1), U(2), U(3)  # unsigned indices need no test for negative ones
BITS = 22  # of a weight of the resize
HALF = I(1 << (BITS - 1))
BLUR_HALF = W(1 << 23)


def _compile(signature: str) -> Any:
    return njit(signature, nogil=True, cache=True)


@_compile("void(uint8[::1], int64, uint8[::1], int64, int64)")
def _copy(source, begin, target, at, size):  # type: ignore[no-untyped-def]
    """Bytes of one array into another; slices assigned to slices are copied one by one."""
    from_, to = source[begin : begin + size], target[at : at + size]
    for i in range(size):
        to[i] = from_[i]


@_compile("int64(int64, int64)")
def _count(size_in, size_out):  # type: ignore[no-untyped-def]
    """Taps that an output pixel needs at most, K."""
    taps = min(math.ceil(2 * max(size_in / size_out, 1.0)), size_in)
    return taps if taps <= 5 else (taps + 3) // 4 * 4


@_compile("void(int64, boolean, uint64[::1], int32[:, ::1])")
def _weigh(size_in, flip, first, weights):  # type: ignore[no-untyped-def]
    """Antialiased bilinear weights ``(K, S)`` and the first input pixel they fall on; all K taps are inside."""
    taps, size_out = weights.shape
    scale = size_in / size_out
    support = max(scale, 1.0)
    inverse = 1.0 / support
    centres, sums, shares = np.empty(size_out), np.zeros(size_out), np.empty((taps, size_out))
    for x in range(size_out):
        centres[x] = ((size_out - 1 - x if flip else x) + 0.5) * scale
        first[x] = min(max(int(centres[x] - support + 0.5), 0), size_in - taps)
    for tap in range(taps):
        for x in range(size_out):
            share = 1.0 - abs((D(first[x]) + tap - centres[x] + 0.5) * inverse)
            shares[tap, x] = share if share > 0.0 else 0.0
            sums[x] += shares[tap, x]
    for tap in range(taps):
        for x in range(size_out):
            weights[tap, x] = I(0.5 + shares[tap, x] / sums[x] * D(1 << BITS))


def _horizontal(count: int) -> Any:
    """The resize along rows for ``count`` taps, so that the loop over them unrolls; 4: for any multiple of four."""

    @_compile("void(uint8[::1], int64, int64, int64, int64, uint64[::1], int32[:, ::1], int64, uint8[::1])")
    def kernel(pixels, stride, top, left, height, first, weights, side, out):  # type: ignore[no-untyped-def]
        for y in range(height):
            line = pixels[((top + y) * stride + left) * 3 :]
            to = out[y * side * 3 :]
            for x in range(side):
                at = first[x] * U3
                # Four sums, not three: one vector. The fourth is the next pixel's red and is overwritten by it.
                a, b, c, d = HALF, HALF, HALF, HALF
                for start in range(0, weights.shape[0] if count == 4 else count, count):
                    for tap in range(count):
                        w = weights[start + tap, x]
                        a = I(a + I(line[at]) * w)
                        b = I(b + I(line[at + U1]) * w)
                        c = I(c + I(line[at + U2]) * w)
                        d = I(d + I(line[at + U3]) * w)
                        at += U3
                at = U(x) * U3
                to[at], to[at + U1], to[at + U2], to[at + U3] = a >> BITS, b >> BITS, c >> BITS, d >> BITS

    return kernel


def _vertical(count: int) -> Any:
    """The resize along columns for ``count`` taps; 0: for any number."""

    @_compile("void(uint8[::1], int64, int64, int64, int64, uint64[::1], int32[:, ::1], int64, uint8[::1])")
    def kernel(pixels, stride, top, left, width, first, weights, side, out):  # type: ignore[no-untyped-def]
        values = width * 3
        sums = np.empty(0 if count else values, dtype=np.int32)
        for y in range(side):
            to = out[y * values :]
            start, step = U(((top + np.int64(first[y])) * stride + left) * 3), U(stride * 3)
            if count:
                for i in range(values):
                    total, at = HALF, start + U(i)
                    for tap in range(count):
                        total = I(total + I(pixels[at]) * weights[tap, y])
                        at += step
                    to[i] = total >> BITS
                continue
            sums[:] = HALF
            for tap in range(weights.shape[0]):
                w, line = weights[tap, y], pixels[np.int64(start + U(tap) * step) :]
                for i in range(values):
                    sums[i] += I(line[i]) * w
            for i in range(values):
                to[i] = sums[i] >> BITS

    return kernel


_horizontal_1, _horizontal_2, _horizontal_3, _horizontal_4, _horizontal_5 = map(_horizontal, (1, 2, 3, 4, 5))
_vertical_2, _vertical_3, _vertical_4, _vertical_any = map(_vertical, (2, 3, 4, 0))


@_compile("void(uint8[::1], int64, int64, int64, int64, uint64[::1], int32[:, ::1], int64, uint8[::1])")
def _along_rows(pixels, stride, top, left, height, first, weights, side, out):  # type: ignore[no-untyped-def]
    taps = weights.shape[0]
    if taps == 1:
        _horizontal_1(pixels, stride, top, left, height, first, weights, side, out)
    elif taps == 2:
        _horizontal_2(pixels, stride, top, left, height, first, weights, side, out)
    elif taps == 3:
        _horizontal_3(pixels, stride, top, left, height, first, weights, side, out)
    elif taps == 5:
        _horizontal_5(pixels, stride, top, left, height, first, weights, side, out)
    else:
        _horizontal_4(pixels, stride, top, left, height, first, weights, side, out)


@_compile("void(uint8[::1], int64, int64, int64, int64, uint64[::1], int32[:, ::1], int64, uint8[::1])")
def _along_columns(pixels, stride, top, left, width, first, weights, side, out):  # type: ignore[no-untyped-def]
    taps = weights.shape[0]
    if taps == 2:
        _vertical_2(pixels, stride, top, left, width, first, weights, side, out)
    elif taps == 3:
        _vertical_3(pixels, stride, top, left, width, first, weights, side, out)
    elif taps == 4:
        _vertical_4(pixels, stride, top, left, width, first, weights, side, out)
    else:
        _vertical_any(pixels, stride, top, left, width, first, weights, side, out)


@_compile("void(uint8[::1], int64, int64, int64, int64, int64, boolean, int64, uint8[::1])")
def _resize(pixels, stride, top, left, height, width, flip, side, out):  # type: ignore[no-untyped-def]
    """A box of the picture to S x S, flipped or not. No tap reaches outside the box."""
    first_x, first_y = np.empty(side, dtype=np.uint64), np.empty(side, dtype=np.uint64)
    weights_x = np.empty((_count(width, side), side), dtype=np.int32)
    weights_y = np.empty((_count(height, side), side), dtype=np.int32)
    _weigh(width, flip, first_x, weights_x)
    _weigh(height, False, first_y, weights_y)
    # Bytes are rounded between the passes, so their order shows; this is that of Pillow 13.
    if height > side and height - side > 2 * (width - side):
        low = np.empty(side * width * 3 + SLACK, dtype=np.uint8)
        _along_columns(pixels, stride, top, left, width, first_y, weights_y, side, low)
        _along_rows(low, width, 0, 0, side, first_x, weights_x, side, out)
    else:
        narrow = np.empty(side * height * 3 + SLACK, dtype=np.uint8)
        _along_rows(pixels, stride, top, left, height, first_x, weights_x, side, narrow)
        _along_columns(narrow, side, 0, 0, side, first_y, weights_y, side, out)


@_compile("uint8(uint8, uint8, uint8)")
def _luma(red, green, blue):  # type: ignore[no-untyped-def]
    return B(W(I(red) * I(19595) + I(green) * I(38470) + I(blue) * I(7471) + I(0x8000)) >> W(16))


@_compile("uint8(float32, uint8, float32)")
def _blend(base, value, factor):  # type: ignore[no-untyped-def]
    """From ``base`` (0) to ``value`` (1) and beyond, cut off to a byte."""
    mixed = base + factor * (F(value) - base)
    mixed = mixed if mixed > F(0) else F(0)
    return B(I(mixed if mixed < F(255) else F(255)))


@_compile("void(uint8[:, ::1], float32, float32)")
def _blend_all(planes, base, factor):  # type: ignore[no-untyped-def]
    """Brightness with base 0; contrast with the mean of the greys."""
    values = planes.reshape(-1)
    for i in range(values.size):
        values[i] = _blend(base, values[i], factor)


@_compile("int64(uint8[:, ::1])")
def _mean_grey(planes):  # type: ignore[no-untyped-def]
    red, green, blue = planes[0], planes[1], planes[2]
    total = np.int64(0)
    for i in range(red.size):
        total += _luma(red[i], green[i], blue[i])
    return int(total / red.size + 0.5)


@_compile("void(uint8[:, ::1], float32)")
def _saturate(planes, factor):  # type: ignore[no-untyped-def]
    """Saturation; with factor 0 greyscale."""
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.size):
        grey = F(_luma(red[i], green[i], blue[i]))
        red[i], green[i], blue[i] = _blend(grey, red[i], factor), _blend(grey, green[i], factor), _blend(grey, blue[i], factor)


@_compile("float32(float32, float32, float32)")
def _channel(turn, saturation, value):  # type: ignore[no-untyped-def]
    """A channel half a turn away from where it vanishes has ``turn`` 765; 1530 to the turn. Half a level is added."""
    turn = turn - F(1530) if turn >= F(1530) else turn
    back = F(1020) - turn
    share = turn if turn < back else back
    share = share if share > F(0) else F(0)
    share = share if share < F(255) else F(255)
    return value * (F(1) - saturation * (share * F(1 / 255))) + F(0.5)


@_compile("void(uint8[:, ::1], int32)")
def _shift_hue(planes, shift):  # type: ignore[no-untyped-def]
    """Hue, saturation and value as bytes, ``shift`` added to the hue, and back to red, green and blue.

    Where this computes otherwise than Pillow, it gives the same bytes for all 16.7 million colours (tests).
    """
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.size):
        r, g, b = F(red[i]), F(green[i]), F(blue[i])
        high = r if r > g else g
        high = high if high > b else b
        low = r if r < g else g
        low = low if low < b else b
        spread = high - low
        # In sixths of a turn: the place of the highest channel, off by one less the share that the middle one lacks.
        lacks = (high + high + low - (r + g + b)) / spread if spread > F(0) else F(1)
        place = F(0) if r == high else (F(2) if g == high else F(4))
        onward = g != low if r == high else (b != low if g == high else r != low)
        sixths = place + F(1) - lacks if onward else place - F(1) + lacks
        turn = D(sixths) * (1 / 6) + 1.0
        turn = turn - 1.0 if turn >= 1.0 else turn
        red[i] = B(I(D(F(turn)) * 255.0) + shift)  # wraps around, as it should
        green[i] = B(I(spread / (high if high > F(0) else F(1)) * F(255)))
        blue[i] = B(I(high))
    for i in range(red.size):
        turn, saturation, value = F(red[i]) * F(6), F(green[i]) * F(1 / 255), F(blue[i])
        red[i] = B(I(_channel(turn + F(1275), saturation, value)))
        green[i] = B(I(_channel(turn + F(765), saturation, value)))
        blue[i] = B(I(_channel(turn + F(255), saturation, value)))


@_compile("void(uint8[:, ::1], int64[::1], float64[::1])")
def _colour(planes, whole, real):  # type: ignore[no-untyped-def]
    """Jitter in the drawn order, then greyscale."""
    if whole[JITTER]:
        for operation in whole[ORDER : ORDER + 4]:
            factor = real[FACTOR + operation]
            if operation == 3:
                if factor != 0.0:
                    _shift_hue(planes, I(factor * 255))
            elif factor == 1.0:
                pass
            elif operation == 0:
                _blend_all(planes, F(0), F(factor))
            elif operation == 1:
                _blend_all(planes, F(_mean_grey(planes)), F(factor))
            else:
                _saturate(planes, F(factor))
    if whole[GREY]:
        _saturate(planes, F(0))


@_compile("void(uint8[::1], uint8[::1], int64, int64, int64, uint32, uint32)")
def _box(source, target, margin, step, radius, inner, outer):  # type: ignore[no-untyped-def]
    """A box of ``2 * radius + 1`` bytes ``step`` apart, and an ``outer`` weight for the next one on each side."""
    count = source.size - 2 * margin
    to, centre = target[margin:], source[margin:]
    a, b = source[margin - step :], source[margin + step :]
    if radius == 0:
        for i in range(count):
            to[i] = B(W(W(centre[i]) * inner + (W(a[i]) + W(b[i])) * outer + BLUR_HALF) >> W(24))
    elif radius == 1:
        c, d = source[margin - 2 * step :], source[margin + 2 * step :]
        for i in range(count):
            total = (W(a[i]) + W(b[i]) + W(centre[i])) * inner + (W(c[i]) + W(d[i])) * outer
            to[i] = B(W(total + BLUR_HALF) >> W(24))
    else:
        sums = np.zeros(count, dtype=np.uint32)
        for offset in range(-radius - 1, radius + 2):
            weight = inner if abs(offset) <= radius else outer
            line = source[margin + offset * step :]
            for i in range(count):
                sums[i] += W(line[i]) * weight
        for i in range(count):
            to[i] = B((sums[i] + BLUR_HALF) >> W(24))


@_compile("void(uint8[::1], int64, float64)")
def _blur(pixels, side, sigma):  # type: ignore[no-untyped-def]
    """A Gaussian as three box passes along rows and three along columns, the edge pixels repeated outwards.

    The box's width follows Gwosdek et al. 2011 in float32, as Pillow has it.
    """
    variance = F(sigma) * F(sigma) / F(3)
    whole = F(math.floor((D(F(math.sqrt(12.0 * D(variance) + 1.0))) - 1.0) / 2.0))
    part = (F(2) * whole + F(1)) * (whole * (whole + F(1)) - F(3) * variance)
    part /= F(6) * (variance - (whole + F(1)) * (whole + F(1)))
    radius = np.int64(whole + part)
    inner = W(np.int64(F(1 << 24) / ((whole + part) * F(2) + F(1))))
    outer = W(((1 << 24) - (2 * radius + 1) * np.int64(inner)) // 2)

    edge = radius + 1
    line, row = side * 3, (side + 2 * edge) * 3
    here, there = np.empty((side + 2 * edge) * row, dtype=np.uint8), np.empty((side + 2 * edge) * row, dtype=np.uint8)
    begin, end = edge * row, (edge + side) * row
    for y in range(side):
        start = begin + y * row + edge * 3
        _copy(pixels, y * line, here, start, line)
    for _ in range(3):
        for start in range(begin, end, row):
            for i in range(edge * 3):
                here[start + i] = here[start + edge * 3 + i % 3]
                here[start + edge * 3 + line + i] = here[start + edge * 3 + line - 3 + i % 3]
        _box(here, there, begin, 3, radius, inner, outer)
        here, there = there, here
    for _ in range(3):
        for y in range(edge):
            _copy(here, begin, here, y * row, row)
            _copy(here, end - row, here, end + y * row, row)
        _box(here, there, begin, row, radius, inner, outer)
        here, there = there, here
    for y in range(side):
        start = begin + y * row + edge * 3
        _copy(here, start, pixels, y * line, line)


@_compile("void(uint8[::1], int64, int64, int64, int64, int64, int64, float64, uint8[::1])")
def _rotate(pixels, rows, columns, top, left, height, width, degrees, out):  # type: ignore[no-untyped-def]
    """A box ``(height, width, 3)`` of the picture turned about its centre, black outside, bilinear between pixels."""
    cos, sin = math.cos(-math.radians(degrees)), math.sin(-math.radians(degrees))
    shift_x = cos * (-columns / 2) + sin * (-rows / 2) + columns / 2
    shift_y = -sin * (-columns / 2) + cos * (-rows / 2) + rows / 2
    for y in range(height):
        for x in range(width):
            across, along = left + x + 0.5, top + y + 0.5
            from_x, from_y = cos * across + sin * along + shift_x, -sin * across + cos * along + shift_y
            to = (y * width + x) * 3
            if from_x < 0 or from_x >= columns or from_y < 0 or from_y >= rows:
                out[to], out[to + 1], out[to + 2] = 0, 0, 0
                continue
            from_x, from_y = from_x - 0.5, from_y - 0.5
            x0, y0 = int(math.floor(from_x)), int(math.floor(from_y))
            part_x, part_y = from_x - x0, from_y - y0
            a, b = U(max(x0, 0) * 3), U(min(x0 + 1, columns - 1) * 3)
            upper, lower = U(max(y0, 0) * columns * 3), U(min(y0 + 1, rows - 1) * columns * 3)
            for c in range(3):
                c_ = U(c)
                above, below = D(pixels[upper + a + c_]), D(pixels[lower + a + c_])
                above += (D(pixels[upper + b + c_]) - above) * part_x
                below += (D(pixels[lower + b + c_]) - below) * part_x
                out[U(to) + c_] = B(above + (below - above) * part_y)


@_compile("void(uint8[::1], int64, int64, int64[:, ::1], float64[:, ::1], uint8[:, :, :, :, ::1], int64)")
def crops(pixels, rows, columns, whole, real, out, at):  # type: ignore[no-untyped-def]
    """Cut all crops of one size from one picture.

    Args:
        pixels: flat, ``rows * columns * 3`` bytes and `SLACK` more.
        whole: ``(C, 11)``, real: ``(C, 6)``: the draws of each crop.
        out: ``(C, B, S, S, 3)``; picture ``at`` of each crop is filled.
    """
    side = out.shape[2]
    done = np.empty(side * side * 3 + SLACK, dtype=np.uint8)
    done_N3 = done[: side * side * 3].reshape(side * side, 3)
    planes = np.empty((3, side * side), dtype=np.uint8)
    red, green, blue = planes[0], planes[1], planes[2]
    for crop in range(out.shape[0]):
        n, f = whole[crop], real[crop]
        top, left, height, width = n[TOP], n[LEFT], n[HEIGHT], n[WIDTH]
        if f[ANGLE] != 0.0:
            turned = np.empty(height * width * 3 + SLACK, dtype=np.uint8)
            _rotate(pixels, rows, columns, top, left, height, width, f[ANGLE], turned)
            _resize(turned, width, 0, 0, height, width, n[FLIP] != 0, side, done)
        else:
            _resize(pixels, columns, top, left, height, width, n[FLIP] != 0, side, done)
        if n[JITTER] or n[GREY]:
            for i in range(red.size):
                red[i], green[i], blue[i] = done_N3[i, 0], done_N3[i, 1], done_N3[i, 2]
            _colour(planes, n, f)
            for i in range(red.size):
                done_N3[i, 0], done_N3[i, 1], done_N3[i, 2] = red[i], green[i], blue[i]
        if f[SIGMA] > 0.0:
            _blur(done, side, f[SIGMA])
        _copy(done, 0, out[crop, at].reshape(-1), 0, side * side * 3)
