"""If nodes that the file settles: the branch that runs is pruned like any other part of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models.nets import Net, assert_pruned_agrees, num_removed, prune

SILENT, CHANNELS = (1, 2, 5, 6), 8
Build = Callable[[Net, str], str]


def body(nodes: Sequence[onnx.NodeProto], *outputs: str, stored: Sequence[onnx.TensorProto] = ()) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, "body", [], [helper.make_tensor_value_info(name, 1, None) for name in outputs], stored
    )


def plain(op: str, x: str) -> onnx.GraphProto:
    return body([helper.make_node(op, [x], ["y"])], "y")


def constant(net: Net, x: str) -> str:
    truth = net.const(np.array(True))
    return str(net.op("If", truth, then_branch=plain("Abs", x), else_branch=plain("Sigmoid", x)))


def twice(net: Net, x: str) -> str:
    """Branches that use the same names, one after the other."""
    for truth in ([True], [False]):
        x = net.op("If", net.const(np.array(truth)), then_branch=plain("Abs", x), else_branch=plain("Sigmoid", x))
    return x


def squeezed(net: Net, x: str) -> str:
    """As PyTorch writes squeeze(2): by the size of an axis, here computed."""
    x = net.op("ReduceMean", x, axes=[2], keepdims=1)
    size = net.op("Gather", net.op("Shape", x), net.const(2, np.int64), axis=0)
    one = net.op("Equal", size, net.const(1, np.int64))
    axis = numpy_helper.from_array(np.array([2]), "axis")
    squeeze = body([helper.make_node("Squeeze", [x, "axis"], ["y"])], "y", stored=[axis])
    flat = net.op("If", one, then_branch=squeeze, else_branch=plain("Identity", x))
    return str(net.op("Unsqueeze", flat, net.ints(2)))


def nested(net: Net, x: str) -> str:
    """A branch within a branch, whose condition is computed in the outer one."""
    inner = helper.make_node(
        "If", ["no"], ["y"], then_branch=plain("Abs", "half"), else_branch=body([neg("half", "z")], "z")
    )
    half = numpy_helper.from_array(np.float32(0.5), "factor")
    nodes = [
        helper.make_node("Mul", [x, "factor"], ["half"]),
        helper.make_node("Not", ["yes"], ["no"]),
        inner,
    ]
    net.initializers.append(numpy_helper.from_array(np.array(True), "yes"))
    return str(net.op("If", "yes", then_branch=body(nodes, "y", stored=[half]), else_branch=plain("Abs", x)))


def neg(x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Neg", [x], [y])


def stored_output(net: Net, x: str) -> str:
    """One output is a tensor of the branch."""
    scale = numpy_helper.from_array(np.array([1.5], np.float32), "scale")
    branch = body([neg(x, "y")], "y", "scale", stored=[scale])
    first, second = net.op("If", net.const(np.array(True)), outputs=2, then_branch=branch, else_branch=branch)
    return str(net.op("Mul", first, second))


SETTLED: dict[str, Build] = {f.__name__: f for f in (constant, twice, squeezed, nested, stored_output)}


def network(build: Build, opset: int = 13) -> onnx.ModelProto:
    net = Net(opset)
    x = build(net, net.conv(net.input("x", ["N", 3, 6, 6]), 3, CHANNELS, silent=SILENT))
    net.output(net.conv(net.op("Relu", x), net.channels(x), 4, 1), shape=["N", 4, "h", "w"])
    return net.model()


@pytest.mark.parametrize("name", SETTLED)
def test_channels_go_through_the_branch_that_runs(name: str, tmp_path: Path) -> None:
    _, made, pruned = assert_pruned_agrees(network(SETTLED[name]), tmp_path, [{"N": 1}, {"N": 3}])
    assert num_removed(made) >= 2 * len(SILENT)
    assert not any(node.op_type == "If" for node in pruned.graph.node)


def test_a_condition_that_is_computed_stays_and_pins() -> None:
    def build(net: Net, x: str) -> str:
        total = net.op("Greater", net.op("ReduceSum", x, keepdims=0), net.const(0.0, np.float32))
        return str(net.op("If", total, then_branch=plain("Abs", x), else_branch=plain("Sigmoid", x)))

    model = network(lambda net, x: net.op("Identity", x))
    net = Net()
    net.output(build(net, net.conv(net.input("x", ["N", 3, 6, 6]), 3, CHANNELS, silent=SILENT)), shape=["N", 8, 6, 6])
    assert num_removed(prune(net.model())[1]) == 0
    assert num_removed(prune(model)[1]) > 0


def test_a_size_that_only_the_user_fixes_settles_nothing() -> None:
    net = Net()
    x = net.conv(net.input("x", ["N", 3, "h", "w"]), 3, CHANNELS, silent=SILENT)
    size = net.op("Gather", net.op("Shape", x), net.const(2, np.int64), axis=0)
    x = net.op(
        "If", net.op("Equal", size, net.const(6, np.int64)), then_branch=plain("Abs", x), else_branch=plain("Neg", x)
    )
    net.output(x, shape=["N", 8, "a", "b"])
    traced, _, _ = prune(net.model(), {"x": (1, 3, 6, 6)})
    assert any(node.op == "If" for node in traced.nodes)


def test_the_model_itself_is_left_as_it_was() -> None:
    model = network(constant)
    before = model.SerializeToString()
    prune(model)
    assert model.SerializeToString() == before
