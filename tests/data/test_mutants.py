"""Thousands of damaged and hostile JPEGs: no crash, no hang, bounded memory, and no row of a batch lost."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from swav_ray.data.decode import BadImageError, decode, decode_into, size_of
from tests.data.mutants import MUTATIONS, SOF, bomb_of_scans, mutant, originals
from tests.data.pictures import encode, picture

ROOM_MB = 1000  # 300 of pixels and Pillow's 400, with what the heap keeps; a picture of 100 million pixels may take that


@pytest.mark.parametrize("count", [640, pytest.param(10_000, marks=pytest.mark.chaos)])
def test_mutated_pictures_crash_nothing(count: int) -> None:
    command = [sys.executable, "-m", "tests.data.mutants", str(count), "31"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 + count / 5, check=False)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    bad = sum(found["reasons"].values())
    assert found["readable"] + bad == count
    assert count / 10 < bad < count * 0.95, "the mutations are too weak, or too strong, to say anything"
    assert any("bytes can hold" in reason for reason in found["reasons"])
    assert any("too long" in reason for reason in found["reasons"])
    assert found["peak_mb"] < ROOM_MB
    assert found["slowest_s"] < 30  # sixteen bombs at once at most; 1 to 3 s as a rule


def test_mutations_change_every_picture() -> None:
    assert all(mutant(n, 1) not in originals() for n in range(len(MUTATIONS) * len(originals())))
    assert mutant(5, 1) == mutant(5, 1) != mutant(5, 2)


def claiming(jpeg: bytes, height: int, width: int) -> bytes:
    at = SOF.search(jpeg).start() + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def test_a_small_file_with_a_huge_size_is_refused_before_it_takes_memory() -> None:
    jpeg = claiming(encode(picture(64, 48)), 9999, 9999)
    for read in (size_of, decode):
        with pytest.raises(BadImageError, match=r"^9999 x 9999 pixels is more than a JPEG of [\d,]+ bytes can hold$"):
            read(jpeg)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "quality": 1}], ids=str)
def test_the_emptiest_of_honest_pictures_is_not(mode: str, options: dict[str, object]) -> None:
    """One colour, which a JPEG holds in the fewest bytes."""
    jpeg = encode(Image.new(mode, (5000, 4000)), **options)
    assert size_of(jpeg) == (4000, 5000)
    assert decode(jpeg).size == (5000, 4000)


def test_thousands_of_scans_are_refused() -> None:
    jpeg = bomb_of_scans(encode(picture(150, 110), progressive=True), random.Random(1))
    for read in (size_of, decode):
        with pytest.raises(BadImageError, match=r"pixels in [\d,]+ scans would take too long"):
            read(jpeg)
    honest = encode(picture(3000, 2000), progressive=True)
    assert decode(honest).size == (3000, 2000)


@pytest.mark.parametrize("sampling", [0x14, 0x12, 0x24, 0x33, 0x44], ids=hex)
def test_a_sampling_that_simplejpeg_has_no_name_for_is_no_error_of_another_kind(sampling: int) -> None:
    jpeg = bytearray(encode(picture(64, 48)))
    jpeg[SOF.search(jpeg).start() + 11] = sampling
    room = np.empty(64 * 48 * 3, dtype=np.uint8)
    assert size_of(bytes(jpeg)) == (48, 64)
    with contextlib.suppress(BadImageError):
        decode_into(room, bytes(jpeg), 48, 64)


@pytest.mark.parametrize("size", [(3, 2), (40, 511), (40, 512), (40, 1300)], ids=str)
def test_what_pillow_must_decode_arrives_whole(size: tuple[int, int]) -> None:
    """It is taken over in strips: CMYK is its, for one."""
    width, height = size
    jpeg = encode(picture(width, height).convert("CMYK"))
    room = np.full(height * width * 3 + 7, 99, dtype=np.uint8)
    decode_into(room, jpeg, height, width)
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    np.testing.assert_array_equal(room[:-7].reshape(height, width, 3), expected)
    assert (room[-7:] == 99).all()
