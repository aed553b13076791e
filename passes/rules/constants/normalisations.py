"""Constant rules of normalisations: a gamma of 0 leaves beta, what is known is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunec.ir.arrays import Array
from prunec.passes.rules.arrays import MAX_ELEMENTS, TIDY_ELEMENTS, fits, others, unknown
from prunec.passes.rules.constants.call import Call, Known
from prunec.passes.rules.weights import negligible


def batch_norm(call: Call) -> Known:
    """A gamma of 0 leaves beta; a known input follows the formula, with its own statistics in training."""
    axis = call.node.attrs.get("axis", 1)
    x = call.array(0)
    if x.ndim != call.rank:
        return [None]
    if call.node.attrs.get("training") or not (call.has(3) and call.has(4)):
        return [_affine(call, _standardised(call, x, others(x.ndim, axis)), axis)]
    eps = call.node.attrs.get("eps", 1e-5)
    mean, var = call.vector(3, axis, 0.0), call.vector(4, axis, 1.0)
    return [_affine(call, (x - mean) / np.sqrt(var + eps), axis)]


def instance_norm(call: Call) -> Known:
    """A gamma of 0 leaves beta; so does an input that is uniform over space."""
    axis = call.node.attrs.get("axis", 1)
    x = call.array(0)
    return [_affine(call, _standardised(call, x, range(axis + 1, x.ndim)), axis) if x.ndim == call.rank else None]


def group_norm(call: Call) -> Known:
    """A gamma of 0 leaves beta; a group that is known in full is computed."""
    axis, groups = call.node.attrs.get("axis", 1), call.node.attrs["num_groups"]
    x, shape = call.array(0), call.in_shapes[0]
    if x.ndim != call.rank or shape is None:
        return [None]
    channels = shape[axis]
    if call.known[0] is None or not isinstance(channels, int) or x.size // x.shape[axis] * channels > MAX_ELEMENTS:
        return [_affine(call, unknown(call.rank), axis)]
    full = np.broadcast_to(x, (*x.shape[:axis], channels, *x.shape[axis + 1 :]))
    split = full.reshape((*full.shape[:axis], groups, channels // groups, *full.shape[axis + 1 :]))
    normal = _standardised(call, split, range(axis + 1, split.ndim))
    return [_affine(call, np.broadcast_to(normal, split.shape).reshape(full.shape), axis)]


def layer_norm(call: Call) -> Known:
    """A gamma of 0 leaves beta; what is known along all normalised axes is computed."""
    x, axes = call.array(0), call.node.attrs["axes"]
    if x.ndim != call.rank:
        return [None]
    return [_affine(call, _standardised(call, x, axes), x.ndim - 1)]


def _standardised(call: Call, x: Array, axes: Sequence[int]) -> Array:
    """Return (x - mean) / sqrt(var + eps) over ``axes``; an axis of size 1 stands for equal elements."""
    if call.known[0] is None:
        return x
    where = tuple(axes)
    centred: Array = x - np.mean(x, axis=where, keepdims=True, dtype=np.float64).astype(_working_type(x))
    var = np.mean(np.square(centred), axis=where, keepdims=True, dtype=np.float64)
    centred /= np.sqrt(var + call.node.attrs.get("eps", 1e-5)).astype(centred.dtype)
    return centred


def _working_type(x: Array) -> type[np.floating[Any]]:
    """A large array is a weight being standardised: it keeps float32, to hold memory and time down."""
    return np.float32 if x.size > TIDY_ELEMENTS and x.dtype == np.float32 else np.float64


def _affine(call: Call, normal: Array, axis: int) -> Array | None:
    gamma = call.vector(1, axis, 1.0).astype(normal.dtype)
    beta = call.vector(2, axis, 0.0).astype(normal.dtype)
    if not fits([normal, gamma, beta]):
        return None
    if not (call.has(1) or call.has(2)):
        return normal
    silent = np.abs(gamma) <= negligible(gamma)
    affine = gamma * normal + beta
    return np.where(silent, beta, affine) if silent.any() else affine


def lrn(call: Call) -> Known:
    """Zero stays zero; the divisor (LRN) or scale of anything else is made of other values."""
    return [None if call.known[0] is None else np.where(call.known[0] == 0, 0.0, np.nan)]
