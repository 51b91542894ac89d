"""Training a classifier against a loop written out with PyTorch's own parts, and what is frozen staying so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from swav_ray.errors import UserError
from swav_ray.evaluate.finetune import Classifier, scores_of, train_epoch
from swav_ray.evaluate.protocol import Protocol, load_protocol
from swav_ray.swav.resnet import ResNet, resnet


def backbone() -> ResNet:
    torch.manual_seed(3)
    return resnet("resnet10", base_width=4, stem="small")


def batches(epoch: int, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(epoch)
    return [(torch.randn(8, 3, 8, 8, generator=g), torch.randint(5, (8,), generator=g)) for _ in range(count)]


def test_semi_supervised_is_the_references_loop() -> None:
    """eval_semisup.py: two groups of one SGD, MultiStepLR by epoch, everything in training mode."""
    protocol = load_protocol("semi-10", {"epochs": 4, "step_epochs": [2, 3]})
    model = Classifier(backbone(), 5, protocol)
    theirs = nn.Sequential(copy.deepcopy(model.backbone), copy.deepcopy(model.head))
    sgd = torch.optim.SGD(
        [{"params": theirs[0].parameters(), "lr": 0.01}, {"params": theirs[1].parameters(), "lr": 0.2}],
        momentum=0.9,
        weight_decay=0,
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [2, 3], gamma=0.2)
    optimizer = model.optimizer(protocol)
    for epoch in range(4):
        theirs.train()
        losses = []
        for images, labels in batches(epoch):
            loss = nn.functional.cross_entropy(theirs(images), labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(loss.item())
        schedule.step()
        assert train_epoch(model, optimizer, batches(epoch), protocol.rate(epoch)) == pytest.approx(sum(losses) / 3, rel=1e-5)
    images = batches(9)[0][0]
    torch.testing.assert_close(scores_of(model, [images]), theirs.eval()(images).detach())


def test_linear_is_the_references_loop() -> None:
    """eval_linear.py: features of the frozen trunk in eval mode, N(0, 0.01), SGD with 1e-6, cosine by epoch to 0."""
    protocol = load_protocol("linear", {"epochs": 5})
    trunk = backbone().eval()
    before = copy.deepcopy(trunk.state_dict())
    model = Classifier(trunk, 5, protocol)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.2) and not model.head.bias.any()
    theirs, optimizer = copy.deepcopy(model.head), model.optimizer(protocol)
    sgd = torch.optim.SGD(theirs.parameters(), 0.3, momentum=0.9, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 5, eta_min=0)
    for epoch in range(5):
        train_epoch(model, optimizer, batches(epoch), protocol.rate(epoch))
        for images, labels in batches(epoch):
            sgd.zero_grad()
            nn.functional.cross_entropy(theirs(trunk.eval()(images).detach()), labels).backward()
            sgd.step()
        schedule.step()
    torch.testing.assert_close(model.head.weight, theirs.weight)
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


@pytest.mark.parametrize(("frozen", "still"), [("none", 0), ("layer1", 1), ("layer3", 3), ("layer4", 4), ("all", 4)])
def test_what_is_frozen_stays_and_the_rest_learns(frozen: str, still: int) -> None:
    """Weights and running statistics alike."""
    protocol = Protocol(frozen=frozen, lr=0 if frozen == "all" else 0.1)
    model = Classifier(backbone(), 5, protocol)
    before = copy.deepcopy(model.state_dict())
    train_epoch(model, model.optimizer(protocol), batches(0), 1.0)
    frozen_names = tuple(f"backbone.{name}." for name in ("conv1", "bn1", *(f"layer{n}" for n in range(1, still + 1))))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (still > 0 and key.startswith(frozen_names)), key


def test_the_head_depends_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one = Classifier(backbone(), 5, Protocol(lr=0.1)).head.weight
    torch.manual_seed(99)
    assert torch.equal(one, Classifier(backbone(), 5, Protocol(lr=0.1)).head.weight)
    assert not torch.equal(one, Classifier(backbone(), 5, Protocol(lr=0.1, seed=1)).head.weight)
    torch.set_rng_state(state)


def test_mistakes() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    plain.num_features = 4  # type: ignore[assignment]
    with pytest.raises(UserError, match="frozen layer1: Sequential has no conv1; freeze none or all of it"):
        Classifier(plain, 5, Protocol(frozen="layer1", lr=0.1))
    model = Classifier(plain, 5, protocol := Protocol(lr=1e30))
    with pytest.raises(UserError, match="the training diverged; lower --set head_lr"):
        train_epoch(model, model.optimizer(protocol), batches(0), 1.0)
