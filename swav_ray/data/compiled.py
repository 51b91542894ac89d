"""The compiled kernels, and where their machine code is kept: made once for each kind of processor and each version.

The first process that needs them compiles for some seconds, the others on that machine wait for it; after that they load
in half a second. What is kept can always be thrown away: a damaged file is made anew, an unwritable place replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from swav_ray.errors import UserError

KERNELS = "swav_ray.data.kernels"
SEAL = "sha256"  # a file beside the machine code, written last
_once = threading.Lock()
_loaded: ModuleType | None = None


def kernels() -> ModuleType:
    """The module `kernels`, compiled or loaded on the first call.

    Raises:
        UserError: numba is missing, or there is no place for machine code.
    """
    global _loaded
    with _once:
        if _loaded is None:
            _loaded = _load()
        return _loaded


def _load() -> ModuleType:
    try:
        key = _key()
    except ImportError as error:
        raise UserError(
            f"data.backend = 'fast' needs numba ({error}); pip install numba, or set data.backend: reference"
        ) from None
    places, failure = [_user_folder() / key, _temporary_folder() / key], ""
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            return _load_from(place)
        except OSError as error:
            failure = str(error)
    raise UserError(
        f"the compiled crops can be kept neither in {places[0]} nor in {places[1]}: {failure}; make one of them writable, "
        "or set data.backend: reference"
    )


def _load_from(place: Path) -> ModuleType:
    if not _whole(place):
        with _locked(place.with_name(place.name + ".lock")):
            if not _whole(place):  # still
                shutil.rmtree(place)
                place.mkdir()
                module = _import(place)
                (place / SEAL).write_text(_digest(place))
                return module
    return _import(place)


def _whole(place: Path) -> bool:
    """Whether all that was kept is there and unchanged: numba itself would fail on half a file, or run it."""
    try:
        return (place / SEAL).read_text() == _digest(place)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _digest(place: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in place.rglob("*") if path.is_file() and path.name != SEAL):
        digest.update(f"{path.relative_to(place)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _import(place: Path) -> ModuleType:
    """Import the module with numba's settings for it, which are read when its decorators run."""
    import numba

    ours = {"CACHE_DIR": str(place), "SLP_VECTORIZE": 1}  # vectors of the sums that stand side by side: 3 times as fast
    before = _settings(*ours)
    try:
        for name, value in ours.items():
            setattr(numba.config, name, value)
        return importlib.import_module(KERNELS)
    finally:
        for name, value in before.items():
            setattr(numba.config, name, value)


def _settings(*names: str) -> dict[str, object]:
    import numba

    return {name: getattr(numba.config, name) for name in names}


def _key() -> str:
    """Names the processor, and whatever else machine code depends on."""
    import llvmlite
    import llvmlite.binding
    import numba

    sources = sorted(Path(__file__).with_name("kernels").glob("*.py"))
    versions = (numba.__version__, llvmlite.__version__, platform.python_version(), platform.python_implementation())
    features = (llvmlite.binding.get_host_cpu_features().flatten(), *_settings("CPU_NAME", "CPU_FEATURES").values())
    parts = (*versions, features, *((str(source), source.read_text(encoding="utf-8")) for source in sources))
    return f"{llvmlite.binding.get_host_cpu_name()}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def _user_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "swav-ray" / "kernels"


def _temporary_folder() -> Path:
    """A folder of this user alone: what lies in it is executed."""
    folder = Path(tempfile.gettempdir()) / f"swav-ray-kernels-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if folder.is_dir() and not folder.is_symlink() and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="swav-ray-kernels-"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine; the lock ends with its process, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
