"""Small ONNX files for the tests, written from nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_conv(path: Path, *, scale: float = 1.0, bias: float = 0.0, opset: int = 17) -> Path:
    """Write a small convolution; ``scale`` multiplies its weights, which are always the same."""
    rng = np.random.default_rng(7)
    weight = (scale * rng.standard_normal((4, 3, 3, 3))).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, "h", "w"])
    weights = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.full(4, bias, dtype=np.float32), "b"),
    ]
    graph = helper.make_graph(nodes, "conv", [x], [y], initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
