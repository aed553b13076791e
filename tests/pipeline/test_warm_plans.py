"""Plans of networks that keep tensors beside their state: a fresh network takes them, its caches empty or filled."""

from __future__ import annotations

import copy

import pytest
import torch
from assertions import outputs_of
from modules.blocks import cbr
from modules.networks import silence
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module
from prunec.ir.plan import PrunePlan
from prunec.pipeline.apply import apply_plan


class Gridded(nn.Module):
    """Keeps a grid of the last size on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 8), cbr(8, 8), nn.Conv2d(8, 2, 1)
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.grid is None or self.grid.shape[-2:] != y.shape[-2:]:
            self.grid = torch.arange(y.shape[-1]).float().expand(y.shape[-2], -1)[None, None] / 10
        out: Tensor = self.head(self.b(y * self.grid))
        return out


class Rotary(nn.Module):
    """Keeps tables of the longest sequence so far, whose channels are pruned with the others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.cos: Tensor | None = None
        self.longest = 0

    def forward(self, x: Tensor) -> Tensor:
        y, length = self.q(F.relu(self.a(x))), x.shape[1]
        if self.cos is None or length > self.longest:
            angles = torch.arange(length).float()[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
            self.cos, self.sin, self.longest = angles.cos(), angles.sin(), length
        c, s, one, two = self.cos[:length], self.sin[:length], y[..., ::2], y[..., 1::2]
        out: Tensor = self.head(torch.stack([one * c - two * s, one * s + two * c], -1).flatten(-2))
        return out


@pytest.mark.parametrize("kind", [Gridded, Rotary])
def test_a_plan_of_a_network_that_had_run_is_applied_to_a_fresh_one(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = silence(kind()), torch.randn(2, 3, 8, 8) if kind is Gridded else torch.randn(2, 10, 6)
    fresh = copy.deepcopy(net)
    net(x)
    pruned = prune_module(net, (x,), criterion="l1", target_macs=0.6)
    assert bool(pruned.plan.held) == (kind is Rotary)  # a grid of the last size is made again for each input
    before = dict(vars(fresh))
    again = apply_plan(fresh, PrunePlan.from_json(pruned.plan.to_json()))
    assert vars(fresh) == before
    again.load_state_dict(pruned.module.state_dict())
    for expected, found in zip(outputs_of(pruned.module, x), outputs_of(again, x), strict=True):
        assert torch.equal(expected, found)


def test_a_plan_of_a_network_without_such_tensors_does_not_speak_of_them() -> None:
    net = silence(nn.Sequential(cbr(3, 8), nn.Conv2d(8, 2, 1)))
    assert "held" not in prune_module(net, (torch.randn(2, 3, 8, 8),)).plan.to_json()
