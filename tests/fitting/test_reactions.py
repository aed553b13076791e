"""Errors weigh what the network makes of them: a branch that matters little loses its channels first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from prunec.api import prune_module, prune_onnx
from prunec.data.calibration import Calibration
from prunec.pipeline.export import export_onnx


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


class _Parted(nn.Module):
    """Branches alike, each of which reads a channel of its own; the second counts a third. One sample at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(1, 16, 3, padding=1, bias=False) for _ in range(2))
        self.after_a, self.after_b = nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        first = torch.tanh(self.after_a(torch.relu(self.a(x[:, :1]))))
        return (first + 0.3 * torch.tanh(self.after_b(torch.relu(self.b(x[:, 1:]))))).reshape(1, 400)


@pytest.mark.parametrize("rows", [1, 4])
def test_effects_are_measured_on_samples_spread_over_all_data(tmp_path: Path, rows: int) -> None:
    torch.manual_seed(0)
    net, rng = _Parted().eval(), np.random.default_rng(0)
    x = rng.standard_normal((32, 2, 10, 10)).astype(np.float32)
    x[:rows, 0] *= 0.03  # the first of them hardly show what the first branch does
    np.save(tmp_path / "x.npy", x)
    with pytest.warns(UserWarning, match="fixed at 1"):
        export_onnx(net, (torch.zeros(1, 2, 10, 10),), tmp_path / "net.onnx")
    how: dict[str, Any] = {"calibration": Calibration(tmp_path, orders=1), "target_macs": 0.7, "multiple_of": 1}
    prune_onnx(tmp_path / "net.onnx", tmp_path / "out.onnx", **how)
    kept = [tensor.dims[0] for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer if len(tensor.dims) == 4]
    assert kept[0] > 12
    assert kept[1] < 8
