"""Data to calibrate on from memory: tensors, arrays, batches, data loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunec
from prunec.data.in_memory import records_of
from prunec.errors import BadInput
from prunec.pipeline.export import export_onnx
from prunec.runtime.probes import Slot
from prunec.sweep.sweep import sweep
from tests.modules.blocks import Head, cbr

X = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(cbr(3, 8), cbr(8, 12), Head(12)).eval()


def state(data: Any) -> list[torch.Tensor]:
    how: dict[str, Any] = {"target_macs": 0.6, "validate": False}
    found = prunec.prune_module(network(), (torch.zeros(1, 3, 8, 8),), calibration=data, **how)
    return list(found.module.state_dict().values())


def as_loader() -> Any:
    return DataLoader(TensorDataset(torch.from_numpy(X), torch.zeros(40)), batch_size=16)


@pytest.mark.parametrize(
    "data",
    [
        X,
        torch.from_numpy(X),
        as_loader(),
        [X[:20], X[20:]],
        [(X[:20], "labels"), (X[20:], "labels")],
        (batch for batch in (X[:30], X[30:])),
        prunec.Calibration(torch.from_numpy(X).requires_grad_()),
        list(X),
    ],
    ids=["array", "tensor", "loader", "batches", "tuples", "generator", "calibration", "samples"],
)
def test_data_in_memory_do_what_the_same_file_does(tmp_path: Path, data: Any) -> None:
    np.save(tmp_path / "x.npy", X)
    for found, wanted in zip(state(data), state(tmp_path), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_file_takes_arrays_by_name(tmp_path: Path) -> None:
    export_onnx(network(), (torch.zeros(2, 3, 8, 8),), tmp_path / "net.onnx", input_names=["x"])
    report = prunec.prune_onnx(
        tmp_path / "net.onnx", tmp_path / "out.onnx", calibration={"x": X, "other": 1}, target_macs=0.6
    )
    assert report.agreement is not None
    assert report.agreement.samples == 10


SLOTS = (Slot("a", (None, 3), "float32"), Slot("b", (None, 2), "float32"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "int is no data to calibrate on"),
        ([], "hold no batch"),
        ({"a": X}, "nothing for input 'b'"),
        (X, "nothing for input 'b'"),
        ([(X, "text")], "no array for input 'b'"),
        ([object()], "object is no batch of inputs"),
    ],
)
def test_what_is_no_data_is_named(data: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        records_of(data, SLOTS)


def test_what_needs_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="lie in no folders"):
        state(prunec.Calibration(X, labels="folders"))
    with pytest.raises(BadInput, match="--normalise is for image files"):
        state(prunec.Calibration(X, normalise="unit"))
    with pytest.raises(BadInput, match="needs its data on disk"):
        sweep(None, tmp_path / "sweep", calibration=prunec.Calibration(X))  # type: ignore[arg-type]  # not looked at
    assert not (tmp_path / "sweep").exists()


class OneByOne(nn.Module):
    """Goes through a batch sample by sample, so that a trace of it is one of that many."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(cbr(3, 8), cbr(8, 12)), nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.head(each.unsqueeze(0)).squeeze(0) for each in self.body(x)])


@pytest.mark.parametrize("criterion", ["reconstruct", "l1", "taylor"])
def test_a_module_that_takes_one_batch_size_gets_it(criterion: Any) -> None:
    how: dict[str, Any] = {"target_macs": 0.6, "validate": False, "criterion": criterion}
    net, example = OneByOne().eval(), torch.zeros(2, 3, 8, 8)
    found = prunec.prune_module(net, example, calibration=X, **how)
    assert found.report.agreement is not None
    assert found.report.agreement.samples >= 8
    with pytest.raises(BadInput, match="39 rows, input 'x' takes 2 at a time"):
        prunec.prune_module(net, example, calibration=X[:39], **how)
