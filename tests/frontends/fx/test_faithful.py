"""Forwards that ask what their values are: read as they run, or refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunec
from prunec.errors import UntraceableModel

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


class ByClass(Asking):
    def changed(self, y: Tensor) -> Tensor:
        return y * 2 if y.__class__ is Tensor else y


class ByMatch(Asking):
    def changed(self, y: Tensor) -> Tensor:
        match y:
            case torch.Tensor():
                return y * 2
        return y


@functools.singledispatch
def twice(value: object) -> object:
    return value


@twice.register
def _(value: torch.Tensor) -> object:
    return value * 2


class ByDispatch(Asking):
    def changed(self, y: Tensor) -> Tensor:
        return twice(y)  # type: ignore[return-value]  # a tensor of a tensor


class ForAMessage(Asking):
    def changed(self, y: Tensor) -> Tensor:
        if y.dim() != 4:
            raise ValueError(f"not a map: {type(y)}")
        return y.type(torch.float32)


class Random(ForAMessage):
    def changed(self, y: Tensor) -> Tensor:
        return super().changed(y) * torch.rand(1).type(y.dtype)


@pytest.mark.parametrize("kind", [Doubling, ByClass, ByMatch, ByDispatch])
@pytest.mark.parametrize("options", [{}, {"criterion": "l1", "target_macs": 0.5}])
def test_a_network_that_was_read_as_another_is_refused_or_right(kind: type[Asking], options: dict[str, Any]) -> None:
    """Some of these ways to ask are answered as the network's own values would."""
    net = kind().eval()
    with torch.no_grad():
        net.a[1].weight[:4] = 0
        net.a[1].bias[:4] = 0
    try:
        pruned = prunec.prune_module(net, X, **options).module
    except UntraceableModel as error:
        assert "computes something else than the network" in str(error)  # noqa: PT017  # either may happen
    else:
        torch.testing.assert_close(pruned(X), net(X), rtol=1e-4, atol=1e-5)
        assert kind is not Doubling


@pytest.mark.parametrize("kind", [ForAMessage, Random])
def test_asking_alone_does_no_harm(kind: type[Asking]) -> None:
    assert prunec.prune_module(kind(), X, criterion="l1", target_macs=0.5).report.removed_channels == 4
