"""The model's layout, names and sizes, and the names other people's code calls.

Shapes: V crops, B rows, D feature dimensions, K prototypes.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import swav_ray.swav as method
from swav_ray.swav import SwAV
from swav_ray.swav.resnet import resnet


class Counting(nn.Module):
    """A backbone that notes the shape of every call; features are the mean colours."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(x.shape))
        return x.mean(dim=(2, 3))


def small_model(hidden_dim: int = 5) -> SwAV:
    torch.manual_seed(0)
    return SwAV(Counting(), num_features=3, hidden_dim=hidden_dim, feature_dim=4, num_prototypes=7)


def crops(sizes: list[int], rows: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 3, size, size, generator=generator) for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([8, 8, 4, 4, 4, 4], [(12, 3, 8, 8), (24, 3, 4, 4)]),
        ([8, 8], [(12, 3, 8, 8)]),
        ([8, 4, 8], [(6, 3, 8, 8), (6, 3, 4, 4), (6, 3, 8, 8)]),  # neighbours only
    ],
)
def test_neighbouring_crops_of_one_size_share_a_backbone_call(sizes: list[int], calls: list[tuple[int, ...]]) -> None:
    model = small_model()
    model(crops(sizes))
    assert model.backbone.calls == calls


def test_outputs_are_crop_major_unit_rows_and_their_cosines() -> None:
    model = small_model().eval()  # without batch statistics, a crop's rows do not depend on the others
    model.normalize_prototypes()
    images = crops([8, 8, 4])
    embeddings, scores = model(images)
    assert embeddings.shape == (18, 4) and scores.shape == (18, 7)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(18))
    torch.testing.assert_close(scores, embeddings @ model.prototypes.weight.T)
    for crop, rows in zip(images, embeddings.split(6), strict=True):
        torch.testing.assert_close(rows, model([crop])[0])


def test_projector_statistics_are_over_all_crops() -> None:
    model = small_model()
    seen: list[torch.Size] = []
    model.projector[1].register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    model(crops([8, 8, 4]))
    assert seen == [(18, 5)]


def test_state_dict_names() -> None:
    names = [name for name in small_model().state_dict() if not name.startswith("backbone.")]
    norm = [f"projector.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    linear = ["projector.0.weight", "projector.0.bias", *norm, "projector.3.weight", "projector.3.bias"]
    assert names == [*linear, "prototypes.weight"]
    assert "backbone.layer1.0.conv1.weight" in SwAV(resnet("resnet10", base_width=8), num_features=64).state_dict()


def test_hidden_dim_zero_is_one_linear_layer() -> None:
    model = small_model(hidden_dim=0)
    assert list(model.state_dict()) == ["projector.0.weight", "projector.0.bias", "prototypes.weight"]
    assert model(crops([8]))[0].shape == (6, 4)


def test_prototypes_go_to_the_sphere_in_place_and_out_of_the_graph() -> None:
    model = small_model()
    weight, before = model.prototypes.weight, model.prototypes.weight.detach().clone()
    model.normalize_prototypes()
    assert model.prototypes.weight is weight and weight.requires_grad and weight.grad_fn is None
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(weight.detach(), before / before.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("base_width", "hidden_dim", "millions", "tensors"),
    [(64, 2048, 28.355, 166), (128, 8192, 128.92, 166)],
    ids=["RN50", "RN50-w2"],
)
def test_published_sizes(base_width: int, hidden_dim: int, millions: float, tensors: int) -> None:
    with torch.device("meta"):  # counts without memory
        backbone = resnet("resnet50", base_width=base_width)
        model = SwAV(backbone, num_features=backbone.num_features, hidden_dim=hidden_dim)
    parameters = dict(model.named_parameters())
    assert sum(value.numel() for value in parameters.values()) / 1e6 == pytest.approx(millions, abs=0.0051)
    assert len(parameters) == tensors
    assert model.prototypes.weight.shape == (3000, 128)
    if base_width == 64:
        head = sum(value.numel() for value in model.projector.parameters()) / 1e6
        assert head == pytest.approx(4.463, abs=0.0005)
        assert model.prototypes.weight.numel() == 384_000


INTERFACE = {
    "sinkhorn": "(scores, *, epsilon=0.05, num_iterations=3, group=None)",
    "FeatureQueue": "(length, num_views, dim, *, device=None)",
    "gather_queue": "(states)",
    "cut_queue": "(state, rank, world_size)",
    "swav_loss": "(embeddings_VBD, prototypes_KD, *, crops_for_assign=(0, 1), temperature=0.1, epsilon=0.05, num_iterations=3, "
    "queue=None, group=None)",
    "LARS": "(params, lr, momentum=0.9, weight_decay=1e-06, trust_coefficient=0.001, eps=1e-08)",
    "warmup_cosine": "(step, *, steps_per_epoch, epochs, warmup_epochs, start_warmup, base_lr, final_lr)",
    "SwAV": "(backbone, *, num_features, hidden_dim=2048, feature_dim=128, num_prototypes=3000)",
}


@pytest.mark.parametrize("name", INTERFACE)
def test_public_names_and_their_arguments(name: str) -> None:
    signature = inspect.signature(getattr(method, name))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == INTERFACE[name]
    assert name in method.__all__
