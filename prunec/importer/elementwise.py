"""ONNX -> torch: ops that compute each element by itself. Each function is one row; the table is in module.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import fx

from prunec.frontends.onnx.sizes.view import View
from prunec.importer.build import Builder, Row, Unconvertible

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_DTYPES = {
    **dict.fromkeys(_FLOATS, torch.float32),
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT16: torch.int16,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


def unary(function: Callable[..., Any], **defaults: float) -> Row:
    """Return the row of a function of one tensor; ``defaults`` are attributes, passed by position."""

    def row(view: View, b: Builder) -> fx.Node:
        return b.call(function, b.input(view, 0), *(view.attrs.get(name, value) for name, value in defaults.items()))

    return row


def binary(function: Callable[..., Any], *, trained: bool = False) -> Row:
    """Return the row of a function of two tensors; ``trained``: a vector that the file holds is a parameter."""

    def row(view: View, b: Builder) -> fx.Node:
        left, right = (b.scalar_or_input(view, i, trained=trained and _is_vector(view, i)) for i in (0, 1))
        if not isinstance(left, fx.Node) and function is not torch.add and function is not torch.mul:
            left = b.input(view, 0)
        elif not isinstance(left, fx.Node):
            left, right = right, left
        return b.call(function, left, right)

    return row


def _is_vector(view: View, index: int) -> bool:
    """Tell whether a stored operand has a value per channel and meets something other than the network's input."""
    shape = view.shape(index)
    return shape is not None and sum(size != 1 for size in shape) == 1


def divide(view: View, b: Builder) -> fx.Node:
    """Div; of integers it truncates."""
    value = view.facts.values.get(view.outputs[0])
    whole = value is not None and np.dtype(value.dtype if value.dtype != "bfloat16" else "float32").kind in "iu"
    left, right = b.input(view, 0), b.scalar_or_input(view, 1)
    return b.call(torch.div, left, right, rounding_mode="trunc") if whole else b.call(torch.div, left, right)


def variadic(function: Callable[..., Any], *, mean: bool = False) -> Row:
    """Return the row of Sum, Mean, Max or Min."""

    def row(view: View, b: Builder) -> fx.Node:
        found = b.input(view, 0)
        for index in range(1, len(view.inputs)):
            found = b.call(function, found, b.input(view, index))
        return b.call(torch.mul, found, 1 / len(view.inputs)) if mean else found

    return row


def clip(view: View, b: Builder) -> fx.Node:
    """Clip, with bounds as attributes or inputs; 0 to 6 is ReLU6."""
    low, high = (_bound(view, name, index) for name, index in (("min", 1), ("max", 2)))
    if (low, high) == (0.0, 6.0):
        return b.call(F.relu6, b.input(view, 0))
    if low is None and high is None:
        return b.input(view, 0)
    return b.call(torch.clamp, b.input(view, 0), low, high)


def _bound(view: View, name: str, index: int) -> float | None:
    values = view.setting(name, index)
    if values is None:
        if view.has(index):
            raise Unconvertible("its bounds are computed")
        return None
    value = float(values[0])
    return None if abs(value) >= float(np.finfo(np.float32).max) else value


def image_scaler(view: View, b: Builder) -> fx.Node:
    """ImageScaler, an experimental op of 2017: a factor, and a shift per channel."""
    shift = np.asarray(view.attrs.get("bias", []), dtype=np.float32).reshape(1, -1, 1, 1)
    scaled = b.call(torch.mul, b.input(view, 0), view.attrs.get("scale", 1.0))
    return b.call(torch.add, scaled, b.stored(f"{view.node.name}_bias", shift))


def affine(view: View, b: Builder) -> fx.Node:
    """Affine, an experimental op of 2017: alpha·x + beta."""
    scaled = b.call(torch.mul, b.input(view, 0), view.attrs.get("alpha", 1.0))
    return b.call(torch.add, scaled, view.attrs.get("beta", 0.0))


def scaled_tanh(view: View, b: Builder) -> fx.Node:
    """ScaledTanh, an experimental op of 2017: alpha·tanh(beta·x)."""
    inner = b.call(torch.tanh, b.call(torch.mul, b.input(view, 0), view.attrs.get("beta", 1.0)))
    return b.call(torch.mul, inner, view.attrs.get("alpha", 1.0))


def hard_sigmoid(view: View, b: Builder) -> fx.Node:
    """HardSigmoid: torch's own if the slope is 1/6."""
    alpha, beta = view.attrs.get("alpha", 0.2), view.attrs.get("beta", 0.5)
    x = b.input(view, 0)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return b.call(F.hardsigmoid, x)
    return b.call(torch.clamp, b.call(torch.add, b.call(torch.mul, x, alpha), beta), 0.0, 1.0)


def prelu(view: View, b: Builder) -> fx.Node:
    """PRelu; a slope per channel is torch's own, others are written out."""
    slope = b.content(view, 1)
    rank, x = view.rank() or 0, b.input(view, 0)
    lone = [axis for axis, size in enumerate(slope.shape) if size != 1]
    if rank < 2 or len(lone) > 1 or (lone and slope.ndim - lone[0] != rank - 1):
        raise Unconvertible("its slopes are not one per channel")
    return b.call(F.prelu, x, b.stored(view.inputs[1], slope.reshape(-1), trained=True))


def cast(view: View, b: Builder) -> fx.Node:
    """Cast; half precisions become float32."""
    dtype = _DTYPES.get(view.attrs.get("to", TensorProto.FLOAT))
    if dtype is None:
        raise Unconvertible("it casts to a type that torch lacks")
    value = view.facts.values.get(view.inputs[0])
    if value is not None and dtype is torch.float32 and value.dtype in ("float32", "float16", "bfloat16"):
        return b.input(view, 0)
    return b.call(torch.Tensor.to, b.input(view, 0), dtype)


def identity(view: View, b: Builder) -> fx.Node:
    """Identity, and Dropout as it is at inference."""
    return b.input(view, 0)
