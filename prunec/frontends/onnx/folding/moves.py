"""Folding of ops that make or move contents: Shape, ConstantOfShape, Range, Gather, Concat, Slice, Reshape, Cast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from prunec.frontends.onnx.folding.rule import MAX_NEW_ELEMENTS, MAX_UNIFORM_ELEMENTS, objects
from prunec.frontends.onnx.sizes import symbols as sym
from prunec.frontends.onnx.sizes.view import View, ints, positive
from prunec.ir.arrays import Array
from prunec.ir.graph import Dim


def shape_items(view: View) -> Array | None:
    shape = view.shape(0)
    if shape is None:
        return None
    start, end = view.attrs.get("start", 0), view.attrs.get("end")
    return objects([sym.item(size) for size in shape[start:end]])


def total_item(view: View) -> Array | None:
    shape = view.shape(0)
    return None if shape is None else objects([sym.total(shape)]).reshape(())


def constant_of_shape(view: View, arrays: Sequence[Array]) -> Array | None:
    """One value, repeated without taking memory."""
    shape = ints(arrays[0].tolist())
    if (
        shape is None
        or math.prod(shape) > MAX_UNIFORM_ELEMENTS
        or any(not 0 <= size <= MAX_NEW_ELEMENTS for size in shape)
    ):
        return None
    tensor = view.attrs.get("value")
    value = np.zeros(1, np.float32) if tensor is None else _tensor(tensor)
    return np.broadcast_to(value.reshape(()), shape)


def _tensor(tensor: Any) -> Array:
    from prunec.frontends.onnx.loading.load import WeightFiles, tensor_array

    return tensor_array(tensor, WeightFiles(None))


def number_range(_: View, arrays: Sequence[Array]) -> Array | None:
    if any(array.dtype == object for array in arrays):
        return None
    start, limit, delta = (array.ravel()[0] for array in arrays)
    if delta == 0 or abs(float(limit - start) / float(delta)) > MAX_NEW_ELEMENTS:
        return None
    return np.arange(start, limit, delta, dtype=arrays[0].dtype)


def same(_: View, arrays: Sequence[Array]) -> Array:
    return arrays[0]


def gather(view: View, arrays: Sequence[Array]) -> Array | None:
    data, indices = arrays
    axis = positive(view.attrs.get("axis", 0), data.ndim)
    if indices.dtype == object or indices.size > MAX_NEW_ELEMENTS:
        return None
    return data.take(indices.astype(np.int64), axis=axis)


def concat(view: View, arrays: Sequence[Array]) -> Array | None:
    if sum(array.size for array in arrays) > MAX_NEW_ELEMENTS:
        return None
    return np.concatenate(arrays, axis=view.attrs.get("axis", 0))


def slice_axes(view: View, arrays: Sequence[Array]) -> Array | None:
    data = arrays[0]
    starts, ends = (ints(view.setting(name, index)) for name, index in (("starts", 1), ("ends", 2)))
    axes, steps = ints(view.setting("axes", 3)), ints(view.setting("steps", 4))
    if starts is None or ends is None or (axes is None and view.has(3)) or (steps is None and view.has(4)):
        return None
    index: list[slice] = [slice(None)] * data.ndim
    for at, start, end in zip(axes if axes is not None else range(len(starts)), starts, ends, strict=False):
        place = axes.index(at) if axes is not None else at
        step = steps[place] if steps is not None else 1
        # Below the first element ONNX counts any large negative end; Python spells that None.
        stop = None if step < 0 and end < -data.shape[at] else end
        index[at] = slice(start, stop, step)
    return data[tuple(index)]


def unsqueeze(view: View, arrays: Sequence[Array]) -> Array | None:
    axes = ints(view.setting("axes", 1))
    return None if axes is None else np.expand_dims(arrays[0], tuple(axes))


def squeeze(view: View, arrays: Sequence[Array]) -> Array | None:
    axes = ints(view.setting("axes", 1))
    if axes is None:
        return None if view.has(1) else arrays[0].squeeze()
    return arrays[0].squeeze(tuple(axes))


def reshape(view: View, arrays: Sequence[Array]) -> Array | None:
    data, target = arrays[0], ints(arrays[1].ravel().tolist())
    if target is None:
        return None
    if not view.attrs.get("allowzero", 0):
        target = [data.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return data.reshape(target)


def flatten(view: View, arrays: Sequence[Array]) -> Array:
    axis = view.attrs.get("axis", 1)
    shape = arrays[0].shape
    rows = math.prod(shape[:axis]) if axis else 1
    return arrays[0].reshape(rows, -1)


def transpose(view: View, arrays: Sequence[Array]) -> Array:
    return arrays[0].transpose(view.attrs.get("perm"))


def expand(_: View, arrays: Sequence[Array]) -> Array | None:
    target = ints(arrays[1].ravel().tolist())
    if target is None:
        return None
    shape = np.broadcast_shapes(arrays[0].shape, tuple(target))
    return None if math.prod(shape) > MAX_NEW_ELEMENTS else np.broadcast_to(arrays[0], shape)


def tile(_: View, arrays: Sequence[Array]) -> Array | None:
    repeats = ints(arrays[1].ravel().tolist())
    if repeats is None or math.prod(repeats) * arrays[0].size > MAX_NEW_ELEMENTS:
        return None
    return np.tile(arrays[0], repeats)


def split(view: View, arrays: Sequence[Array]) -> Sequence[Array] | None:
    axis = view.attrs.get("axis", 0)
    sizes = split_sizes(view, arrays[0].shape[axis])
    return None if sizes is None else np.split(arrays[0], np.cumsum(sizes)[:-1].tolist(), axis=axis)


def split_sizes(view: View, extent: Dim) -> list[int] | None:
    """Return the sizes that Split cuts an axis of ``extent`` into; None where they are open."""
    given = view.setting("split", 1)
    if given is not None or view.has(1):
        return ints(given)
    parts = view.attrs.get("num_outputs", len(view.outputs))
    if not isinstance(extent, int):
        return None
    size = -(-extent // parts)
    sizes = [size] * (parts - 1)
    return [*sizes, extent - sum(sizes)]


def cast(view: View, arrays: Sequence[Array]) -> Array | None:
    if arrays[0].dtype == object:
        return objects([_cast_item(value, view.attrs["to"]) for value in arrays[0].ravel()]).reshape(arrays[0].shape)
    if arrays[0].size > MAX_NEW_ELEMENTS:
        return None
    return arrays[0].astype(helper.tensor_dtype_to_np_dtype(view.attrs["to"]))


def _cast_item(value: sym.Item, kind: int) -> sym.Item:
    whole = kind in (TensorProto.INT32, TensorProto.INT64)
    if isinstance(value, sym.Computed):
        return value if whole else None  # a quotient of floats would not be the one of integers
    return int(value) if whole and isinstance(value, float) else value


def cast_like(_: View, arrays: Sequence[Array]) -> Array | None:
    if arrays[0].dtype == object or arrays[0].size > MAX_NEW_ELEMENTS:
        return None
    return arrays[0].astype(arrays[1].dtype)
