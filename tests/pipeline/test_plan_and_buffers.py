"""Plans of networks whose buffers say which channels go together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunec.api import prune_module
from prunec.errors import BadPlan
from prunec.pipeline.apply import apply_plan


class Shuffled(nn.Module):
    """Channels in an order that is drawn when the network is made, and saved with its weights."""

    order: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("order", torch.randperm(8, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.a(x)[:, self.order] + self.b(x)))  # type: ignore[no-any-return]


def test_a_plan_on_a_network_of_another_order_says_what_helps() -> None:
    torch.manual_seed(0)
    net, x = Shuffled(1).eval(), torch.randn(2, 3, 8, 8)
    result = prune_module(net, (x,), criterion="l1", target_macs=0.6)
    fresh = Shuffled(2).eval()
    with pytest.raises(BadPlan, match=r"load the original's weights before the plan is applied"):
        apply_plan(fresh, result.plan)
    fresh.load_state_dict(net.state_dict())
    again = apply_plan(fresh, result.plan)
    again.load_state_dict(result.module.state_dict())
    assert torch.equal(again(x), result.module(x))
