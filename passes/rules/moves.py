"""Movement: what reshape, transpose, concat … do to an abstract array.

Owns the one implementation of movement that channel ids, constants and liveness share. An abstract
array broadcasts against its value's shape: full size on the axes along which it varies, 1 elsewhere,
so an H x W map is never materialised. Does not know what the elements mean; read channels.py next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Dim, Node, Shape
from prunec.passes.rules.arrays import same_along

Move = Callable[[Node, Sequence[Array], Sequence[Shape], Sequence[Shape], Any], list[Array] | None]
"""(node, abstract inputs, input shapes, output shapes, element for created positions) -> abstract outputs.

None means that the movement cannot be followed on these arrays: the caller must assume the worst.
"""

MAX_ELEMENTS = 20_000_000
"""Above this an abstract array is not materialised."""


def factor(before: Shape, after: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """Match the axes of a reshape in groups of equal size: [(axes before, axes after), …], in order.

    ``(N, 64, H, W) -> (N, 2, 32, H, W)`` gives N-N, 64-(2, 32), H-H, W-W. Symbolic sizes match by name.
    What cannot be told apart is one group in the middle.
    """
    front, i, j = _match(before, after)
    if i == len(before) and j == len(after):
        return front
    rest_before, rest_after = before[i:], after[j:]
    back, ri, rj = _match(rest_before[::-1], rest_after[::-1])
    end_i, end_j = len(before) - ri, len(after) - rj
    middle = (tuple(range(i, end_i)), tuple(range(j, end_j)))
    mirrored = [
        (
            tuple(sorted(len(before) - 1 - axis for axis in group[0])),
            tuple(sorted(len(after) - 1 - axis for axis in group[1])),
        )
        for group in reversed(back)
    ]
    return [*front, middle, *mirrored]


def _match(before: Shape, after: Shape) -> tuple[list[tuple[tuple[int, ...], tuple[int, ...]]], int, int]:
    """Match groups from the front for as long as sizes are certain; return them and where matching stopped."""
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        a: Dim = before[i] if i < len(before) else 1
        b: Dim = after[j] if j < len(after) else 1
        if i < len(before) and j < len(after) and a == b and a is not None:
            groups.append(((i,), (j,)))
            i, j = i + 1, j + 1
        elif i < len(before) and a == 1:
            groups.append(((i,), ()))
            i += 1
        elif j < len(after) and b == 1:
            groups.append(((), (j,)))
            j += 1
        else:
            sizes = _match_product(before[i:], after[j:])
            if sizes is None:
                break
            groups.append((tuple(range(i, i + sizes[0])), tuple(range(j, j + sizes[1]))))
            i, j = i + sizes[0], j + sizes[1]
    return groups, i, j


def _match_product(before: Shape, after: Shape) -> tuple[int, int] | None:
    """Return the lengths of the shortest prefixes with equal products of known sizes."""
    if not before or not after:
        return None
    i = j = 1
    a, b = before[0], after[0]
    while isinstance(a, int) and isinstance(b, int) and a != b:
        if a < b:
            if i == len(before) or not isinstance(before[i], int):
                return None
            a, i = a * before[i], i + 1  # type: ignore[operator]  # checked to be int just above
        else:
            if j == len(after) or not isinstance(after[j], int):
                return None
            b, j = b * after[j], j + 1  # type: ignore[operator]  # checked to be int just above
    return (i, j) if isinstance(a, int) and a == b else None


def shrink(array: Array, axes: Sequence[int]) -> Array:
    """Drop to size 1 the axes in ``axes`` along which nothing varies; at least one varying axis stays."""
    for axis in axes:
        if array.shape[axis] == 1 or array.size == array.shape[axis]:
            continue
        if same_along(array, axis):
            array = array.take([0], axis=axis)
    return array


def reshape_array(array: Array, before: Shape, after: Shape) -> Array | None:
    """Reshape an abstract array; None where a varying axis has no matching group of known sizes."""
    groups = factor(before, after)
    if groups is None:
        return None
    full, target = list(array.shape), [1] * len(after)
    active: list[int] = []
    for axes_in, axes_out in groups:
        if all(array.shape[axis] == 1 for axis in axes_in):
            continue
        sizes_in = [before[axis] for axis in axes_in]
        sizes_out = [after[axis] for axis in axes_out]
        known = [size for size in (*sizes_in, *sizes_out) if isinstance(size, int)]
        if len(known) < len(sizes_in) + len(sizes_out):
            return None
        if math.prod(known[: len(sizes_in)]) != math.prod(known[len(sizes_in) :]):
            return None
        for axis, size in zip((*axes_in,), known[: len(sizes_in)], strict=True):
            full[axis] = size
        for axis, size in zip((*axes_out,), known[len(sizes_in) :], strict=True):
            target[axis] = size
        if len(axes_out) > 1:
            active.extend(axes_out)
    if math.prod(full) > MAX_ELEMENTS:
        return None
    return shrink(np.broadcast_to(array, full).reshape(target), active)


def _reshape(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    moved = reshape_array(arrays[0], ins[0], outs[0])
    return None if moved is None else [moved]


def _transpose(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    return [arrays[0].transpose(node.attrs["perm"])]


def _slice(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    array = arrays[0]
    attrs = node.attrs
    for axis, start, end, step in zip(attrs["axes"], attrs["starts"], attrs["ends"], attrs["steps"], strict=True):
        if array.shape[axis] != 1:
            index = [slice(None)] * array.ndim
            index[axis] = slice(start, end, step)
            array = array[tuple(index)]
    return [array]


def _split(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    array, axis, sizes = arrays[0], node.attrs["axis"], node.attrs["sizes"]
    if array.shape[axis] == 1:
        return [array] * len(sizes)
    return np.split(array, np.cumsum(sizes)[:-1].tolist(), axis=axis)


def _concat(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    axis = node.attrs["axis"]
    sizes = [shape[axis] for shape in ins]
    ints = [size for size in sizes if isinstance(size, int)]
    if len(ints) < len(sizes):
        first = arrays[0]
        same = all(a.shape == first.shape and np.array_equal(a, first, equal_nan=a.dtype.kind == "f") for a in arrays)
        return [first] if same and first.shape[axis] == 1 else None
    common = np.broadcast_shapes(*(tuple(1 if i == axis else s for i, s in enumerate(a.shape)) for a in arrays))
    if math.prod(common) * sum(ints) > MAX_ELEMENTS:
        return None
    parts = [
        np.broadcast_to(array, tuple(size if i == axis else s for i, s in enumerate(common)))
        for array, size in zip(arrays, ints, strict=True)
    ]
    return [np.concatenate(parts, axis=axis)]


def _gather(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    array, axis = arrays[0], node.attrs["axis"]
    indices = np.asarray(node.attrs["indices"])
    if array.shape[axis] == 1:
        indices = np.zeros((1,) * indices.ndim, dtype=np.int64)
    return [array.take(indices, axis=axis)]


def _expand(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    array = arrays[0]
    return [array.reshape((1,) * (len(outs[0]) - array.ndim) + array.shape)]


def _tile(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    array = arrays[0].reshape((1,) * (len(outs[0]) - arrays[0].ndim) + arrays[0].shape)
    repeats = node.attrs["repeats"]
    return [np.tile(array, [1 if size == 1 else int(times) for size, times in zip(array.shape, repeats, strict=True)])]


def _pad(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    array, pads, rank = arrays[0], node.attrs["pads"], arrays[0].ndim
    widths = [(pads[i], pads[rank + i]) if array.shape[i] != 1 else (0, 0) for i in range(rank)]
    crop = tuple(slice(max(0, -lo), size - max(0, -hi)) for size, (lo, hi) in zip(array.shape, widths, strict=True))
    array = array[crop]
    widths = [(max(0, lo), max(0, hi)) for lo, hi in widths]
    mode = node.attrs.get("mode", "constant")
    if mode == "constant":
        return [np.pad(array, widths, constant_values=fill)]
    return [np.pad(array, widths, mode=mode)]


def pads_space(node: Node) -> bool:
    """Tell whether a node puts zeros around the axes behind the first two, or crops there, and does nothing else."""
    if node.op != "pad" or len(node.inputs) > 1:
        return False
    if node.attrs.get("mode", "constant") != "constant" or node.attrs.get("value"):
        return False
    pads = node.attrs["pads"]
    rank = len(pads) // 2
    return rank > 2 and not any((*pads[:2], *pads[rank : rank + 2]))


def _depth_to_space(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    b = node.attrs["block"]
    n, c, h, w = ins[0]
    if not isinstance(c, int):
        return None
    crd = node.attrs["mode"] == "CRD"
    split: Shape = (n, c // (b * b), b, b, h, w) if crd else (n, b, b, c // (b * b), h, w)
    perm = (0, 1, 4, 2, 5, 3) if crd else (0, 3, 4, 1, 5, 2)
    return _through(arrays[0], ins[0], split, perm, outs[0])


def _space_to_depth(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    b = node.attrs["block"]
    n, c = ins[0][:2]
    out_h, out_w = outs[0][2], outs[0][3]
    crd = node.attrs["mode"] == "CRD"
    perm = (0, 1, 3, 5, 2, 4) if crd else (0, 3, 5, 1, 2, 4)
    if arrays[0].shape[2] == arrays[0].shape[3] == 1:
        # Nothing varies over space: the sizes, perhaps open, do not matter.
        out_h = out_w = "s"
        split: Shape = (n, c, out_h, b, out_w, b)
        array = arrays[0].reshape((*arrays[0].shape[:2], 1, 1, 1, 1))
        array = np.broadcast_to(array, (*array.shape[:3], b, 1, b)).transpose(perm)
        moved = tuple(split[axis] for axis in perm)
        end = reshape_array(array, moved, (moved[0], outs[0][1], out_h, out_w))
        return None if end is None else [end]
    return _through(arrays[0], ins[0], (n, c, out_h, b, out_w, b), perm, outs[0])


def _through(array: Array, before: Shape, split: Shape, perm: tuple[int, ...], after: Shape) -> list[Array] | None:
    """Reshape, transpose, reshape."""
    middle = reshape_array(array, before, split)
    if middle is None:
        return None
    end = reshape_array(middle.transpose(perm), tuple(split[axis] for axis in perm), after)
    return None if end is None else [end]


def _im2col(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    array = arrays[0]
    if any(size != 1 for axis, size in enumerate(array.shape) if axis != 1):
        return None
    taps = np.repeat(array.ravel(), node.attrs["kernel"])
    return [taps.reshape(1, -1, 1) if array.size > 1 else array.reshape(1, 1, 1)]


def _scatter_slice(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    base, source = arrays
    attrs = node.attrs
    axis, size = attrs["axis"], ins[0][attrs["axis"]]
    if not isinstance(size, int):
        return None
    common = np.broadcast_shapes(*(tuple(1 if i == axis else s for i, s in enumerate(a.shape)) for a in (base, source)))
    full = tuple(size if i == axis else s for i, s in enumerate(common))
    if math.prod(full) > MAX_ELEMENTS:
        return None
    out = np.broadcast_to(base, full).astype(np.result_type(base, source), copy=True)
    index = [slice(None)] * len(full)
    index[axis] = slice(attrs["start"], attrs["end"], attrs["step"])
    out[tuple(index)] = source
    return [out]


def _full(
    node: Node, arrays: Sequence[Array], ins: Sequence[Shape], outs: Sequence[Shape], fill: Any
) -> list[Array] | None:
    return [np.full((1,) * len(outs[0]), fill)]


MOVES: Mapping[str, Move] = MappingProxyType(
    {
        "reshape": _reshape,
        "transpose": _transpose,
        "slice": _slice,
        "split": _split,
        "concat": _concat,
        "gather": _gather,
        "expand": _expand,
        "tile": _tile,
        "pad": _pad,
        "depth_to_space": _depth_to_space,
        "space_to_depth": _space_to_depth,
        "im2col": _im2col,
        "scatter_slice": _scatter_slice,
        "full": _full,
    }
)
