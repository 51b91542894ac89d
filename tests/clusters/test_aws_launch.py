"""Ray's own AWS provider starts the nodes of our files, at an EC2 that keeps books and starts nothing (moto)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters.files import CLUSTERS
from tests.clusters.ray_up import prepare

REGION = "us-west-2"


@pytest.fixture
def amazon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An account with a default network, and the instance profile that clusters/README.md asks for."""
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key it makes to ~/.ssh
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        boto3.client("iam").create_instance_profile(InstanceProfileName="swav-ray")
        yield boto3.client("ec2", region_name=REGION)


@pytest.mark.parametrize(
    ("name", "spot"), [("aws-spot-gpu.yaml", True), pytest.param("aws-ondemand.yaml", False, marks=pytest.mark.slow)]
)
def test_ray_starts_each_kind_of_node_as_the_file_says(name: str, spot: bool, amazon: Any) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    values = yaml.safe_load((CLUSTERS / name).read_text())
    image = amazon.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]  # moto knows no parameters of Amazon's
    for node in values["available_node_types"].values():
        node["node_config"]["ImageId"] = image
    config = bootstrap_aws(prepare(values))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind, node in config["available_node_types"].items():
        provider.create_node(node["node_config"], {"ray-user-node-type": kind}, 1)
    found = {}
    for reservation in amazon.describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            found[tags["ray-user-node-type"]] = instance
    assert {kind: instance["InstanceType"] for kind, instance in found.items()} == {
        "head": "m6i.xlarge",
        "cpu": "c6i.4xlarge",
        "gpu": "g5.2xlarge",
    }
    for kind, instance in found.items():
        assert instance["IamInstanceProfile"]["Arn"].endswith("/swav-ray"), "workers have the rights of the profile too"
        assert instance["Placement"]["AvailabilityZone"] == "us-west-2a"
        assert (instance.get("InstanceLifecycle") == "spot") == (spot and kind == "gpu")
