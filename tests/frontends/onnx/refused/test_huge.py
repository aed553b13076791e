"""Small files that ask for much: sizes that overflow, huge tensors, functions without end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models.nets import Net
from onnx_models.refused import refused, saved, small_net

from prunec.errors import PrunecError
from prunec.frontends.onnx.frontend import load_onnx, trace_onnx


def test_dims_that_overflow(tmp_path: Path) -> None:
    for dims in ([2**40, 2**40], [2**62, 8], [-1, 8], [2**31]):
        model = small_net()
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        assert "dims" in refused(saved(model, tmp_path))


def test_input_that_overflows(tmp_path: Path) -> None:
    model = small_net()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**60
    assert "no tensor can be that large" in refused(saved(model, tmp_path))


@pytest.mark.parametrize("op", ["ConstantOfShape", "Tile", "Expand", "Range", "Pad", "Resize"])
def test_small_file_that_asks_for_a_huge_tensor(op: str, tmp_path: Path) -> None:
    """Some 100 bytes that stand for terabytes are not built."""
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
    one, huge = net.const(np.ones((1, 1, 1, 1), np.float32)), 2**30
    made = {
        "ConstantOfShape": lambda: net.op("ConstantOfShape", net.ints(1, huge, huge, 1)),
        "Tile": lambda: net.op("Tile", one, net.ints(1, huge, huge, 1)),
        "Expand": lambda: net.op("Expand", one, net.ints(1, huge, huge, 1)),
        "Range": lambda: net.op(
            "Range", net.const(0.0, np.float32), net.const(1e18, np.float32), net.const(1.0, np.float32)
        ),
        "Pad": lambda: net.op("Pad", one, net.ints(0, huge, huge, 0, 0, 0, 0, 0)),
        "Resize": lambda: net.op("Resize", one, "", net.const([1, 1e9, 1e9, 1], np.float32)),
    }[op]()
    pooled = net.op("ReduceMax", made, keepdims=1)
    net.output(net.op("Add", x, net.op("Reshape", pooled, net.ints(1, 1, 1, -1))), shape=[1, 8, 6, 6])
    path = saved(net.model(), tmp_path)
    try:
        graph = trace_onnx(load_onnx(path)).graph
    except PrunecError:
        return
    assert sum(param.array.nbytes for param in graph.params.values() if any(param.array.strides)) < 1e6


def test_functions_that_multiply_without_end(tmp_path: Path) -> None:
    model = small_net()
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("f", 1)]
    model.opset_import.append(helper.make_opsetid("f", 1))
    for level in range(40):
        below = f"F{level - 1}" if level else "Relu"
        domain = "f" if level else ""
        body = [
            helper.make_node(below, ["a"], ["b"], domain=domain),
            helper.make_node(below, ["b"], ["c"], domain=domain),
        ]
        model.functions.append(helper.make_function("f", f"F{level}", ["a"], ["c"], body, opsets))
    model.graph.node[1].op_type, model.graph.node[1].domain = "F39", "f"
    assert "functions expand" in refused(saved(model, tmp_path))


def test_function_that_calls_itself(tmp_path: Path) -> None:
    model = small_net()
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("f", 1)]
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.functions.append(
        helper.make_function("f", "F", ["a"], ["b"], [helper.make_node("F", ["a"], ["b"], domain="f")], opsets)
    )
    model.graph.node[1].op_type, model.graph.node[1].domain = "F", "f"
    assert "calls itself" in refused(saved(model, tmp_path))
