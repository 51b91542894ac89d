"""What tests of several parts share: real digits as shards, an S3 on loopback, one embedded Ray a module."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.outage import Proxy

# Ray's workers run at niceness 15 otherwise, and starve beside the tests of another file.
os.environ.setdefault("RAY_worker_niceness", "0")

S3_BUCKET = "swav-ray-tests"


class Digits(NamedTuple):
    """Addresses of the demo's shards."""

    train: str
    test: str


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """The demo's 4,000 training and 1,000 test digits."""
    from swav_ray.data.sources import prepare_digits
    from swav_ray.data.storage import Storage

    return Digits(*prepare_digits(Storage(str(tmp_path_factory.mktemp("digits")))))


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator[Proxy]:
    """The door to the S3 of the tests: shut it with ``s3_proxy.outage(seconds)``."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line a request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port())
    yield proxy
    proxy.cut()
    server.stop()


@pytest.fixture(scope="session")
def s3(s3_proxy: Proxy) -> Iterator[str]:
    """``s3://`` address of a bucket on a real HTTP endpoint; every process started from now on sees it too."""
    import s3fs

    from swav_ray.data.storage import Storage

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(variable, raising=False)
        # fsspec keeps one instance a process, with the endpoint it first saw.
        s3fs.S3FileSystem.clear_instance_cache()
        bucket = Storage(f"s3://{S3_BUCKET}")
        bucket.fs.mkdir(S3_BUCKET)
        yield bucket.uri
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def ray_cluster(s3: str) -> Iterator[None]:
    """One embedded Ray for a module; started after S3, so that its workers know the endpoint."""
    import ray

    # Without byte code every Ray worker would compile what it imports anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of floats in one order, so that the same training gives the same bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process may not enter, also where the tests are root's."""
    folder = tmp_path / "closed"
    folder.mkdir(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody
    yield folder
    os.seteuid(user)
    folder.chmod(0o700)
