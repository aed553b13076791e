"""Constant rules of ops that move elements: reshape, concat, slice, gather, pad, tile, pixel shuffles, constants.

What is known is moved as the elements are; how each op moves an array is in passes/rules/moves.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunec.ir.arrays import Array
from prunec.passes.rules.arrays import along, fits, others, uniform
from prunec.passes.rules.constants.call import Call, Known
from prunec.passes.rules.moves import MOVES


def moves(call: Call) -> Known:
    """Move what is known as the op moves the elements."""
    return _moved(call, [call.array(index) for index in range(len(call.node.inputs))], np.nan)


def _moved(call: Call, arrays: Sequence[Array], fill: float) -> Known:
    if all(array is None for array in call.known) and np.isnan(fill):
        return [None]
    if any(shape is None for shape in (*call.in_shapes, *call.out_shapes)):
        return [None]
    shapes = [shape for shape in call.in_shapes if shape is not None]
    outs = [shape for shape in call.out_shapes if shape is not None]
    return MOVES[call.node.op](call.node, arrays, shapes, outs, fill) or [None]


def gather(call: Call) -> Known:
    """Move along constant indices; computed ones pick unknown elements."""
    return [None] if call.node.attrs.get("indices") is None else moves(call)


def scatter_slice(call: Call) -> Known:
    """Move what is known; where positions are overwritten, only what they held before stays uniform.

    How many positions a map has may change from input to input: what is made of them must not be counted.
    """
    axis, rank = call.node.attrs["axis"], call.rank
    if axis < 2 or any(array is None or array.ndim != rank for array in call.known):
        return moves(call)
    base, source = (uniform(call.array(index), [axis]) for index in (0, 1))
    return [np.where(base == source, base, np.nan) if fits([base, source]) else None]


def full(call: Call) -> Known:
    """One number everywhere."""
    value = call.node.attrs.get("value", 0.0)
    return [np.full((1,) * call.rank, float(value))] if np.ndim(value) == 0 and value is not None else [None]


def pad(call: Call) -> Known:
    """Along a padded axis, only a channel that equals the padding stays uniform.

    Padding of the channel axis is written out, so that each channel has its own value.
    """
    shape, pads = call.in_shapes[0], call.node.attrs["pads"]
    if shape is None:
        return [None]
    if call.node.attrs.get("mode", "constant") != "constant":
        return moves(call)
    fill = float(call.node.attrs.get("value") or 0.0)
    array, rank = np.asarray(call.array(0), dtype=np.float64), len(shape)
    changed = [axis for axis in range(rank) if pads[axis] or pads[rank + axis]]
    padded = [axis for axis in changed if max(pads[axis], pads[rank + axis]) > 0]
    for axis in changed:
        size = shape[axis]
        if array.shape[axis] == 1 and axis not in padded:
            continue  # cropped, and the same everywhere
        # A lone padded axis is likely to be the channels of a layout that has them elsewhere.
        alone = isinstance(size, int) and (axis == 1 or padded == [axis]) and array.size * size <= 1 << 16
        if array.shape[axis] == 1 and not alone:
            array = np.where(array == fill, fill, np.nan)
            continue
        length = max(array.shape[axis], size if alone and isinstance(size, int) else 1)
        array = np.broadcast_to(array, tuple(length if a == axis else s for a, s in enumerate(array.shape)))
        array = _padded_along(array, axis, pads[axis], pads[rank + axis], fill)
    return [array]


def _padded_along(array: Array, axis: int, before: int, after: int, fill: float) -> Array:
    """Pad one axis; negative numbers crop."""
    index: list[slice] = [slice(None)] * array.ndim
    index[axis] = slice(max(0, -before), array.shape[axis] - max(0, -after))
    widths = [(0, 0)] * array.ndim
    widths[axis] = (max(0, before), max(0, after))
    return np.pad(array[tuple(index)], widths, constant_values=fill)


def depth_to_space(call: Call) -> Known:
    """The block² channels that become one channel's pixels must agree, or it is not uniform."""
    x, shape, block = call.known[0], call.in_shapes[0], call.node.attrs["block"]
    if x is None or shape is None or x.ndim != 4:
        return [None]
    flat = uniform(x, others(4, 1)).ravel()
    if flat.size == 1:
        return [along(flat, 1, 4)]
    crd = call.node.attrs["mode"] == "CRD"
    pixels = flat.reshape(-1, block * block) if crd else flat.reshape(block * block, -1).T
    return [along(uniform(pixels, [1]).ravel(), 1, 4)]


def im2col(call: Call) -> Known:
    """Its padding is not visible here, so only zeros stay uniform."""
    x = call.known[0]
    if x is None:
        return [None]
    zeros = np.where(uniform(x, others(x.ndim, 1)) == 0, 0.0, np.nan)
    return _moved(call, [zeros], np.nan)
