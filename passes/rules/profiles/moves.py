"""Profile rules of ops that move elements: factors and keys move as the elements do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunec.passes.rules.arrays import along
from prunec.passes.rules.moves import MOVES, factor
from prunec.passes.rules.profiles.at import At, Profile
from prunec.passes.rules.profiles.elementwise import flat_along

MOST_PLACES = 1 << 16
"""Above so many positions the maps that a reshape lays beside channels are not told apart."""


def moved(at: At, parts: Sequence[Profile], fill: float = np.nan) -> Sequence[Profile | None]:
    """Move factors and keys as the op moves the elements."""
    ins, outs = list(at.in_shapes), list(at.out_shapes)
    coefficients = MOVES[at.node.op](at.node, [part.coefficients for part in parts], ins, outs, fill)
    keys = MOVES[at.node.op](at.node, [part.keys for part in parts], ins, outs, 0)
    if coefficients is None or keys is None:
        return [None]
    return [
        Profile(*np.broadcast_arrays(c, k)) if c.ndim == k.ndim == len(out) and k.any() else None
        for c, k, out in zip(coefficients, keys, outs, strict=True)
    ]


def moves(at: At) -> Sequence[Profile | None]:
    """Move what is known; where an op cuts or repeats maps, it makes other ones of them, alike for all."""
    part, attrs = at.parts[0], at.node.attrs
    if part is None or (at.node.op == "gather" and attrs.get("indices") is None):
        return [None]
    axes = attrs["axes"] if "axes" in attrs else [attrs["axis"]] if "axis" in attrs else _repeated(at)
    found = moved(at, [part])
    if all(part.keys.shape[axis] != 1 for axis in axes):
        return found
    return [_renamed(at, each, number) for number, each in enumerate(found)]


def _renamed(at: At, part: Profile | None, output: int = 0) -> Profile | None:
    """Return the maps as other ones."""
    if part is None:
        return None
    return Profile(part.coefficients, np.where(part.keys != 0, at.keys.of((at.node.name, output), [part.keys]), 0))


def _repeated(at: At) -> list[int]:
    """Return the axes of the input that a tile or an expansion repeats."""
    shape, out = at.in_shapes[0], at.out_shapes[0]
    new = at.rank - len(shape)
    if at.node.op == "tile":
        return [axis for axis in range(len(shape)) if at.node.attrs["repeats"][new + axis] != 1]
    return [axis for axis in range(len(shape)) if shape[axis] != out[new + axis]]


def transpose(at: At) -> Sequence[Profile | None]:
    """Move what is known; where the axes of maps change places, these are other maps."""
    part, perm = at.parts[0], at.node.attrs["perm"]
    if part is None:
        return [None]
    left = [axis for axis in perm if part.keys.shape[axis] == 1 and at.in_shapes[0][axis] != 1]
    (found,) = moved(at, [part])
    return [found if left == sorted(left) else _renamed(at, found)]


def reshape(at: At) -> Sequence[Profile | None]:
    """Move what is known; where an axis of maps joins one of channels, each position is a map of its own."""
    part = at.parts[0]
    groups = factor(at.in_shapes[0], at.out_shapes[0])
    if part is None or groups is None:
        return [None]
    full, places = list(part.keys.shape), np.zeros((1,) * part.keys.ndim, dtype=np.int64)
    for before, _ in groups:
        own = [axis for axis in before if part.keys.shape[axis] != 1]
        flat = [axis for axis in before if axis not in own and at.in_shapes[0][axis] != 1] if own else []
        for axis in flat:
            size = at.in_shapes[0][axis]
            if not isinstance(size, int):
                return [None]
            full[axis] = size
            places = places * size + along(np.arange(size), axis, part.keys.ndim)
    if np.prod(full, dtype=np.float64) > MOST_PLACES:
        return [None]
    if places.size > 1:
        keys = np.where(part.keys != 0, at.keys.of((at.node.name, 0), [part.keys], [places]), 0)
        part = Profile(np.broadcast_to(part.coefficients, keys.shape), keys)
    (found,) = moved(at, [part])
    # What is the same along a new axis counts as a map along it.
    return [found if found is None or found.keys.size == part.keys.size else _renamed(at, found)]


def concat(at: At) -> Sequence[Profile | None]:
    """Lay what is known side by side, along an axis on which maps are told apart."""
    axis, parts = at.node.attrs["axis"], []
    for part, shape in zip(at.parts, at.in_shapes, strict=True):
        size = shape[axis]
        if not isinstance(size, int):
            return [None]
        missing = Profile(np.full((1,) * len(shape), np.nan), np.zeros((1,) * len(shape), dtype=np.int64))
        parts.append(missing if part is None or (part.keys.any() and part.axes != (axis,)) else part)
        if not parts[-1].keys.any():
            parts[-1] = flat_along(parts[-1], [other for other in range(len(shape)) if other != axis])
        full = tuple(size if other == axis else 1 for other in range(len(shape)))
        parts[-1] = Profile(np.broadcast_to(parts[-1].coefficients, full), np.broadcast_to(parts[-1].keys, full))
    return moved(at, parts)
