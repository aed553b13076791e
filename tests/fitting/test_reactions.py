"""Errors weigh what the network makes of them: a branch that matters little loses its channels first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunec.api import prune_module
from prunec.data.calibration import Calibration


class _Branches(nn.Module):
    """Two branches alike, of which one counts a hundredth where they are added."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.after_a, self.after_b = nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        first = torch.tanh(self.after_a(torch.relu(self.a(x))))
        return first + 0.01 * torch.tanh(self.after_b(torch.relu(self.b(x))))


def test_a_branch_that_counts_little_loses_its_channels_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, rng = _Branches().eval(), np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.standard_normal((32, 3, 10, 10)).astype(np.float32))
    how: dict[str, Any] = {"calibration": Calibration(tmp_path), "target_macs": 0.7, "multiple_of": 1}
    made = prune_module(net, (torch.zeros(1, 3, 10, 10),), **how).module
    assert made.get_submodule("a").out_channels == 16
    assert made.get_submodule("b").out_channels < 8
