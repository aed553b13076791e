"""Files whose weights are stored sparse are fitted like dense ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnx_models.nets import Net

import prunec

DATA = np.random.default_rng(1).standard_normal((24, 3, 8, 8)).astype(np.float32)


def stored_sparse(weight: np.ndarray[Any, Any], name: str) -> onnx.SparseTensorProto:
    at = np.flatnonzero(weight)
    values = helper.make_tensor(name, onnx.TensorProto.FLOAT, [at.size], weight.ravel()[at])
    return helper.make_sparse_tensor(
        values, helper.make_tensor(f"{name}/at", onnx.TensorProto.INT64, [at.size], at), list(weight.shape)
    )


@pytest.mark.parametrize("criterion", ["reconstruct", "l1"])
def test_a_sparse_weight_is_fitted(tmp_path: Path, criterion: Any) -> None:
    net = Net(17)
    x = net.op("Relu", net.conv(net.input("x", ["n", 3, 8, 8]), 3, 12))
    x = net.op("Relu", net.conv(x, 12, 12))
    net.output(net.op("Conv", x, "last"))
    model, last = net.model(), net.weight(4, 12, 1, 1)
    last[np.abs(last) < np.quantile(np.abs(last), 0.5)] = 0
    model.graph.sparse_initializer.append(stored_sparse(last, "last"))
    onnx.save(model, tmp_path / "net.onnx")
    how: dict[str, Any] = {"criterion": criterion, "target_macs": 0.6, "calibration": DATA}
    report = prunec.prune_onnx(tmp_path / "net.onnx", tmp_path / "out.onnx", **how)
    assert report.agreement is not None
    assert report.agreement.outputs[0].error < 0.7
    found = ort.InferenceSession(str(tmp_path / "out.onnx")).run(None, {"x": DATA})[0]
    assert found.shape == (24, 4, 8, 8)
