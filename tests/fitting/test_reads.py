"""What reads channels that others make up for: exact where it can be, kept where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from assertions import outputs_of, relative_error
from modules.dependent import copy_channels
from torch import nn

from prunec.api import analyze_module
from prunec.backends.fx.backend import apply_edits
from prunec.fitting.fit_data import FitData
from prunec.fitting.reconstruct import Reconstruction, can_go
from prunec.fitting.stages_module import OpenedModule
from prunec.ir.arrays import Mask
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.select import Facts, plan, select
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import input_specs, read_module


def batch(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((8, 3, 8, 8))).float()


def made_up_for(net: nn.Module, copied: Callable[[nn.Module, Facts], Mask]) -> tuple[float, int]:
    """Return the relative error on new inputs once copies are gone, and how many went."""
    net = net.double().eval()
    example = (batch(0).double(),)
    keep = copied(net, gather_facts(read_module(net, example).graph))
    traced = read_module(net, example)
    facts = gather_facts(traced.graph)
    selection = select(facts, keep)
    feeds = tuple({traced.graph.inputs[0]: batch(seed).double().numpy()} for seed in range(3))
    data = Reconstruction(OpenedModule(traced, feeds), FitData("data", feeds, (), 24, 0, ()), 64 << 20)
    first = plan(facts, selection, input_specs(traced.graph, example))
    first = data.prepared(facts, first, selection.wanted, frozenset(), new=True)
    edits = lower(facts.graph, facts.classes, first, facts.constants)
    made = data.fitted(facts, first, edits, apply_edits(traced, edits))
    pruned = apply_edits(traced, lower(facts.graph, facts.classes, made, facts.constants))
    new = batch(9).double()
    return relative_error(outputs_of(net, new), outputs_of(pruned, new)), int((~selection.keep).sum())


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 6), nn.Linear(6, 12)
        self.last = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.stem(x))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return self.last(x * gate[:, :, None, None])


class Concats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 6, 1), nn.Conv2d(17, 4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(torch.cat([torch.relu(self.left(x)), x, torch.tanh(self.right(x))], 1))


class Sequence(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.stem, self.rnn, self.head = nn.Conv2d(3, 10, 3, padding=1), kind(10, 7, batch_first=True), nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> Any:
        steps = torch.relu(self.stem(x)).mean(3).transpose(1, 2)
        return self.head(self.rnn(steps)[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.values, self.last = nn.Conv2d(3, 10, 1), nn.Linear(10, 9), nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> Any:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        weights = torch.softmax(tokens @ tokens.transpose(1, 2), -1)
        return self.last(weights @ self.values(tokens))


@pytest.mark.parametrize(
    "build", [SqueezeExcite, Concats, lambda: Sequence(nn.LSTM), lambda: Sequence(nn.GRU)],
    ids=["squeeze-excite", "concat", "lstm", "gru"],
)  # fmt: skip
def test_a_copy_goes_without_an_error_whatever_reads_it(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    error, gone = made_up_for(build(), copy_channels)
    assert gone > 0
    assert error <= 1e-5


def test_channels_of_which_two_are_multiplied_stay() -> None:
    torch.manual_seed(0)
    traced = read_module(Attention().eval(), (batch(0),))
    facts = gather_facts(traced.graph)
    feeds = ({traced.graph.inputs[0]: batch(1).numpy()},)
    data = Reconstruction(OpenedModule(traced, feeds), FitData("data", feeds, (), 8, 0, ()), 64 << 20)
    found = data.operands(facts)
    free = can_go(facts, found, data.grams(facts, found))
    made_by = {
        member.param: facts.classes.class_of[member.ids].ravel() for member in facts.classes.members if not member.axis
    }
    assert not free[made_by["stem.weight"]].any()
    assert free[made_by["values.weight"]].all()


def grouped_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1))


def copied_group(net: nn.Module, facts: Facts) -> Mask:
    """Make the last group of a GroupNorm a copy of its first."""
    keep = np.ones(facts.classes.num_classes, dtype=bool)
    for name, tensor in [*net[0].named_parameters(), *net[1].named_parameters()]:  # type: ignore[index]
        with torch.no_grad():
            tensor[12:] = tensor[:4]
        assert name in ("weight", "bias")
    for member in facts.classes.members:
        if member.param == "0.weight" and member.axis == 0:
            keep[facts.classes.class_of[member.ids].ravel()[12:]] = False
    return keep


def test_of_a_group_norm_whole_groups_go_without_an_error() -> None:
    torch.manual_seed(0)
    error, gone = made_up_for(grouped_norm(), copied_group)
    assert gone > 0
    assert error <= 1e-5


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Conv2d(3, 12, 1), nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.norm(self.stem(x).permute(0, 2, 3, 1)))


def test_channels_that_a_layer_norm_averages_over_stay_and_it_is_named() -> None:
    torch.manual_seed(0)
    _, gone = made_up_for(Layered(), copy_channels)
    assert gone == 0
    found = analyze_module(Layered(), (batch(0),))
    assert any("norm" in pin.node for pin in found.pins)
