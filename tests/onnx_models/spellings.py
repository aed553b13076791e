"""One small network, in the spellings of many exporters: what each of them writes for the same few layers.

The network: convolution, normalisation, ReLU, convolution, pooling, a linear layer. Half of the channels of the first
convolution are constant in each spelling. References: the exporters' own output on such a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_models.nets import Array, Net

CHANNELS = 8
HIDDEN = 6
CLASSES = 5
SILENT = (1, 2, 5, 6)


class Layers(Net):
    """A network under construction with the contents of its layers; each spelling writes them its own way."""

    def __init__(self, opset: int = 13, **settings: Any) -> None:
        super().__init__(opset, seed=7, **settings)
        self.first, self.second = self.weight(CHANNELS, 3, 3, 3), self.weight(HIDDEN, CHANNELS, 3, 3)
        self.bias = self.rng.uniform(-0.3, 0.3, HIDDEN).astype(np.float32)
        self.gamma = self.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)
        self.gamma[list(SILENT)] = 0
        self.beta = self.rng.uniform(0.1, 0.5, CHANNELS).astype(np.float32)
        self.mean = self.rng.uniform(-0.2, 0.2, CHANNELS).astype(np.float32)
        self.var = self.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)
        self.linear, self.offset = self.weight(HIDDEN, CLASSES), self.weight(CLASSES)

    @property
    def scale(self) -> Array:
        """Batch normalisation as one factor per channel."""
        return np.asarray(self.gamma / np.sqrt(self.var + np.float32(1e-5)))

    @property
    def shift(self) -> Array:
        """What batch normalisation adds after that."""
        return np.asarray(self.beta - self.mean * self.scale)

    def norm(self, x: str) -> str:
        vectors = [self.const(v) for v in (self.gamma, self.beta, self.mean, self.var)]
        return str(self.op("BatchNormalization", x, *vectors))

    def head(self, x: str) -> str:
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        return str(self.op("Gemm", flat, self.const(self.linear), self.const(self.offset)))


def plain() -> onnx.ModelProto:
    """As PyTorch writes it."""
    net = Layers()
    x = net.op("Conv", net.input("x", ["N", 3, 8, 8]), net.const(net.first))
    x = net.op("Conv", net.op("Relu", net.norm(x)), net.const(net.second), net.const(net.bias))
    net.output(net.head(x), shape=["N", CLASSES])
    return net.model()


def tensorflow() -> onnx.ModelProto:
    """tf2onnx: NHWC outside, explicit Pad, weights behind Transpose, the flattening size from a chain of shapes."""
    net = Layers()
    x = net.op("Transpose", net.input("x", ["N", 8, 8, 3]), perm=[0, 3, 1, 2])
    first = net.op("Transpose", net.const(net.first.transpose(2, 3, 1, 0)), perm=[3, 2, 0, 1])
    x = net.op("Transpose", net.op("Conv", x, first), perm=[0, 2, 3, 1])
    x = net.op("Add", net.op("Mul", x, net.const(net.scale)), net.const(net.shift))
    x = net.op("Transpose", net.op("Relu", x), perm=[0, 3, 1, 2])
    x = net.op("Pad", x, net.ints(0, 0, 0, 0, 0, 0, 0, 0))
    second = net.op("Transpose", net.const(net.second.transpose(2, 3, 1, 0)), perm=[3, 2, 0, 1])
    x = net.op("Transpose", net.op("Conv", x, second), perm=[0, 2, 3, 1])
    x = net.op("ReduceMean", net.op("Add", x, net.const(net.bias)), axes=[1, 2], keepdims=1)
    shape = net.op("Cast", net.op("Shape", x), to=TensorProto.INT32)
    batch = net.op("Squeeze", net.op("Slice", shape, net.ints(0), net.ints(1), net.ints(0)), net.ints(0))
    sizes = net.op("Concat", net.op("Unsqueeze", batch, net.ints(0)), net.const([-1], np.int32), axis=0)
    flat = net.op("Reshape", x, net.op("Cast", sizes, to=TensorProto.INT64))
    net.output(
        net.op("Add", net.op("MatMul", flat, net.const(net.linear)), net.const(net.offset)), shape=["N", CLASSES]
    )
    return net.model()


def keras() -> onnx.ModelProto:
    """keras2onnx: every layer between two transpositions, and channels last when it flattens."""
    net = Layers(11)
    x = net.op("Transpose", net.input("x", ["N", 8, 8, 3]), perm=[0, 3, 1, 2])
    x = net.op("Transpose", net.op("Conv", x, net.const(net.first)), perm=[0, 2, 3, 1])
    x = net.op("Transpose", net.norm(net.op("Transpose", x, perm=[0, 3, 1, 2])), perm=[0, 2, 3, 1])
    x = net.op("Transpose", net.op("Relu", x), perm=[0, 3, 1, 2])
    x = net.op("Conv", x, net.const(net.second), net.const(net.bias))
    x = net.op("Transpose", net.op("AveragePool", x, kernel_shape=[4, 4]), perm=[0, 2, 3, 1])
    flat = net.op("Reshape", x, net.ints(-1, HIDDEN))
    net.output(
        net.op("Add", net.op("MatMul", flat, net.const(net.linear)), net.const(net.offset)), shape=["N", CLASSES]
    )
    return net.model()


def paddle() -> onnx.ModelProto:
    """paddle2onnx: Constant nodes, biases reshaped and added, a scale op as Mul and Add, Identity everywhere."""
    net = Layers(11, constants="node")
    x = net.op("Conv", net.input("x", ["N", 3, 8, 8]), net.op("Identity", net.const(net.first)))
    scale = net.op("Reshape", net.const(net.scale), net.ints(1, -1, 1, 1))
    shift = net.op("Reshape", net.const(net.shift), net.ints(1, CHANNELS, 1, 1))
    x = net.op("Relu", net.op("Add", net.op("Mul", x, scale), shift))
    x = net.op("Conv", net.op("Identity", x), net.const(net.second))
    x = net.op("Add", x, net.op("Unsqueeze", net.const(net.bias), axes=[0, 2, 3]))
    x = net.op("GlobalAveragePool", x)
    shape = net.op("Slice", net.op("Shape", x), net.ints(0), net.ints(1), net.ints(0))
    flat = net.op("Reshape", x, net.op("Concat", shape, net.ints(-1), axis=0))
    y = net.op("MatMul", flat, net.op("Identity", net.const(net.linear)))
    net.output(net.op("Add", y, net.const(net.offset)), shape=["N", CLASSES])
    return net.model()


def old_pytorch() -> onnx.ModelProto:
    """PyTorch before 1.5, opset 9: x.view(x.size(0), -1), x.chunk(2) by arithmetic on sizes, interpolate by ratios."""
    net = Layers(9)
    x = net.op("Relu", net.norm(net.op("Conv", net.input("x", ["N", 3, 8, 8]), net.const(net.first))))
    count = net.op("Gather", net.op("Shape", x), net.const(1, np.int64), axis=0)
    half = net.op("Div", net.op("Add", count, net.const(1, np.int64)), net.const(2, np.int64))
    two = net.op("Mul", half, net.const(2, np.int64))
    del two  # the ends are constants once the exporter has folded them
    parts = [net.op("Slice", x, axes=[1], starts=[start], ends=[start + CHANNELS // 2]) for start in (0, CHANNELS // 2)]
    x = net.op("Concat", *parts, axis=1)
    x = net.op("Conv", x, net.const(net.second), net.const(net.bias))
    shape = net.op("Shape", x)
    ratios = []
    for axis in (2, 3):
        size = net.op("Cast", net.op("Gather", shape, net.const(axis, np.int64), axis=0), to=TensorProto.FLOAT)
        doubled = net.op("Floor", net.op("Mul", size, net.const(2.0, np.float32)))
        ratios.append(net.op("Unsqueeze", net.op("Div", doubled, size), axes=[0]))
    x = net.op("Upsample", x, net.op("Concat", net.const([1, 1], np.float32), *ratios, axis=0), mode="nearest")
    x = net.op("GlobalAveragePool", x)
    batch = net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), net.const(0, np.int64), axis=0), axes=[0])
    flat = net.op("Reshape", x, net.op("Concat", batch, net.ints(-1), axis=0))
    weight = net.op("Transpose", net.const(net.linear.T.copy()), perm=[1, 0])
    net.output(net.op("Add", net.op("MatMul", flat, weight), net.const(net.offset)), shape=["N", CLASSES])
    return net.model()


def shuffled_pytorch() -> onnx.ModelProto:
    """PyTorch's channel shuffle with every size read from the tensor, opset 11."""
    net = Layers(11)
    x = net.op("Relu", net.norm(net.op("Conv", net.input("x", ["N", 3, 8, 8]), net.const(net.first))))
    shape = net.op("Shape", x)
    batch, count, height, width = (net.op("Gather", shape, net.const(axis, np.int64)) for axis in range(4))
    per_group = net.op("Div", count, net.const(2, np.int64))
    sizes = [net.op("Unsqueeze", size, axes=[0]) for size in (batch, per_group, height, width, count)]
    split = net.op("Concat", sizes[0], net.ints(2), sizes[1], sizes[2], sizes[3], axis=0)
    back = net.op("Concat", sizes[0], net.ints(-1), sizes[2], sizes[3], axis=0)
    x = net.op("Reshape", net.op("Transpose", net.op("Reshape", x, split), perm=[0, 2, 1, 3, 4]), back)
    order = np.arange(CHANNELS).reshape(2, -1).T.ravel()
    second = net.second[:, order]
    net.output(net.head(net.op("Conv", x, net.const(second), net.const(net.bias))), shape=["N", CLASSES])
    return net.model()


def mxnet() -> onnx.ModelProto:
    """MXNet: IR version 3, weights listed as inputs, batch norms with more attributes, Flatten and Gemm (transB)."""
    net = Layers(8, ir_version=3)
    x = net.op("Conv", net.input("x", [2, 3, 8, 8]), net.const(net.first), kernel_shape=[3, 3], group=1)
    vectors = [net.const(v) for v in (net.gamma, net.beta, net.mean, net.var)]
    x = net.op("BatchNormalization", x, *vectors, epsilon=1e-5, momentum=0.9, spatial=1)
    x = net.op("Conv", net.op("Relu", x), net.const(net.second), net.const(net.bias), kernel_shape=[3, 3])
    flat = net.op("Flatten", net.op("Dropout", net.op("GlobalAveragePool", x), ratio=0.5))
    y = net.op("Gemm", flat, net.const(net.linear.T.copy()), net.const(net.offset), transB=1, alpha=1.0, beta=1.0)
    net.output(y, shape=[2, CLASSES])
    model = net.model()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def cntk() -> onnx.ModelProto:
    """CNTK: biases as Add with (C, 1, 1), a product with a weight that is reshaped first, Times over many axes."""
    net = Layers(7)
    x = net.op("Conv", net.input("x", [1, 3, 8, 8]), net.const(net.first), auto_pad="VALID", kernel_shape=[3, 3])
    x = net.op("Mul", x, net.const(net.scale.reshape(-1, 1, 1)))
    x = net.op("Relu", net.op("Add", x, net.const(net.shift.reshape(-1, 1, 1))))
    x = net.op("Conv", x, net.const(net.second), auto_pad="VALID", kernel_shape=[3, 3], dilations=[1, 1])
    x = net.op("Add", x, net.const(net.bias.reshape(-1, 1, 1)))
    flat = net.op("Reshape", net.op("AveragePool", x, kernel_shape=[4, 4]), net.ints(1, HIDDEN))
    weight = net.op("Reshape", net.const(net.linear.reshape(HIDDEN, 1, 1, CLASSES)), net.ints(HIDDEN, CLASSES))
    y = net.op("Add", net.op("MatMul", flat, weight), net.const(net.offset.reshape(1, -1)))
    net.output(y, shape=[1, CLASSES])
    return net.model()


def caffe2() -> onnx.ModelProto:
    """Caffe2: a scale layer as Mul and Add with unsqueezed vectors, Sum for residuals, Reshape for FC, Softmax."""
    net = Layers(9)
    x = net.op("Conv", net.input("x", [2, 3, 8, 8]), net.const(net.first), strides=[1, 1], pads=[0, 0, 0, 0])
    scale = net.op("Unsqueeze", net.const(net.scale), axes=[1, 2])
    shift = net.op("Unsqueeze", net.const(net.shift), axes=[1, 2])
    x = net.op("Relu", net.op("Add", net.op("Mul", x, scale), shift))
    x = net.op("Conv", net.op("Sum", x), net.const(net.second), net.const(net.bias))
    x = net.op("AveragePool", x, kernel_shape=[4, 4])
    shape = net.ints(0, -1)
    flat = net.op("Reshape", x, shape)
    net.output(
        net.op("Gemm", flat, net.const(net.linear.T.copy()), net.const(net.offset), transB=1), shape=[2, CLASSES]
    )
    return net.model()


def optimised() -> onnx.ModelProto:
    """ONNX Runtime's optimiser: batch norm folded into the weight, activations fused into the convolutions."""
    net = Layers(12)
    weight = net.const(net.first * net.scale[:, None, None, None])
    x = net.op(
        "FusedConv",
        net.input("x", [2, 3, 8, 8]),
        weight,
        net.const(net.shift),
        domain="com.microsoft",
        activation="Relu",
    )
    x = net.op("Conv", x, net.const(net.second), net.const(net.bias))
    net.output(net.head(x), shape=[2, CLASSES])
    return net.model()


def through(*steps: Callable[[Net, str], str], undo: Callable[[Array], Array], opset: int = 13) -> onnx.ModelProto:
    """Let both convolutions read their weight through nodes that compute it."""
    net = Layers(opset)

    def weight(array: Array) -> str:
        name = net.const(undo(array))
        for step in steps:
            name = step(net, name)
        return name

    x = net.op("Relu", net.norm(net.op("Conv", net.input("x", ["N", 3, 8, 8]), weight(net.first))))
    x = net.op("Conv", x, weight(net.second), net.const(net.bias))
    net.output(net.head(x), shape=["N", CLASSES])
    return net.model()


def step(kind: str, *settings: Any, **attrs: Any) -> Callable[[Net, str], str]:
    """Return a node that reads the weight first, then stored settings."""
    return lambda net, name: str(net.op(kind, name, *(net.const(np.asarray(value)) for value in settings), **attrs))


def by_its_size(net: Net, name: str) -> str:
    """Multiply a weight of n elements by n / (n - 1), as weight standardisation does."""
    count = net.op("Cast", net.op("Size", name), to=TensorProto.FLOAT)
    return str(net.op("Mul", name, net.op("Div", count, net.op("Sub", count, net.const(np.float32(1))))))


def normalised(net: Net, name: str) -> str:
    """Give a weight its mean and deviation per filter, as weight standardisation with a gain does."""
    weight = next(numpy_helper.to_array(tensor) for tensor in net.initializers if tensor.name == name)
    rows = weight.reshape(len(weight), -1)
    vectors = [rows.std(axis=1), rows.mean(axis=1), np.zeros(len(rows), np.float32), np.ones(len(rows), np.float32)]
    flat = net.op("Reshape", name, net.ints(1, len(rows), -1))
    y, _, _ = net.op("BatchNormalization", flat, *map(net.const, vectors), outputs=3, training_mode=1, epsilon=1e-12)
    return str(net.op("Reshape", y, net.ints(*weight.shape)))


SPELLINGS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "tensorflow": tensorflow,
    "keras": keras,
    "paddle": paddle,
    "old-pytorch": old_pytorch,
    "shuffled-pytorch": shuffled_pytorch,
    "mxnet": mxnet,
    "cntk": cntk,
    "caffe2": caffe2,
    "onnxruntime-optimised": optimised,
    "transposed-weight": lambda: through(step("Transpose", perm=[3, 2, 0, 1]), undo=lambda w: w.transpose(2, 3, 1, 0)),
    "reshaped-weight": lambda: through(
        step("Reshape", np.array([0, -1, 3, 3])), undo=lambda w: w.reshape(w.shape[0], w.shape[1], 9)
    ),
    "half-weight": lambda: through(step("Cast", to=TensorProto.FLOAT), undo=lambda w: w.astype(np.float16)),
    "scaled-weight": lambda: through(step("Mul", np.float32(0.5)), undo=lambda w: w * 2),
    "sliced-weight": lambda: through(
        step("Slice", np.array([0]), np.array([3]), np.array([3])), undo=lambda w: np.concatenate([w, w], axis=3)
    ),
    "weight-scaled-by-its-size": lambda: through(by_its_size, undo=lambda w: w * np.float32(1 - 1 / w.size)),
    "standardised-weight": lambda: through(normalised, undo=lambda w: w, opset=15),
    "unsqueezed-weight": lambda: through(step("Squeeze", np.array([0])), step("Identity"), undo=lambda w: w[None]),
    "dequantised-weight": lambda: through(
        step("DequantizeLinear", np.float32(0.005)), undo=lambda w: np.rint(w / 0.005).clip(-127, 127).astype(np.int8)
    ),
    "dequantised-and-turned-weight": lambda: through(
        step("DequantizeLinear", np.float32(0.005)),
        step("Transpose", perm=[3, 2, 0, 1]),
        undo=lambda w: np.rint(w.transpose(2, 3, 1, 0) / 0.005).clip(-127, 127).astype(np.int8),
    ),
}
"""Exporter or habit -> the network as it is written there."""
