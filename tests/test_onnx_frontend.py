"""The ONNX frontend: every op that CNNs use, between two convolutions, in the opsets that changed it.

Each case has a convolution with constant channels, the op, and a convolution that reads the result. The
pruned file must compute the same in ONNX Runtime, and the constant channels must be gone where the op
lets them pass (and stay, with a reason that is not "no rule", where it mixes them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_nets import Net, assert_same_outputs, num_removed, prune, prune_and_compare

from prunec.backends.onnx_save import save_onnx
from prunec.errors import BadInput
from prunec.frontends.onnx import trace_onnx
from prunec.graph import Graph
from prunec.passes.channels import channels

SILENT = (1, 2, 5, 6)
CHANNELS = 8
Build = Callable[[Net, str], str]

NEW_DOMAIN = "com.microsoft"


def elementwise(kind: str, **attrs: Any) -> Build:
    return lambda net, x: str(net.op(kind, x, **attrs))


def with_constant(kind: str, *shape: int, first: bool = False) -> Build:
    def build(net: Net, x: str) -> str:
        value = net.const(net.rng.uniform(0.5, 1.5, shape).astype(np.float32))
        return str(net.op(kind, value, x) if first else net.op(kind, x, value))

    return build


def batch_norm(net: Net, x: str) -> str:
    vectors = [net.const(net.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)) for _ in range(4)]
    return str(net.op("BatchNormalization", x, *vectors))


def instance_norm(net: Net, x: str) -> str:
    vectors = [net.const(net.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)) for _ in range(2)]
    return str(net.op("InstanceNormalization", x, *vectors))


def depthwise(net: Net, x: str) -> str:
    return net.conv(x, CHANNELS, CHANNELS, group=CHANNELS)


def unpadded_depthwise(net: Net, x: str) -> str:
    return net.conv(x, CHANNELS, CHANNELS, group=CHANNELS, pads=[0, 0, 0, 0])


def transposed_conv(net: Net, x: str) -> str:
    return str(net.op("ConvTranspose", x, net.const(net.weight(CHANNELS, 6, 2, 2)), strides=[2, 2]))


def squeeze_excite(net: Net, x: str) -> str:
    pooled = net.op("GlobalAveragePool", x)
    gate = net.op("Sigmoid", net.conv(net.op("Relu", net.conv(pooled, CHANNELS, 4, 1)), 4, CHANNELS, 1))
    return str(net.op("Mul", x, gate))


def hard_swish_by_hand(net: Net, x: str) -> str:
    gate = net.op(
        "Clip", net.op("Add", x, net.const(3.0, np.float32)), net.const(0.0, np.float32), net.const(6.0, np.float32)
    )
    return str(net.op("Mul", x, net.op("Div", gate, net.const(6.0, np.float32))))


def concat_with_itself(net: Net, x: str) -> str:
    return str(net.op("Concat", net.op("Relu", x), net.op("Sigmoid", x), axis=1))


def padded_with_zeros(net: Net, x: str) -> str:
    zeros = net.op("ConstantOfShape", net.ints(2, 4, 6, 6))
    return str(net.op("Concat", x, zeros, axis=1))


def split_evenly(net: Net, x: str) -> str:
    first, second = net.op("Split", x, outputs=2, axis=1)
    return str(net.op("Add", first, second))


def split_by_input(net: Net, x: str) -> str:
    first, second = net.op("Split", x, net.ints(3, 5), outputs=2, axis=1)
    return str(net.op("Concat", second, first, axis=1))


def split_by_attribute(net: Net, x: str) -> str:
    first, second = net.op("Split", x, outputs=2, axis=1, split=[3, 5])
    return str(net.op("Concat", second, first, axis=1))


def split_by_count(net: Net, x: str) -> str:
    first, second, third = net.op("Split", x, outputs=3, axis=-3, num_outputs=3)
    return str(net.op("Concat", third, first, second, axis=1))


def slice_by_attributes(net: Net, x: str) -> str:
    return str(net.op("Slice", x, axes=[1, 2], starts=[1, 0], ends=[7, 2**31 - 1]))


def slice_by_inputs(net: Net, x: str) -> str:
    return str(net.op("Slice", x, net.ints(-7, 1), net.ints(2**62, -1), net.ints(1, -1), net.ints(1, 1)))


def slice_every_second(net: Net, x: str) -> str:
    return str(net.op("Slice", x, net.ints(0), net.ints(8), net.ints(1), net.ints(2)))


def focus(net: Net, x: str) -> str:
    parts = [
        net.op("Slice", x, net.ints(row, column), net.ints(2**31 - 1, 2**31 - 1), net.ints(2, 3), net.ints(2, 2))
        for row in (0, 1)
        for column in (0, 1)
    ]
    return str(net.op("Concat", *parts, axis=1))


def gathered(net: Net, x: str) -> str:
    return str(net.op("Gather", x, net.ints(7, 0, 1, 2, -2, 5), axis=1))


def channel_shuffle(net: Net, x: str) -> str:
    split = net.op("Reshape", x, net.ints(0, 2, 4, 6, -1))
    return str(net.op("Reshape", net.op("Transpose", split, perm=[0, 2, 1, 3, 4]), net.ints(0, -1, 6, 6)))


def to_nhwc_and_back(net: Net, x: str) -> str:
    last = net.op("Transpose", x, perm=[0, 2, 3, 1])
    scaled = net.op("Mul", last, net.const(net.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)))
    return str(net.op("Transpose", scaled, perm=[0, 3, 1, 2]))


def padded(mode: str) -> Build:
    def build(net: Net, x: str) -> str:
        return str(net.op("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1), mode=mode))

    return build


def padded_channels(net: Net, x: str) -> str:
    return str(net.op("Pad", x, net.ints(0, 2, 0, 0, 0, 1, 0, 0), net.const(0.5, np.float32)))


def padded_some_axes(net: Net, x: str) -> str:
    return str(net.op("Pad", x, net.ints(2, 1, 1, 1), net.const(0.5, np.float32), net.ints(1, -1)))


def padded_by_attribute(net: Net, x: str) -> str:
    return str(net.op("Pad", x, pads=[0, 1, 0, 0, 0, 2, 1, 1], value=0.25))


def expanded(net: Net, x: str) -> str:
    pooled = net.op("GlobalMaxPool", x)
    return str(net.op("Expand", pooled, net.ints(2, CHANNELS, 6, 6)))


def tiled(net: Net, x: str) -> str:
    return str(net.op("Tile", x, net.ints(1, 2, 1, 1)))


def resized_by_scales(net: Net, x: str) -> str:
    return str(net.op("Resize", x, "", net.const([1, 1, 2, 2], np.float32), mode="linear"))


def resized_to_sizes(net: Net, x: str) -> str:
    return str(net.op("Resize", x, "", "", net.ints(2, CHANNELS, 9, 9), mode="nearest"))


def upsampled_by_attribute(net: Net, x: str) -> str:
    return str(net.op("Upsample", x, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"))


def upsampled_by_input(net: Net, x: str) -> str:
    return str(net.op("Upsample", x, net.const([1, 1, 2, 2], np.float32), mode="nearest"))


def mean_over_space(net: Net, x: str) -> str:
    return str(net.op("ReduceMean", x, axes=[2, 3], keepdims=1))


def sum_over_space(net: Net, x: str) -> str:
    return str(net.op("ReduceSum", x, net.ints(-1, -2), keepdims=1))


def clipped_by_inputs(net: Net, x: str) -> str:
    return str(net.op("Clip", x, net.const(-0.3, np.float32), net.const(0.4, np.float32)))


def clamped(net: Net, x: str) -> str:
    return str(net.op("Min", net.op("Max", x, net.const(0.1, np.float32)), net.const(0.9, np.float32)))


def grid_sampled(net: Net, x: str) -> str:
    return str(net.op("GridSample", x, net.const(net.rng.uniform(-1, 1, (2, 5, 5, 2)).astype(np.float32))))


def chosen(net: Net, x: str) -> str:
    return str(net.op("Where", net.op("Greater", x, net.const(0.1, np.float32)), x, net.const(-0.2, np.float32)))


def prelu(net: Net, x: str) -> str:
    return str(net.op("PRelu", x, net.const(net.rng.uniform(0, 1, (CHANNELS, 1, 1)).astype(np.float32))))


def summed(net: Net, x: str) -> str:
    return str(net.op("Sum", x, net.op("Relu", x), net.op("Tanh", x)))


def averaged(net: Net, x: str) -> str:
    return str(net.op("Mean", x, net.op("Relu", x), net.op("Tanh", x)))


def cast_there_and_back(net: Net, x: str) -> str:
    half = net.op("Cast", x, to=onnx.TensorProto.DOUBLE)
    return str(net.op("Cast", half, to=onnx.TensorProto.FLOAT))


def quantized(net: Net, x: str) -> str:
    scale = net.const(np.linspace(0.01, 0.02, CHANNELS, dtype=np.float32))
    zero = net.const(np.arange(CHANNELS, dtype=np.int8))
    return str(net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero, axis=1), scale, zero, axis=1))


def linear_on_pixels(net: Net, x: str) -> str:
    last = net.op("Transpose", x, perm=[0, 2, 3, 1])
    product = net.op("MatMul", last, net.const(net.weight(CHANNELS, 5)))
    return str(net.op("Transpose", net.op("Add", product, net.const(net.weight(5))), perm=[0, 3, 1, 2]))


def einsum_on_channels(net: Net, x: str) -> str:
    flat = net.op("Reshape", x, net.ints(0, 0, -1))
    product = net.op("Einsum", flat, net.const(net.weight(5, CHANNELS)), equation="bcs,oc->bso")
    return str(net.op("Reshape", net.op("Transpose", product, perm=[0, 2, 1]), net.ints(2, 5, 6, 6)))


def fused_conv(net: Net, x: str) -> str:
    weight, bias = net.const(net.weight(6, CHANNELS, 3, 3)), net.const(net.weight(6))
    return str(net.op("FusedConv", x, weight, bias, domain=NEW_DOMAIN, pads=[1, 1, 1, 1], activation="Relu"))


def fused_conv_with_sum(net: Net, x: str) -> str:
    weight, bias = net.const(net.weight(CHANNELS, CHANNELS, 3, 3)), net.const(net.weight(CHANNELS))
    other = net.conv(x, CHANNELS, CHANNELS, 1)
    return str(net.op("FusedConv", x, weight, bias, other, domain=NEW_DOMAIN, pads=[1, 1, 1, 1], activation="Relu"))


def dropout(net: Net, x: str) -> str:
    return str(net.op("Dropout", x, outputs=2)[0])


def microsoft(kind: str) -> Build:
    return lambda net, x: str(net.op(kind, x, domain=NEW_DOMAIN))


PASSES: Mapping[str, tuple[int, Build]] = {
    **{
        name.lower(): (17, elementwise(name))
        for name in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Exp", "Abs", "Neg", "Sign", "Floor", "Ceil",
                     "Round", "Erf", "Sin", "Cos", "Atan", "Sinh", "Elu", "Celu", "Selu", "LeakyRelu", "HardSigmoid",
                     "HardSwish", "ThresholdedRelu", "Identity", "GlobalAveragePool", "GlobalMaxPool")
    },
    "mish": (18, elementwise("Mish")),
    "gelu": (20, elementwise("Gelu", approximate="tanh")),
    "swish-by-hand": (17, lambda net, x: net.op("Mul", x, net.op("Sigmoid", x))),
    "hard-swish-by-hand": (13, hard_swish_by_hand),
    "shrink": (17, elementwise("Shrink", lambd=0.3, bias=0.1)),
    "leaky-relu-7": (7, elementwise("LeakyRelu", alpha=0.2)),
    "clip-7": (7, elementwise("Clip", min=-0.3, max=0.4)),
    "clip-13": (13, clipped_by_inputs),
    "clip-one-side": (13, lambda net, x: net.op("Clip", x, "", net.const(0.2, np.float32))),
    "dropout-7": (7, dropout),
    "dropout-13": (13, dropout),
    "cast": (13, cast_there_and_back),
    "prelu": (13, prelu),
    "where": (13, chosen),
    "pow": (13, lambda net, x: net.op("Pow", x, net.const(2.0, np.float32))),
    "add-scalar": (13, with_constant("Add")),
    "add-per-channel": (7, with_constant("Add", CHANNELS, 1, 1)),
    "mul-per-channel-first": (13, with_constant("Mul", 1, CHANNELS, 1, 1, first=True)),
    "sub-scalar-first": (13, with_constant("Sub", first=True)),
    "div": (13, with_constant("Div", 1, CHANNELS, 1, 1)),
    "max-min": (13, clamped),
    "sum": (13, summed),
    "mean": (13, averaged),
    "batch-norm-7": (7, batch_norm),
    "batch-norm-9": (9, batch_norm),
    "batch-norm-15": (15, batch_norm),
    "instance-norm": (17, instance_norm),
    "max-pool": (17, elementwise("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])),
    "max-pool-ceil": (12, elementwise("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    "average-pool": (17, elementwise("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])),
    "average-pool-same": (11, elementwise("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_UPPER", strides=[2, 2])),
    "depthwise-unpadded": (17, unpadded_depthwise),
    "conv-transpose": (17, transposed_conv),
    "fused-conv": (13, fused_conv),
    "fused-conv-sum": (13, fused_conv_with_sum),
    "concat": (13, concat_with_itself),
    "concat-with-zeros": (13, padded_with_zeros),
    "split-even": (11, split_evenly),
    "split-attribute": (11, split_by_attribute),
    "split-input": (13, split_by_input),
    "split-num-outputs": (18, split_by_count),
    "slice-attributes": (9, slice_by_attributes),
    "slice-inputs": (13, slice_by_inputs),
    "focus": (13, focus),
    "gather": (13, gathered),
    "channel-shuffle": (13, channel_shuffle),
    "nhwc": (13, to_nhwc_and_back),
    "pad-reflect": (13, padded("reflect")),
    "pad-edge": (13, padded("edge")),
    "pad-channels": (13, padded_channels),
    "pad-axes-18": (18, padded_some_axes),
    "pad-attribute-10": (10, padded_by_attribute),
    "expand": (13, expanded),
    "tile": (13, tiled),
    "resize-scales": (13, resized_by_scales),
    "resize-sizes": (13, resized_to_sizes),
    "upsample-7": (7, upsampled_by_attribute),
    "upsample-9": (9, upsampled_by_input),
    "space-to-depth": (13, elementwise("SpaceToDepth", blocksize=2)),
    "reduce-mean-11": (11, mean_over_space),
    "reduce-sum-13": (13, sum_over_space),
    "reduce-l2": (13, lambda net, x: net.op("ReduceL2", x, axes=[2, 3])),
    "reduce-sum-square": (13, lambda net, x: net.op("ReduceSumSquare", x, axes=[2, 3])),
    "reduce-log-sum-exp": (13, lambda net, x: net.op("ReduceLogSumExp", x, axes=[2, 3])),
    "linear-on-pixels": (13, linear_on_pixels),
    "einsum": (13, einsum_on_channels),
    "quantize": (13, quantized),
    "microsoft-gelu": (13, microsoft("Gelu")),
    "microsoft-quick-gelu": (13, microsoft("QuickGelu")),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_constant_channels_are_removed_through(name: str, tmp_path: Path) -> None:
    opset, build = PASSES[name]
    net = Net(opset)
    x = net.conv(net.input("x", [2, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    y = build(net, x)
    net.output(net.conv(y, net.channels(y), 4, 3))
    traced, made, _ = prune_and_compare(net.model(), tmp_path)
    assert not unknown_reasons(traced.graph)
    # One of the three may stay to carry the constants over a padded border.
    assert num_removed(made) >= 2, f"nothing was removed: {reasons(traced.graph)}"


ZERO_PASSES: Mapping[str, tuple[int, Build]] = {
    "average-pool-counting": (
        17,
        elementwise("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    ),
    "depthwise": (17, depthwise),
    "pad-constant": (13, padded("constant")),
    "squeeze-excite": (17, squeeze_excite),
}
"""Ops after which another constant than zero is no longer uniform: padding joins in, or a gate."""


@pytest.mark.parametrize("name", ZERO_PASSES)
def test_zero_channels_are_removed_where_other_constants_are_not(name: str, tmp_path: Path) -> None:
    opset, build = ZERO_PASSES[name]
    for zero in (False, True):
        net = Net(opset)
        x = net.conv(net.input("x", [2, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
        if zero:
            x = net.op(
                "Mul", x, net.const(np.isin(range(CHANNELS), SILENT, invert=True).astype(np.float32).reshape(-1, 1, 1))
            )
        net.output(net.conv(build(net, x), CHANNELS, 4, 3))
        _, made, _ = prune_and_compare(net.model(), tmp_path)
        assert (num_removed(made) > 0) == zero


DEAD_PASSES: Mapping[str, tuple[int, Build]] = {
    "lp-pool": (18, elementwise("LpPool", kernel_shape=[2, 2])),
    "softmax-over-space": (13, elementwise("Softmax", axis=-1)),
    "cumulative-sum": (14, lambda net, x: net.op("CumSum", x, net.const(3, np.int64))),
    "grid-sample": (
        16,
        grid_sampled,
    ),
    "top-k-over-space": (13, lambda net, x: net.op("TopK", x, net.ints(4), axis=-1, outputs=2)[0]),
    "cubic-resize": (13, lambda net, x: net.op("Resize", x, "", net.const([1, 1, 2, 2], np.float32), mode="cubic")),
}


@pytest.mark.parametrize("name", DEAD_PASSES)
def test_channels_that_nothing_reads_go_through_any_op_that_keeps_them_apart(name: str, tmp_path: Path) -> None:
    opset, build = DEAD_PASSES[name]
    net = Net(opset)
    y = build(net, net.conv(net.input("x", [2, 3, 6, 6]), 3, CHANNELS))
    weight = net.weight(4, CHANNELS, 3, 3)
    weight[:, list(SILENT)] = 0
    net.output(net.op("Conv", y, net.const(weight)))
    _, made, _ = prune_and_compare(net.model(), tmp_path)
    assert {len(keep.keep) for keep in made.keeps} == {CHANNELS - len(SILENT)}


def local_response_norm(net: Net, x: str) -> str:
    return str(net.op("LRN", x, size=3))


def layer_norm(net: Net, x: str) -> str:
    return str(net.op("LayerNormalization", x, net.const(np.ones((CHANNELS, 6, 6), np.float32)), axis=1))


def group_norm(net: Net, x: str) -> str:
    vectors = [net.const(net.rng.uniform(0.5, 1.5, 2).astype(np.float32)) for _ in range(2)]
    return str(net.op("GroupNormalization", x, *vectors, num_groups=2))


def group_norm_per_channel(net: Net, x: str) -> str:
    vectors = [net.const(net.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)) for _ in range(2)]
    return str(net.op("GroupNormalization", x, *vectors, num_groups=2))


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
    "softmax-11": (11, elementwise("Softmax"), "softmax"),
    "softmax-13": (13, elementwise("Softmax", axis=1), "softmax"),
    "log-softmax": (13, elementwise("LogSoftmax", axis=1), "log_softmax"),
    "hardmax": (13, elementwise("Hardmax", axis=1), "hardmax"),
    "lrn": (13, local_response_norm, "lrn"),
    "layer-norm": (17, layer_norm, "LayerNorm"),
    "group-norm-18": (18, group_norm, "GroupNorm"),
    "group-norm-21": (21, group_norm_per_channel, "GroupNorm"),
    "lp-normalization": (13, elementwise("LpNormalization", axis=1), "lp_norm"),
    "cumulative-sum": (14, lambda net, x: net.op("CumSum", x, net.const(1, np.int64)), "cumsum"),
    "top-k": (13, top_channels, "sort"),
    "reduce-max": (13, maximum_over_channels, "max"),
    "arg-max": (13, where_largest, "argmax"),
    "pool-indices": (13, indices_of_pool, "Indices"),
    "slice-every-second": (13, slice_every_second, "with a step"),
    "scatter-nd": (13, scattered, "depends on the values"),
    "if": (13, branching, "a graph of its own"),
    "loop": (13, looping, "a graph of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_channels_stay_where_they_are_mixed_and_the_reason_is_told(name: str, tmp_path: Path) -> None:
    opset, build, reason = REFUSED[name]
    net = Net(opset)
    x = net.conv(net.input("x", [2, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    y = build(net, x)
    net.output(y)
    traced, made, _ = prune_and_compare(net.model(), tmp_path, check=name != "group-norm-18")
    assert not unknown_reasons(traced.graph)
    assert any(reason in text for text in reasons(traced.graph)), reasons(traced.graph)
    assert num_removed(made) == 0


def reasons(graph: Graph) -> list[str]:
    return sorted({pin.reason for pin in channels(graph).pins})


def unknown_reasons(graph: Graph) -> list[str]:
    return [text for text in reasons(graph) if "no rule" in text or "custom domain" in text]


# --- sizes that are computed -------------------------------------------------------------------------


def view_of_shape(net: Net, x: str) -> str:
    """What PyTorch writes for x.view(x.size(0), 2, -1, x.size(2), x.size(3)) and back."""
    shape = net.op("Shape", x)
    batch, height, width = (net.op("Gather", shape, net.const(axis, np.int64)) for axis in (0, 2, 3))
    parts = [net.op("Unsqueeze", size, net.ints(0)) for size in (batch, height, width)]
    split = net.op("Concat", parts[0], net.ints(2, 4), parts[1], parts[2], axis=0)
    back = net.op("Concat", parts[0], net.ints(-1), parts[1], parts[2], axis=0)
    shuffled = net.op("Transpose", net.op("Reshape", x, split), perm=[0, 2, 1, 3, 4])
    return str(net.op("Reshape", shuffled, back))


def flattened_by_shape(net: Net, x: str) -> str:
    """(N, C, H, W) -> (N, C, H·W) -> (N, C, H, W), all of it computed."""
    shape = net.op("Shape", x)
    front = net.op("Slice", shape, net.ints(0), net.ints(2), net.ints(0))
    space = net.op("Slice", shape, net.ints(2), net.ints(4), net.ints(0))
    pixels = net.op("ReduceProd", space, axes=[0], keepdims=1)
    flat = net.op("Reshape", x, net.op("Concat", front, pixels, axis=0))
    return str(net.op("Reshape", net.op("Relu", flat), net.op("Concat", front, space, axis=0)))


def resized_by_shape(net: Net, x: str) -> str:
    """What PyTorch writes for interpolate(x, scale_factor=2)."""
    shape = net.op("Shape", x)
    front = net.op("Slice", shape, net.ints(0), net.ints(2), net.ints(0))
    space = net.op("Slice", shape, net.ints(2), net.ints(4), net.ints(0))
    doubled = net.op(
        "Cast", net.op("Floor", net.op("Mul", net.op("Cast", space, to=1), net.const(2.0, np.float32))), to=7
    )
    return str(net.op("Resize", x, "", "", net.op("Concat", front, doubled, axis=0), mode="nearest"))


def expanded_by_shape(net: Net, x: str) -> str:
    """What PyTorch writes for pooled.expand_as(x)."""
    shape = net.op("Shape", x)
    ones = net.op("ConstantOfShape", net.op("Shape", shape), value=helper.make_tensor("v", 7, [1], [1]))
    minus = net.op("Mul", ones, net.const(-1, np.int64))
    target = net.op("Where", net.op("Equal", shape, minus), ones, shape)
    return str(net.op("Expand", net.op("GlobalAveragePool", x), target))


def zeros_by_shape(net: Net, x: str) -> str:
    shape = net.op("Shape", x)
    space = net.op("Slice", shape, net.ints(2), net.ints(4), net.ints(0))
    batch = net.op("Slice", shape, net.ints(0), net.ints(1), net.ints(0))
    zeros = net.op("ConstantOfShape", net.op("Concat", batch, net.ints(4), space, axis=0))
    return str(net.op("Concat", zeros, x, axis=1))


def scaled_by_channel_count(net: Net, x: str) -> str:
    """Divide by sqrt(C), C read from the shape: it must stay the old number of channels."""
    count = net.op("Gather", net.op("Shape", x), net.const(1, np.int64))
    return str(net.op("Div", x, net.op("Sqrt", net.op("Cast", count, to=1))))


def cropped_by_shape(net: Net, x: str) -> str:
    shape = net.op("Shape", x)
    height = net.op("Slice", shape, net.ints(2), net.ints(3), net.ints(0))
    end = net.op("Sub", height, net.ints(1))
    return str(net.op("Slice", x, net.ints(0), end, net.ints(2), net.ints(1)))


COMPUTED: Mapping[str, Build] = {
    "view": view_of_shape,
    "flatten": flattened_by_shape,
    "resize": resized_by_shape,
    "expand": expanded_by_shape,
    "zeros": zeros_by_shape,
    "scale": scaled_by_channel_count,
    "crop": cropped_by_shape,
}


@pytest.mark.parametrize("fixed", [False, True], ids=["open", "given"])
@pytest.mark.parametrize("name", COMPUTED)
def test_open_sizes_stay_open_and_channels_go(name: str, fixed: bool, tmp_path: Path) -> None:
    net = Net(13)
    x = net.conv(net.input("x", ["N", 3, "H", "W"]), 3, CHANNELS, silent=SILENT)
    y = COMPUTED[name](net, x)
    c_in = {"zeros": 12}.get(name, CHANNELS)
    net.output(net.conv(y, c_in, 4), shape=["N", 4, None, None])
    given = {"x": (2, 3, 6, 8)} if fixed else None
    sizes = ({"N": 1, "H": 6, "W": 8}, {"N": 3, "H": 9, "W": 5})
    _, made, pruned = prune_and_compare(net.model(), tmp_path, sizes, input_shapes=given)
    assert num_removed(made) >= 2
    assert [dim.dim_param for dim in pruned.graph.input[0].type.tensor_type.shape.dim] == ["N", "", "H", "W"]


def test_size_of_all_channels_together_is_left_alone(tmp_path: Path) -> None:
    """A number that mixes channels with open sizes is data: its source keeps its channels."""
    net = Net(13)
    x = net.conv(net.input("x", ["N", 3, "H", "W"]), 3, CHANNELS, silent=SILENT)
    elements = net.op("Cast", net.op("Size", x), to=1)
    net.output(net.conv(net.op("Div", x, elements), CHANNELS, 4), shape=["N", 4, "H", "W"])
    _, made, _ = prune_and_compare(net.model(), tmp_path, ({"N": 1, "H": 6, "W": 8}, {"N": 3, "H": 9, "W": 5}))
    assert num_removed(made) == 0


def test_given_shape_makes_more_known_and_is_checked() -> None:
    net = Net(13)
    x = net.conv(net.input("x", ["N", 3, "H", "W"]), 3, CHANNELS)
    net.output(net.op("Relu", x), shape=["N", CHANNELS, "H", "W"])
    model = net.model()
    assert trace_onnx(model).graph.shape("x") == ("N", 3, "H", "W")
    assert trace_onnx(model, {"x": (2, 3, 6, 8)}).graph.shape("x") == (2, 3, 6, 8)
    for shape, what in ({"y": (1, 3, 6, 6)}, "no input"), ({"x": (1, 4, 6, 6)}, "does not fit"), ({"x": (1, 3)}, "fit"):
        with pytest.raises(BadInput, match=what):
            trace_onnx(model, shape)


# --- where constants come from -----------------------------------------------------------------------


@pytest.mark.parametrize("constants", ["initializer", "node"])
def test_weights_may_be_initializers_or_constant_nodes(constants: str, tmp_path: Path) -> None:
    net = Net(13, constants=constants)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    net.output(net.conv(net.op("Relu", x), CHANNELS, 4))
    _, made, pruned = prune_and_compare(net.model(), tmp_path)
    assert num_removed(made) >= 2
    kinds = {node.op_type for node in pruned.graph.node}
    assert ("Constant" in kinds) == (constants == "node")
    assert bool(pruned.graph.initializer) == (constants == "initializer")


def test_weights_that_are_computed_from_constants_are_read(tmp_path: Path) -> None:
    net = Net(13)
    weight = net.weight(3, 3, 4, CHANNELS)
    weight[..., list(SILENT)] = 0
    turned = net.op("Transpose", net.op("Mul", net.const(weight), net.const(2.0, np.float32)), perm=[3, 2, 0, 1])
    x = net.op("Conv", net.input("x", [1, 4, 6, 6]), turned, net.const(net.weight(CHANNELS)))
    net.output(net.conv(net.op("Relu", x), CHANNELS, 4))
    traced, made, _ = prune_and_compare(net.model(), tmp_path)
    assert traced.graph.params[turned].shape == (CHANNELS, 4, 3, 3)
    assert num_removed(made) >= 2


def test_float16_weights_behind_a_cast_stay_float16(tmp_path: Path) -> None:
    net = Net(13)
    weight = net.weight(CHANNELS, 3, 3, 3).astype(np.float16)
    weight[list(SILENT)] = 0
    whole = net.op("Cast", net.const(weight, stem="half"), to=1)
    x = net.op("Conv", net.input("x", [1, 3, 6, 6]), whole, net.const(np.zeros(CHANNELS, np.float32)))
    net.output(net.conv(net.op("Relu", x), CHANNELS, 4))
    _, made, pruned = prune_and_compare(net.model(), tmp_path)
    assert num_removed(made) >= 3
    kept = [tensor for tensor in pruned.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert [list(tensor.dims) for tensor in kept] == [[CHANNELS - len(SILENT), 3, 3, 3]]


def test_weights_made_by_constant_of_shape_take_no_memory() -> None:
    net = Net(9)
    weight = net.op("ConstantOfShape", net.ints(4096, 1024, 3, 3), value=helper.make_tensor("v", 1, [1], [0.5]))
    x = net.op("Conv", net.input("x", [1, 1024, 6, 6]), weight)
    net.output(x)
    array = trace_onnx(net.model()).graph.params[weight].array
    assert array.shape == (4096, 1024, 3, 3)
    assert not any(array.strides)


def test_scalars_are_literals_and_settings_are_no_parameters() -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS)
    y = net.op("Reshape", net.op("Mul", x, net.const([2.0], np.float32)), net.ints(1, -1))
    net.output(y)
    params = trace_onnx(net.model()).graph.params
    assert sorted((p.literal, p.array.size) for p in params.values()) == [(False, 8), (False, 216), (True, 1)]


def test_output_that_is_a_stored_tensor_is_kept(tmp_path: Path) -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    anchors = net.const(net.weight(5, 4))
    net.output(net.conv(x, CHANNELS, 4))
    net.output(anchors, shape=[5, 4])
    _, made, pruned = prune_and_compare(net.model(), tmp_path)
    assert num_removed(made) >= 2
    assert pruned.graph.output[1].name == anchors


def test_op_of_a_custom_domain_pins_what_it_touches_and_the_rest_goes() -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    y = net.op("Relu", net.conv(x, CHANNELS, CHANNELS, silent=SILENT))
    z = net.op("Mystery", y, domain="my.ops")
    net.output(z, shape=[1, CHANNELS, 6, 6])
    traced, made, _ = prune(net.model())
    assert [text for text in reasons(traced.graph) if "my.ops.Mystery" in text]
    assert {keep.param for keep in made.keeps} == {"w1", "b2", "w4"}


def test_functions_of_the_model_are_read_and_kept(tmp_path: Path) -> None:
    body = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["r"])]
    swish = helper.make_function("my.fns", "Swish", ["a"], ["r"], body, [helper.make_opsetid("", 17)])
    net = Net(17)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    net.output(net.conv(net.op("Swish", x, domain="my.fns"), CHANNELS, 4), shape=[1, 4, 6, 6])
    model = net.model()
    model.functions.append(swish)
    traced, made, pruned = prune_and_compare(model, tmp_path)
    assert [node.op for node in traced.graph.nodes] == ["conv", "sigmoid", "mul", "conv"]
    assert num_removed(made) >= 2
    assert [node.op_type for node in pruned.graph.node] == ["Conv", "Swish", "Conv"]
    assert [function.name for function in pruned.functions] == ["Swish"]


def test_function_that_holds_weights_is_written_out_where_they_change(tmp_path: Path) -> None:
    scale = helper.make_node(
        "Constant",
        [],
        ["k"],
        value=onnx.numpy_helper.from_array(np.linspace(1, 2, CHANNELS, dtype=np.float32).reshape(1, -1, 1, 1)),
    )
    body = [scale, helper.make_node("Mul", ["a", "k"], ["r"])]
    function = helper.make_function("my.fns", "Scale", ["a"], ["r"], body, [helper.make_opsetid("", 17)])
    net = Net(17)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    net.output(net.conv(net.op("Scale", x, domain="my.fns"), CHANNELS, 4), shape=[1, 4, 6, 6])
    model = net.model()
    model.functions.append(function)
    _, made, pruned = prune_and_compare(model, tmp_path)
    assert num_removed(made) >= 2
    assert "Scale" not in {node.op_type for node in pruned.graph.node}


def test_lstm_input_is_a_contraction(tmp_path: Path) -> None:
    net = Net(14)
    x = net.conv(net.input("x", [1, 3, 1, 7]), 3, CHANNELS, 1, silent=SILENT)
    steps = net.op("Transpose", net.op("Squeeze", x, net.ints(2)), perm=[2, 0, 1])
    w, r = net.const(net.weight(1, 20, CHANNELS)), net.const(net.weight(1, 20, 5))
    net.output(net.op("LSTM", steps, w, r, outputs=3, hidden_size=5)[0], shape=[7, 1, 1, 5])
    traced, _, _ = prune_and_compare(net.model(), tmp_path)
    found = channels(traced.graph)
    assert (found.is_channel & ~found.pinned).sum() == CHANNELS


def test_names_are_unique_and_the_same_on_every_run() -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS)
    net.output(net.op("Sum", x, x, x))
    model = net.model()
    for node in model.graph.node:
        node.name = "same"
    first, second = (trace_onnx(model).graph for _ in range(2))
    names = [node.name for node in first.nodes]
    assert len(set(names)) == len(names) == 3
    assert names == [node.name for node in second.nodes]


@pytest.mark.parametrize("first", ["conv", "relu"])
def test_an_input_of_unknown_rank_is_never_guessed_at(first: str, tmp_path: Path) -> None:
    """Read by a convolution, its weight tells the rank; behind another op the network is left as it is."""
    net = Net()
    x = net.input("x", None)
    x = net.op("Relu", x) if first == "relu" else x
    x = net.op("Relu", net.conv(x, 5, CHANNELS, silent=SILENT))
    net.output(net.conv(x, CHANNELS, 3), shape=["n", 3, "h", "w"])
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(net.model(), before)
    _, made, pruned = prune(net.model())
    save_onnx(pruned, after)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 5, 9, 7)).astype(np.float32)}
    assert_same_outputs(before, after, feeds)
    assert (num_removed(made) > 0) == (first == "conv")


def test_a_bias_that_is_cast_like_the_data_is_known(tmp_path: Path) -> None:
    """As PyTorch's exporter writes a convolution without bias when it does not optimise."""
    net = Net(opset=18)
    x = net.input("x", ["n", 3, "h", "w"])
    weight = net.weight(CHANNELS, 3, 3, 3)
    weight[list(SILENT)] = 0
    name = net.const(weight)
    size = net.op("Expand", net.op("Shape", name, start=0, end=1), net.ints(1))
    bias = net.op("Expand", net.op("CastLike", net.const(0.5, np.float64), x), size)
    x = net.op("Relu", net.op("Conv", x, name, bias, pads=[1] * 4))
    net.output(net.conv(x, CHANNELS, 4), shape=["n", 4, "h", "w"])
    traced, made, _ = prune_and_compare(net.model(), tmp_path, [{"h": 8, "w": 6}])
    assert num_removed(made) >= len(SILENT) - 1
    assert not [node.origin for node in traced.graph.nodes if node.source == "CastLike"]
