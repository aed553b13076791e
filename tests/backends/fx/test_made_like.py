"""Tensors made like another one (the first state of a recurrent network) keep their own number of channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from assertions import assert_same_function
from modules.silent import CHANNELS, SILENT, Spelled, prune
from torch import Tensor, nn

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
        self.cell, self.made = nn.Conv2d(2 * CHANNELS, 4 * CHANNELS, 1), made

    def forward(self, y: Tensor) -> Tensor:
        state, cell = self.made(y), self.made(y)
        for _ in range(2):
            i, f, o, g = self.cell(torch.cat((y, state), 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
        return state


@pytest.mark.parametrize("name", MADE)
def test_a_state_that_begins_like_a_map_is_no_reason_to_keep_its_channels(name: str) -> None:
    net = Spelled(Recurrent(MADE[name]))
    result = prune(net)
    assert result.module.get_parameter("stem.0.weight").shape[0] == CHANNELS - len(SILENT)
    assert_same_function(net, result.module, torch.randn(3, 3, 6, 6))
