"""The reference for pruning by score: the whole network, with the removed channels silenced where they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from prunec.frontends.onnx import TracedOnnx, trace_onnx
from prunec.passes.select import Facts

Mask = np.ndarray[Any, np.dtype[np.bool_]]

_ZERO_POINT = {"QLinearConv": 2, "QLinearMatMul": 2, "ConvInteger": 2, "MatMulInteger": 2, "QGemm": 2}
"""Op on integers -> the input that says which integer stands for zero."""


def with_masks(model: onnx.ModelProto, traced: TracedOnnx, facts: Facts, keep: Mask) -> onnx.ModelProto:
    """Return the model with removed channels set to zero wherever a contraction reads them.

    Channels that are constant there are left as they are: the plan folds them.
    """
    masked = onnx.ModelProto()
    masked.CopyFrom(model)
    places = {node.name: node.place for node in traced.nodes}
    for number, read in enumerate(facts.reads):
        gone = ~keep[facts.classes.class_of[read.ids]] & np.isnan(read.constant)
        if gone.any():
            _silence(masked, masked.graph.node[places[read.node.origin]], ~gone, number)
    return sorted_model(masked)


def _silence(model: onnx.ModelProto, node: onnx.NodeProto, stays: Mask, number: int) -> None:
    result = f"masked{number}"
    zero = _ZERO_POINT.get(node.op_type)
    if zero is None:
        operands = [node.input[0], f"mask{number}"]
        mask = stays.astype(np.float32)
        model.graph.node.append(helper.make_node("Mul", operands, [result]))
    else:
        operands = [f"mask{number}", node.input[0], node.input[zero]]
        mask = stays
        model.graph.node.append(helper.make_node("Where", operands, [result]))
    model.graph.initializer.append(numpy_helper.from_array(mask, f"mask{number}"))
    node.input[0] = result


def sorted_model(model: onnx.ModelProto) -> onnx.ModelProto:
    nodes = [node.proto for node in trace_onnx(model).nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
