"""Checkpointing inside a forward: what it runs is followed, trains as before, and its loss is told by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint as cp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from prunec import analyze_module, apply_plan, prune_module
from prunec.api import Pruned

HERE = "test_checkpoints.py"
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


def block(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())


class Net(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.o, self.reentrant = block(3, 8), block(8, 8), nn.Conv2d(8, 2, 1), reentrant


class Always(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.o(checkpoint(self.b, self.a(x), use_reentrant=self.reentrant))  # type: ignore[no-any-return]


class InTraining(Net):
    """As most libraries do it: a switch on the module, and only while it trains."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__(reentrant)
        self.gradient_checkpointing = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.gradient_checkpointing and self.training:
            return self.o(cp.checkpoint(self.b, y, use_reentrant=self.reentrant))  # type: ignore[no-any-return]
        return self.o(self.b(y))  # type: ignore[no-any-return]


class InParts(Net):
    def forward(self, x: Tensor) -> Tensor:
        parts = nn.Sequential(*self.a, *self.b)
        return self.o(checkpoint_sequential(parts, 2, x, use_reentrant=self.reentrant))  # type: ignore[no-any-return]


class Closure(Net):
    """DenseNet's: a function that closes over the layers, asked for where gradients are needed."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.requires_grad:
            return self.o(torch.utils.checkpoint.checkpoint(lambda *z: self.b(z[0]), y, use_reentrant=self.reentrant))  # type: ignore[no-any-return]
        return self.o(self.b(y))  # type: ignore[no-any-return]


class Held(Net):
    """Transformers' way: the function is an attribute."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__(reentrant)
        self.run = functools.partial(checkpoint, use_reentrant=reentrant)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.o(self.run(self.b.__call__, y) if self.training else self.b(y))  # type: ignore[no-any-return]


class ByExport(Net):
    """A write that only torch.export takes out."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = y[:, 2:]
        y[:, :2] = 0
        z.add_(1)
        return self.o(checkpoint(self.b, y, use_reentrant=self.reentrant))  # type: ignore[no-any-return]


SPELLINGS: dict[str, Callable[[bool], Net]] = {
    kind.__name__: kind for kind in (Always, InTraining, InParts, Closure, Held, ByExport)
}


def pruned(net: nn.Module) -> Pruned:
    return prune_module(net.eval(), (torch.randn(2, 3, 8, 8),), criterion="l1", target_macs=0.6)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_what_is_checkpointed_trains_after_pruning_and_the_report_says_that_it_is_not(
    name: str, reentrant: bool
) -> None:
    result = pruned(SPELLINGS[name](reentrant))
    smaller = result.module.train()
    smaller(torch.randn(2, 3, 8, 8, requires_grad=True)).sum().backward()
    assert [key for key, parameter in smaller.named_parameters() if parameter.grad is None] == []
    (note,) = (note for note in result.report.notes if note.startswith("checkpointing inside its forward"))
    assert HERE in note


def test_a_pruned_copy_of_the_users_class_checkpoints() -> None:
    net = InTraining(False)
    plan = pruned(net).plan
    calls: list[Any] = []
    again = apply_plan(net, plan, keep_class=True).train()
    again.get_submodule("b").register_forward_pre_hook(lambda *_: calls.append(1))
    again(torch.randn(2, 3, 8, 8)).sum().backward()
    assert len(calls) == 2  # forward, and once more for the gradients
    assert again.get_parameter("b.0.weight").shape[1] < 8


def test_a_switch_that_is_off_and_code_without_any_say_nothing() -> None:
    net = InTraining(False)
    net.gradient_checkpointing = False
    for quiet in (net, nn.Sequential(block(3, 8))):
        assert analyze_module(quiet.eval(), (torch.randn(2, 3, 8, 8),)).notes == ()


def test_torch_checkpoints_as_before_once_a_network_was_read() -> None:
    before = (cp.CheckpointFunction, cp._checkpoint_without_reentrant_generator)
    pruned(Always(True))
    assert (cp.CheckpointFunction, cp._checkpoint_without_reentrant_generator) == before
