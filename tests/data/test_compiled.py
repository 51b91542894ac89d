"""Where the kernels' machine code is kept: compiled once, found again, made anew where it was damaged."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from swav_ray.config import load_config
from swav_ray.data import compiled
from swav_ray.data.multicrop import ready
from swav_ray.errors import UserError

# Says how many kernels a process compiled and how many it loaded, and the sum of a crop.
PROCESS = """
import numpy as np, sys
from swav_ray.data.compiled import kernels
k = kernels()
out = np.empty((1, 1, 16, 16, 3), dtype=np.uint8)
k.crops(np.arange(40 * 30 * 3 + 1).astype(np.uint8), 30, 40, np.array([[2, 3, 25, 30, 1, 1, 0, 3, 2, 1, 0]]),
        np.array([[1.2, 0.8, 1.1, 0.1, 1.5, 5.0]]), out, 0)
stats = [k.crops.stats, *(value.stats for name in ("resampling", "jitter", "gaussian", "rotation")
         for value in vars(sys.modules["swav_ray.data.kernels." + name]).values() if hasattr(value, "stats"))]
misses = sum(sum(s.cache_misses.values()) for s in stats)
print(misses, sum(sum(s.cache_hits.values()) for s in stats), int(out.sum()))
"""


def start(cache: Path, tmp: Path | None = None) -> subprocess.Popen[str]:
    environment = {"XDG_CACHE_HOME": str(cache), "TMPDIR": str(tmp or cache), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, int, int]:
    """Compiled, loaded, sum."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    compiled_, loaded, total = map(int, out.split())
    return compiled_, loaded, total


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int, int]]]:
    """A cache, and what the four processes that met it empty at the same moment had to do."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, [outcome(process) for process in [start(cache) for _ in range(4)]]


def files_of(cache: Path, ending: str) -> list[Path]:
    return [path for path in (cache / "swav-ray" / "kernels").rglob("*") if path.name.endswith(ending)]


def test_four_processes_at_once_compile_once(kept: tuple[Path, list[tuple[int, int, int]]]) -> None:
    _, outcomes = kept
    assert sorted(done > 0 for done, _, _ in outcomes) == [False, False, False, True]
    assert len({total for _, _, total in outcomes}) == 1
    assert len({done + loaded for done, loaded, _ in outcomes}) == 1


@pytest.mark.parametrize(
    ("damage", "ending"),
    [
        ("cut short", "nbc"),
        ("a flipped bit", "nbc"),
        pytest.param("empty", "nbc", marks=pytest.mark.slow),
        pytest.param("gone", "nbc", marks=pytest.mark.slow),
        pytest.param("empty", "nbi", marks=pytest.mark.slow),
        pytest.param("cut short", "sha256", marks=pytest.mark.slow),
    ],
)
def test_damaged_machine_code_is_made_anew(
    kept: tuple[Path, list[tuple[int, int, int]]], tmp_path: Path, damage: str, ending: str
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(kept[0], cache)
    victim = max(files_of(cache, ending), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    if damage == "gone":
        victim.unlink()
    else:
        content[len(content) // 2] ^= 4
        victim.write_bytes({"cut short": content[: len(content) // 2], "empty": b"", "a flipped bit": content}[damage])
    done, _, total = outcome(start(cache))
    assert done > 0
    assert total == kept[1][0][2]
    done, _, total = outcome(start(cache))
    assert (done, total) == (0, kept[1][0][2]), "the second process finds all whole again"


def test_an_unwritable_place_is_replaced_by_a_temporary_one(
    kept: tuple[Path, list[tuple[int, int, int]]], tmp_path: Path
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("not a folder")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    assert outcome(start(blocked, temporary))[2] == kept[1][0][2]
    assert outcome(start(blocked, temporary))[0] == 0
    (own,) = temporary.glob("swav-ray-kernels-*")
    assert own.stat().st_mode & 0o077 == 0, "what lies there is executed: nobody else may write it"


def test_a_temporary_folder_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = compiled._temporary_folder()
    assert mine == compiled._temporary_folder()
    mine.chmod(0o777)
    assert compiled._temporary_folder() != mine


def test_no_place_at_all_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("not a folder")
    monkeypatch.setattr(compiled, "_user_folder", lambda: blocked)
    monkeypatch.setattr(compiled, "_temporary_folder", lambda: blocked)
    with pytest.raises(UserError, match=r"kept neither in .* set data\.backend: reference"):
        compiled._load()


def test_without_numba_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_loaded", None)
    monkeypatch.setitem(sys.modules, "numba", None)  # Python's own way to say it is not there
    config = load_config("demo-digits")
    with pytest.raises(
        UserError, match=r"data\.backend = 'fast' needs numba .*pip install numba, or set data\.backend: reference"
    ):
        ready(config)
    ready(load_config("demo-digits", {"data.backend": "reference"}))


def test_the_settings_of_numba_are_put_back() -> None:
    import numba

    before = numba.config.CACHE_DIR, numba.config.SLP_VECTORIZE
    compiled._load()
    assert before == (numba.config.CACHE_DIR, numba.config.SLP_VECTORIZE)


def test_importing_the_data_side_loads_neither_numba_nor_simplejpeg() -> None:
    code = "import sys, swav_ray.data.multicrop, swav_ray.data.stream; print({'numba', 'simplejpeg'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr
