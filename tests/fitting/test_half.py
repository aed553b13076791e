"""Networks in half precision are fitted like others, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import prunec
from prunec.pipeline.export import export_onnx
from tests.fitting.test_branches import X, residual

DATA = np.random.default_rng(0).standard_normal((60, 3, 12, 12)).astype(np.float32)
HOW: dict[str, Any] = {"target_macs": 0.7}


def as_half(path: Path, output: Path) -> None:
    """Write a file with all float tensors, inputs and outputs in half precision."""
    model = onnx.load(path)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del graph.value_info[:]
    onnx.save(model, output)


@pytest.mark.parametrize("criterion", ["reconstruct", "l1"])
def test_a_file_in_half_precision_is_fitted_like_one_in_single(tmp_path: Path, criterion: str) -> None:
    export_onnx(residual(), (X,), tmp_path / "net.onnx")
    as_half(tmp_path / "net.onnx", tmp_path / "half.onnx")
    errors = []
    for name, dtype in (("net", np.float32), ("half", np.float16)):
        out = tmp_path / f"{name}-out.onnx"
        report = prunec.prune_onnx(
            tmp_path / f"{name}.onnx", out, calibration=DATA.astype(dtype), criterion=criterion, **HOW
        )
        assert report.agreement is not None
        errors.append(report.agreement.outputs[0].error)
    assert errors[1] < 1.2 * errors[0] + 0.02
    made = onnx.load(tmp_path / "half-out.onnx")
    assert all(tensor.data_type != onnx.TensorProto.FLOAT for tensor in made.graph.initializer)
    session = ort.InferenceSession(str(tmp_path / "half-out.onnx"))
    found = session.run(None, {session.get_inputs()[0].name: DATA.astype(np.float16)})[0]
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", ["same", "single"])
def test_a_module_in_half_precision_is_fitted(dtype: torch.dtype, given: str) -> None:
    net, data = residual().to(dtype), torch.from_numpy(DATA).to(dtype)
    calibration = prunec.Calibration(data if given == "same" else torch.from_numpy(DATA), orders=1)
    made = prunec.prune_module(net, (X.to(dtype),), calibration=calibration, validate=False, **HOW)
    with torch.no_grad():
        wanted, found = net(data).float(), made.module(data)
    assert found.dtype == dtype
    assert (found.float() - wanted).square().sum() < 0.5 * (wanted - wanted.mean()).square().sum()
