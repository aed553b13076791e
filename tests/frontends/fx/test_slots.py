"""Objects whose slots are overridden by something that computes: they are looked at, and left as they are."""

from __future__ import annotations

import torch
from onnx_models.dead_channels import Module
from torch import Tensor, nn

import prunec


class Slotted:
    __slots__ = ("count",)


class Computed(Slotted):
    """``count`` is computed here, so its slot cannot be set."""

    @property
    def count(self) -> int:  # type: ignore[override]
        return 3


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.computed, self.counter = Module(), Computed(), Slotted()
        self.counter.count = 7

    def forward(self, x: Tensor) -> Tensor:
        self.counter.count += 1
        return self.net(x) * self.computed.count


def test_a_computed_slot_is_no_obstacle_and_a_real_one_is_put_back() -> None:
    holder = Holder().eval()
    found = prunec.prune_module(holder, (torch.randn(1, 3, 8, 8),))
    assert found.report.removed_channels == 8
    assert holder.counter.count == 7
