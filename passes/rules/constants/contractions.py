"""Constant rules of what sums over channels: an output is known where all that it reads is known, or zero."""

from __future__ import annotations

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Dim, Shape
from prunec.passes.rules.arrays import MAX_ELEMENTS, along, lift, others, stretched, uniform
from prunec.passes.rules.constants.call import Call, Known


def conv(call: Call) -> Known:
    """An output whose live inputs are all constant is constant; zero padding lets only zeros through."""
    return _convolution(call, only_zeros=any(call.node.attrs.get("pads") or ()))


def conv_transpose(call: Call) -> Known:
    """As conv, but inputs that are not zero are followed only where each output reads one tap."""
    attrs, shape = call.node.attrs, call.in_shapes[1]
    kernel = (2,) if shape is None else shape[2:]
    edges = (*(attrs.get("pads") or ()), *(attrs.get("output_padding") or ()))
    pointwise = all(size == 1 for size in (*kernel, *(attrs.get("strides") or ()))) and not any(edges)
    return _convolution(call, only_zeros=not pointwise)


def _convolution(call: Call, only_zeros: bool) -> Known:
    x = call.array(0)
    if call.in_shapes[0] is None:
        x = np.full((1,) * call.rank, np.nan)  # a convolution's input has the rank of its output
    if x.ndim != call.rank:
        return [None]
    channels = uniform(x, others(x.ndim, 1)).ravel()
    total = _contract(call, channels, only_zeros)
    return [None if total is None else along(total, 1, call.rank) + call.vector(2, 1, 0.0)]


def _contract(call: Call, constants: Array, only_zeros: bool) -> Array | None:
    """Return float64[out] = Σ_k constants[k] · Σ_taps W[o, k], NaN where an unknown input is read."""
    if call.weight is None:
        return np.zeros(1) if bool((constants == 0).all()) else None
    constants = stretched(constants, call.weight.num_inputs)
    lost = np.isnan(constants) | ((constants != 0) & only_zeros)
    blocked = call.weight.reading(lost)
    if blocked.all() and blocked.size:
        return None
    total = call.weight.total(~blocked, np.where(lost, 0.0, constants))
    return np.where(blocked, np.nan, total)


def matmul(call: Call) -> Known:
    """An output element is constant where, for each k, one operand is zero or both are known."""
    attrs = call.node.attrs
    a, b = call.array(0), call.array(1)
    if a.ndim == 0 or b.ndim == 0:
        return [None]
    row = a.size if a.ndim == 1 else a.shape[-2 if attrs.get("transpose_a") else -1]
    if call.weight is not None and a.size == row:
        total = _contract(call, a.ravel(), only_zeros=False)
        product = None if total is None else lift(total, call.rank)
    else:
        product = _product(call, a, b)
    if product is None:
        return [None]
    product = attrs.get("alpha", 1.0) * product
    if not call.has(2):
        return [product]
    return [product + attrs.get("beta", 1.0) * np.asarray(call.array(2), dtype=np.float64)]


def _product(call: Call, a: Array, b: Array) -> Array | None:
    """Multiply two abstract operands; None where that is too large or nothing can come out of it."""
    if call.known[0] is None and call.known[1] is None:
        return None
    a, b, inner = _operands(call, a, b)
    if a.size * b.shape[-1] > MAX_ELEMENTS or b.size * a.shape[-2] > MAX_ELEMENTS:
        return None
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if inner is None:
        # The number of terms is open: only a sum of zeros is known.
        return np.where((uniform(a, [-1]) == 0) | (uniform(b, [-2]) == 0), 0.0, np.nan)
    a = np.broadcast_to(a, (*a.shape[:-1], inner))
    b = np.broadcast_to(b, (*b.shape[:-2], inner, b.shape[-1]))
    lost_a, lost_b = np.isnan(a), np.isnan(b)
    blocked = np.matmul(lost_a * 1.0, (b != 0) * 1.0) + np.matmul((a != 0) * 1.0, lost_b * 1.0)
    product = np.where(blocked > 0, np.nan, np.matmul(np.where(lost_a, 0.0, a), np.where(lost_b, 0.0, b)))
    squeezed = [axis for axis, shape in ((-2, call.in_shapes[0]), (-1, call.in_shapes[1])) if shape and len(shape) == 1]
    return np.squeeze(product, axis=tuple(squeezed)) if squeezed else product


def _operands(call: Call, a: Array, b: Array) -> tuple[Array, Array, int | None]:
    """Return a as [..., M, K], b as [..., K, N], and K; None where it is open."""
    swap_a, swap_b = call.node.attrs.get("transpose_a"), call.node.attrs.get("transpose_b")
    lengths = (_length(call.in_shapes[0], -2 if swap_a else -1), _length(call.in_shapes[1], -1 if swap_b else -2))
    a = a[None, :] if a.ndim == 1 else a.swapaxes(-1, -2) if swap_a else a
    b = b[:, None] if b.ndim == 1 else b.swapaxes(-1, -2) if swap_b else b
    return a, b, next((length for length in lengths if isinstance(length, int)), None)


def _length(shape: Shape | None, axis: int) -> Dim:
    if not shape:
        return None
    return shape[0] if len(shape) == 1 else shape[axis]


def attention(call: Call) -> Known:
    """The attention weights of a position add up to 1, so what all values agree on comes out."""
    value = call.known[2]
    if value is None or value.ndim != call.rank:
        return [None]
    return [uniform(value, [value.ndim - 2])]
