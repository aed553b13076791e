"""The paper's steps on every architecture: rescaling keeps the function, ISTA reaches every stage, removal is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from assertions import assert_same_function, outputs_of, relative_error
from modules.training import trained_like
from torch import nn
from torch.nn import functional as F

from prunec.api import Pruned, prune_module
from prunec.frontends.fx.frontend import trace
from prunec.models import ARCHITECTURES
from prunec.models.densenet import DenseNet
from prunec.models.inception_v3 import InceptionV3
from prunec.models.resnet import Bottleneck, ResNet
from prunec.models.segnet import SegNet
from prunec.passes.channels import channels
from prunec.passes.sparsity.gammas import Gamma, gammas
from prunec.passes.sparsity.penalty import penalty
from prunec.passes.sparsity.scaling import scalable
from prunec.training.sparsity.ista import Ista
from prunec.training.sparsity.rescale import Rescaling
from prunec.training.sparsity.sparsify import Sparsity, build, named_parameters, plan_sparsity

STEPS, LR = 4, 0.01
SHRINK = 0.5
"""How far ISTA moves a class's norm; the norms start evenly between 0.05 and 1."""


@dataclass(frozen=True)
class Case:
    """A network, an image size that it takes, and the norms whose channels need not go through their own gamma."""

    build: Callable[[], nn.Module]
    size: int
    undecided: int = 0
    fixed: bool = False
    """The network takes one image size only."""


SMALL: dict[str, Case] = {
    "digits": Case(ARCHITECTURES["digits"].build, 32),
    "convnet": Case(ARCHITECTURES["convnet"].build, 32, undecided=1, fixed=True),  # the last norm is the output
    "resnet20": Case(ARCHITECTURES["resnet20"].build, 32),
    "googlenet": Case(ARCHITECTURES["googlenet"].build, 64),
    "mobilenet_v2": Case(ARCHITECTURES["mobilenet_v2"].build, 64, undecided=17),  # the depthwise norms decide
    "bottlenecks": Case(partial(ResNet, Bottleneck, (1, 1, 1, 1), 10), 64),
    "small densenet": Case(partial(DenseNet, (2, 3, 2), 8, 10, small_images=True), 16),
    "narrow segnet": Case(partial(SegNet, 0.25), 32, undecided=1),  # only other norms read the dense stem
}
FULL: dict[str, Case] = {
    "resnet18": Case(ARCHITECTURES["resnet18"].build, 64),
    "resnet34": Case(ARCHITECTURES["resnet34"].build, 64),
    "resnet50": Case(ARCHITECTURES["resnet50"].build, 64),
    "resnet101": Case(ARCHITECTURES["resnet101"].build, 64),
    "densenet_bc100": Case(ARCHITECTURES["densenet_bc100"].build, 32),
    "densenet121": Case(ARCHITECTURES["densenet121"].build, 64, undecided=1),  # only other norms read the stem
    "inception_v3": Case(ARCHITECTURES["inception_v3"].build, 96),
    "segnet": Case(ARCHITECTURES["segnet"].build, 64, undecided=1),
}
CASES = [
    *(pytest.param(case, id=name) for name, case in SMALL.items()),
    *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in FULL.items()),
]


def test_every_architecture_is_among_the_cases() -> None:
    same_form = {"resnet32", "resnet44", "resnet56", "resnet110"}
    assert set(ARCHITECTURES) <= set(SMALL) | set(FULL) | same_form


@pytest.mark.parametrize("case", CASES)
def test_rescaling_ista_and_removal(case: Case) -> None:
    torch.manual_seed(0)
    net = trained_like(case.build())
    channels_in = next(p for p in net.parameters() if p.dim() == 4).shape[1]
    images = torch.randn(2, channels_in, case.size, case.size)
    graph = trace(net, (images,)).graph
    classes = channels(graph)

    before = outputs_of(net, images)
    rescaling = Rescaling.of(net, scalable(graph, classes), 0.01)
    rescaling.apply(net, (images,))
    assert rescaling.parts, "nothing was scaled"
    assert relative_error(before, outputs_of(net, images)) <= 1e-5
    rescaling.undo()

    plan = plan_sparsity(graph, classes, net, kind="uniform")
    assert sum(not plan.channels_of(gamma).any() for gamma in plan.gammas) == case.undecided
    spread_gammas(plan, net)
    ista = train(plan, net, images)
    assert 0.2 < float(ista.sparsity()) < 0.8

    pruned = prune_module(net.eval(), (images,), validate=False)
    assert pruned.plan.exact
    assert_every_stage_lost_channels(plan, net, pruned)
    other = torch.randn(1, channels_in, case.size + 32, case.size)
    assert_same_function(net, pruned.module, images, *() if case.fixed else (other,))


def spread_gammas(plan: Sparsity, net: nn.Module) -> None:
    """Set the gammas as late in training: each class has a norm of its own, shared evenly by its gammas."""
    # Multiples of the golden ratio spread evenly over any run of classes, so that no layer is all large or all small.
    norms = 0.05 + 0.95 * (np.arange(plan.classes.num_classes) * 0.6180339887 % 1)
    members = np.zeros(plan.classes.num_classes)
    for gamma in plan.gammas:
        members[gamma.classes[plan.channels_of(gamma)]] += 1
    parameters = named_parameters(net)
    with torch.no_grad():
        for gamma in plan.gammas:
            chosen = plan.channels_of(gamma)
            ids = gamma.classes[chosen]
            values = torch.from_numpy(norms[ids] / np.sqrt(members[ids])).float()
            parameters[gamma.param][torch.from_numpy(chosen)] = values


def train(plan: Sparsity, net: nn.Module, images: torch.Tensor) -> Ista:
    """A few steps on noise, ρ so large that half of the classes vanish."""
    weight = float(plan.penalty[plan.penalised].max())
    ista = build(plan, net, torch.optim.SGD(net.parameters(), lr=LR), rho=SHRINK / (STEPS * LR * weight))
    net.train()
    for _ in range(STEPS):
        outputs = net(torch.randn(4, *images.shape[1:]))
        targets = torch.rand_like(outputs)
        loss = F.binary_cross_entropy_with_logits(outputs, targets)
        ista.zero_grad()
        loss.backward()
        ista.step()
    return ista


def assert_every_stage_lost_channels(plan: Sparsity, net: nn.Module, pruned: Pruned) -> None:
    """Wherever gammas are zero, channels went; one may stay to carry the others' constants to a padded border."""
    parameters = named_parameters(net)
    kept = {item.param: len(item.keep) for item in pruned.plan.keeps if item.axis == 0}
    for gamma in plan.gammas:
        penalised = plan.channels_of(gamma)
        if not penalised.any():
            continue
        zeros = int(((parameters[gamma.param] == 0).numpy() & penalised).sum())
        assert zeros, f"{gamma.param} has no zero"
        removed = penalised.size - kept.get(gamma.param, penalised.size)
        assert removed or zeros == 1, f"{gamma.param} lost nothing of its {zeros} zeros"


def by_gamma(net: nn.Module, image: torch.Tensor) -> tuple[dict[str, Gamma], dict[str, float]]:
    """Return the gammas and the λ of each one's first channel."""
    graph = trace(net, (image,)).graph
    classes = channels(graph)
    values = penalty(graph, classes)
    found = {gamma.param: gamma for gamma in gammas(graph, classes)}
    return found, {name: float(values[gamma.classes[0]]) for name, gamma in found.items()}


def test_memory_penalty_inside_a_dense_layer() -> None:
    net = DenseNet((2, 2), 8, 10, small_images=True)
    _, found = by_gamma(net, torch.zeros(2, 3, 16, 16))
    # Bottleneck channel of the second layer: 1x1 from 16 + 8 channels, read by a 3x3 to 8; its map is 16x16.
    by_hand = (1 * (16 + 8) + 9 * 8 + 16 * 16) / 16**2
    assert found["features.denseblock1.denselayer2.norm2.weight"] == pytest.approx(by_hand)


def test_memory_penalty_inside_an_inception_module() -> None:
    _, found = by_gamma(InceptionV3(), torch.zeros(2, 3, 96, 96))
    # 1x1 from 192 channels to 64, then 3x3 to 96; the map is 9x9.
    by_hand = (1 * 192 + 9 * 96 + 9 * 9) / 96**2
    assert found["Mixed_5b.branch3x3dbl_1.bn.weight"] == pytest.approx(by_hand)
