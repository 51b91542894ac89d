"""Every file of `clusters/` is what its readers take: Ray, KubeRay, Kubernetes, docker, the recipes, and people."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clusters import image, kuberay, ray_up, readme
from tests.clusters.files import CLUSTERS, ROOT

Check = Callable[[str], list[str]]
CHECKS: dict[str, Check] = {
    "aws-spot-gpu.yaml": ray_up.mistakes,
    "aws-ondemand.yaml": ray_up.mistakes,
    "gcp-spot-gpu.yaml": ray_up.mistakes,
    "onprem.yaml": ray_up.mistakes,
    "kuberay-raycluster.yaml": kuberay.mistakes,
    "kuberay-rayjob-pretrain.yaml": kuberay.mistakes,
    "kuberay-rayjob-tune.yaml": kuberay.mistakes,
    "Dockerfile": image.mistakes,
    "README.md": readme.mistakes,
}


def test_no_file_is_left_unchecked() -> None:
    assert {path.relative_to(CLUSTERS).as_posix() for path in CLUSTERS.rglob("*") if path.is_file()} == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_file_is_right(name: str) -> None:
    assert not CHECKS[name]((CLUSTERS / name).read_text()), name


def test_the_builder_sees_only_what_is_copied() -> None:
    assert not image.ignore_mistakes((ROOT / ".dockerignore").read_text())
