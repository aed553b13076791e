"""ONNX -> torch: ops that move arrays. Each function is one row; the table is in module.py.

The first axis is the batch: sizes are written for the others, and the batch follows the input.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from prunec.frontends.onnx.sizes.view import View, at
from prunec.importer.build import Builder, Unconvertible, numbers, sizes


def reshape(view: View, b: Builder) -> fx.Node:
    """Reshape, Flatten, Squeeze, Unsqueeze: by the shape of the result; its first axis follows the batch."""
    x, before, after = b.input(view, 0), view.shape(0), _target(view)
    if after is None:
        raise Unconvertible("its shape is computed while the network runs")
    first = after[0] if after else 1
    inner = sizes(after, "its shape") if after else []
    whole = before is not None and _batch_first(b, before, after)
    if whole and len(after) == 2 and len(before or ()) > 2:
        return b.call(torch.flatten, x, 1)
    if whole or not isinstance(first, int):
        return b.call(torch.reshape, x, (-1, *inner))
    return b.call(torch.reshape, x, (first, *inner))


def _target(view: View) -> tuple[Any, ...] | None:
    """Return the shape of the result; as Reshape's own input gives it if inference knows less."""
    found = view.out_shape()
    if found is not None and all(isinstance(size, int) for size in found[1:]):
        return found
    data, before = view.data(1) if view.op == "Reshape" else None, view.shape(0)
    if data is None or before is None:
        return found
    items = enumerate(data.ravel().tolist())
    target = [before[axis] if size == 0 else size for axis, size in items]
    inner = [axis for axis, size in enumerate(target) if axis and not (isinstance(size, int) and size >= 0)]
    if not inner:
        return (target[0] if target[0] != -1 else None, *target[1:])
    lone = isinstance(target[inner[0]], int) and len(inner) == 1
    if lone and target[0] in (before[0], 1) and all(isinstance(size, int) for size in before[1:]):
        # The only size that is left to infer, since the batch is the same on both sides.
        rest = math.prod(int(str(size)) for axis, size in enumerate(target) if axis and axis != inner[0])
        target[inner[0]] = math.prod(size for size in before[1:] if isinstance(size, int)) // max(1, rest)
        return tuple(target)
    return found


def _batch_first(b: Builder, before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Tell whether the first axis is the batch before and after, so that it may have any size."""
    if not before or not after:
        return False
    fixed = [b.batch] if b.batch is not None else []
    is_batch = [not isinstance(size, int) or size in fixed for size in (before[0], after[0])]
    if not all(is_batch):
        return False
    inside = [shape[1:] for shape in (before, after)]
    known = [math.prod(part) for part in inside if all(isinstance(size, int) for size in part)]
    return len(known) < 2 or known[0] == known[1]


def transpose(view: View, b: Builder) -> fx.Node:
    """Transpose."""
    perm = view.attrs.get("perm") or list(range(view.rank() or 0))[::-1]
    return b.call(torch.permute, b.input(view, 0), tuple(perm))


def slice_(view: View, b: Builder) -> fx.Node:
    """Slice with known places; a negative step gathers."""
    cuts, x = view.cuts(), b.input(view, 0)
    if cuts is None:
        raise Unconvertible("the range that it slices is computed while the network runs")
    index: list[slice] = [slice(None)] * (view.rank() or 0)
    for cut in cuts:
        start, end, step = numbers([cut.start, cut.end, cut.step], "its places")
        if step < 0:
            size = at(view.shape(0), cut.axis)
            if not isinstance(size, int):
                raise Unconvertible("it runs backwards along an open axis")
            end = None if end < -size else end  # type: ignore[assignment]  # Python's way to say "to the first"
            chosen = torch.tensor(list(range(size))[start:end:step])
            x = b.call(torch.index_select, x, cut.axis, b.stored(f"{view.node.name}_{cut.axis}", chosen.numpy()))
        else:
            index[cut.axis] = slice(start, end if end < 2**31 - 1 else None, step if step != 1 else None)
    if all(part == slice(None) for part in index):
        return x
    while index and index[-1] == slice(None):
        index.pop()
    return b.call(operator.getitem, x, tuple(index))


def split(view: View, b: Builder) -> list[fx.Node]:
    """Split along one axis, into the sizes of the results."""
    axis = view.axis(0)
    if axis is None:
        raise Unconvertible("the rank of its input is not known")
    parts = numbers([at(view.out_shape(index), axis) for index in range(len(view.outputs))], "its sizes")
    found = b.call(torch.split, b.input(view, 0), parts, dim=axis)
    return [b.call(operator.getitem, found, index) for index in range(len(parts))]


def concat(view: View, b: Builder) -> fx.Node:
    """Concat."""
    axis, rank = view.axis(1), view.rank()
    before, after = _zeros_around(view, b)
    computed = [b.input(view, index) for index in range(before, len(view.inputs) - after)]
    found = computed[0] if len(computed) == 1 else b.call(torch.cat, computed, dim=axis)
    if not before and not after:
        return found
    if axis is None or rank is None:
        raise Unconvertible("the rank of its input is not known")
    widths = [[int(at(view.shape(index), axis) or 0) for index in range(len(view.inputs))][part] for part in (
        slice(None, before), slice(len(view.inputs) - after, None))]  # fmt: skip
    return b.call(F.pad, found, (0, 0) * (rank - 1 - axis) + (sum(widths[0]), sum(widths[1])))


def _zeros_around(view: View, b: Builder) -> tuple[int, int]:
    """Count the stored zeros at the front and at the end; written as a padding they work for any batch."""
    zero = []
    for index, name in enumerate(view.inputs):
        array = None if name in b.values else view.constant(index)
        zero.append(array is not None and array.dtype.kind == "f" and not array.any())
    before = next((index for index, is_zero in enumerate(zero) if not is_zero), 0)
    after = next((index for index, is_zero in enumerate(reversed(zero)) if not is_zero), 0)
    return before, after


def gather(view: View, b: Builder) -> fx.Node:
    """Gather with stored indices."""
    indices, axis = b.content(view, 1), view.axis(0)
    size = at(view.shape(0), axis)
    if axis is None or ((indices < 0).any() and not isinstance(size, int)):
        raise Unconvertible("it counts from the end of an open axis")
    if isinstance(size, int):
        indices = np.where(indices < 0, indices + size, indices)
    if indices.ndim == 0:
        return b.call(torch.select, b.input(view, 0), axis, int(indices))
    if indices.ndim > 1:
        raise Unconvertible("its indices are a table")
    return b.call(torch.index_select, b.input(view, 0), axis, b.stored(f"{view.node.name}_indices", indices))


def pad(view: View, b: Builder) -> fx.Node:
    """Pad: constant, reflected or replicated."""
    pads = numbers(view.setting("pads", 1), "its pads")
    value = view.setting("value", 2)
    rank = len(pads) // 2
    if view.has(3):
        axes = [axis % (view.rank() or 0) for axis in numbers(view.setting("axes", 3), "its axes")]
        wide = [0] * 2 * (view.rank() or 0)
        for place, axis in enumerate(axes):
            wide[axis], wide[axis + len(wide) // 2] = pads[place], pads[place + len(axes)]
        pads, rank = wide, len(wide) // 2
    flat = [pads[place] for axis in range(rank - 1, -1, -1) for place in (axis, axis + rank)]
    while flat and not any(flat[-2:]):
        del flat[-2:]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(view.attrs.get("mode", "constant"))
    if mode is None:
        raise Unconvertible("its mode is not torch's")
    if not flat:
        return b.input(view, 0)
    if mode == "constant":
        return b.call(F.pad, b.input(view, 0), tuple(flat), value=float(value[0]) if value else 0.0)
    return b.call(F.pad, b.input(view, 0), tuple(flat), mode=mode)


def expand(view: View, b: Builder) -> fx.Node:
    """Expand; the batch does not change."""
    before, after = view.shape(0), view.out_shape()
    if before is None or after is None:
        raise Unconvertible("its shape is computed while the network runs")
    target = [-1 if have == want or not isinstance(want, int) else want for have, want in _aligned(before, after)]
    return b.call(torch.Tensor.expand, b.input(view, 0), tuple(target))


def _aligned(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[Any, Any]]:
    lead = len(after) - len(before)
    return list(zip([1] * lead + list(before), after, strict=True))


def tile(view: View, b: Builder) -> fx.Node:
    """Tile."""
    return b.call(torch.tile, b.input(view, 0), tuple(numbers(view.setting("repeats", 1), "its repeats")))


def depth_to_space(view: View, b: Builder) -> fx.Node:
    """DepthToSpace; CRD is pixel_shuffle, DCR is written out."""
    block, x = view.attrs["blocksize"], b.input(view, 0)
    if view.attrs.get("mode", "DCR") == "CRD":
        return b.call(F.pixel_shuffle, x, block)
    channels, height, width = sizes(view.shape(0), "its shape")
    parts = b.call(torch.reshape, x, (-1, block, block, channels // block**2, height, width))
    moved = b.call(torch.permute, parts, (0, 3, 4, 1, 5, 2))
    return b.call(torch.reshape, moved, (-1, channels // block**2, height * block, width * block))


def space_to_depth(view: View, b: Builder) -> fx.Node:
    """SpaceToDepth."""
    block = view.attrs["blocksize"]
    channels, height, width = sizes(view.shape(0), "its shape")
    parts = b.call(torch.reshape, b.input(view, 0), (-1, channels, height // block, block, width // block, block))
    moved = b.call(torch.permute, parts, (0, 3, 5, 1, 2, 4))
    return b.call(torch.reshape, moved, (-1, channels * block**2, height // block, width // block))


def crop(view: View, b: Builder) -> fx.Node:
    """Crop, an experimental op of 2017: removes a border (left, top, right, bottom), or cuts out a size."""
    left, top, right, bottom = view.attrs["border"]
    size = view.attrs.get("scale")
    rows = slice(top, top + size[0] if size else -bottom or None)
    columns = slice(left, left + size[1] if size else -right or None)
    return b.call(operator.getitem, b.input(view, 0), (slice(None), slice(None), rows, columns))
