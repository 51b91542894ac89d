"""Pictures to frozen features: the published normalisation, the backbone as it is at test time and untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swav_ray.config import Config
from swav_ray.evaluate.features import extract, normalise

CPU = torch.device("cpu")


def test_normalise_is_the_definition() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    augment = Config(num_prototypes=100).augment
    assert augment.std == (0.228, 0.224, 0.225)
    expected = (images.astype(np.float64) / 255 - augment.mean) / augment.std
    got = normalise(images, augment.mean, augment.std, CPU)
    assert got.shape == (5, 3, 8, 8) and got.dtype == torch.float32
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=2e-6)


def test_normalise_takes_every_byte_and_no_picture() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    got = normalise(ramp, (0.0, 0.0, 0.5), (1.0, 0.5, 0.25), CPU)
    np.testing.assert_allclose(got[0, 0].flatten().numpy(), np.arange(256) / 255, atol=1e-6)
    np.testing.assert_allclose(got[0, 1].flatten().numpy(), np.arange(256) / 255 / 0.5, atol=1e-6)
    np.testing.assert_allclose(got[0, 2].flatten().numpy(), (np.arange(256) / 255 - 0.5) / 0.25, atol=1e-6)
    assert normalise(ramp[:0], (0.0,) * 3, (1.0,) * 3, CPU).shape == (0, 3, 16, 16)


def test_normalise_leaves_the_pictures_alone() -> None:
    images = np.full((1, 4, 4, 3), 7, dtype=np.uint8)
    normalise(images, (0.5,) * 3, (0.5,) * 3, CPU)
    assert (images == 7).all()


def test_normalised_pictures_lie_channels_last_as_the_bytes_did() -> None:
    images = np.zeros((3, 8, 6, 3), dtype=np.uint8)
    assert normalise(images, (0.5,) * 3, (0.5,) * 3, CPU).is_contiguous(memory_format=torch.channels_last)


class Backbone(nn.Module):
    """Has what behaves otherwise in training, and counts gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.grad_seen = False
        with torch.no_grad():
            self.norm.running_mean.fill_(0.3)
            self.norm.running_var.fill_(2.0)

    def forward(self, rows: Tensor) -> Tensor:
        self.grad_seen |= torch.is_grad_enabled()
        if (rows > 100).any():
            raise RuntimeError("a bad row")
        return self.drop(self.norm(self.linear(rows)))


@pytest.mark.parametrize("training", [True, False])
def test_features_are_those_of_eval_mode_and_the_mode_is_put_back(training: bool) -> None:
    torch.manual_seed(0)
    backbone = Backbone().train(training)
    rows = torch.randn(10, 4)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    got = extract(backbone, rows.split(3))
    assert backbone.training is training and backbone.norm.training is training and backbone.drop.training is training
    assert not backbone.grad_seen and not got.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())  # running statistics too
    backbone.eval()
    torch.testing.assert_close(got, backbone(rows).detach())


def test_the_mode_is_put_back_after_a_failure() -> None:
    backbone = Backbone().train()
    with pytest.raises(RuntimeError, match="a bad row"):
        extract(backbone, [torch.zeros(2, 4), torch.full((2, 4), 1e3)])
    assert backbone.training and backbone.norm.training
    assert torch.is_grad_enabled()


def test_how_rows_are_batched_does_not_show() -> None:
    torch.manual_seed(0)
    backbone, rows = Backbone(), torch.randn(10, 4)
    for size in (1, 4, 10, 100):
        torch.testing.assert_close(extract(backbone, rows.split(size)), extract(backbone, [rows]))
    assert len(extract(backbone, [])) == 0


def test_half_precision_features_come_back_as_floats_on_the_cpu() -> None:
    half = nn.Linear(4, 3).to(torch.bfloat16)
    got = extract(half, [torch.zeros(2, 4, dtype=torch.bfloat16)])
    assert got.dtype == torch.float32 and got.device == CPU
