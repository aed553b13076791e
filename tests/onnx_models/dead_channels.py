"""One network in every form: half of a convolution's filters are zero, so half of its channels can go."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

WIDTH = 24
SIZE = 12


def message(width: int = WIDTH, *, dead: int | None = None, function: bool = True) -> onnx.ModelProto:
    """Return x -> Conv -> Relu -> Conv -> (a function of the model's own) -> y, with notes on everything.

    Args:
        dead: how many of the first convolution's filters are zero; None: half of them.
        function: call the model's own function at the end.
    """
    rng = np.random.default_rng(3)
    first = rng.standard_normal((width, 3, 3, 3)).astype(np.float32)
    gone = width // 2 if dead is None else dead
    first[:gone] = 0
    bias = rng.standard_normal(width).astype(np.float32)
    bias[:gone] = 0
    second = rng.standard_normal((4, width, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="first", pads=[1, 1, 1, 1], doc_string="finds edges"),
        helper.make_node("Relu", ["a"], ["r"], name="act"),
        helper.make_node("Conv", ["r", "w2"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Double" if function else "Neg", ["c"], ["y"], name="end", domain="mine" if function else ""),
    ]
    graph = helper.make_graph(
        nodes,
        "edges",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, SIZE, SIZE])],
        initializer=[
            numpy_helper.from_array(array, name) for name, array in (("w1", first), ("b1", bias), ("w2", second))
        ],
        doc_string="about the graph",
        value_info=[helper.make_tensor_value_info("r", TensorProto.FLOAT, ["batch", width, SIZE, SIZE])],
    )
    twice = helper.make_function(
        "mine", "Double", ["v"], ["o"], [helper.make_node("Add", ["v", "v"], ["o"])], [helper.make_opsetid("", 17)]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 2)]
    model = helper.make_model(
        graph, opset_imports=opsets, functions=[twice] if function else [], ir_version=10, doc_string="about the model"
    )
    model.producer_name, model.producer_version, model.domain, model.model_version = "us", "7", "org.us", 12
    for holder in (model, model.graph, model.graph.node[0], model.graph.initializer[2]):
        holder.metadata_props.add(key="who", value=type(holder).__name__)
    onnx.checker.check_model(model)
    return model


def as_kind(kind: str, model: onnx.ModelProto) -> Any:
    """Return the same model as "proto", "ir" or "gs"."""
    if kind == "ir":
        import onnx_ir

        return onnx_ir.from_proto(model)
    if kind == "gs":
        import onnx_graphsurgeon as gs

        return gs.import_onnx(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def as_bytes(model: Any) -> bytes:
    """Serialise a model of any of these kinds, the same way each time."""
    return as_proto(model).SerializeToString(deterministic=True)


def as_proto(model: Any) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    if type(model).__module__.startswith("onnx_ir"):
        import onnx_ir

        return onnx_ir.to_proto(model)
    import onnx_graphsurgeon as gs

    return gs.export_onnx(model)


def dims(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


class Module(nn.Module):
    """The same idea in torch: the first BatchNorm's first half has gamma and beta zero."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, 4, 3, padding=1)
        with torch.no_grad():
            self.stem[1].weight[: width // 2] = 0
            self.stem[1].bias[: width // 2] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x)).mean((2, 3))
