"""One op whose sizes are computed while the network runs: the table COMPUTED."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import helper

from onnx_models.cases.writing import Build
from onnx_models.nets import Net


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
