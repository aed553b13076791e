"""One op between two convolutions, in each way that exporters write it: the cases of the ONNX tests.

PASSES: constants and channels pass. ZERO_PASSES: channels pass, and of the constants only zero. DEAD_PASSES: channels
pass, constants do not. REFUSED: channels stay, with a reason. COMPUTED: sizes are computed while the network runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnx_models.nets import Net

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


def pieces(net: Net, x: str, *places: int, split: str = "", **attrs: Any) -> list[str]:
    """Split into a sequence and pick from it, as PyTorch's exporter writes torch.split before it optimises."""
    sequence = net.op("SplitToSequence", x, *([split] if split else []), axis=1, **attrs)
    return [str(net.op("SequenceAt", sequence, net.const(place, np.int64))) for place in places]


def sequence_of_chunks(net: Net, x: str) -> str:
    first, last = pieces(net, x, 0, -1, split=net.const(3, np.int64))
    return str(net.op("Concat", last, net.op("Relu", first), axis=1))


def sequence_by_sizes(net: Net, x: str) -> str:
    second, first = pieces(net, x, 1, 0, split=net.ints(3, 5))
    return str(net.op("Concat", first, net.op("Neg", second), axis=1))


def sequence_of_single_channels(net: Net, x: str) -> str:
    return str(net.op("Concat", *pieces(net, x, 7, 1, 0, 2, 5), axis=1))


def shuffled_piece(net: Net, x: str) -> str:
    first, second = pieces(net, x, 0, 1, split=net.const(4, np.int64))
    split = net.op("Reshape", first, net.ints(2, 2, 2, 6, 6))
    mixed = net.op("Reshape", net.op("Transpose", split, perm=[0, 2, 1, 3, 4]), net.ints(2, 4, 6, 6))
    return str(net.op("Concat", mixed, second, axis=1))


def sequence_at_computed_place(net: Net, x: str) -> str:
    sequence = net.op("SplitToSequence", x, net.ints(4, 4), axis=1)
    place = net.op("Cast", net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.const(np.float32(9))), to=7)
    return str(net.op("SequenceAt", sequence, place))


def joined_sequence(net: Net, x: str) -> str:
    return str(net.op("ConcatFromSequence", net.op("SplitToSequence", x, net.ints(4, 4), axis=1), axis=1))


def slice_by_attributes(net: Net, x: str) -> str:
    return str(net.op("Slice", x, axes=[1, 2], starts=[1, 0], ends=[7, 2**31 - 1]))


def slice_by_inputs(net: Net, x: str) -> str:
    return str(net.op("Slice", x, net.ints(-7, 1), net.ints(2**62, -1), net.ints(1, -1), net.ints(1, 1)))


def overwritten(*cuts: slice) -> Build:
    """x[cuts] = sigmoid(x)[cuts], the indices a grid of as many axes as there are cuts."""

    def build(net: Net, x: str) -> str:
        sizes = (2, CHANNELS, 6, 6)
        grid = np.stack(
            np.meshgrid(*(np.arange(n)[cut] for n, cut in zip(sizes, cuts, strict=False)), indexing="ij"), -1
        )
        y = net.op("Sigmoid", x)
        for axis, cut in enumerate(cuts):
            if cut != slice(None):
                y = net.op("Slice", y, net.ints(cut.start), net.ints(cut.stop), net.ints(axis))
        return str(net.op("ScatterND", x, net.const(grid, np.int64), y))

    return build


def overwritten_first(net: Net, x: str) -> str:
    """As PyTorch's second exporter writes it: the axis that is written to is moved to the front."""
    x = net.op("Transpose", x, perm=[1, 0, 2, 3])
    y = net.op("Slice", net.op("Relu", x), net.ints(2), net.ints(7), net.ints(0))
    x = net.op("ScatterND", x, net.const(np.arange(2, 7)[:, None], np.int64), y)
    return str(net.op("Transpose", x, perm=[1, 0, 2, 3]))


def stepped(axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> Build:
    def build(net: Net, x: str) -> str:
        return str(net.op("Slice", x, *(net.ints(*values) for values in (starts, ends, axes, steps))))

    return build


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
    "slice-steps": (13, stepped((1,), (0,), (8,), (3,))),
    "slice-reversed": (13, stepped((1,), (-1,), (-100,), (-1,))),
    "slice-steps-of-several-axes": (13, stepped((3, 1, 2), (0, 1, 0), (9, 100, -1), (2, 2, 1))),
    "slice-steps-of-all-axes": (10, stepped((-3, 2), (1, 5), (8, -9), (2, -2))),
    "overwritten": (13, overwritten(slice(None), slice(2, 7))),
    "overwritten-whole": (11, overwritten(slice(None), slice(None))),
    "overwritten-first": (18, overwritten_first),
    "focus": (13, focus),
    "gather": (13, gathered),
    "sequence-of-chunks": (13, sequence_of_chunks),
    "sequence-by-sizes": (11, sequence_by_sizes),
    "shuffled-piece-of-a-sequence": (13, shuffled_piece),
    "channel-shuffle": (13, channel_shuffle),
    "nhwc": (13, to_nhwc_and_back),
    "pad-constant": (13, padded("constant")),
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
    "average-pool-counting": (17, elementwise("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)),
}  # fmt: skip

ZERO_PASSES: Mapping[str, tuple[int, Build]] = {
    "depthwise": (17, depthwise),
    "squeeze-excite": (17, squeeze_excite),
}
"""Ops after which another constant than zero is no longer uniform: padding joins in, or a gate."""

DEAD_PASSES: Mapping[str, tuple[int, Build]] = {
    "overwritten-pixels": (16, overwritten(slice(None), slice(None), slice(1, 4), slice(None))),
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


def view_of_shape(net: Net, x: str) -> str:
    """What PyTorch writes for x.view(x.size(0), 2, -1, x.size(2), x.size(3)) and back."""
    shape = net.op("Shape", x)
    batch, height, width = (net.op("Gather", shape, net.const(axis, np.int64)) for axis in (0, 2, 3))
    parts = [net.op("Unsqueeze", size, net.ints(0)) for size in (batch, height, width)]
    split = net.op("Concat", parts[0], net.ints(2, 4), parts[1], parts[2], axis=0)
    back = net.op("Concat", parts[0], net.ints(-1), parts[1], parts[2], axis=0)
    shuffled = net.op("Transpose", net.op("Reshape", x, split), perm=[0, 2, 1, 3, 4])
    return str(net.op("Reshape", shuffled, back))


def view_of_formulas(net: Net, x: str) -> str:
    """The same by PyTorch's newer exporter: sizes come from the network's input, by the formula of a convolution."""
    shape = net.op("Shape", "x")
    batch, height, width = (net.op("Slice", shape, net.ints(axis), net.ints(axis + 1)) for axis in (0, 2, 3))
    less = [net.op("Div", net.op("Add", size, net.ints(-1)), net.ints(1)) for size in (height, width)]
    space = [net.op("Add", net.ints(1), size) for size in less]
    split = net.op("Concat", batch, net.ints(2, 4), *space, axis=0)
    back = net.op("Concat", batch, net.ints(-1), *space, axis=0)
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
    "formulas": view_of_formulas,
    "flatten": flattened_by_shape,
    "resize": resized_by_shape,
    "expand": expanded_by_shape,
    "zeros": zeros_by_shape,
    "scale": scaled_by_channel_count,
    "crop": cropped_by_shape,
}
