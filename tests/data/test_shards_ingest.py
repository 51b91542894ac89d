"""What becomes of a picture on its way into a shard: nothing, a lossless transcoding, a new encoding, or a change asked for."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swav_ray.data.ingest import Change, ingest
from swav_ray.errors import UserError
from tests.data.pictures import encode, opened, photo, picture

ORIENTATION = 0x0112


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(opened(jpeg).convert("RGB"), dtype=np.int64)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_progressive_files_become_baseline_without_a_loss(mode: str, subsampling: int) -> None:
    pytest.importorskip("turbojpeg")
    content = encode(photo("china.jpg").convert(mode), progressive=True, quality=80, subsampling=subsampling)
    assert opened(content).info["progressive"]
    done = ingest(content)
    assert done.why == "progressive, lossless"
    assert not opened(done.jpeg).info.get("progressive")
    assert opened(done.jpeg).mode == mode
    assert (pixels(done.jpeg) == pixels(content)).all()
    assert opened(done.jpeg).quantization == opened(content).quantization
    assert not ingest(done.jpeg).transcoded


def test_without_turbojpeg_they_keep_their_quantisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "turbojpeg", None)
    content = encode(photo("china.jpg"), progressive=True, quality=80)
    done = ingest(content)
    assert done.why == "progressive, encoded anew"
    assert not opened(done.jpeg).info.get("progressive")
    assert opened(done.jpeg).quantization == opened(content).quantization
    assert np.abs(pixels(done.jpeg) - pixels(content)).mean() < 0.5
    assert len(done.jpeg) < 1.1 * len(content)


def test_an_odd_progressive_file_that_turbojpeg_refuses_is_encoded_anew() -> None:
    turbojpeg = pytest.importorskip("turbojpeg")
    content = encode(photo("china.jpg"), progressive=True)
    scan = content.index(b"\xff\xda")
    odd = content[:scan] + b"\x00\x01\x02" + content[scan:]  # bytes between segments: decoders warn and go on
    with pytest.raises(RuntimeError):
        turbojpeg.transform(odd)
    done = ingest(odd)
    assert done.why == "progressive, encoded anew"
    assert np.abs(pixels(done.jpeg) - pixels(content)).mean() < 0.5


def test_a_jpeg_with_more_pictures_behind_it_is_kept() -> None:
    """As many cameras write them; Pillow calls them MPO."""
    content = encode(photo("china.jpg"), "MPO", save_all=True, append_images=[photo("flower.jpg")])
    assert opened(content).format == "MPO"
    done = ingest(content)
    assert done.jpeg == content and not done.transcoded


TURNED = Image.Exif()
TURNED[ORIENTATION] = 6
DEEP = (np.arange(40 * 30).reshape(30, 40) * 50).astype(np.uint16)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (encode(picture(40, 30), exif=TURNED), "turned"),
        (encode(picture(40, 30), exif=TURNED, progressive=True), "turned"),
        (encode(picture(40, 30).convert("CMYK")), "CMYK"),
        (encode(picture(40, 30).convert("CMYK"), progressive=True), "CMYK"),
        (encode(picture(40, 30), "PNG"), "PNG"),
        (encode(picture(40, 30).convert("LA"), "PNG"), "PNG"),
        (encode(Image.fromarray(DEEP), "PNG"), "16 bits or more"),
        (encode(picture(40, 30)), ""),
        (encode(picture(40, 30).convert("L")), ""),
    ],
    ids=["turned", "turned progressive", "CMYK", "CMYK progressive", "PNG", "grey and alpha", "deep", "plain", "grey"],
)
def test_the_reason_of_a_transcoding_is_said(content: bytes, why: str) -> None:
    done = ingest(content)
    assert done.why == why
    assert done.transcoded == bool(why)
    grey = opened(content).mode in ("L", "LA", "I;16")
    assert opened(done.jpeg).mode == ("L" if grey else "RGB")


def big_endian_tiff(values: np.ndarray) -> bytes:
    return encode(Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()), "TIFF")


@pytest.mark.parametrize("top", [200, 255, 256, 4095, 65535])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "PGM"])
def test_sixteen_bits_are_taken_for_sixteen_bits_however_dark(kind: str, top: int) -> None:
    values = np.linspace(0, top, 40 * 30).round().astype(np.uint16).reshape(30, 40)
    image = Image.fromarray(values)
    content = big_endian_tiff(values) if kind == "big-endian TIFF" else encode(image, {"PGM": "PPM"}.get(kind, kind))
    expected = values / 65535 * 255
    assert np.abs(pixels(ingest(content).jpeg)[..., 0] - expected).max() < 6


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats_are_scaled_to_the_smallest_usual_white(white: float) -> None:
    values = np.linspace(0, white, 40 * 30, dtype=np.float32).reshape(30, 40)
    values[3, 4] = np.nan
    expected = np.nan_to_num(values) / white * 255
    assert np.abs(pixels(ingest(encode(Image.fromarray(values), "TIFF")).jpeg)[..., 0] - expected).mean() < 2


# --- changes asked for


def test_larger_pictures_are_shrunk_and_the_others_kept() -> None:
    large, small = encode(picture(80, 40)), encode(picture(40, 20))
    done = ingest(large, Change(max_side=40))
    assert (done.width, done.height, done.why) == (40, 20, "shrunk")
    assert opened(done.jpeg).size == (40, 20)
    assert ingest(small, Change(max_side=40)).jpeg == small
    shrunk = ingest(encode(photo("china.jpg"), quality=95), Change(max_side=320))
    expected = np.asarray(photo("china.jpg").resize((320, 214), Image.Resampling.LANCZOS), dtype=np.int64)
    assert np.abs(pixels(shrunk.jpeg) - expected).mean() < 3  # encoded twice


def test_turned_pictures_are_shrunk_upright() -> None:
    done = ingest(encode(picture(80, 40), exif=TURNED), Change(max_side=20))
    assert (done.width, done.height, done.why) == (10, 20, "turned")


def test_deep_pictures_are_shrunk_in_their_brightness() -> None:
    done = ingest(encode(Image.fromarray(np.full((60, 80), 128 * 257, np.uint16)), "PNG"), Change(max_side=40))
    assert (done.width, done.height) == (40, 30)
    assert opened(done.jpeg).mode == "L"
    assert np.abs(pixels(done.jpeg) - 128).max() <= 2


def test_a_quality_encodes_every_picture_anew() -> None:
    content = encode(photo("china.jpg"), quality=95)
    done = ingest(content, Change(quality=60))
    assert done.why == "encoded anew"
    assert len(done.jpeg) < len(content) / 2
    assert opened(done.jpeg).quantization == opened(encode(photo("china.jpg"), quality=60)).quantization


@pytest.mark.parametrize("values", [{"max_side": 7}, {"max_side": -1}, {"quality": 101}, {"quality": -5}])
def test_values_out_of_range_are_one_clear_line(values: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"^--(max-side|quality) -?\d+: (at least 8 pixels|from 1 to 100)$"):
        Change(**values)


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), most=st.integers(8, 300))
def test_no_side_is_longer_than_asked_and_shapes_are_kept(width: int, height: int, most: int) -> None:
    content = encode(Image.new("RGB", (width, height)))
    done = ingest(content, Change(max_side=most))
    if max(width, height) <= most:
        assert done.jpeg == content
        return
    assert max(done.width, done.height) == most
    scale = most / max(width, height)
    assert abs(done.width - width * scale) <= 1 and abs(done.height - height * scale) <= 1
    assert min(done.width, done.height) >= 1
