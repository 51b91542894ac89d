"""Switches of a step: mixed precision, recomputed activations, groups of batch statistics, compiled backbones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from swav_ray.config import Config, load_config
from swav_ray.swav.batch_norm import SyncBatchNorm
from swav_ray.train.bench import begin, share_of
from swav_ray.train.build import build_model, compile_backbone
from swav_ray.train.loop import Training
from swav_ray.train.step import loss_and_gradients
from swav_ray.train.synthetic import SyntheticStream
from swav_ray.train.world import World
from tests.gloo import run_ranks


def config_of(workers: int = 1, **changes: Any) -> Config:
    values = {"backbone.base_width": 16, "global_batch_size": 32, "num_prototypes": 20, "queue_length": 64, "hidden_dim": 64}
    return share_of(load_config("demo-digits", values | {"elastic.min": workers, "elastic.max": workers} | changes), workers)


def begun(folder: Any, config: Config, world: World | None = None) -> Training:
    torch.set_num_threads(1)
    return begin(config, world or World(), SyntheticStream(config), str(folder))


def one_step(training: Training) -> dict[str, torch.Tensor]:
    """Loss, codes, gradients and running statistics of a step."""
    batch = next(training.stream.local(training.position))
    seen = loss_and_gradients(
        training.config, training.model, training._forward, batch, training.world, training.queue, training.part_of_step
    )
    gradients = {f"grad {name}": p.grad for name, p in training.model.named_parameters()}
    buffers = {f"buffer {name}": value.clone() for name, value in training.model.named_buffers()}
    return {"loss": seen.loss, "codes": seen.codes_ABK, "scores": seen.scores_ABK, **gradients, **buffers}


def test_mixed_precision_is_near_and_keeps_float32_where_it_matters(tmp_path) -> None:
    kinds: dict[str, set[torch.dtype]] = {}
    answers = {}
    for precision in ("float32", "bf16-mixed"):
        training = begun(tmp_path / precision, config_of(precision=precision))
        kinds[precision] = set()
        for module in training.model.backbone.modules():
            if isinstance(module, nn.Conv2d | SyncBatchNorm):
                module.register_forward_hook(lambda _, __, out, seen=kinds[precision]: seen.add(out.dtype))
        answers[precision] = one_step(training)
        training.abandon(0)
    assert kinds == {"float32": {torch.float32}, "bf16-mixed": {torch.bfloat16}}
    exact, mixed = answers["float32"], answers["bf16-mixed"]
    assert {value.dtype for value in mixed.values()} == {torch.float32, torch.int64}
    assert abs(mixed["loss"] / exact["loss"] - 1) < 0.02
    # A float32 product of bfloat16-trained embeddings, not a bfloat16 one: the scores use more than its 8 digits.
    assert not torch.equal(mixed["scores"], mixed["scores"].bfloat16().float())
    for name, value in exact.items():
        if name.startswith("grad") and value.numel() > 1000:
            cosine = torch.cosine_similarity(value.flatten(), mixed[name].flatten(), dim=0)
            assert cosine > 0.9, (name, float(cosine))


def test_recomputed_activations_change_no_number(tmp_path) -> None:
    plain, again = (
        one_step(begun(tmp_path / str(recompute), config_of(**{"compute.recompute_activations": recompute})))
        for recompute in (False, True)
    )
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_recomputing_keeps_less_for_the_backward_pass() -> None:
    kept = []
    for recompute in (False, True):
        training_config = config_of(**{"compute.recompute_activations": recompute})
        from swav_ray.train.build import build_model

        model, sizes = build_model(training_config), []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.backbone(torch.randn(4, 3, 28, 28))
        kept.append(sum(sizes))
    assert kept[1] < 0.6 * kept[0]


def _grouped(rank: int, folder: str, per_group: int) -> list[float]:
    config = config_of(4).model_copy(update={"batch_norm_workers": per_group})
    training = begun(f"{folder}/{rank}", config, World.join(torch.device("cpu")))
    batch = next(training.stream.local(training.position, rank, 4))
    loss_and_gradients(config, training.model, training._forward, batch, training.world, training.queue)
    return training.model.backbone.bn1.running_mean.tolist()


@pytest.mark.parametrize(("per_group", "alike"), [(2, [0, 0, 2, 2]), (0, [0, 0, 0, 0])])
def test_batch_statistics_are_shared_within_a_group_alone(tmp_path, per_group: int, alike: list[int]) -> None:
    means = run_ranks(4, _grouped, str(tmp_path), per_group)
    assert [means.index(mean) for mean in means] == alike


def test_a_backbone_is_compiled_without_our_batch_norm() -> None:
    """Whose pieces would be unrolled for minutes; nothing is compiled before the first call."""
    config = config_of(**{"compute.compile": "default"})
    model = build_model(config)
    compile_backbone(config, model)
    assert model.backbone._compiled_call_impl is not None
    assert SyncBatchNorm.forward._torchdynamo_disable


@pytest.mark.slow
def test_a_compiled_backbone_computes_the_same(tmp_path) -> None:
    plain, compiled = (one_step(begun(tmp_path / mode, config_of(**{"compute.compile": mode}))) for mode in ("off", "default"))
    torch.testing.assert_close(compiled["loss"], plain["loss"], rtol=1e-4, atol=0)
    torch.testing.assert_close(compiled["codes"], plain["codes"], rtol=0, atol=1e-3)
