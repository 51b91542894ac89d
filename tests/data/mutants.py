"""JPEGs as disks, networks and enemies leave them; and, run as a program, what becomes of them on their way to crops.

    python -m tests.data.mutants COUNT SEED

A process of its own, since a crash ends one. Prints one JSON line: how many were readable, the reasons of those that were
not, the most memory of the process beyond its beginning (MB), and the slowest block (CPU seconds).
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import random
import re
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from swav_ray.data.decode import BadImageError, ingest
from swav_ray.data.multicrop import make_crops, ready
from tests.data.pictures import encode, photo, picture
from tests.data.small import small_config

BLOCK = 16
SOF, SOS = re.compile(rb"\xff[\xc0-\xc2]\x00[\x08-\x20]"), b"\xff\xda"


def bit_flips(jpeg: bytes, chance: random.Random) -> bytes:
    content = bytearray(jpeg)
    for _ in range(chance.choice((1, 1, 3, 30, 300))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def flips_in_the_header(jpeg: bytes, chance: random.Random) -> bytes:
    content = bytearray(jpeg)
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(min(700, len(content)))] = chance.randrange(256)
    return bytes(content)


def truncated(jpeg: bytes, chance: random.Random) -> bytes:
    end = chance.choice((b"", b"\xff\xd9"))
    return jpeg[: chance.randrange(len(jpeg))] + end


def a_piece_lost_or_doubled(jpeg: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(jpeg))
    stop = start + chance.randint(1, 5000)
    return jpeg[:start] + chance.choice((b"", bytes(stop - start), 2 * jpeg[start:stop])) + jpeg[stop:]


def lying_header(jpeg: bytes, chance: random.Random) -> bytes:
    """Another size, precision, number of components or sampling than the picture was coded with."""
    content = bytearray(jpeg)
    frame = SOF.search(jpeg)
    assert frame is not None
    at = frame.start() + 4  # precision, height (2), width (2), components, then (id, sampling, table) of each
    kind = chance.randrange(4)
    if kind == 0:
        side = lambda: chance.choice((0, 1, 7, 300, 5000, 9999, 65535))  # noqa: E731
        content[at + 1 : at + 5] = struct.pack(">HH", side(), side())
    elif kind == 1:
        content[at + 7 + 3 * chance.randrange(content[at + 5])] = chance.randrange(256)
    elif kind == 2:
        content[at + 5] = chance.randrange(256)
    else:
        content[at] = chance.choice((1, 12, 16, 255))
    return bytes(content)


def segment_of_another_length(jpeg: bytes, chance: random.Random) -> bytes:
    places = [i for i in range(2, min(len(jpeg) - 4, 2000)) if jpeg[i] == 0xFF and jpeg[i + 1] not in (0x00, 0xFF)]
    at = chance.choice(places) + 2
    return jpeg[:at] + struct.pack(">H", chance.choice((0, 1, 2, 65535, chance.randrange(65536)))) + jpeg[at + 2 :]


def bomb_of_pixels(jpeg: bytes, chance: random.Random) -> bytes:
    """A few bytes that promise up to 65,535 x 65,535 pixels, with the end of the picture in its place."""
    frame = SOF.search(jpeg)
    assert frame is not None
    side = chance.choice(((65535, 65535), (10000, 10000), (9999, 9999), (65535, 1500), (20, 65500)))
    at = frame.start() + 5
    return jpeg[:at] + struct.pack(">HH", *side) + jpeg[at + 4 : at + chance.choice((600, 3000))] + b"\xff\xd9"


def bomb_of_scans(jpeg: bytes, chance: random.Random) -> bytes:
    """The last scan some thousand times, each a pass over what the header says are 8 to 80 million pixels."""
    frame = SOF.search(jpeg)
    assert frame is not None
    at = frame.start() + 5
    scan = jpeg[jpeg.rindex(SOS) : -2][: chance.choice((10, 20, 40))]
    size = struct.pack(">HH", *chance.choice(((2000, 4000), (9000, 9000))))
    return jpeg[:at] + size + jpeg[at + 4 : -2] + scan * chance.choice((2000, 20_000)) + b"\xff\xd9"


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    bit_flips,
    flips_in_the_header,
    truncated,
    a_piece_lost_or_doubled,
    lying_header,
    segment_of_another_length,
    bomb_of_pixels,
    bomb_of_scans,
)


@functools.cache
def originals() -> list[bytes]:
    image = picture(150, 110)
    return [
        encode(image),
        encode(photo("china.jpg"), quality=90),
        encode(image.convert("L")),
        encode(image, progressive=True),
        encode(image, quality=95, subsampling=0, optimize=True),
        encode(image, restart_marker_blocks=4),
        encode(image.convert("CMYK")),
        encode(image, exif=_exif()),
    ]


def _exif() -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def mutant(number: int, seed: int) -> bytes:
    """Every mutation of every original in turn, each at its own random places."""
    chance = random.Random(f"{seed} {number}")
    return MUTATIONS[number % len(MUTATIONS)](originals()[number // len(MUTATIONS) % len(originals())], chance)


def peak_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main(count: int, seed: int) -> None:
    config = small_config(data={"train": "nothing"})
    ready(config)
    good = originals()[0]
    before, slowest, reasons, readable = 0.0, 0.0, collections.Counter[str](), 0
    for first in range(0, count, BLOCK - 1):
        numbers = range(first, min(first + BLOCK - 1, count))
        jpegs, ids = [good, *(mutant(n, seed) for n in numbers)], ["good", *map(str, numbers)]
        before = before or peak_mb()
        start = time.process_time()
        done = make_crops(config, 0, ids, jpegs)
        slowest = max(slowest, time.process_time() - start)
        assert all(group.shape[1] == len(ids) for group in done.crops), "the block lost rows"
        assert "good" not in dict(done.bad)
        readable += len(ids) - 1 - len(done.bad)
        for _, reason in done.bad:
            assert reason and "\n" not in reason and "0x" not in reason, reason
            reasons[re.sub(r"[\d,]+", "N", reason)] += 1
        if first % 4 == 0:  # and what `swav-ray shard` makes of them
            for jpeg in jpegs:
                with contextlib.suppress(BadImageError):
                    ingest(jpeg)
    print(json.dumps({"readable": readable, "reasons": reasons, "peak_mb": peak_mb() - before, "slowest_s": slowest}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
