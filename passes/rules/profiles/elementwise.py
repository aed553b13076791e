"""Profile rules of ops that compute each element by itself, and what the other families share with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prunec.ir.arrays import Floats, Ids
from prunec.ir.graph import Node
from prunec.passes.rules.arrays import along, lift, uniform
from prunec.passes.rules.profiles.at import At, Profile, alike
from prunec.passes.rules.scaling import SCALED, SCALING_RULES, UNSCALED

STEPS = frozenset(
    {
        "sign",
        "floor",
        "ceil",
        "round",
        "cast",
        "floor_div",
        "mod",
        "div",
        "hard_shrink",
        "threshold",
        "thresholded_relu",
    }
)
"""Ops that jump: copies pass them only where they are copies to the bit."""


def nothing(at: At) -> Sequence[Profile | None]:
    """Nothing is known of what comes out."""
    return [None]


def operands(at: At, indices: Sequence[int], vector_axis: int | None = None) -> list[Profile] | None:
    """Return inputs in the output's rank, laid along the same axes; None where one is unknown or lies along others.

    Args:
        vector_axis: where an input of one axis lies; None: as numpy broadcasting has it.
    """
    found = []
    for index in indices:
        part = at.parts[index]
        if part is None:
            return None
        coefficients, keys = part.coefficients, part.keys
        if vector_axis is not None and keys.ndim == 1:
            coefficients, keys = along(coefficients, vector_axis, at.rank), along(keys, vector_axis, at.rank)
        found.append(Profile(lift(coefficients, at.rank), lift(keys, at.rank)))
    axes = {part.axes for part in found if part.keys.any()}
    if len(axes) != 1:
        return None
    (own,) = axes
    # What a constant varies along a map, it would change the map by.
    other = [axis for axis in range(at.rank) if axis not in own]
    return [part if part.keys.any() else flat_along(part, other) for part in found]


def flat_along(part: Profile, axes: Sequence[int]) -> Profile:
    """Return constants of size 1 along some axes; unknown where they vary there."""
    coefficients = uniform(part.coefficients, axes)
    return Profile(coefficients, np.zeros(coefficients.shape, dtype=np.int64))


def is_homogeneous(node: Node) -> bool:
    """Tell whether a positive factor on the first input comes out as it went in."""
    states = [np.array([UNSCALED if index else SCALED], dtype=np.int8) for index in range(len(node.inputs))]
    return bool(SCALING_RULES[node.op](node, states)[0] == SCALED)


def passed(at: At, part: Profile, *, linear: bool, output: int = 0) -> Profile | None:
    """Return what an op makes that treats all maps alike."""
    c = part.coefficients
    if at.is_float and linear:
        return at.new([part.keys], [], c, output)
    if at.is_float and is_homogeneous(at.node):
        return at.new([part.keys], [np.sign(np.nan_to_num(c)).astype(np.int64)], np.abs(c), output)
    return copies(at, [part], output)


def copies(at: At, parts: Sequence[Profile], output: int = 0) -> Profile | None:
    """Return what any function makes of maps: the same of the same, times the same factor."""
    within = 0.0 if at.node.op in STEPS or not at.is_float else at.within
    marks = [alike([part.keys], part.coefficients, within) for part in parts]
    one = np.ones(())
    for part in parts:
        one = one * np.where(np.isnan(part.coefficients), np.nan, 1.0)
    return at.new([part.keys for part in parts], marks, one, output)


def unary(at: At) -> Sequence[Profile | None]:
    """A ReLU and its like pass positive factors, others pass copies; further inputs are the bounds of a clip."""
    parts = operands(at, [index for index, name in enumerate(at.node.inputs) if name])
    if parts is None:
        return [None]
    return [passed(at, parts[0], linear=False) if len(parts) == 1 else copies(at, parts)]


def same(at: At) -> Sequence[Profile | None]:
    """The maps stay what they are: nothing happens, or numbers are written in another floating-point type."""
    part = at.parts[0]
    if part is None or not at.is_float:
        return unary(at)
    return [part]


def neg(at: At) -> Sequence[Profile | None]:
    """The maps stay what they are, the factors change their sign."""
    part = at.parts[0]
    return [None if part is None else Profile(-part.coefficients, part.keys)]


def elementwise(at: At) -> Sequence[Profile | None]:
    """Copies of copies are copies."""
    parts = operands(at, range(len(at.node.inputs)))
    return [None if parts is None else copies(at, parts)]


def _pair(at: At, parts: Sequence[Profile]) -> tuple[list[Ids], Floats, Floats]:
    """Return the keys of both operands, the factor of the one that leads (the first that is no constant), the other."""
    (ca, ka), (cb, kb) = ((part.coefficients, part.keys) for part in parts)
    lead = np.where(ka != 0, ca, cb)
    return [*np.broadcast_arrays(ka, kb)], lead, np.where(ka != 0, cb, ca)


def add(at: At) -> Sequence[Profile | None]:
    """A sum of multiples is a multiple of the sum where both have the same factor, or one in the same proportion."""
    parts = operands(at, [0, 1])
    if parts is None or not at.is_float:
        return elementwise(at)
    signs = {"add": (1, 1), "sub": (1, -1), "rsub": (-1, 1)}[at.node.op]
    scaled = at.node.attrs.get("alpha", 1)
    factors = (signs[0] * (scaled if at.node.op == "rsub" else 1), signs[1] * (1 if at.node.op == "rsub" else scaled))
    parts = [Profile(part.coefficients * f, part.keys) for part, f in zip(parts, factors, strict=True)]
    maps, lead, other = _pair(at, parts)
    ratio = ratio_of(other, lead)
    return [at.new(maps, [alike(maps, ratio, at.within)], np.where(np.isnan(ratio), np.nan, lead))]


def extremum(at: At) -> Sequence[Profile | None]:
    """The larger of two multiples is a multiple, if both factors are in the same proportion, signs included."""
    parts = operands(at, [0, 1])
    if parts is None or not at.is_float:
        return elementwise(at)
    maps, lead, other = _pair(at, parts)
    ratio = ratio_of(other, np.abs(lead))
    marks = [alike(maps, ratio, at.within), np.sign(np.nan_to_num(lead)).astype(np.int64)]
    return [at.new(maps, marks, np.where(np.isnan(ratio), np.nan, np.abs(lead)))]


def ratio_of(above: Floats, below: Floats) -> Floats:
    """Return the quotient, NaN where it is none."""
    with np.errstate(all="ignore"):
        ratio: Floats = above / below
    return np.where(np.isfinite(ratio), ratio, np.nan)


def mul(at: At) -> Sequence[Profile | None]:
    """Factors multiply; by a constant the map stays the same."""
    return [_product(at, lambda a, b: a * b, plain=True)]


def div(at: At) -> Sequence[Profile | None]:
    """Factors divide; by a constant the map stays the same."""
    return [_product(at, ratio_of, plain=not at.node.attrs.get("rounding"))]


def _product(at: At, join: Callable[[Floats, Floats], Floats], *, plain: bool) -> Profile | None:
    parts = operands(at, [0, 1])
    if parts is None:
        return None
    if not plain or not at.is_float:
        return copies(at, parts)
    (ca, ka), (cb, kb) = ((part.coefficients, part.keys) for part in parts)
    made = at.new([ka, kb], [], join(ca, cb))
    if made is None:
        return None
    keys = made.keys
    if at.in_shapes[0] == at.out_shapes[0]:  # else the map is repeated, and another one
        keys = np.where((ka != 0) & (kb == 0) & (keys != 0), ka, keys)
    if at.in_shapes[1] == at.out_shapes[0] and at.node.op == "mul":
        keys = np.where((ka == 0) & (kb != 0) & (keys != 0), kb, keys)
    return Profile(made.coefficients, keys)


def prelu(at: At) -> Sequence[Profile | None]:
    """A positive factor passes where the slopes are the same."""
    parts = operands(at, [0, 1], at.node.attrs.get("axis"))
    if parts is None or parts[1].keys.any():
        return [None]
    x, slope = parts
    marks = [np.sign(np.nan_to_num(x.coefficients)).astype(np.int64), alike([x.keys], slope.coefficients, at.within)]
    known = np.where(np.isnan(slope.coefficients), np.nan, 1.0)
    return [at.new([x.keys], marks, np.abs(x.coefficients) * known)]
