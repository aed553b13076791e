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
from prunec.fitting.reactions import distance
from prunec.pipeline.export import export_onnx
from prunec.runtime.scores import log_probabilities


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


def test_of_classes_an_error_near_the_largest_score_counts_more() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((64, 10)) * 3
    near, far = scores.copy(), scores.copy()
    order = np.argsort(scores, axis=1)
    np.put_along_axis(near, order[:, -2:-1], np.take_along_axis(near, order[:, -2:-1], 1) + 1, 1)
    np.put_along_axis(far, order[:, :1], np.take_along_axis(far, order[:, :1], 1) + 1, 1)
    assert distance([[scores]], [[near]]) == pytest.approx(distance([[scores]], [[far]]))
    assert distance([[scores]], [[near]], of_classes=True) > 3 * distance([[scores]], [[far]], of_classes=True) > 0
    assert distance([[scores]], [[scores + 1]], of_classes=True) == pytest.approx(0, abs=1e-9)  # no class gains by it


def test_probabilities_are_taken_as_they_are_and_batches_may_differ() -> None:
    scores = np.random.default_rng(0).standard_normal((12, 5))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.allclose(log_probabilities(probabilities), log_probabilities(scores))
    halves, all_at_once = [[scores[:5]], [scores[5:]]], [[scores]]
    shifted = scores + np.linspace(0, 1, 5)
    found = distance(halves, [[shifted[:5]], [shifted[5:]]], of_classes=True)
    assert found == pytest.approx(distance(all_at_once, [[shifted]], of_classes=True)) != 0


@pytest.mark.parametrize("shapes", [((1, 7), (1, 3)), ((2, 1, 6, 6),) * 2, ((4, 9, 1),) * 2])
def test_what_is_no_score_of_a_class_has_its_squared_error(shapes: tuple[tuple[int, ...], ...]) -> None:
    rng = np.random.default_rng(0)
    first = [[rng.standard_normal(shape)] for shape in shapes]  # [1, found] may have another length each time
    second = [[value + rng.standard_normal(value.shape)] for (value,) in first]
    assert distance(first, second, of_classes=True) == pytest.approx(distance(first, second))


class _Feature(nn.Module):
    """Gives a value that later layers read, before the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.then = nn.Conv2d(2, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.after, self.last = nn.Conv2d(4, 12, 3, padding=1), nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> Any:
        feature = self.then(torch.relu(self.first(x)))
        return feature, self.last(torch.relu(self.after(feature)))


@pytest.mark.parametrize("as_file", [False, True])
def test_an_output_may_be_read_by_later_layers(tmp_path: Path, as_file: bool) -> None:
    torch.manual_seed(0)
    net = _Feature().eval()
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data/x.npy", np.random.default_rng(0).standard_normal((24, 2, 9, 9)).astype(np.float32))
    how: dict[str, Any] = {"calibration": Calibration(tmp_path / "data"), "target_macs": 0.6, "multiple_of": 1}
    if as_file:
        export_onnx(net, (torch.zeros(2, 2, 9, 9),), tmp_path / "net.onnx")
        assert prune_onnx(tmp_path / "net.onnx", tmp_path / "out.onnx", **how).removed_channels
    else:
        assert prune_module(net, (torch.zeros(1, 2, 9, 9),), **how).report.removed_channels
