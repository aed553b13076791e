"""One op whose channels stay, with a reason: the table REFUSED."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from onnx_models.cases.moves import pieces
from onnx_models.cases.writing import CHANNELS, Build, elementwise
from onnx_models.nets import Net


def sequence_of_single_channels(net: Net, x: str) -> str:
    return str(net.op("Concat", *pieces(net, x, 7, 1, 0, 2, 5), axis=1))


def sequence_at_computed_place(net: Net, x: str) -> str:
    sequence = net.op("SplitToSequence", x, net.ints(4, 4), axis=1)
    place = net.op("Cast", net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.const(np.float32(9))), to=7)
    return str(net.op("SequenceAt", sequence, place))


def joined_sequence(net: Net, x: str) -> str:
    return str(net.op("ConcatFromSequence", net.op("SplitToSequence", x, net.ints(4, 4), axis=1), axis=1))


def local_response_norm(net: Net, x: str) -> str:
    return str(net.op("LRN", x, size=3))


def layer_norm(net: Net, x: str) -> str:
    return str(net.op("LayerNormalization", x, net.const(np.ones((CHANNELS, 6, 6), np.float32)), axis=1))


def group_norm(net: Net, x: str) -> str:
    vectors = [net.const(net.rng.uniform(0.5, 1.5, 2).astype(np.float32)) for _ in range(2)]
    return str(net.op("GroupNormalization", x, *vectors, num_groups=2))


def group_norm_per_channel(net: Net, x: str) -> str:
    vectors = [net.const(net.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)) for _ in range(2)]
    return str(net.op("GroupNormalization", x, *vectors, num_groups=1))


def top_channels(net: Net, x: str) -> str:
    return str(net.op("TopK", x, net.ints(4), axis=1, outputs=2)[0])


def maximum_over_channels(net: Net, x: str) -> str:
    return str(net.op("ReduceMax", x, axes=[1], keepdims=1))


def where_largest(net: Net, x: str) -> str:
    return str(net.op("Cast", net.op("ArgMax", x, axis=1), to=onnx.TensorProto.FLOAT))


def indices_of_pool(net: Net, x: str) -> str:
    pooled, indices = net.op("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    return str(net.op("Add", pooled, net.op("Cast", indices, to=onnx.TensorProto.FLOAT)))


def scattered(net: Net, x: str) -> str:
    at = net.const(np.array([[[0, 1], [1, 3]]], np.int64))
    return str(net.op("ScatterND", x, at, net.const(net.weight(1, 2, 6, 6))))


def branching(net: Net, x: str) -> str:
    then = helper.make_graph(
        [helper.make_node("Relu", [x], ["r"])], "t", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", [x], ["s"])], "e", [], [helper.make_tensor_value_info("s", 1, None)]
    )
    total = net.op("ReduceSum", net.op("Relu", x), keepdims=0)
    return str(net.op("If", net.op("Greater", total, net.const(0.0, np.float32)), then_branch=then, else_branch=other))


def looping(net: Net, x: str) -> str:
    values = [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("c", 9, [])]
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["go"]), helper.make_node("Mul", ["v", x], ["w"])],
        "body",
        [*values, helper.make_tensor_value_info("v", 1, None)],
        [helper.make_tensor_value_info("go", 9, []), helper.make_tensor_value_info("w", 1, None)],
    )
    start = net.op("Identity", x)
    return str(net.op("Loop", net.const(2, np.int64), net.const(True), start, body=body))


REFUSED: Mapping[str, tuple[int, Build, str]] = {
    "sequence-at-a-computed-place": (13, sequence_at_computed_place, "sequence"),
    "sequence-of-single-channels": (17, sequence_of_single_channels, "picked out by its index"),
    "joined-sequence": (13, joined_sequence, "sequence"),
    "softmax-11": (11, elementwise("Softmax"), "softmax"),
    "softmax-13": (13, elementwise("Softmax", axis=1), "softmax"),
    "log-softmax": (13, elementwise("LogSoftmax", axis=1), "log_softmax"),
    "hardmax": (13, elementwise("Hardmax", axis=1), "hardmax"),
    "lrn": (13, local_response_norm, "lrn"),
    "layer-norm": (17, layer_norm, "LayerNorm"),
    "group-norm-18": (18, group_norm, "GroupNorm"),
    "group-norm-of-one-group": (21, group_norm_per_channel, "GroupNorm"),
    "lp-normalization": (13, elementwise("LpNormalization", axis=1), "lp_norm"),
    "cumulative-sum": (14, lambda net, x: net.op("CumSum", x, net.const(1, np.int64)), "cumsum"),
    "top-k": (13, top_channels, "sort"),
    "reduce-max": (13, maximum_over_channels, "max"),
    "arg-max": (13, where_largest, "argmax"),
    "pool-indices": (13, indices_of_pool, "Indices"),
    "scatter-nd": (13, scattered, "not one stretch"),
    "if": (13, branching, "a graph of its own"),
    "loop": (13, looping, "a graph of its own"),
}
