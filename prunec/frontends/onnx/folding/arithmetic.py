"""Folding of arithmetic: one function for arrays of numbers, one for items of open size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prunec.frontends.onnx.folding.rule import MAX_NEW_ELEMENTS, MAX_REFERENCE_ELEMENTS, Fold, objects
from prunec.frontends.onnx.sizes import symbols as sym
from prunec.frontends.onnx.sizes.symbols import Product
from prunec.frontends.onnx.sizes.view import View, ints
from prunec.ir.arrays import Array


def elementwise(numbers: Callable[..., Array], items: Callable[..., sym.Item]) -> Fold:
    """Apply one of two functions: to whole arrays of numbers, or item by item."""

    def run(_: View, arrays: Sequence[Array]) -> Array | None:
        size = math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
        if not any(array.dtype == object for array in arrays):
            return None if size > MAX_NEW_ELEMENTS else _typed(numbers(*arrays), arrays)
        if size > MAX_REFERENCE_ELEMENTS:
            return None
        grids = np.broadcast_arrays(*arrays)
        flat = [items(*(_plain(value) for value in row)) for row in zip(*(grid.ravel() for grid in grids), strict=True)]
        return objects(flat).reshape(grids[0].shape)

    return run


def _typed(result: Array, arrays: Sequence[Array]) -> Array:
    """Keep the operands' type where numpy widened it (float16 means, integer division)."""
    result = np.asarray(result)
    return result if result.dtype == bool or result.dtype == arrays[-1].dtype else result.astype(arrays[-1].dtype)


def _plain(value: Any) -> sym.Item:
    plain: sym.Item = value.item() if isinstance(value, np.generic) else value
    return plain


def divide(a: Array, b: Array) -> Array:
    """Divide; integers truncate towards zero, as in C."""
    if a.dtype.kind not in "iu":
        return a / b
    if not np.all(b):
        raise ZeroDivisionError
    return np.where((a < 0) != (b < 0), -(np.abs(a) // np.abs(b)), np.abs(a) // np.abs(b))


def less_than(a: sym.Item, b: sym.Item) -> sym.Item:
    """Return whether a < b, None where open sizes leave it open."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a < b
    if isinstance(b, Product) and isinstance(a, int | float) and a < 0:
        return True  # a size is at least 0
    if isinstance(a, Product) and isinstance(b, int | float) and b <= 0:
        return False
    return None


def equal_items(a: sym.Item, b: sym.Item) -> sym.Item:
    """Return whether both are equal, None where open sizes leave it open."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if a is not None and a == b:
        return True
    # A size is never negative; exporters compare with -1 to find the axes to copy.
    sizes = any(isinstance(v, Product) for v in (a, b))
    return False if sizes and any(isinstance(v, int | float) and v < 0 for v in (a, b)) else None


def largest(a: sym.Item, b: sym.Item) -> sym.Item:
    """Return the larger item, None where open sizes leave it open."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return max(a, b)
    if a is not None and a == b:
        return a
    for number, size in ((a, b), (b, a)):
        if isinstance(number, int | float) and isinstance(size, Product) and number <= 0:
            return size
    return None


def smallest(a: sym.Item, b: sym.Item) -> sym.Item:
    """Return the smaller item, None where open sizes leave it open."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return min(a, b)
    return a if a is not None and a == b else None


def choose(condition: sym.Item, a: sym.Item, b: sym.Item) -> sym.Item:
    """Return what the condition chooses; one that is open chooses between equals only."""
    if isinstance(condition, int | float):
        return a if condition else b
    return a if a is not None and a == b else None


def on_numbers(function: Callable[..., Any]) -> Callable[..., sym.Item]:
    """Apply ``function`` where all items are numbers; anything else gives None."""

    def run(*items: sym.Item) -> sym.Item:
        if any(value is None or sym.is_symbolic(value) for value in items):
            return None
        result: sym.Item = function(*items)
        return result

    return run


def rounding(numbers: Callable[[Array], Array], function: Callable[[Any], Any]) -> Fold:
    """Floor, Ceil, Round: a size is whole already."""
    return elementwise(numbers, lambda value: value if isinstance(value, Product) else on_numbers(function)(value))


def reduce(numbers: Callable[..., Array], join: Callable[[sym.Item, sym.Item], sym.Item]) -> Fold:
    """Make a rule for a reduction: of arrays of numbers, or of a list of items joined two by two."""

    def run(view: View, arrays: Sequence[Array]) -> Array | None:
        data, axes = arrays[0], ints(view.setting("axes", 1))
        keepdims = bool(view.attrs.get("keepdims", 1))
        if data.size > MAX_NEW_ELEMENTS:
            return None
        if not axes:
            if view.attrs.get("noop_with_empty_axes", 0):
                return data
            axes = list(range(data.ndim))
        if data.dtype != object:
            return _typed(numbers(data, axis=tuple(axes), keepdims=keepdims), [data])
        if data.ndim != 1 or not data.size:
            return None
        joined = data[0]
        for value in data[1:]:
            joined = join(joined, value)
        return objects([joined]).reshape((1,) if keepdims else ())

    return run


def batch_norm(view: View, arrays: Sequence[Array]) -> Sequence[Array] | None:
    """Normalise stored weights: exporters write weight standardisation as a BatchNormalization in training mode."""
    training = bool(view.attrs.get("training_mode", 0))
    if len(arrays) != 5 or arrays[0].ndim < 2 or arrays[0].size > MAX_NEW_ELEMENTS or arrays[0].dtype == object:
        return None
    if len(view.outputs) not in ((1, 3) if training else (1,)):
        return None
    x, scale, bias, mean, var = (array.astype(np.float64) for array in arrays)
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    now = (x.mean(axis=others), x.var(axis=others)) if training else (mean, var)
    shape = (-1, *(1,) * (x.ndim - 2))
    factor = scale / np.sqrt(now[1] + view.attrs.get("epsilon", 1e-5))
    y = (x - now[0].reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    momentum = view.attrs.get("momentum", 0.9)
    running = [old * momentum + new * (1 - momentum) for old, new in zip((mean, var), now, strict=True)]
    return [array.astype(arrays[0].dtype) for array in (y, *running)][: len(view.outputs)]
