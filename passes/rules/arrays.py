"""Small helpers on abstract arrays: full size on the axes along which they vary, size 1 elsewhere.

Owns what the rules of constants and liveness have in common. A float array holds NaN where the value
is unknown; a bool array holds True where an element is needed. Movement is in passes/rules/moves.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Shape

MAX_ELEMENTS = 20_000_000
"""Above this an abstract array is not materialised, and counts as unknown."""

TIDY_ELEMENTS = 1 << 16
"""Arrays above this (derived weights) are not searched for axes along which nothing varies."""


def unknown(rank: int) -> Array:
    """Return the abstract array of ``rank`` axes of which nothing is known."""
    return np.full((1,) * rank, np.nan)


def lift(array: Array, rank: int) -> Array:
    """Prepend axes of size 1, as numpy broadcasting does."""
    return array if array.ndim >= rank else array.reshape((1,) * (rank - array.ndim) + array.shape)


def along(vector: Array, axis: int, rank: int) -> Array:
    """Reshape a flat array to ``rank`` axes so that it varies along ``axis``."""
    shape = [1] * rank
    shape[axis] = vector.size
    return vector.reshape(shape)


def uniform(array: Array, axes: Iterable[int]) -> Array:
    """Drop ``axes`` to size 1; what differs along them becomes unknown."""
    for axis in axes:
        if array.shape[axis] > 1:
            head = array[(slice(None),) * axis + (slice(0, 1),)]
            same = (array == head).all(axis=axis, keepdims=True)
            array = np.where(same, head, np.nan)
    return array


def any_along(need: Array, axes: Iterable[int]) -> Array:
    """Drop ``axes`` of a bool array to size 1: True where any element along them is."""
    gone = tuple(axis for axis in axes if need.shape[axis] != 1)
    return np.asarray(need.any(axis=gone, keepdims=True)) if gone else need


def others(rank: int, *axes: int) -> tuple[int, ...]:
    """Return the axes of ``rank`` that are not in ``axes``."""
    return tuple(axis for axis in range(rank) if axis not in axes)


def passed(array: Array, axes: Sequence[tuple[int, int]], rank: int) -> Array:
    """Reshape ``array`` to ``rank`` axes: each axis of a pair becomes the other, all others have size 1 already."""
    shape = [1] * rank
    for before, after in axes:
        shape[after] = array.shape[before]
    return array.reshape(shape)


def fits(arrays: Sequence[Array]) -> bool:
    """Tell whether the broadcast of ``arrays`` is small enough to be materialised."""
    try:
        return math.prod(np.broadcast_shapes(*(array.shape for array in arrays))) <= MAX_ELEMENTS
    except ValueError:
        return False


def tidy(array: Array, shape: Shape, moved: bool = False) -> Array | None:
    """Bring a float array into the form in which it is kept; None where nothing is known.

    It gets the rank of ``shape``, size 1 on open axes and on those along which nothing varies, and NaN
    for infinities. A large array is a weight: it is only searched if it was computed, not just moved.
    """
    if array.ndim > len(shape) or array.size == 0:
        return None
    array = lift(array, len(shape))
    small = array.size <= TIDY_ELEMENTS
    if small or not (moved or _is_finite(array)):
        finite = np.isfinite(array)
        if not finite.any():
            return None
        if array.dtype.kind != "f" or not finite.all():
            array = np.where(finite, array, np.nan)
    array = uniform(array, [axis for axis, size in enumerate(shape) if not isinstance(size, int)])
    if any(have not in (1, size) for have, size in zip(array.shape, shape, strict=True)):
        return None
    return narrow(array) if small else array


def _is_finite(array: Array) -> bool:
    return bool(np.isfinite(array.max()) and np.isfinite(array.min()))


def narrow(array: Array) -> Array:
    """Drop to size 1 the axes along which nothing varies (NaN equals NaN)."""
    for axis, size in enumerate(array.shape):
        if size > 1 and same_along(array, axis):
            array = array[(slice(None),) * axis + (slice(0, 1),)]
    return array


def same_along(array: Array, axis: int) -> bool:
    """Tell whether nothing varies along an axis (NaN equals NaN); where its ends differ, no more is compared."""
    before = (slice(None),) * axis
    first, last = array[(*before, slice(0, 1))], array[(*before, slice(-1, None))]
    return equal(last, first) and equal(array, first)


def equal(array: Array, head: Array) -> bool:
    """Tell whether every element is that of ``head``, which is broadcast; NaN equals NaN."""
    same = array == head
    if same.all():
        return True
    return array.dtype.kind == "f" and bool((same | ((array != array) & (head != head))).all())  # x != x only for NaN


def stretched(vector: Array, size: int) -> Array:
    """Return a vector of ``size`` elements, or of one that stands for all of them, in full length."""
    return vector if vector.size == size else np.full(size, vector.item())
