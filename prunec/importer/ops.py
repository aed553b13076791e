"""ONNX -> torch: elementwise ops, movement, resizing and reductions. Each function is one row.

Owns the ops without windows; the table is in module.py. The first axis is the batch: sizes are
written for the others, and the batch follows the input.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import fx

from prunec.frontends.onnx.sizes.view import View, at
from prunec.importer.build import Builder, Row, Unconvertible, numbers, sizes

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


# --- elementwise --------------------------------------------------------------------------------------


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


def crop(view: View, b: Builder) -> fx.Node:
    """Crop, an experimental op of 2017: a border (left, top, right, bottom) goes, or a size is cut out."""
    left, top, right, bottom = view.attrs["border"]
    size = view.attrs.get("scale")
    rows = slice(top, top + size[0] if size else -bottom or None)
    columns = slice(left, left + size[1] if size else -right or None)
    return b.call(operator.getitem, b.input(view, 0), (slice(None), slice(None), rows, columns))


def hard_sigmoid(view: View, b: Builder) -> fx.Node:
    """HardSigmoid: torch's own where the slope is 1/6."""
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


def softmax(function: Callable[..., Any]) -> Row:
    """Return the row of Softmax or LogSoftmax; before opset 13 all axes from the given one are one."""

    def row(view: View, b: Builder) -> fx.Node:
        old = view.node.version < 13
        rank, axis = view.rank(), view.axis(1 if old else -1)
        if rank is None or axis is None:
            raise Unconvertible("the rank of its input is not known")
        x = b.input(view, 0)
        if not old or axis == rank - 1 or math.prod(sizes(view.shape(0), "its shape")[axis:] or [1]) == 1:
            return b.call(function, x, dim=axis)
        flat = b.call(function, b.call(torch.flatten, x, axis), dim=axis)
        return b.call(torch.unflatten, flat, axis, tuple(sizes(view.shape(0), "its shape")[axis - 1 :]))

    return row


# --- movement -----------------------------------------------------------------------------------------


def reshape(view: View, b: Builder) -> fx.Node:
    """Reshape, Flatten, Squeeze, Unsqueeze: by the shape that comes out; its first axis follows the batch."""
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
    """Return the shape that comes out; in Reshape's own words where inference says less."""
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
        # The one size that is left to infer, the batch being the same on both sides.
        rest = math.prod(int(str(size)) for axis, size in enumerate(target) if axis and axis != inner[0])
        target[inner[0]] = math.prod(size for size in before[1:] if isinstance(size, int)) // max(1, rest)
        return tuple(target)
    return found


def _batch_first(b: Builder, before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Tell whether the first axis is the batch before and after, so that it may grow."""
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
        raise Unconvertible("what it slices is computed while the network runs")
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
    """Split along one axis, in the sizes that come out."""
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
    """Count the stored zeros at the front and at the end: they pad, and follow the batch when written as a padding."""
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
    """Expand; the batch stays what it is."""
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


def resize(view: View, b: Builder) -> fx.Node:
    """Resize and Upsample along space: torch's own where it has the mode, else two gathers per axis."""
    before, after = sizes(view.shape(0), "its size"), sizes(view.out_shape(), "its size")
    mode, how = view.attrs.get("mode", "nearest"), _coordinates(view)
    if before[0] != after[0] or view.attrs.get("antialias") or how == "tf_crop_and_resize":
        raise Unconvertible("it resizes the channel axis, crops or filters")
    target, x = tuple(after[1:]), b.input(view, 0)
    whole = all(new % old == 0 for old, new in zip(before[1:], target, strict=True))
    # floor(i / f) at whole factors f is what all of these come to.
    plain = ("floor",) if how == "asymmetric" else ("round_prefer_floor", "round_prefer_ceil")
    if mode == "nearest" and whole and how in ("asymmetric", "half_pixel") and _rounding(view) in plain:
        factors = tuple(float(new // old) for old, new in zip(before[1:], target, strict=True))
        return b.call(F.interpolate, x, scale_factor=factors, mode="nearest")
    if mode == "linear" and how in ("align_corners", "half_pixel"):
        name = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(target)]
        return b.call(F.interpolate, x, size=target, mode=name, align_corners=how == "align_corners")
    if mode not in ("linear", "nearest"):
        raise Unconvertible(f"{mode} resizing is not torch's")
    for axis, (old, new) in enumerate(zip(before[1:], target, strict=True), start=2):
        if old != new:
            x = _resized(view, b, x, axis, _places(old, new, how), old, mode)
    return x


def _coordinates(view: View) -> str:
    """Return how a place in the output becomes one in the input; see the Resize specification."""
    if view.op == "Upsample" or view.node.version < 11:
        return "asymmetric"
    how = str(view.attrs.get("coordinate_transformation_mode", "half_pixel"))
    out = view.out_shape() or ()
    if how == "pytorch_half_pixel" and 1 not in out[2:]:
        return "half_pixel"
    return how


def _rounding(view: View) -> str:
    if view.op == "Upsample" or view.node.version < 11:
        return "floor"
    return str(view.attrs.get("nearest_mode", "round_prefer_floor"))


def _places(old: int, new: int, how: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return float64[new]: where each output lies among the inputs."""
    index, scale = np.arange(new, dtype=np.float64), new / old
    if how == "align_corners":
        return index * (old - 1) / max(1, new - 1)
    if how == "asymmetric":
        return index / scale
    if how == "half_pixel_symmetric":
        raise Unconvertible(f"{how} coordinates are not known")
    places = (index + 0.5) / scale - 0.5
    return places if how == "half_pixel" or new > 1 else places * 0


_ROUND: Mapping[str, Callable[[Any], Any]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda places: np.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: np.floor(places + 0.5),
}
"""Resize's ways to the nearest input."""


def _resized(
    view: View, b: Builder, x: fx.Node, axis: int, places: np.ndarray[Any, Any], old: int, mode: str
) -> fx.Node:
    name = f"{view.node.name}_{axis}"
    if mode == "nearest":
        near = _ROUND[_rounding(view)](places)
        return b.call(torch.index_select, x, axis, b.stored(f"{name}_near", near.clip(0, old - 1).astype(np.int64)))
    low = np.floor(places)
    share = (places - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(len(view.shape(0) or ()))])
    ends = [
        b.call(torch.index_select, x, axis, b.stored(f"{name}_{side}", (low + side).clip(0, old - 1).astype(np.int64)))
        for side in (0, 1)
    ]
    weights = [b.stored(f"{name}_share_{side}", part) for side, part in enumerate((1 - share, share))]
    return b.call(torch.add, *(b.call(torch.mul, end, weight) for end, weight in zip(ends, weights, strict=True)))


# --- reductions ---------------------------------------------------------------------------------------


def reduce(
    function: Callable[..., Any], before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> Row:
    """Return the row of a reduction, with a function before and after it; without axes it runs over all of them."""

    def row(view: View, b: Builder) -> fx.Node:
        rank, x = view.rank(), b.input(view, 0)
        axes = view.setting("axes", 1)
        if rank is None or (axes is None and view.has(1)):
            raise Unconvertible("its axes are computed, or the rank of its input is not known")
        if not axes:
            if view.attrs.get("noop_with_empty_axes"):
                return x
            axes = list(range(rank))
        if before is not None:
            x = b.call(before, x)
        keep = bool(view.attrs.get("keepdims", 1))
        found = b.call(function, x, tuple(axis % rank for axis in numbers(axes, "its axes")), keepdim=keep)
        return found if after is None else b.call(after, found)

    return row


def arg_reduce(function: Callable[..., Any]) -> Row:
    """Return the row of ArgMax or ArgMin."""

    def row(view: View, b: Builder) -> fx.Node:
        if view.attrs.get("select_last_index"):
            raise Unconvertible("it takes the last of equal values")
        return b.call(function, b.input(view, 0), dim=view.axis(0), keepdim=bool(view.attrs.get("keepdims", 1)))

    return row
