"""Movement: ONNX -> canonical ops that rearrange, select and resize.

Each function is one row of the table in table.py. Settings that were attributes in early opsets and
inputs later are read by name and place. Where a setting is computed while the network runs, the axes
that it concerns are refused (``along``) and the others pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunec.frontends.onnx.folding.moves import split_sizes
from prunec.frontends.onnx.ops.draft import Draft, inner, is_settled, moved, one, opaque, scalar, set_shape
from prunec.frontends.onnx.sizes.view import View, at, ints, positive
from prunec.ir.arrays import Array
from prunec.ir.graph import Dim, Shape

NO_RANK = "the rank of its input is not known"
MAX_OPEN_END = 2**31 - 1
"""Exporters write an end of INT_MAX or more for "to the last"."""


def reshape(view: View) -> Sequence[Draft]:
    """Reshape, Flatten, Squeeze, Unsqueeze: all that matters is the shape that comes out."""
    after = view.out_shape()
    settings = (1,) if view.op in ("Reshape", "Squeeze", "Unsqueeze") and not _one_open_size(view) else ()
    return moved(view, "reshape", settings, shape=None if after is None else list(after), allow_open=True)


def _one_open_size(view: View) -> bool:
    """Tell whether Reshape's target has a single size that pruning might change: the backend can write -1 there."""
    data = view.data(1) if view.op == "Reshape" else None
    unsettled = None if data is None else view.facts.unsettled(view.inputs[1])
    if data is None or unsettled is None:
        return False
    return int(unsettled.sum()) == 1 and -1 not in data.ravel().tolist()


def transpose(view: View) -> Sequence[Draft]:
    """Transpose; without a permutation it reverses the axes."""
    perm, rank = view.attrs.get("perm"), view.rank()
    if perm is None and rank is None:
        return opaque(view, NO_RANK)
    return one(view, "transpose", perm=list(perm) if perm is not None else list(range(rank or 0))[::-1])


def slice_(view: View) -> Sequence[Draft]:
    """Slice; axes of open size keep open ends, cuts that are computed refuse their axis."""
    before = view.shape(0)
    if before is None:
        return opaque(view, NO_RANK)
    parts = view.cuts()
    if parts is None:
        return opaque(view, "the axes that it slices are computed")
    cuts, computed = [], []
    for axis, start, end, step in parts:
        cut = _cut(before[axis], start, end, step)
        if cut is not None:
            cuts.append((axis, *cut))
        elif isinstance(before[axis], int):
            computed.append(axis)
        else:
            cuts.append((axis, 0, None, 1))  # an axis of open size: no channels are on it
    named = {name: [cut[place] for cut in cuts] for place, name in enumerate(("axes", "starts", "ends", "steps"))}
    if not computed:
        return moved(view, "slice", (1, 2, 3, 4), **named)
    return _after_refusal(view, computed, "slicing at computed places", "slice", named)


def _cut(size: Dim, start: Any, end: Any, step: Any) -> tuple[int, int | None, int] | None:
    """Return the cut as Python's slice has it; None where it depends on something open."""
    if not isinstance(start, int) or not isinstance(step, int) or step == 0:
        return None
    if isinstance(size, int):
        if not isinstance(end, int):
            return None
        low, high, step = slice(start, None if step < 0 and end < -size else end, step).indices(size)
        return low, None if high < 0 else high, step
    if isinstance(end, int):
        return start, None if end >= MAX_OPEN_END or end <= -MAX_OPEN_END else end, step
    return None


def _after_refusal(
    view: View, axes: list[int], kind: str, op: str, attrs: dict[str, Any], output: int = 0
) -> list[Draft]:
    """Refuse some axes, then move: two IR nodes. What says where to cut is read by the first."""
    value = inner(view, f"{kind.split()[0]}{output}", view.shape(0))
    slots = (0, *(slot for slot in range(1, len(view.inputs)) if not is_settled(view, slot)))
    refusal = Draft("along", tuple(view.inputs[slot] for slot in slots), (value,), {"kind": kind, "axes": axes}, slots)
    return [refusal, Draft(op, (value,), (view.outputs[output],), attrs, (-1,))]


def split(view: View) -> Sequence[Draft]:
    """Split; sizes that the node leaves out are computed."""
    axis = view.axis(0)
    if axis is None or view.rank() is None:
        return opaque(view, NO_RANK)
    extent = at(view.shape(0), axis)
    sizes = split_sizes(view, extent)
    if sizes is not None and (
        len(sizes) != len(view.node.proto.output) or (isinstance(extent, int) and sum(sizes) != extent)
    ):
        sizes = None
    if sizes is None:
        found = [at(view.out_shape(index), axis) for index in range(len(view.outputs))]
        known = [size for size in found if isinstance(size, int)]
        if len(known) == len(found):
            sizes = known
    if sizes is not None:
        return moved(view, "split", (1,), axis=axis, sizes=sizes)
    if not isinstance(extent, int):
        return moved(view, "split", (1,), axis=axis, sizes=[0] * len(view.outputs))  # no channels on an open axis
    return opaque(view, "it splits at computed places")


def concat(view: View) -> Sequence[Draft]:
    """Concat."""
    ranks = {view.rank(slot) for slot in range(len(view.inputs))} - {None}
    axis = positive(view.attrs.get("axis", 1), ranks.pop() if ranks else None)
    if axis is None:
        return opaque(view, NO_RANK)
    return one(view, "concat", tuple(range(len(view.inputs))), axis=axis)


def gather(view: View) -> Sequence[Draft]:
    """Gather: a selection by constant indices, else its axis is refused."""
    axis, indices, rank = view.axis(0), view.constant(1), view.rank()
    if axis is None or rank is None:
        return opaque(view, NO_RANK)
    extent = at(view.shape(0), axis)
    if indices is not None:
        chosen = np.asarray(indices, dtype=np.int64)
        if isinstance(extent, int):
            if chosen.size and (chosen.min() < -extent or chosen.max() >= extent):
                return opaque(view, "its indices are out of range")
            chosen = np.where(chosen < 0, chosen + extent, chosen)
        return one(view, "gather", axis=axis, indices=chosen)
    if view.rank(1) == 1:
        return one(view, "along", (0, 1), kind="picking by computed indices", axes=[axis])
    if view.rank(1) == 0:
        first = {"axis": axis, "indices": np.zeros((), np.int64)}  # any: what lies along the axis stays
        return _after_refusal(view, [axis], "picking by a computed index", "gather", first)
    return opaque(view, "it picks by computed indices")


def scatter_nd(view: View) -> Sequence[Draft]:
    """ScatterND as exporters write ``x[:, a:b] = y``: its indices are constant, and a grid with one stretch."""
    base, indices = view.shape(0), view.constant(1)
    if indices is None or base is None or view.attrs.get("reduction", "none") != "none":
        return opaque(view, "what it selects depends on the values")
    stretch = _stretch(np.asarray(indices), base)
    if stretch is None:
        return opaque(view, "what it overwrites is not one stretch along one axis")
    axis, start, end = stretch
    return one(view, "scatter_slice", (0, 2), axis=axis, start=start, end=end, step=1)


def _stretch(indices: Array, base: Shape) -> tuple[int, int, int] | None:
    """Return (axis, start, end) where ``indices`` is the grid of a stretch of one axis and the whole of others.

    indices: int64[n_0, …, n_q-1, q], the place along axis j being one of n_j.
    """
    count = indices.shape[-1] if indices.ndim else 0
    if not indices.size or indices.ndim != count + 1 or count > len(base):
        return None
    partial = (0, 0, indices.shape[0])
    for axis, size in enumerate(base[:count]):
        along = indices[(0,) * axis + (slice(None),) + (0,) * (count - 1 - axis) + (axis,)]
        spread = along.reshape([-1 if other == axis else 1 for other in range(count)])
        if not isinstance(size, int) or (indices[..., axis] != spread).any() or (np.diff(along) != 1).any():
            return None
        start, end = int(along[0]), int(along[-1]) + 1
        if start < 0 or end > size:
            return None
        if (start, end) != (0, size):
            if partial != (0, 0, indices.shape[0]):
                return None
            partial = (axis, start, end)
    return partial


def pad(view: View) -> Sequence[Draft]:
    """Pad, with any mode; ``pads`` is begin per axis, then end per axis."""
    rank = view.rank()
    if rank is None:
        return opaque(view, NO_RANK)
    given = view.attrs.get("paddings") or view.setting("pads", 1)
    axes = ints(view.setting("axes", 3))
    if given is None or (axes is None and view.has(3)):
        return opaque(view, "how much it pads is computed")
    where = [axis % rank for axis in axes] if axes is not None else list(range(rank))
    pads: list[int] = [0] * 2 * rank
    for place, axis in enumerate(where):
        for side, value in ((0, given[place]), (rank, given[len(where) + place])):
            if not isinstance(value, int | float) and isinstance(at(view.shape(0), axis), int):
                return opaque(view, "how much it pads an axis of fixed size is computed")
            pads[side + axis] = int(value) if isinstance(value, int | float) else 1
    value = view.attrs.get("value", 0.0) if not view.has(2) else scalar(view.constant(2))
    if value is None:
        return opaque(view, "the value that it pads with is computed")
    return moved(view, "pad", (1, 3), pads=pads, mode=view.attrs.get("mode", "constant"), value=float(value))


def expand(view: View) -> Sequence[Draft]:
    """Expand to the broadcast of the input's shape and the target."""
    after = view.out_shape()
    return moved(view, "expand", (1,), shape=None if after is None else list(after))


def tile(view: View) -> Sequence[Draft]:
    """Tile; repeats that are computed are only followed where the axis has no channels."""
    rank, repeats = view.rank(), view.setting("repeats", 1)
    if rank is None or repeats is None or len(repeats) != rank:
        return opaque(view, "how often it repeats is computed")
    counts = []
    for axis, times in enumerate(repeats):
        if not isinstance(times, int) and isinstance(at(view.shape(0), axis), int) and at(view.shape(0), axis) != 1:
            return opaque(view, "how often it repeats an axis of fixed size is computed")
        counts.append(times if isinstance(times, int) else 1)
    return moved(view, "tile", (1,), repeats=counts)


def depth_to_space(view: View) -> Sequence[Draft]:
    """DepthToSpace."""
    return one(view, "depth_to_space", block=view.attrs["blocksize"], mode=view.attrs.get("mode", "DCR"))


def space_to_depth(view: View) -> Sequence[Draft]:
    """SpaceToDepth: the pixels of a block come first, then the channels."""
    return one(view, "space_to_depth", block=view.attrs["blocksize"], mode="DCR")


def constant_of_shape(view: View) -> Sequence[Draft]:
    """ConstantOfShape whose size is open."""
    from prunec.frontends.onnx.loading.load import WeightFiles, tensor_array

    after, tensor = view.out_shape(), view.attrs.get("value")
    value = 0.0 if tensor is None else scalar(tensor_array(tensor, WeightFiles(None)))
    if after is None or value is None:
        return opaque(view, "its shape is computed")
    if not is_settled(view, 0):
        return opaque(view, "its shape is computed")
    return one(view, "full", (), shape=list(after), value=value)


def resize(view: View) -> Sequence[Draft]:
    """Resize and Upsample: axes that keep their size are not space.

    ``sizes`` is the target size per axis where the node says it that way.
    """
    before, after = view.shape(0), view.out_shape()
    if before is None or after is None:
        return opaque(view, NO_RANK)
    spatial = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b or a is None]
    mode = view.attrs.get("coordinate_transformation_mode", "")
    first = view.node.version <= 10
    sizes = None if first else view.setting("sizes", 3)
    attrs: dict[str, Any] = {"sizes": list(after)} if sizes is not None else {}
    settings = (1,) if first else (2, 3)
    return moved(
        view,
        "resize",
        settings,
        spatial_axes=spatial,
        keeps_constants=mode != "tf_crop_and_resize",
        mode=view.attrs.get("mode", "nearest"),
        **attrs,
    )


def crop(view: View) -> Sequence[Draft]:
    """Crop (experimental op of 2017 exporters): border is left, top, right, bottom."""
    border, scale, before = view.attrs.get("border", []), view.attrs.get("scale"), view.shape(0)
    if len(border) != 4 or before is None or len(before) != 4:
        return opaque(view, "it crops something that is not an image")
    left, top, right, bottom = border
    set_shape(view, 0, (*before[:2], None, None))
    ends = [top + scale[0], left + scale[1]] if scale else [-low if low else None for low in (bottom, right)]
    return one(view, "slice", axes=[2, 3], starts=[top, left], ends=ends, steps=[1, 1])


def top_k(view: View) -> Sequence[Draft]:
    """TopK: sorts along its axis, then keeps the first k."""
    before = view.shape(0)
    axis = view.axis(-1)
    if before is None or axis is None:
        return opaque(view, NO_RANK)
    count = view.setting("k", 1)
    end = count[0] if count and isinstance(count[0], int) else None
    drafts: list[Draft] = []
    for output, kind in enumerate(("sort", "argsort")):
        if output < len(view.outputs) and view.outputs[output]:
            attrs = {"axes": [axis], "starts": [0], "ends": [end], "steps": [1]}
            drafts += _after_refusal(view, [axis], kind, "slice", attrs, output)
    return drafts
