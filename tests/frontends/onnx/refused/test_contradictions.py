"""Graphs that contradict themselves: cycles, names defined twice, shapes, axes and attributes that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models.nets import Net
from onnx_models.refused import refused, saved, small_net

from prunec.frontends.onnx.frontend import load_onnx, trace_onnx


def test_cycle(tmp_path: Path) -> None:
    model = small_net()
    model.graph.node[0].input[0] = model.graph.node[1].output[0]
    assert "cycle" in refused(saved(model, tmp_path))


def test_nodes_in_the_wrong_order_are_no_cycle(tmp_path: Path) -> None:
    model = small_net()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert len(trace_onnx(load_onnx(saved(model, tmp_path))).graph.nodes) == 3


def test_missing_initializer(tmp_path: Path) -> None:
    model = small_net()
    name = model.graph.initializer[0].name
    del model.graph.initializer[0]
    text = refused(saved(model, tmp_path))
    assert repr(name) in text
    assert "nothing defines" in text


def test_missing_output(tmp_path: Path) -> None:
    model = small_net()
    model.graph.output[0].name = "nowhere"
    assert "nothing computes the output 'nowhere'" in refused(saved(model, tmp_path))


def test_empty_graph(tmp_path: Path) -> None:
    model = small_net()
    del model.graph.node[:]
    assert "empty" in refused(saved(model, tmp_path))


def duplicate_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])


def duplicate_value(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def duplicate_input(model: onnx.ModelProto) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])


@pytest.mark.parametrize("spoil", [duplicate_initializer, duplicate_value, duplicate_input])
def test_names_defined_twice(spoil: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = small_net()
    spoil(model)
    assert "twice" in refused(saved(model, tmp_path))


def weight_for_other_input(model: onnx.ModelProto) -> None:
    replace(model, 0, np.zeros((8, 5, 3, 3), np.float32))


def bias_of_other_size(model: onnx.ModelProto) -> None:
    replace(model, 1, np.zeros(7, np.float32))


def weight_without_kernel(model: onnx.ModelProto) -> None:
    replace(model, 0, np.zeros((8, 3, 3), np.float32))


def groups_that_do_not_divide(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("group", 5))


def replace(model: onnx.ModelProto, index: int, array: np.ndarray) -> None:  # type: ignore[type-arg]  # any dtype
    name = model.graph.initializer[index].name
    model.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, name))


@pytest.mark.parametrize(
    "spoil", [weight_for_other_input, bias_of_other_size, weight_without_kernel, groups_that_do_not_divide]
)
def test_wrong_shapes(spoil: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = small_net()
    spoil(model)
    text = refused(saved(model, tmp_path))
    assert "node_conv" in text


def test_wrong_shapes_of_other_ops(tmp_path: Path) -> None:
    for kind, other in (("Add", (7, 1, 1)), ("Mul", (1, 5, 6, 6)), ("Concat", (1, 8, 5, 6)), ("MatMul", (7, 3))):
        net = Net(13)
        x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
        attrs = {"axis": 1} if kind == "Concat" else {}
        net.output(net.op(kind, x, net.const(np.zeros(other, np.float32)), **attrs), shape=[1, 8, 6, 6])
        assert kind.lower() in refused(saved(net.model(), tmp_path))


def test_axis_of_a_single_scale_means_nothing(tmp_path: Path) -> None:
    net = Net(13)
    unit = (net.const(np.float32(0.1)), net.const(np.int8(0)))
    one = net.op("DequantizeLinear", net.op("QuantizeLinear", net.input("eps", []), *unit, axis=0), *unit, axis=3)
    net.output(net.op("Add", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8), one))
    assert trace_onnx(load_onnx(saved(net.model(), tmp_path))).graph.nodes


def test_attribute_of_the_wrong_kind(tmp_path: Path) -> None:
    model = small_net()
    model.graph.node[0].attribute.append(helper.make_attribute("strides", "two"))
    assert "node_conv" in refused(saved(model, tmp_path))
    model = small_net()
    pads = next(a for a in model.graph.node[0].attribute if a.name == "pads")
    pads.ints.append(3)
    assert "must be one" in refused(saved(model, tmp_path))


def test_missing_required_attribute(tmp_path: Path) -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
    net.output(net.op("DepthToSpace", x), shape=[1, 2, 12, 12])
    assert "not well formed" in refused(saved(net.model(), tmp_path))


@pytest.mark.parametrize(
    ("op", "attributes", "opset"),
    [
        ("Softmax", {"axis": 4}, 13),
        ("Concat", {"axis": -5}, 13),
        ("Squeeze", {"axes": [7]}, 11),
        ("ReduceMean", {"axes": [1, -6]}, 13),
        ("Split", {"axis": 9}, 11),
        ("ArgMax", {"axis": 4}, 13),
        ("Flatten", {"axis": 5}, 13),
        ("Transpose", {"perm": [0, 1, 1, 2]}, 13),
        ("DepthToSpace", {"blocksize": 0}, 13),
    ],
)
def test_axis_that_there_is_not(op: str, attributes: dict[str, Any], opset: int, tmp_path: Path) -> None:
    net = Net(opset)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
    net.output(net.op(op, *([x, x] if op == "Concat" else [x]), **attributes), shape=None)
    text = refused(saved(net.model(), tmp_path))
    assert f"({op}, opset {opset}) is not well formed" in text
    assert "why:" in text
