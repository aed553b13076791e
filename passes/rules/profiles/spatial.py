"""Profile rules of ops along a map: pools, paddings, reductions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunec.passes.rules.arrays import MAX_ELEMENTS, uniform
from prunec.passes.rules.profiles.at import At, Profile
from prunec.passes.rules.profiles.elementwise import copies, is_homogeneous, passed
from prunec.passes.rules.profiles.moves import moved


def spatial(at: At) -> Sequence[Profile | None]:
    """Pooling and resizing change all maps alike; of a pool with padding, so they do those that are 1 everywhere."""
    part = at.parts[0]
    axes = at.node.attrs.get("spatial_axes") or range(2, at.rank)
    if part is None or part.keys.ndim != at.rank or any(part.keys.shape[axis] != 1 for axis in axes):
        return [None]
    if at.node.op == "avg_pool":
        return [_uneven(at, part, list(axes))]
    return [passed(at, part, linear=at.node.op == "resize" and is_homogeneous(at.node))]


def _uneven(at: At, part: Profile, changed: Sequence[int]) -> Profile | None:
    """Return what a linear op makes of maps along the axes that it changes; constants become maps of their own."""
    if not at.is_float:
        return None  # quantised averages round
    only_constants = not part.keys.any()
    full = [
        size if only_constants and axis and axis not in changed and isinstance(size, int) else have
        for axis, (size, have) in enumerate(zip(at.in_shapes[0], part.keys.shape, strict=True))
    ]
    if np.prod(full, dtype=np.float64) > MAX_ELEMENTS:
        return None
    c = part.coefficients
    known = ~np.isnan(c)
    if at.still is not None and at.still.ndim == c.ndim:  # what stays a constant, as zeros do, is one to everybody
        known = known & np.isnan(uniform(at.still, [axis for axis in range(c.ndim) if full[axis] == 1]))
    if not known.any():
        return None
    c, known, keys = (np.broadcast_to(array, full) for array in (c, known, part.keys))
    made = at.keys.of((at.node.name, 0), [np.where(known, keys, 0)])
    return Profile(np.where(known, c, np.nan), np.where(known, made, 0))


def pad(at: At) -> Sequence[Profile | None]:
    """Zeros, and what lies at the border, pad all maps alike; another number pads copies."""
    part = at.parts[0]
    pads, rank, mode = at.node.attrs["pads"], at.rank, at.node.attrs.get("mode", "constant")
    if part is None or part.keys.ndim != rank:
        return [None]
    changed = [axis for axis in range(rank) if pads[axis] or pads[rank + axis]]
    own = [axis for axis in changed if part.keys.shape[axis] != 1]
    value = at.node.attrs.get("value")
    if own == changed and part.keys.any() and mode == "constant":
        return moved(at, [part], fill=float(value or 0))
    if own:
        return [None]
    if mode != "constant":
        return [at.new([part.keys], [], part.coefficients) if at.is_float else None]
    return [copies(at, [part]) if value else _uneven(at, part, changed)]


def reduce(at: At) -> Sequence[Profile | None]:
    """Means and norms along a map are multiples as the map is."""
    part, axes = at.parts[0], at.node.attrs["axes"]
    if part is None or any(part.keys.shape[axis] != 1 for axis in axes):
        return [None]
    made = passed(at, part, linear=at.node.attrs["kind"] in ("mean", "sum"))
    if made is None or at.node.attrs.get("keepdims", True):
        return [made]
    gone = tuple(axes)
    return [Profile(made.coefficients.squeeze(gone), made.keys.squeeze(gone))]


def mixed(at: At) -> Sequence[Profile | None]:
    """A softmax or a sum along a map, from element to element, passes copies."""
    part = at.parts[0]
    if part is None or any(part.keys.shape[axis] != 1 for axis in at.node.attrs["axes"]):
        return [None]
    return [copies(at, [part])]
