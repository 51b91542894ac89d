"""What a picture's crops cost on one core: decoded, 2 crops of 224 px and 6 of 96 px, as published.

    python benchmarks/input.py [--quick]          the peers: pip install 'swav-ray[bench]'

Candidates take turns on the same 300 generated JPEGs (500 x 375, about 98 KB), one thread, processor time; a ratio is the
median over the rounds of peer / ours within a round.
  reference recipe   Pillow, torchvision's v1 transforms per picture and crop, blur by OpenCV (23 x 23), tensors normalised
  lightly            its SwaVTransform, as it comes
  albumentations     the same steps with the same strengths; its crops are aliased, so another distribution; bytes out
  ours               `make_crops`: draws, decode, crops, colour, blur, bytes into the batch; `reference` is our Pillow backend
A peer that is not installed is said to be missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from swav_ray.config import Config, load_config
from swav_ray.data.compiled import kernels
from swav_ray.data.decode import decode_into
from swav_ray.data.draws import draw
from swav_ray.data.multicrop import make_crops, ready

BLOCK = 16  # pictures at a time, data.block_rows
GROUPS = [(224, 2, (0.14, 1.0)), (96, 6, (0.05, 0.14))]
MEAN, STD = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)
OFF = {"augment.jitter": 0, "augment.grey": 0, "augment.blur": 0}
Candidate = Callable[[Sequence[bytes]], Any]


def pictures(count: int) -> list[bytes]:
    """Soft colours, texture and noise."""
    contents = []
    for number in range(count):
        draws = np.random.RandomState(number)
        small = draws.randint(0, 256, (63, 84, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float64)
        noisy = (smooth + draws.normal(0, 12.6, smooth.shape)).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, "JPEG", quality=88)
        contents.append(out.getvalue())
    return contents


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def reference_recipe() -> tuple[Candidate, str]:
    try:
        import cv2

        cv2.setNumThreads(1)
    except ImportError:
        cv2 = None

    def blur(image: Image.Image) -> Image.Image:
        if random.random() >= 0.5:
            return image
        sigma = random.uniform(0.1, 2.0)
        if cv2 is None:
            from PIL import ImageFilter

            return image.filter(ImageFilter.GaussianBlur(sigma))
        return Image.fromarray(cv2.GaussianBlur(np.array(image), (23, 23), sigma))

    pipelines = []
    for size, count, scale in GROUPS:
        steps = [
            transforms.RandomResizedCrop(size, scale=scale),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            transforms.RandomGrayscale(0.2),
            blur,
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
        pipelines += [transforms.Compose(steps)] * count

    def run(contents: Sequence[bytes]) -> None:
        for content in contents:
            image = opened(content)
            for pipeline in pipelines:
                pipeline(image)

    return run, "" if cv2 else " (OpenCV is missing: blurred by Pillow)"


def lightly() -> Candidate:
    from lightly.transforms import SwaVTransform

    transform = SwaVTransform()

    def run(contents: Sequence[bytes]) -> None:
        for content in contents:
            transform(opened(content))

    return run


def albumentations() -> Candidate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import albumentations as A  # noqa: N812
    import cv2

    cv2.setNumThreads(1)
    pipelines = []
    for size, count, scale in GROUPS:
        steps = [
            A.RandomResizedCrop((size, size), scale=scale),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur(blur_limit=(23, 23), sigma_limit=(0.1, 2.0), p=0.5),
        ]
        pipelines += [A.Compose(steps)] * count

    def run(contents: Sequence[bytes]) -> None:
        for content in contents:
            image = cv2.cvtColor(cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            for pipeline in pipelines:
                pipeline(image=image)

    return run


def ours(config: Config) -> Candidate:
    ready(config)

    def run(contents: Sequence[bytes]) -> None:
        for start in range(0, len(contents), BLOCK):
            block = contents[start : start + BLOCK]
            make_crops(config, 0, [f"{start + row}" for row in range(len(block))], block)

    return run


def stages(config: Config) -> dict[str, Candidate]:
    """Parts of ours that can be run by themselves."""
    room = np.empty(375 * 500 * 3 + kernels().SLACK, dtype=np.uint8)
    sizes = np.full((BLOCK, 2), (375, 500), dtype=np.int64)
    outs = [np.empty((count, BLOCK, size, size, 3), dtype=np.uint8) for size, count, _ in GROUPS]
    sources = [np.empty_like(out[:, 0]) for out in outs]

    def draws(contents: Sequence[bytes]) -> None:
        for start in range(0, len(contents), BLOCK):
            draw(config, 0, [f"{start + row}" for row in range(BLOCK)], sizes)

    def decode(contents: Sequence[bytes]) -> None:
        for content in contents:
            decode_into(room, content, 375, 500)

    def copy(contents: Sequence[bytes]) -> None:
        for row in range(len(contents)):
            for out, source in zip(outs, sources, strict=True):
                out[:, row % BLOCK] = source

    return {"draws": draws, "decode": decode, "copy": copy}


def candidates() -> tuple[dict[str, Candidate], list[str]]:
    recipe = "imagenet-200ep-bs256"
    all_on = load_config(recipe)
    reference, remark = reference_recipe()
    found: dict[str, Candidate] = {"reference recipe": reference}
    missing = []
    for name, build in (("lightly", lightly), ("albumentations", albumentations)):
        try:
            found[name] = build()
        except ImportError as error:
            missing.append(f"{name} is missing ({error})")
    found["ours, Pillow backend"] = ours(load_config(recipe, {"data.backend": "reference"}))
    found["ours"] = ours(all_on)
    found["ours, no blur"] = ours(load_config(recipe, {"augment.blur": 0}))
    found["ours, decode + crops"] = ours(load_config(recipe, OFF))
    found |= stages(all_on)
    return found, [*missing, *([remark.strip(" ()")] if remark else [])]


def digits() -> tuple[Candidate, Candidate, list[bytes]] | None:
    """The demo's recipe, both backends, and its pictures."""
    try:
        from swav_ray.data.sources import digits_sources

        contents = [source.read() for source in digits_sources("train")[0][:256]]
    except Exception as error:
        print(f"digits are missing ({error})")
        return None
    return ours(load_config("demo-digits", {"data.backend": "reference"})), ours(load_config("demo-digits")), contents


def take_turns(runs: dict[str, Candidate], contents: Sequence[bytes], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time a picture, for each round; a first one warms up."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            part = contents if number else contents[:BLOCK]
            begin = time.process_time()
            run(part)
            if number:
                spent[name].append((time.process_time() - begin) / len(part) * 1e3)
    return spent


def version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: 64 pictures and 3 rounds, not 304 and 7")
    count, rounds = (64, 3) if parser.parse_args().quick else (304, 7)
    torch.set_num_threads(1)
    contents = pictures(count)
    packages = ("torchvision", "pillow", "simplejpeg", "numba", "lightly", "albumentations", "opencv-python-headless")
    print(
        f"python {' '.join(sys.argv)}: {count} JPEGs of {np.mean([len(c) for c in contents]) / 1e3:.0f} KB, {rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n{', '.join(map(version, packages))}"
    )
    runs, remarks = candidates()
    for remark in remarks:
        print(remark)
    spent = take_turns(runs, contents, rounds)
    median = {name: statistics.median(values) for name, values in spent.items()}

    def ratio(peer: str, mine: str = "ours") -> float | None:
        if peer not in spent:
            return None
        return round(statistics.median(a / b for a, b in zip(spent[peer], spent[mine], strict=True)), 2)

    print(f"{'':24}{'CPU ms a picture':>18}{'reference / it':>16}")
    for name in list(runs)[: -len(stages(load_config("demo-digits")))]:
        print(f"{name:24}{median[name]:>18.3f}{ratio('reference recipe', name):>15.2f}x")
    part = {
        "draws": median["draws"],
        "decode": median["decode"],
        "crops": median["ours, decode + crops"] - median["decode"] - median["draws"] - median["copy"],
        "colour and grey": median["ours, no blur"] - median["ours, decode + crops"],
        "blur": median["ours"] - median["ours, no blur"],
        "copy into the batch": median["copy"],
    }
    print("of ours:  " + "   ".join(f"{name} {value:.3f}" for name, value in part.items()))
    line = {
        "ratio_all_cpu": ratio("reference recipe"),
        "ratio_decode_crops": ratio("reference recipe", "ours, decode + crops"),
        "ratio_lightly": ratio("lightly"),
        "ratio_albumentations": ratio("albumentations"),
        "ratio_pillow_backend": ratio("ours, Pillow backend"),
        "ms_all_cpu": round(median["ours"], 3),
    }
    if found := digits():
        slow, fast, small = found
        demo = take_turns({"slow": slow, "fast": fast}, small, 3 * rounds)
        slow_ms, fast_ms = statistics.median(demo["slow"]), statistics.median(demo["fast"])
        line["ratio_digits"] = round(statistics.median(a / b for a, b in zip(demo["slow"], demo["fast"], strict=True)), 2)
        print(f"demo-digits: Pillow {slow_ms:.3f} ms a picture, compiled {fast_ms:.3f}: {line['ratio_digits']}x")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
