"""Entries of vectors and tables, picked by their index: read where they are used, and pruned around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from assertions import assert_same_function
from torch import Tensor, nn

from prunec.api import prune_module


class Mixing(nn.Module):
    """Two maps of eight channels, mixed by what a subclass takes out of its parameters."""

    table: Tensor

    def __init__(self, mix: Callable[[Mixing, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(2))
        self.w = nn.Parameter(torch.rand(2) + 0.5)
        self.scales = nn.Parameter(torch.rand(3) + 0.5)
        self.per_map = nn.Parameter(torch.rand(2, 8, 1, 1) + 0.5)
        self.register_buffer("table", torch.rand(3, 4) + 0.5)
        self.o, self.mix = nn.Conv2d(8, 2, 1), mix
        with torch.no_grad():
            for norm in (self.a[1], self.b[1]):
                norm.bias.normal_()
                norm.weight[:4] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.mix(self, self.a(x), self.b(x)))  # type: ignore[no-any-return]  # nn.Module's call is untyped


def _bifpn(net: Mixing, p: Tensor, q: Tensor) -> Tensor:
    w = torch.relu(net.w)
    w = w / (w.sum() + 1e-4)
    return w[0] * p + w[1] * q


def _softmaxed(net: Mixing, p: Tensor, q: Tensor) -> Tensor:
    first, second = torch.softmax(net.w, 0).unbind(0)
    return first * p + second * q


def _each(net: Mixing, p: Tensor, q: Tensor) -> Tensor:
    y = p + q
    for scale in net.scales:
        y = y * scale
    return y


def _selected(net: Mixing, p: Tensor, q: Tensor) -> Tensor:
    return p * net.scales.select(0, -1) + q * net.scales.narrow(0, 1, 1)


def _rows(net: Mixing, p: Tensor, q: Tensor) -> Tensor:
    first, second = net.per_map
    return p * first + q * second


MIXES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "BiFPN": _bifpn,
    "softmax, unbound": _softmaxed,
    "for scale in scales": _each,
    "selected": _selected,
    "row by row": _rows,
    "entry of a parameter": lambda net, p, q: p * net.w[0] + q * net.w[-1],
    "two indices": lambda net, p, q: p * net.table[0, 1] + q * net.table[2][3],
    "entry of a bias": lambda net, p, q: p + q + net.a[1].bias[3],
    "entry, detached": lambda net, p, q: p + q * net.w.detach()[1],
    "from the end": lambda net, p, q: p * net.w[..., 0] + q * net.table[-1, -1],
}


@pytest.mark.parametrize("name", MIXES)
def test_entries_are_followed(name: str) -> None:
    net, x = Mixing(MIXES[name]).eval(), torch.randn(2, 3, 8, 8)
    smaller = prune_module(net, (x,), criterion="l1", target_macs=0.6).module
    assert sum(t.numel() for t in smaller.parameters()) < sum(t.numel() for t in net.parameters())
    assert_same_function(net, prune_module(net, (x,)).module, x)
