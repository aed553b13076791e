"""Constant rules of ops that work on each channel by itself (pooling, resizing, sampling), and of reductions."""

from __future__ import annotations

import math

import numpy as np

from prunec.ir.arrays import Array
from prunec.passes.rules import numeric
from prunec.passes.rules.arrays import others, passed, uniform
from prunec.passes.rules.constants.call import Call, Known


def channelwise(call: Call) -> Known:
    """What is uniform over space stays: each window sees one value (max_pool pads with minus infinity)."""
    return [_over_space(call)]


def avg_pool(call: Call) -> Known:
    """As channelwise; zeros that count, or a divisor of its own, let only zeros through.

    In ONNX a window that sticks out by ``ceil`` may count what is not there, too: runtimes differ.
    """
    attrs = call.node.attrs
    counts = attrs.get("counts_padding") and (any(attrs.get("pads") or ()) or attrs.get("ceil"))
    plain = not counts and attrs.get("divisor_override") is None
    return [_over_space(call) if plain else _zeros(_over_space(call))]


def resize(call: Call) -> Known:
    """Interpolation keeps a uniform channel, unless it extrapolates."""
    return channelwise(call) if call.node.attrs.get("keeps_constants", True) else [None]


def sample(call: Call) -> Known:
    """Points outside the map read zeros, so only zeros stay."""
    x = call.known[0]
    return [None if x is None or x.ndim != call.rank else _zeros(uniform(x, others(x.ndim, 1)))]


def max_unpool(call: Call) -> Known:
    """What a pool took no element from is zero, so only zeros stay uniform."""
    return [_zeros(_over_space(call))]


def linear(call: Call) -> Known:
    """A linear map makes zeros of zeros; of anything else it may make anything."""
    x, axes = call.known[0], call.node.attrs["passes"]
    if x is None:
        return [None]
    mixed = others(x.ndim, *(axis for axis, _ in axes))
    return [passed(np.where(uniform(x, mixed) == 0, 0.0, np.nan), axes, call.rank)]


def _over_space(call: Call) -> Array | None:
    x = call.known[0]
    if x is None or x.ndim != call.rank:
        return None
    return uniform(x, call.node.attrs.get("spatial_axes") or range(2, x.ndim))


def _zeros(x: Array | None) -> Array | None:
    return None if x is None else np.where(x == 0, 0.0, np.nan)


def reduce(call: Call) -> Known:
    """Reduce what is known; along axes of size 1 each element stands for as many as the axis has."""
    x, shape, attrs = call.known[0], call.in_shapes[0], call.node.attrs
    if x is None or shape is None or x.size == 0 or (attrs["kind"] == "mean" and not call.out_dtype.startswith("f")):
        return [None]
    axes = tuple(attrs["axes"])
    sizes = [shape[axis] for axis in axes if x.shape[axis] == 1]
    ints = [size for size in sizes if isinstance(size, int)]
    repeats = float(math.prod(ints)) if len(ints) == len(sizes) else None
    x = np.asarray(x, dtype=np.float64)
    y = numeric.reduce(attrs["kind"], x, axes, repeats, float(attrs.get("correction", 1)))
    if y is None or attrs.get("keepdims", True):
        return [y]
    return [np.squeeze(y, axis=axes)]
