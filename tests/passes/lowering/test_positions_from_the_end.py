"""Positions that are counted from the end of an axis mean the same channels when channels behind them go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_models.nets import Net, assert_pruned_agrees, num_removed
from torch import Tensor, nn

from prunec.api import prune_module

PLACES = torch.tensor([0, -3])


def overwritten(y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, -4:-2] = y[:, :2]
    return z[:, 4:6]


PICKED: dict[str, Callable[[Tensor], Tensor]] = {
    "a tensor": lambda y: y[:, PLACES],
    "a list": lambda y: y[:, [0, -3]],
    "numbers": lambda y: torch.stack([y[:, 0], y[:, -3]], 1),
    "select": lambda y: torch.stack([y.select(1, 0), y.select(-3, -3)], 1),
    "a slice": lambda y: y[:, -4:-2],
    "narrow": lambda y: y.narrow(1, -4, 2),
    "two slices": lambda y: torch.cat([y[:, -4:-3], y[:, :1]], 1),
    "a slice that is overwritten": overwritten,
    "unbound": lambda y: torch.stack([y.unbind(1)[0], y.unbind(1)[-3]], 1),
}


class Picking(nn.Module):
    """Of eight channels the last two are zero."""

    def __init__(self, pick: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.pick = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), pick
        self.all, self.two = nn.Conv2d(8, 4, 1), nn.Conv2d(2, 4, 1)
        nn.init.zeros_(self.body[1].weight[6:].data)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        made: Tensor = self.all(y) + self.two(self.pick(y))
        return made


@pytest.mark.parametrize("name", PICKED)
def test_a_module_picks_the_channels_that_it_picked(name: str) -> None:
    net, x = Picking(PICKED[name]).eval(), torch.randn(2, 3, 6, 6)
    found = prune_module(net, (x,))
    assert found.report.removed_channels == (0 if name == "unbound" else 2)
    torch.testing.assert_close(found.module(x), net(x), rtol=1e-4, atol=1e-5)


def gathered(net: Net, y: str) -> Any:
    return net.op("Gather", y, net.ints(0, -3), axis=1)


def one(net: Net, y: str) -> Any:
    picked = net.op("Gather", y, net.const(-3, np.int64), axis=-3)
    return net.op("Concat", *[net.op("Unsqueeze", picked, net.ints(1))] * 2, axis=1)


def sliced(net: Net, y: str) -> Any:
    return net.op("Slice", y, net.ints(-4), net.ints(-2), net.ints(-3))


@pytest.mark.parametrize("pick", [gathered, one, sliced])
def test_a_file_picks_the_channels_that_it_picked(pick: Callable[[Net, str], Any], tmp_path: Path) -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", [2, 3, 6, 6]), 3, 8, silent=(6, 7)))
    net.output(net.op("Add", net.conv(y, 8, 4, 1), net.conv(pick(net, y), 2, 4, 1)))
    _, made, _ = assert_pruned_agrees(net.model(), tmp_path)
    assert num_removed(made) > 0
