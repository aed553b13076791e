"""Reading a module takes work in proportion to its depth: calls are counted, not seconds."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from prunec.frontends.fx.frontend import trace

SLACK = 1.15


class Branches(nn.Module):
    """Reads parameters and buffers of its own, as a re-parametrised block does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4, 1, 1))
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.register_buffer("scale", torch.ones(4, 1, 1))
        self.plain = torch.ones(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.conv2d(x, self.weight) * self.scale + self.plain
        for norm in self.norms:
            y = y + norm(x)
        return y


class Renewed(nn.Module):
    """Puts another tensor in the place of a buffer, and reads it again."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        before = self.seen.view(-1, 1, 1)
        self.seen = torch.ones(3)
        y: Tensor = self.conv(x + before + self.seen.view(-1, 1, 1))
        return y


def calls_of(depth: int) -> int:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), *(Branches() for _ in range(depth)))
    count = 0

    def seen(_: FrameType, event: str, __: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        trace(net, (torch.zeros(2, 3, 4, 4),))
    finally:
        sys.setprofile(None)
    return count


def test_twice_the_blocks_are_read_with_twice_the_calls() -> None:
    calls_of(2)  # what is imported and cached on the first call
    small, middle, large = (calls_of(depth) for depth in (8, 16, 32))
    assert large - middle < SLACK * 2 * (middle - small)


def test_a_buffer_that_the_forward_renews_is_read_as_it_is_then() -> None:
    net = Renewed().eval()
    found = trace(net, (torch.zeros(2, 3, 4, 4),))
    assert torch.equal(net.seen, torch.zeros(3))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(found.module(x), net(x))
