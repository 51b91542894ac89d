"""Every file of `clusters/` is what its readers take: Ray, KubeRay, Kubernetes, docker, the recipes, and people.

And the checks see: of each file, a planted mistake of every kind is told with the file and the key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import yaml

from tests.clusters import image, kuberay, ray_up, readme
from tests.clusters.files import CLUSTERS, ROOT

CHECKS: dict[str, Callable[[str], list[str]]] = {
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
AWS = ["aws-spot-gpu.yaml", "aws-ondemand.yaml"]
CLOUD = [*AWS, "gcp-spot-gpu.yaml"]
SPOT = ["aws-spot-gpu.yaml", "gcp-spot-gpu.yaml"]
RAY_UP = [*CLOUD, "onprem.yaml"]
RAYJOBS = ["kuberay-rayjob-pretrain.yaml", "kuberay-rayjob-tune.yaml"]
KUBERAY = ["kuberay-raycluster.yaml", *RAYJOBS]


def told(name: str, text: str) -> list[str]:
    try:
        return [f"clusters/{name}: {mistake}" for mistake in CHECKS[name](text)]
    except yaml.YAMLError as error:
        return [f"clusters/{name}: {' '.join(str(error).split())}"]


def test_no_file_is_left_unchecked() -> None:
    assert {path.relative_to(CLUSTERS).as_posix() for path in CLUSTERS.rglob("*") if path.is_file()} == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_file_is_right(name: str) -> None:
    assert told(name, (CLUSTERS / name).read_text()) == []


def test_the_builder_sees_only_what_is_copied() -> None:
    text = (ROOT / ".dockerignore").read_text()
    assert image.ignore_mistakes(text) == []
    assert image.ignore_mistakes(text.replace("*\n", "runs\n", 1) + "!runs-of-mine\n") == [
        ".dockerignore: everything must stay out that is not named",
        ".dockerignore !runs-of-mine: no such file",
    ]


class Planted(NamedTuple):
    """A mistake, in the first place where ``old`` stands in each of the files, and how it must be told."""

    files: list[str]
    old: str
    new: str
    key: str
    says: str


PLANTED = [
    # wrong fields
    Planted(RAY_UP, "idle_timeout_minutes:", "idle_timeout_minute:", "the file", "'idle_timeout_minute' was unexpected"),
    Planted(CLOUD, "  cache_stopped_nodes:", "  cache_stoped_nodes:", "provider.cache_stoped_nodes", "no such key"),
    Planted(["onprem.yaml"], "  head_ip:", "  head_ips:", "provider.head_ips", "no such key"),
    Planted(CLOUD, "    max_workers:", "    max_worker:", "available_node_types.cpu", "'max_worker' was unexpected"),
    Planted(AWS, "InstanceType: c6i", "Instancetype: c6i", "available_node_types.cpu.node_config", "Instancetype"),
    Planted(AWS, "VolumeSize: 200", "VolumeSize: big", "available_node_types.head.node_config", "VolumeSize"),
    Planted(["gcp-spot-gpu.yaml"], "machineType: g2", "machinetype: g2", "available_node_types.gpu.node_config", "machinetype"),
    Planted(
        ["gcp-spot-gpu.yaml"], "provisioningModel: SPOT", "provisioningModel: CHEAP", "scheduling.provisioningModel", "CHEAP"
    ),
    Planted(RAY_UP, "--object-manager-port=", "--object-manger-port=", "head_start_ray_commands", "--object-manger-port"),
    Planted(KUBERAY, "idleTimeoutSeconds:", "idleTimeoutSecond:", "autoscalerOptions", "'idleTimeoutSecond' was unexpected"),
    Planted(KUBERAY, "minReplicas: 0", 'minReplicas: "0"', "workerGroupSpecs[0].minReplicas", "not of type 'integer'"),
    Planted(KUBERAY, "restartPolicy:", "restartpolicy:", "headGroupSpec.template.spec", "'restartpolicy' was unexpected"),
    Planted(
        KUBERAY, "mountPath: /dev/shm", "mountpath: /dev/shm", "containers[0].volumeMounts[0]", "'mountpath' was unexpected"
    ),
    Planted(KUBERAY, "cpu: 500m", "cpu: {}", "autoscalerOptions.spec.containers[0].resources", "cpu"),
    Planted(KUBERAY, "num-cpus:", "num-cpu:", "headGroupSpec.rayStartParams", "--num-cpu"),
    Planted(RAYJOBS, "  backoffLimit:", "  backofLimit:", "spec", "'backofLimit' was unexpected"),
    Planted(
        RAYJOBS, "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "spec.shutdownAfterJobFinishes", "True"
    ),
    Planted(["kuberay-rayjob-tune.yaml"], "\ndata:\n", "\ndat:\n", "ConfigMap", "'dat' was unexpected"),
    Planted(["Dockerfile"], "WORKDIR", "WORKDIRECTORY", "line", "DL1000"),
    Planted(RAY_UP, "\nauth:", "\nauth: {}\nauth:", "line", "'auth' stands twice"),
    Planted(KUBERAY, "\nspec:", "\nkind: RayJob\nspec:", "line", "'kind' stands twice"),
    # wrong ranges
    Planted(CLOUD, "\nmax_workers: ", "\nmax_workers: 1", "max_workers", "its kinds of nodes make"),
    Planted(SPOT, "max_workers: 8", "max_workers: 6", "available_node_types.gpu", "--workers 1:8"),
    Planted(["aws-ondemand.yaml"], "--workers 4:4", "--workers 4:5", "available_node_types.gpu", "--workers 4:5"),
    Planted(SPOT, "  gpu:\n    min_workers: 0", "  gpu:\n    min_workers: 3", "available_node_types.gpu", "always keeps 3"),
    Planted(["onprem.yaml"], "\nmin_workers: 4", "\nmin_workers: 5", "min_workers", "lists 4"),
    Planted(["onprem.yaml"], "192.168.1.14", "192.168.1.13", "provider.worker_ips", "twice"),
    Planted(["onprem.yaml"], "--workers 1:4", "--workers 1:8", "the file", "there are 4 machines"),
    Planted(AWS, "{CPU: 8, GPU: 1}", "{CPU: 16, GPU: 1}", "available_node_types.gpu.resources", "(8, 1)"),
    Planted(["gcp-spot-gpu.yaml"], "{CPU: 8, GPU: 1}", "{CPU: 8, GPU: 2}", "available_node_types.gpu.resources", "(8, 1)"),
    Planted(CLOUD, "{CPU: 0, GPU: 0}", "{CPU: 4, GPU: 0}", "available_node_types.head.resources", "must be 0"),
    Planted(RAY_UP, "idle_timeout_minutes: 10", "idle_timeout_minutes: 5", "idle_timeout_minutes", "less than a restart"),
    Planted(RAY_UP, "--shm-size=10g", "--shm-size=2g", "worker_start_ray_commands", "within --shm-size"),
    Planted(
        KUBERAY,
        "idleTimeoutSeconds: 600",
        "idleTimeoutSeconds: 60",
        "autoscalerOptions.idleTimeoutSeconds",
        "a restart may take",
    ),
    Planted(KUBERAY, "sizeLimit: 10Gi", "sizeLimit: 2Gi", "rayStartParams.object-store-memory", "lie in /dev/shm (2.0 GiB)"),
    Planted(KUBERAY, "sizeLimit: 10Gi", "sizeLimit: 40Gi", "headGroupSpec.template.spec.volumes", "leaves nothing beside it"),
    Planted(
        ["kuberay-rayjob-pretrain.yaml"],
        "maxReplicas: 8",
        "maxReplicas: 9",
        "spec.entrypoint",
        "workerGroupSpecs[1] gives at most 9",
    ),
    Planted(["kuberay-rayjob-pretrain.yaml"], "--workers 1:8", "--workers 1:16", "spec.entrypoint", "--workers 1:16"),
    Planted(["kuberay-rayjob-tune.yaml"], "concurrency: 4", "concurrency: 8", "spec.entrypoint", "concurrency 8"),
    Planted(KUBERAY, "replicas: 0", "replicas: 7", "workerGroupSpecs[0].replicas", "is not from 0 to"),
    Planted(KUBERAY, '"30"]', '"50"]', "workerGroupSpecs[0].template.spec.terminationGracePeriodSeconds", "15 s above"),
    Planted(KUBERAY, 'sleep, "45"', 'sleep, "20"', "headGroupSpec.template.spec.containers[0].lifecycle.preStop", "outlive"),
    Planted(
        KUBERAY,
        'requests: {cpu: "14"',
        'requests: {cpu: "12"',
        "workerGroupSpecs[0].template.spec.containers[0].resources",
        "limits",
    ),
    # wrong versions
    Planted(RAY_UP, "swav-ray:0.1.0", "swav-ray:0.0.9", "docker.image", "0.0.9 is not of version"),
    Planted(KUBERAY, "swav-ray:0.1.0", "swav-ray:latest", "containers[0].image", "latest is not of version"),
    Planted(KUBERAY, "rayVersion: 2.60.0", "rayVersion: 2.59.0", "rayVersion", "clusters/Dockerfile has 2.60.0"),
    Planted(KUBERAY, "version: v2", "version: v1", "autoscalerOptions.version", "v2"),
    Planted(["Dockerfile"], "ray:2.60.0", "ray:2.61.0", "FROM", "2.61.0 is not ==2.60.*"),
    Planted(["Dockerfile"], "py311", "py310", "FROM", "Python 3.10 is not >=3.11"),
    Planted(["Dockerfile"], "ray:2.60.0-py311", "ray:latest", "line", "DL3007"),
    Planted(["Dockerfile"], "ray:2.60.0-py311", "ray:2.60.0", "FROM", "pinned"),
    Planted(["Dockerfile"], "'.[cloud", "torch==2.10 '.[cloud", "RUN pip install", "nothing beside it"),
    Planted(["README.md"], "swav-ray:0.1.0", "swav-ray:0.0.9", "docker build", "is not of version"),
    # what would fail, or cost, on the day
    Planted(AWS, "ImageId: resolve:ssm:", "ImageId: ", "available_node_types.head.node_config.ImageId", "names no image"),
    Planted(
        AWS,
        "      IamInstanceProfile: {Name: swav-ray}\n",
        "",
        "available_node_types.head.node_config.IamInstanceProfile",
        "no rights",
    ),
    Planted(AWS, "g5.2xlarge", "g55.2xlarge", "available_node_types.gpu.node_config", "no known machine"),
    Planted(SPOT, "market-type: spot", "market-type: on-demand", "available_node_types.gpu.labels", "must be spot"),
    Planted(SPOT, "  - nohup", "  # - nohup", "worker_start_ray_commands", "they need it"),
    Planted(SPOT, "--on-notice", "--on-notise", "worker_start_ray_commands", "--on-notise"),
    Planted(["aws-spot-gpu.yaml"], "--on-notice aws", "--on-notice gcp", "worker_start_ray_commands", "notices of aws"),
    Planted(
        ["aws-ondemand.yaml"],
        "InstanceType: m6i.xlarge",
        "InstanceType: m6i.xlarge\n      InstanceMarketOptions: {MarketType: spot}",
        "available_node_types.head",
        "must not be on spot",
    ),
    Planted(RAY_UP, "file_mounts: {~/.ray/auth_token: ~/.ray/auth_token}", "file_mounts: {}", "file_mounts", "the token"),
    Planted(RAY_UP, "cluster_name:", "# aws_secret_access_key = abc\ncluster_name:", "line", "looks like a credential"),
    Planted(KUBERAY, "metadata:\n", "# AKIAABCDEFGHIJKLMNOP\nmetadata:\n", "line", "looks like a credential"),
    Planted(KUBERAY, "mode: token", "mode: disabled", "authOptions.mode", "must be token"),
    Planted(KUBERAY, "serviceAccountName: &account swav-ray", "hostNetwork: &account false", "serviceAccountName", ""),
    Planted(
        KUBERAY,
        "swav-ray, drain,",
        "ray, stop,",
        "workerGroupSpecs[0].template.spec.containers[0].lifecycle.preStop",
        "tells Ray nothing",
    ),
    Planted(
        KUBERAY,
        "swav-ray, drain,",
        "swav-ray, drian,",
        "workerGroupSpecs[0].template.spec.containers[0].lifecycle.preStop",
        "no command 'drian'",
    ),
    Planted(
        KUBERAY,
        'RAY_JOB_STOP_WAIT_TIME_S, value: "60"',
        'RAY_JOB_STOP_WAIT_TIME_S, value: "3"',
        "headGroupSpec.template.spec.containers[0].env",
        "must be 60",
    ),
    Planted(KUBERAY, "market-type: spot", "market-type: cheap", "workerGroupSpecs[1].labels", "must be spot"),
    Planted(KUBERAY, "market-type: spot", "market-type: not allowed!", "Ray's autoscaler refuses", "Invalid label"),
    Planted(
        ["kuberay-rayjob-pretrain.yaml"],
        "imagenet-200ep-bs256",
        "imagenet-200ep-bs265",
        "spec.entrypoint",
        "did you mean 'imagenet-200ep-bs256'",
    ),
    Planted(
        ["kuberay-rayjob-pretrain.yaml"],
        "elastic.gpus_per_worker",
        "elastic.gpu_per_worker",
        "spec.entrypoint",
        "did you mean 'elastic.gpus_per_worker'",
    ),
    Planted(["kuberay-rayjob-pretrain.yaml"], "--set elastic.gpus_per_worker=1", "", "spec.entrypoint", "trains without"),
    Planted(
        ["kuberay-rayjob-pretrain.yaml"], "cpus_per_worker=3", "cpus_per_worker=7", "spec.entrypoint", "one must stay for data"
    ),
    Planted(["kuberay-rayjob-pretrain.yaml"], "--storage", "--storrage", "spec.entrypoint", "--storrage"),
    Planted(
        ["kuberay-rayjob-tune.yaml"], "num_prototypes: {logint", "num_prototype: {logint", "spec.entrypoint", "num_prototypes"
    ),
    Planted(
        ["kuberay-rayjob-tune.yaml"],
        "mountPath: /etc/swav-ray",
        "mountPath: /etc/swav",
        "spec.entrypoint",
        "no ConfigMap puts a file there",
    ),
    Planted(
        ["kuberay-rayjob-tune.yaml"],
        "configMap: {name: swav-ray-tune}",
        "configMap: {name: tune}",
        "headGroupSpec.template.spec.volumes",
        "no ConfigMap 'tune'",
    ),
    Planted(["Dockerfile"], "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "ENV RAY_AUTH_MODE", "must be token"),
    Planted(["Dockerfile"], "./search_spaces\n", "./search_spaces\nCOPY runs ./runs\n", "COPY runs", "no such file"),
    Planted(["Dockerfile"], "COPY --chown=ray:users search_spaces ./search_spaces\n", "", "COPY", "search_spaces is needed"),
    Planted(["Dockerfile"], "cloud,samplers", "clouds,samplers", "RUN pip install", "no extra 'clouds'"),
    Planted(["Dockerfile"], " --no-cache-dir", "", "line", "DL3042"),
    Planted(
        ["README.md"],
        "ray up -y clusters/aws-spot-gpu.yaml",
        "ray up -y clusters/aws-spot.yaml",
        "clusters/aws-spot.yaml",
        "no such file",
    ),
    Planted(["README.md"], "ray up -y", "ray up --yess", "ray up", "--yess"),
    Planted(["README.md"], "ray job logs --follow", "ray job log --follow", "ray job log", "no command 'log'"),
    Planted(["README.md"], "--workers 1:8 \\\n", "--workers 1:9 \\\n", "after clusters/aws-spot-gpu.yaml", "at most 8"),
    Planted(["README.md"], "| `--workers 4:4` |", "| `--workers 2:4` |", "aws-ondemand.yaml", "the table says --workers 2:4"),
    Planted(["README.md"], "pip install '.[cloud]'", "pip install '.[aws]'", "pip install", "no such extra"),
    Planted(["README.md"], "| 1.42 |", "| 1.24 |", "aws-spot-gpu.yaml", "cost 1.42"),
    Planted(["README.md"], "(onprem.yaml)", "(on-prem.yaml)", "on-prem.yaml", "no such file"),
]
CASES = [(name, planted) for planted in PLANTED for name in planted.files]


@pytest.mark.parametrize(("name", "planted"), CASES, ids=[f"{name}: {planted.new.strip()[:40]!r}" for name, planted in CASES])
def test_a_planted_mistake_is_told(name: str, planted: Planted) -> None:
    if planted.says.startswith("DL") and image.HADOLINT is None:
        pytest.skip("hadolint has no wheel for this machine")
    text = (CLUSTERS / name).read_text()
    assert planted.old in text, f"{name} has no {planted.old!r} any more"
    messages = told(name, text.replace(planted.old, planted.new, 1))
    assert any(planted.key in message and planted.says in message for message in messages), messages


def test_a_mistake_of_each_kind_is_planted_in_each_file() -> None:
    assert {name for name, _ in CASES} == set(CHECKS)
