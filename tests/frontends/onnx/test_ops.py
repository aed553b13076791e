"""Pruning by score through every op that CNNs use, in every opset that ONNX Runtime runs.

Channels are taken away at random; what is left must compute what the whole network computes with those channels
silenced where they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_models.cases.computed_sizes import COMPUTED
from onnx_models.cases.passes import DEAD_PASSES, PASSES, ZERO_PASSES
from onnx_models.cases.refused import REFUSED
from onnx_models.cases.writing import CHANNELS, Build, elementwise
from onnx_models.masks import prune_at_random
from onnx_models.nets import Net, run

from prunec.frontends.onnx.frontend import trace_onnx
from prunec.pipeline.planning import gather_facts

NEWEST = onnx.defs.onnx_opset_version()


def half_the_channels(kind: str, axis: int) -> Build:
    return lambda net, x: str(net.op(kind, net.op("Split", x, net.ints(4, 4), outputs=2, axis=axis)[0]))


def compared(kind: str) -> Build:
    """A comparison of two values that have the channels, back in floats."""
    return lambda net, x: str(net.op("Cast", net.op(kind, x, net.op("Sigmoid", x)), to=TensorProto.FLOAT))


def logical(kind: str) -> Build:
    def build(net: Net, x: str) -> str:
        above, below = (net.op("Greater", x, net.const(limit, np.float32)) for limit in (-0.3, 0.3))
        return str(net.op("Cast", net.op(kind, above, below), to=TensorProto.FLOAT))

    return build


def negated(net: Net, x: str) -> str:
    return str(net.op("Cast", net.op("Not", net.op("Less", x, net.const(0.1, np.float32))), to=TensorProto.FLOAT))


def on_integers(kind: str, dtype: int = TensorProto.INT32, **attrs: Any) -> Build:
    """An op on integers, between casts."""

    def build(net: Net, x: str) -> str:
        whole = net.op("Cast", net.op("Mul", net.op("Abs", x), net.const(20.0, np.float32)), to=dtype)
        other = net.const(np.full((CHANNELS, 1, 1), 3), helper.tensor_dtype_to_np_dtype(dtype))
        operands = [whole] if kind == "BitwiseNot" else [whole, other]
        return str(net.op("Cast", net.op(kind, *operands, **attrs), to=TensorProto.FLOAT))

    return build


def is_infinite(net: Net, x: str) -> str:
    large = net.op("Exp", net.op("Mul", x, net.const(99.0, np.float32)))
    return str(net.op("Cast", net.op("IsInf", large), to=TensorProto.FLOAT))


def inside(kind: str, low: float, high: float) -> Build:
    """A function that is defined between two bounds only."""
    return lambda net, x: str(net.op(kind, net.op("Clip", x, net.const(low, np.float32), net.const(high, np.float32))))


def product_of_maps(net: Net, x: str) -> str:
    """MatMul of two computed operands, over positions: channels pass as a batch."""
    flat = net.op("Reshape", x, net.ints(0, 0, 6, 6))
    return str(net.op("MatMul", flat, net.op("Sigmoid", flat)))


def gram_matrix(net: Net, x: str) -> str:
    """MatMul of two computed operands that meet on the channels: (positions, C) times (C, positions)."""
    flat = net.op("Reshape", x, net.ints(0, 0, -1))
    turned = net.op("Transpose", flat, perm=[0, 2, 1])
    return str(net.op("Reshape", net.op("MatMul", turned, net.op("Relu", flat)), net.ints(2, 36, 6, 6)))


def norm_per_channel(net: Net, x: str) -> str:
    vectors = [net.const(net.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)) for _ in range(2)]
    return str(net.op("GroupNormalization", x, *vectors, num_groups=CHANNELS))


def norm_over_space(net: Net, x: str) -> str:
    return str(net.op("LayerNormalization", x, net.const(np.ones((6, 6), np.float32)), axis=2))


def squeezed(net: Net, x: str) -> str:
    pooled = net.op("Squeeze", net.op("GlobalMaxPool", x), net.ints(2, 3))
    return str(net.op("Mul", x, net.op("Unsqueeze", pooled, net.ints(2, 3))))


def flattened_linear(net: Net, x: str) -> str:
    flat = net.op("Flatten", x)
    y = net.op("Gemm", flat, net.const(net.weight(8, CHANNELS * 36)), net.const(net.weight(8)), transB=1)
    return str(net.op("Reshape", y, net.ints(2, 8, 1, 1)))


def linear_with_factors(net: Net, x: str) -> str:
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    y = net.op("Gemm", flat, net.const(net.weight(CHANNELS, 8)), net.const(net.weight(8)), alpha=0.5, beta=2.0)
    return str(net.op("Reshape", y, net.ints(2, 8, 1, 1)))


def blocks_to_space(mode: str) -> Build:
    return lambda net, x: str(net.op("DepthToSpace", x, blocksize=2, mode=mode))


def recurrent(kind: str, gates: int, **attrs: Any) -> Build:
    """A recurrent layer over the width: it reads the channels, and has states of its own."""

    def build(net: Net, x: str) -> str:
        line = net.op("ReduceMean", x, axes=[2], keepdims=0)
        steps = net.op("Transpose", line, perm=[2, 0, 1])
        directions = 2 if attrs.get("direction") == "bidirectional" else 1
        w, r = net.const(net.weight(directions, gates * 5, CHANNELS)), net.const(net.weight(directions, gates * 5, 5))
        bias = net.const(net.weight(directions, 2 * gates * 5))
        outputs = net.op(kind, steps, w, r, bias, outputs=3 if kind == "LSTM" else 2, hidden_size=5, **attrs)
        return str(net.op("Transpose", outputs[0], perm=[2, 3, 1, 0]))

    return build


def fused_product(net: Net, x: str) -> str:
    last = net.op("Transpose", x, perm=[0, 2, 3, 1])
    y = net.op("FusedMatMul", last, net.const(net.weight(5, CHANNELS)), domain="com.microsoft", transB=1, alpha=0.7)
    return str(net.op("Transpose", y, perm=[0, 3, 1, 2]))


def fused_linear(net: Net, x: str) -> str:
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    weight, bias = net.const(net.weight(CHANNELS, 8)), net.const(net.weight(8))
    y = net.op("FusedGemm", flat, weight, bias, domain="com.microsoft", activation="LeakyRelu", activation_alpha=0.2)
    return str(net.op("Reshape", y, net.ints(2, 8, 1, 1)))


def grouped(net: Net, x: str) -> str:
    return net.conv(x, CHANNELS, 12, group=4)


def dilated(net: Net, x: str) -> str:
    return net.conv(x, CHANNELS, 6, dilations=[2, 2], pads=[2, 2, 2, 2])


MORE: Mapping[str, tuple[int, Build]] = {
    **{kind.lower(): (17, compared(kind)) for kind in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")},
    **{kind.lower(): (17, logical(kind)) for kind in ("And", "Or", "Xor")},
    **{kind.lower(): (18, on_integers(kind)) for kind in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot")},
    "mod": (17, on_integers("Mod")),
    "not": (17, negated),
    "bit-shift": (17, on_integers("BitShift", TensorProto.UINT32, direction="RIGHT")),
    **{kind.lower(): (17, inside(kind, 0.1, 2.0)) for kind in ("Log", "Sqrt", "Reciprocal")},
    **{kind.lower(): (17, inside(kind, -0.9, 0.9)) for kind in ("Asin", "Acos", "Atanh", "Tan", "Asinh")},
    "acosh": (17, inside("Acosh", 1.1, 3.0)),
    "is-nan": (17, lambda net, x: net.op("Cast", net.op("IsNaN", net.op("Log", x)), to=TensorProto.FLOAT)),
    "is-inf": (17, is_infinite),
    "matmul-of-maps": (17, product_of_maps),
    "gram-matrix": (17, gram_matrix),
    "group-norm-per-channel": (21, norm_per_channel),
    "layer-norm-over-space": (17, norm_over_space),
    "squeeze": (17, squeezed),
    "flatten-gemm": (17, flattened_linear),
    "gemm-factors": (17, linear_with_factors),
    "depth-to-space-dcr": (17, blocks_to_space("DCR")),
    "depth-to-space-crd": (17, blocks_to_space("CRD")),
    "lstm": (17, recurrent("LSTM", 4)),
    "lstm-both-ways": (17, recurrent("LSTM", 4, direction="bidirectional")),
    "gru": (17, recurrent("GRU", 3, linear_before_reset=1)),
    "rnn": (17, recurrent("RNN", 1)),
    "fused-matmul": (17, fused_product),
    "fused-gemm": (17, fused_linear),
    "grouped-convolution": (17, grouped),
    "dilated-convolution": (17, dilated),
    "arg-max-over-space": (17, lambda net, x: net.op("Cast", net.op("ArgMax", x, axis=3), to=TensorProto.FLOAT)),
    "arg-min-over-space": (17, lambda net, x: net.op("Cast", net.op("ArgMin", x, axis=2), to=TensorProto.FLOAT)),
    "log-softmax-over-space": (17, elementwise("LogSoftmax", axis=2)),
    "hardmax-over-space": (17, elementwise("Hardmax", axis=3)),
    "mean-variance-norm": (17, elementwise("MeanVarianceNormalization", axes=[2, 3])),
    **{
        f"reduce-{kind.lower()}-over-space": (17, elementwise(f"Reduce{kind}", axes=[2, 3], keepdims=1))
        for kind in ("Max", "Min", "L1", "Prod")
    },
    "reduce-log-sum": (17, lambda net, x: net.op("ReduceLogSum", net.op("Exp", x), axes=[3])),
    "global-lp-pool": (17, elementwise("GlobalLpPool", p=2)),
    "triangle-over-space": (17, elementwise("Trilu", upper=0)),
}  # fmt: skip

FREE: Mapping[str, tuple[int, Build]] = {**PASSES, **ZERO_PASSES, **DEAD_PASSES, **MORE}

UNCOMPARED = ("einsum",)
"""Where a contraction reads its operand in another order than the file has it: the masks do not fit."""


def between(opset: int, build: Build, open_sizes: bool = False) -> onnx.ModelProto:
    """Return a network with ``build`` between two convolutions."""
    net = Net(opset)
    x = net.conv(net.input("x", ["N", 3, "H", "W"] if open_sizes else [2, 3, 6, 6]), 3, CHANNELS)
    y = build(net, x)
    count = 12 if open_sizes and build is COMPUTED["zeros"] else CHANNELS if open_sizes else net.channels(y)
    net.output(net.conv(y, count, 4, 3), shape=["N", 4, None, None] if open_sizes else None)
    return net.model()


@pytest.mark.parametrize("name", sorted(set(FREE) - set(UNCOMPARED)))
def test_any_channels_go_through(name: str) -> None:
    opset, build = FREE[name]
    model, gone = between(opset, build), 0
    for seed in range(3):
        traced, facts, keep = prune_at_random(model, seed)
        first = next(node for node in traced.graph.nodes if node.op == "conv")
        made = facts.classes.labels[first.outputs[0]].on(1)[0]
        gone += int((~keep[facts.classes.class_of[made]]).sum())
    assert gone, {pin.reason for pin in facts.classes.pins}


@pytest.mark.parametrize("name", COMPUTED)
def test_any_channels_go_where_sizes_are_computed(name: str) -> None:
    for height, width in ((6, 8), (9, 5)):
        _, facts, keep = prune_at_random(between(13, COMPUTED[name], True), sizes={"N": 2, "H": height, "W": width})
        assert (~keep & facts.classes.is_channel).any()


def no_boxes(net: Net, x: str) -> str:
    boxes = net.op("Reshape", x, net.ints(2, -1, 4))
    scores = net.op("Reshape", net.op("ReduceMax", boxes, axes=[2], keepdims=0), net.ints(2, 1, -1))
    found = net.op("NonMaxSuppression", boxes, scores, net.const(3, np.int64))
    return str(net.op("Cast", net.op("ReduceSum", found, net.ints(0, 1), keepdims=0), to=TensorProto.FLOAT))


def scanning(net: Net, x: str) -> str:
    state, step = (helper.make_tensor_value_info(name, 1, [CHANNELS, 6, 6]) for name in ("s", "e"))
    results = [helper.make_tensor_value_info(name, 1, [CHANNELS, 6, 6]) for name in ("t", "r")]
    nodes = [helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Relu", ["t"], ["r"])]
    body = helper.make_graph(nodes, "body", [state, step], results)
    start = net.const(np.zeros((CHANNELS, 6, 6), np.float32))
    return str(net.op("Scan", start, x, outputs=2, body=body, num_scan_inputs=1)[1])


HELD: Mapping[str, tuple[int, Build, str]] = {
    **REFUSED,
    "non-max-suppression": (17, no_boxes, "depends on the values"),
    "scan": (17, scanning, "a graph of its own"),
}


@pytest.mark.parametrize("name", sorted(HELD))
def test_what_holds_channels_is_named_and_the_rest_goes(name: str) -> None:
    """Behind another convolution the op does not matter: channels go there."""
    opset, build, reason = HELD[name]
    net = Net(opset)
    x = net.op("Relu", net.conv(net.input("x", [2, 3, 6, 6]), 3, 10))
    net.output(build(net, net.conv(x, 10, CHANNELS)))
    model = net.model()
    facts = gather_facts(trace_onnx(model).graph)
    pins = [pin for pin in facts.classes.pins if reason in pin.reason]
    assert pins
    assert all(pin.node is not None and pin.where == pin.node.origin for pin in pins)
    assert not [pin.reason for pin in facts.classes.pins if "no rule" in pin.reason]
    if name not in ("group-norm-18",):  # ONNX Runtime has none
        _, facts, keep = prune_at_random(model)
        assert (~keep & facts.classes.is_channel).any()


LISTED = """
    Conv ConvTranspose Gemm MatMul BatchNormalization InstanceNormalization GroupNormalization LayerNormalization Relu
    Sigmoid Tanh LeakyRelu Elu Selu Celu Gelu HardSigmoid HardSwish Mish Softplus Softsign ThresholdedRelu PRelu Clip
    Add Sub Mul
    Div Pow Max Min Sum Mean Where Concat Split Slice Gather Reshape Flatten Transpose Squeeze Unsqueeze Expand
    Tile Pad Resize Upsample DepthToSpace SpaceToDepth MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool
    GlobalLpPool ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceSumSquare Softmax LogSoftmax ArgMax ArgMin TopK NonMaxSuppression Cast LRN Dropout Identity QuantizeLinear
    DequantizeLinear If Loop Scan LSTM GRU RNN
"""


def test_every_op_of_a_convolutional_network_is_tried() -> None:
    """The integer ops have tests of their own: frontends/onnx/test_quantised.py."""
    cases = [(opset, build) for opset, build, *_ in (*FREE.values(), *HELD.values())]
    tried = {node.op_type for opset, build in cases for node in between_nodes(opset, build)}
    assert not set(LISTED.split()) - tried


def between_nodes(opset: int, build: Build) -> list[onnx.NodeProto]:
    net = Net(opset)
    build(net, net.conv(net.input("x", [2, 3, 6, 6]), 3, CHANNELS))
    return net.nodes


# --- one op, every opset -------------------------------------------------------------------------------


def clip(net: Net, x: str) -> str:
    if net.opset < 11:
        return str(net.op("Clip", x, min=-0.3, max=0.4))
    return str(net.op("Clip", x, net.const(-0.3, np.float32), net.const(0.4, np.float32)))


def pad(net: Net, x: str) -> str:
    amounts = [0, 1, 1, 0, 0, 2, 0, 1]
    if net.opset < 11:
        return str(net.op("Pad", x, pads=amounts, value=0.25))
    if net.opset < 18:
        return str(net.op("Pad", x, net.ints(*amounts), net.const(0.25, np.float32)))
    return str(net.op("Pad", x, net.ints(1, 1, 2, 1), net.const(0.25, np.float32), net.ints(1, -2)))


def slice_channels(net: Net, x: str) -> str:
    if net.opset < 10:
        return str(net.op("Slice", x, axes=[1, 3], starts=[1, 0], ends=[7, -1]))
    return str(net.op("Slice", x, net.ints(1, 0), net.ints(7, -1), net.ints(1, 3), net.ints(1, 2)))


def upsample(net: Net, x: str) -> str:
    if net.opset < 9:
        return str(net.op("Upsample", x, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"))
    scales = net.const([1, 1, 2, 2], np.float32)
    if net.opset < 10:
        return str(net.op("Upsample", x, scales, mode="nearest"))
    return str(
        net.op(
            "Resize",
            x,
            *([""] if net.opset > 12 else [net.const([], np.float32)] if net.opset > 10 else []),
            scales,
            mode="nearest",
        )
    )


def squeeze(net: Net, x: str) -> str:
    pooled = net.op("GlobalMaxPool", x)
    if net.opset < 13:
        return str(net.op("Unsqueeze", net.op("Squeeze", pooled, axes=[2, 3]), axes=[2, 3]))
    return str(net.op("Unsqueeze", net.op("Squeeze", pooled, net.ints(2, 3)), net.ints(2, -1)))


def reduce_sum(net: Net, x: str) -> str:
    return str(net.op("ReduceSum", x, axes=[3], keepdims=1) if net.opset < 13 else net.op("ReduceSum", x, net.ints(-1)))


def reduce_mean(net: Net, x: str) -> str:
    return str(
        net.op("ReduceMean", x, axes=[2, 3], keepdims=1)
        if net.opset < 18
        else net.op("ReduceMean", x, net.ints(2, -1), keepdims=1)
    )


def split(net: Net, x: str) -> str:
    if net.opset < 13:
        first, second = net.op("Split", x, outputs=2, axis=1, split=[3, 5])
    else:
        first, second = net.op("Split", x, net.ints(3, 5), outputs=2, axis=1)
    return str(net.op("Concat", second, first, axis=1))


def split_in_halves(net: Net, x: str) -> str:
    first, second = net.op("Split", x, outputs=2, axis=1, **({"num_outputs": 2} if net.opset >= 18 else {}))
    return str(net.op("Add", first, second))


def dropout(net: Net, x: str) -> str:
    return str(net.op("Dropout", x, ratio=0.4) if net.opset < 12 else net.op("Dropout", x, net.const(0.4, np.float32)))


def batch_norm(net: Net, x: str) -> str:
    vectors = [net.const(net.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)) for _ in range(4)]
    return str(net.op("BatchNormalization", x, *vectors))


def top_k(net: Net, x: str) -> str:
    if net.opset < 10:
        return str(net.op("TopK", x, k=3, axis=3, outputs=2)[0])
    return str(net.op("TopK", x, net.ints(3), axis=3, outputs=2)[0])


EVERY_OPSET: Mapping[str, Build] = {
    "clip": clip,
    "pad": pad,
    "slice": slice_channels,
    "upsample": upsample,
    "squeeze": squeeze,
    "reduce-sum": reduce_sum,
    "reduce-mean": reduce_mean,
    "split": split,
    "split-in-halves": split_in_halves,
    "dropout": dropout,
    "batch-norm": batch_norm,
    "softmax-over-space": elementwise("Softmax", axis=3),
    "top-k": top_k,
    "max-pool": elementwise("MaxPool", kernel_shape=[2, 2]),
    "average-pool": elementwise("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "concat": lambda net, x: net.op("Concat", x, net.op("Relu", x), axis=1),
    "flatten": lambda net, x: net.op("Reshape", net.op("Flatten", x), net.ints(2, CHANNELS, 6, 6)),
}


def runs(model: onnx.ModelProto) -> bool:
    try:
        run(model.SerializeToString(), {"x": np.zeros((2, 3, 6, 6), np.float32)})
    except Exception:  # noqa: BLE001  # whatever ONNX Runtime says to an opset that it does not have yet
        return False
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EVERY_OPSET)
def test_every_opset_from_7_to_the_newest(name: str) -> None:
    build: Callable[[Net, str], str] = EVERY_OPSET[name]
    tried = 0
    for opset in range(7, NEWEST + 1):
        model = between(opset, build)
        if opset > 21 and not runs(model):
            continue  # newer than what this ONNX Runtime has
        _, facts, keep = prune_at_random(model)
        assert (~keep & facts.classes.is_channel).sum() >= 1, f"opset {opset}"
        tried += 1
    assert tried >= 15, onnxruntime.__version__
