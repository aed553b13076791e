"""One op that computes on channels, as exporters write it: activations, arithmetic, norms, pools, contractions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnx_models.cases.writing import CHANNELS, NEW_DOMAIN, Build, elementwise
from onnx_models.nets import Net


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


VALUES: Mapping[str, tuple[int, Build]] = {
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
    "resize-scales": (13, resized_by_scales),
    "resize-sizes": (13, resized_to_sizes),
    "upsample-7": (7, upsampled_by_attribute),
    "upsample-9": (9, upsampled_by_input),
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
