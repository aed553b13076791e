"""Forwards that ask type(x): followed on the way that they take, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunec
from prunec.errors import UntraceableModel
from prunec.frontends.fx.asked_types import asks_types
from prunec.frontends.fx.frontend import trace

X = torch.randn(2, 3, 12, 12)


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.o = nn.Conv2d(8, 2, 1)

    def changed(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.changed(self.a(x)))  # type: ignore[no-any-return]  # nn.Module's call is untyped


class Doubling(Asking):
    def changed(self, y: Tensor) -> Tensor:
        return y * 2 if type(y) is Tensor else y


class InAFunctionInside(Asking):
    def changed(self, y: Tensor) -> Tensor:
        def inner(z: Tensor) -> Tensor:
            return z.relu() if type(z) is Tensor else z

        return inner(y)


class ForAMessage(Asking):
    def changed(self, y: Tensor) -> Tensor:
        if y.dim() != 4:
            raise ValueError(f"not a map: {type(y)}")
        return y.type(torch.float32)


class Random(ForAMessage):
    def changed(self, y: Tensor) -> Tensor:
        return super().changed(y) * torch.rand(1).type(y.dtype)


@pytest.mark.parametrize("kind", [Doubling, InAFunctionInside])
@pytest.mark.parametrize("options", [{}, {"criterion": "l1", "target_macs": 0.5}])
def test_a_network_that_would_be_another_one_is_refused(kind: type[Asking], options: dict[str, object]) -> None:
    with pytest.raises(UntraceableModel, match=r"asks what type\(x\) is") as error:
        prunec.prune_module(kind(), (X,), **options)  # type: ignore[arg-type]  # options by name
    assert error.value.do == "ask isinstance(x, torch.Tensor) instead"


@pytest.mark.parametrize("kind", [ForAMessage, Random])
def test_asking_alone_does_no_harm(kind: type[Asking]) -> None:
    net = kind()
    assert asks_types(net)
    assert prunec.prune_module(net, (X,), criterion="l1", target_macs=0.5).report.removed_channels == 4


def test_other_networks_are_not_run_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunec.frontends.fx.frontend.computes_the_same", None)
    trace(Asking(), (X,))
