"""Constant rules of quantisation: integers stand for numbers, and rounding near a tie is unknown."""

from __future__ import annotations

import numpy as np

from prunec.ir.arrays import Array
from prunec.passes.rules.arrays import fits
from prunec.passes.rules.constants.call import Call, Known


def quantize(call: Call) -> Known:
    """round(x / scale) + zero_point, saturated, but unknown near a tie, where rounding may go either way."""
    x = call.known[0]
    if x is None or not call.out_dtype.startswith(("int", "uint")):
        return [None]
    scale, zero, limits = _scale(call), _zero_point(call), np.iinfo(call.out_dtype)
    if not fits([x, scale, zero]):
        return [None]
    exact = x / scale
    near_tie = np.abs(np.abs(exact - np.rint(exact)) - 0.5) < 1e-3
    return [np.where(near_tie, np.nan, np.clip(np.rint(exact) + zero, limits.min, limits.max))]


def dequantize(call: Call) -> Known:
    """(x - zero_point) · scale."""
    x, scale, zero = call.known[0], _scale(call), _zero_point(call)
    if x is None or not fits([x, scale, zero]):
        return [None]
    centred = np.subtract(x, zero, dtype=np.float64)
    # A weight takes eight times the file's bytes here: once must do.
    in_place = np.broadcast_shapes(centred.shape, scale.shape) == centred.shape
    return [np.multiply(centred, scale, out=centred if in_place else None)]


def _scale(call: Call) -> Array:
    return _per_channel(call, 1, 1.0)


def _zero_point(call: Call) -> Array:
    return _per_channel(call, 2, 0.0)


def _per_channel(call: Call, index: int, default: float) -> Array:
    """A scale of one element holds for the whole tensor, whatever ``axis`` says."""
    axis = call.node.attrs.get("axis", 1)
    found = call.known[index] if call.has(index) else None
    if found is not None and found.size == 1:
        return np.asarray(found, dtype=np.float64).reshape((1,) * call.rank)
    return call.vector(index, axis if axis < call.rank else 0, default)
