"""Tensors made like another one (the first state of a recurrent network) keep their own number of channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from assertions import assert_same_function
from torch import Tensor, nn

from prunec.api import prune_module

MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "full_like": lambda y: torch.full_like(y, 0.5),
    "full_like by name": lambda y: torch.full_like(input=y, fill_value=0.5, dtype=torch.float32),
}


class Recurrent(nn.Module):
    """ConvLSTM: its states begin like the map that it reads, which loses other channels than they do."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.norm, self.cell, self.o = (
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(16, 32, 1),
            nn.Conv2d(8, 2, 1),
        )
        self.made = made
        with torch.no_grad():
            self.norm.weight[:3] = 0
            self.norm.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.a(x)))
        state, cell = self.made(y), self.made(y)
        for _ in range(2):
            i, f, o, g = self.cell(torch.cat((y, state), 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
        return self.o(state)  # type: ignore[no-any-return]  # nn.Module's call is untyped


@pytest.mark.parametrize("name", MADE)
def test_a_state_that_begins_like_a_map_is_no_reason_to_keep_its_channels(name: str) -> None:
    torch.manual_seed(0)
    net, x = Recurrent(MADE[name]).eval(), torch.randn(2, 3, 8, 8)
    result = prune_module(net, (x,))
    assert result.module.get_parameter("a.weight").shape[0] == 5
    assert_same_function(net, result.module, x, torch.randn(3, 3, 6, 6))
