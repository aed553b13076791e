"""What each op makes of channels that are multiples of one map: the table PROFILE_RULES.

A rule gets, per input, which map each channel is a multiple of (a key) and by which factor, and returns the same of each
output. A positive factor passes through what is homogeneous (SCALING_RULES knows), any factor through what is linear;
everything else that treats all channels alike passes channels of one factor on as copies of one another. Where a rule
cannot tell, it returns None. Contractions are not here: passes/profiles.py compares their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.ir.arrays import Array, Floats, Ids, Mask
from prunec.ir.graph import Node, Shape
from prunec.ir.ops import BINARY, CONTRACTIONS, UNARY
from prunec.passes.rules.arrays import MAX_ELEMENTS, along, lift, uniform
from prunec.passes.rules.moves import MOVES, factor
from prunec.passes.rules.scaling import SCALED, SCALING_RULES, UNSCALED


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What is known of one value: each element is ``coefficients`` times the map that ``keys`` names.

    Both have the value's rank, and the same shape: full size on the axes along which maps are told apart, 1 on those
    along which a map extends. NaN is an element of which nothing is known (its key is 0). Key 0 is the map that is
    1 everywhere (a constant, which may be of size 1 along any axis); negative keys are other maps that do not depend on
    the input (a padded constant), positive ones depend on it.
    """

    coefficients: Floats
    keys: Ids

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which maps are told apart."""
        return tuple(axis for axis, size in enumerate(self.keys.shape) if size != 1)


class Keys:
    """The numbers of the maps of one graph; lives inside one pass."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Any, ...], int] = {}

    def of(self, name: str, maps: Sequence[Ids], marks: Sequence[Ids] = ()) -> Ids:
        """Return the keys of what the node ``name`` makes of maps, element by element; equal ones where all are equal.

        Args:
            maps: keys; where none of them depends on the input, the result does not.
            marks: whatever else tells elements apart, as numbers.
        """
        columns = np.stack([array.ravel() for array in np.broadcast_arrays(*maps, *marks)])
        found, inverse = np.unique(columns, axis=1, return_inverse=True)
        numbers = [self._number((name, *column), column[: len(maps)]) for column in found.T.tolist()]
        shape = np.broadcast_shapes(*(array.shape for array in (*maps, *marks)))
        return np.asarray(numbers, dtype=np.int64)[inverse.ravel()].reshape(shape)

    def _number(self, what: tuple[Any, ...], maps: Sequence[int]) -> int:
        number = self._numbers.setdefault(what, len(self._numbers) + 1)
        return number if any(key > 0 for key in maps) else -number


@dataclass(frozen=True, slots=True, eq=False)
class At:
    """One node where its rule runs.

    Args:
        node: the node.
        parts: per input what is known of it; None where that is nothing, or the input is absent.
        in_shapes: per input, () where absent.
        out_shapes: per output, all of known rank.
        keys: gives new maps their numbers.
        within: the relative difference up to which factors count as the same.
        is_float: the first output holds floating-point numbers.
        still: what is constant of the first output; None where that is nothing.
    """

    node: Node
    parts: tuple[Profile | None, ...]
    in_shapes: tuple[Shape, ...]
    out_shapes: tuple[Shape, ...]
    keys: Keys
    within: float
    is_float: bool
    still: Array | None

    @property
    def rank(self) -> int:
        return len(self.out_shapes[0])

    def new(self, maps: Sequence[Ids], marks: Sequence[Ids], coefficients: Floats, output: int = 0) -> Profile | None:
        """Return other maps of which elements are multiples, where all parts are known and one of them is no constant."""
        shape = np.broadcast_shapes(coefficients.shape, *(each.shape for each in (*maps, *marks)))
        known = np.isfinite(coefficients) & (coefficients != 0) & np.logical_or.reduce([each != 0 for each in maps])
        known = np.broadcast_to(known, shape)
        if not known.any():
            return None
        keys = self.keys.of(f"{self.node.name}:{output}" if output else self.node.name, maps, marks)
        return Profile(np.where(known, coefficients, np.nan), np.where(known, keys, 0))


Rule = Callable[[At], Sequence[Profile | None]]


def alike(groups: Sequence[Ids], values: Floats, within: float, sizes: Floats | None = None) -> Ids:
    """Return int64 labels: equal where the groups are and the values differ by rounding at most.

    Args:
        groups, values: broadcast against one another.
        within: times ``sizes`` (|values| where not given) is what rounding makes.
    """
    arrays = np.broadcast_arrays(values, np.abs(values) if sizes is None else sizes, *groups)
    shape = arrays[0].shape
    value, size, *rest = (array.ravel() for array in arrays)
    labels = np.zeros(value.size, dtype=np.int64)
    start: tuple[Any, ...] = ()
    label, begun = 0, 0.0
    for at in np.lexsort((value, *rest)).tolist():
        group = tuple(int(each[at]) for each in rest)
        if group != start or not abs(value[at] - begun) <= within * size[at]:
            label, start, begun = label + 1, group, float(value[at])
        labels[at] = label
    return labels.reshape(shape)


# --- elementwise --------------------------------------------------------------------------------------


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
    return [part if part.keys.any() else _flat(part, other) for part in found]


def _flat(part: Profile, axes: Sequence[int]) -> Profile:
    coefficients = uniform(part.coefficients, axes)
    return Profile(coefficients, np.zeros(coefficients.shape, dtype=np.int64))


def _is_homogeneous(node: Node) -> bool:
    """Tell whether a positive factor on the first input comes out as it went in."""
    states = [np.array([UNSCALED if index else SCALED], dtype=np.int8) for index in range(len(node.inputs))]
    return bool(SCALING_RULES[node.op](node, states)[0] == SCALED)


def _passed(at: At, part: Profile, *, linear: bool, output: int = 0) -> Profile | None:
    """Return what an op makes that treats all maps alike."""
    c = part.coefficients
    if at.is_float and linear:
        return at.new([part.keys], [], c, output)
    if at.is_float and _is_homogeneous(at.node):
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
    return [_passed(at, parts[0], linear=False) if len(parts) == 1 else copies(at, parts)]


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
    ratio = _ratio(other, lead)
    return [at.new(maps, [alike(maps, ratio, at.within)], np.where(np.isnan(ratio), np.nan, lead))]


def extremum(at: At) -> Sequence[Profile | None]:
    """The larger of two multiples is a multiple, if both factors are in the same proportion, signs included."""
    parts = operands(at, [0, 1])
    if parts is None or not at.is_float:
        return elementwise(at)
    maps, lead, other = _pair(at, parts)
    ratio = _ratio(other, np.abs(lead))
    marks = [alike(maps, ratio, at.within), np.sign(np.nan_to_num(lead)).astype(np.int64)]
    return [at.new(maps, marks, np.where(np.isnan(ratio), np.nan, np.abs(lead)))]


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(all="ignore"):
        ratio: Floats = above / below
    return np.where(np.isfinite(ratio), ratio, np.nan)


def mul(at: At) -> Sequence[Profile | None]:
    """Factors multiply; by a constant the map stays the same."""
    return [_product(at, lambda a, b: a * b, plain=True)]


def div(at: At) -> Sequence[Profile | None]:
    """Factors divide; by a constant the map stays the same."""
    return [_product(at, _ratio, plain=not at.node.attrs.get("rounding"))]


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
    keys = np.where((ka != 0) & (kb == 0) & (made.keys != 0), ka, made.keys)
    if at.node.op == "mul":
        keys = np.where((ka == 0) & (kb != 0) & (made.keys != 0), kb, keys)
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


# --- normalisation ------------------------------------------------------------------------------------


def batch_norm(at: At) -> Sequence[Profile | None]:
    """An affine map: what is added has to be in proportion to the factor; its own statistics pass copies only."""
    axis, attrs = at.node.attrs.get("axis", 1), at.node.attrs
    given = [index for index, name in enumerate(at.node.inputs) if name]
    if attrs.get("training") or len(at.node.inputs) < 5 or 3 not in given or 4 not in given:
        return instance_norm(at)
    parts = operands(at, given, axis)
    if parts is None or any(part.keys.any() for part in parts[1:]):
        return [None]
    vectors = {index: part.coefficients for index, part in zip(given, parts, strict=True)}
    x, none = parts[0], np.zeros((1,) * at.rank)
    with np.errstate(all="ignore"):
        scale = vectors.get(1, none + 1) / np.sqrt(vectors[4] + attrs.get("eps", 1e-5))
        shift, beta = vectors[3] * scale, vectors.get(2, none)
        lead = x.coefficients * scale
        sizes = (np.abs(beta) + np.abs(shift)) / np.abs(lead)
    ratio = _ratio(beta - shift, lead)
    marks = [alike([x.keys], ratio, at.within, sizes)]
    return [at.new([x.keys], marks, np.where(np.isnan(ratio), np.nan, lead))]


def instance_norm(at: At) -> Sequence[Profile | None]:
    """What has its own statistics per channel passes copies, with the same gamma and beta."""
    axis = at.node.attrs.get("axis", 1)
    given = [index for index, name in enumerate(at.node.inputs[:3]) if name]
    parts = operands(at, given, axis)
    if parts is None or parts[0].axes != (axis,):
        return [None]
    return [copies(at, parts)]


# --- along a map --------------------------------------------------------------------------------------


def spatial(at: At) -> Sequence[Profile | None]:
    """Pooling and resizing change all maps alike; of a pool with padding, so they do those that are 1 everywhere."""
    part = at.parts[0]
    axes = at.node.attrs.get("spatial_axes") or range(2, at.rank)
    if part is None or part.keys.ndim != at.rank or any(part.keys.shape[axis] != 1 for axis in axes):
        return [None]
    if at.node.op == "avg_pool":
        return [_uneven(at, part, list(axes))]
    return [_passed(at, part, linear=at.node.op == "resize" and _is_homogeneous(at.node))]


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
    made = at.keys.of(at.node.name, [np.where(known, keys, 0)])
    return Profile(np.where(known, c, np.nan), np.where(known, made, 0))


def pad(at: At) -> Sequence[Profile | None]:
    """Zeros, and what lies at the border, pad all maps alike; another number pads copies. Channels of zeros are known."""
    part = at.parts[0]
    pads, rank, mode = at.node.attrs["pads"], at.rank, at.node.attrs.get("mode", "constant")
    if part is None or part.keys.ndim != rank:
        return [None]
    changed = [axis for axis in range(rank) if pads[axis] or pads[rank + axis]]
    own = [axis for axis in changed if part.keys.shape[axis] != 1]
    value = at.node.attrs.get("value")
    if own == changed and part.keys.any() and mode == "constant":
        return _moved(at, [part], fill=float(value or 0))
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
    made = _passed(at, part, linear=at.node.attrs["kind"] in ("mean", "sum"))
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


# --- movement -----------------------------------------------------------------------------------------


def _moved(at: At, parts: Sequence[Profile], fill: float = np.nan) -> Sequence[Profile | None]:
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
    found = _moved(at, [part])
    if all(part.keys.shape[axis] != 1 for axis in axes):
        return found
    kept = [None if each is None else at.keys.of(f"{at.node.name}:{n}", [each.keys]) for n, each in enumerate(found)]
    return [
        None if each is None or keys is None else Profile(each.coefficients, np.where(each.keys != 0, keys, 0))
        for each, keys in zip(found, kept, strict=True)
    ]


def _repeated(at: At) -> list[int]:
    """Return the axes of the input that a tile repeats; an expansion repeats what has size 1, and changes no map."""
    if at.node.op != "tile":
        return []
    new = at.rank - len(at.in_shapes[0])
    return [axis for axis in range(len(at.in_shapes[0])) if at.node.attrs["repeats"][new + axis] != 1]


def transpose(at: At) -> Sequence[Profile | None]:
    """Move what is known."""
    return [None] if at.parts[0] is None else _moved(at, [at.parts[0]])


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
        keys = np.where(part.keys != 0, at.keys.of(at.node.name, [part.keys], [places]), 0)
        part = Profile(np.broadcast_to(part.coefficients, keys.shape), keys)
    return _moved(at, [part])


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
            parts[-1] = _flat(parts[-1], [other for other in range(len(shape)) if other != axis])
        full = tuple(size if other == axis else 1 for other in range(len(shape)))
        parts[-1] = Profile(*(np.broadcast_to(array, full) for array in (parts[-1].coefficients, parts[-1].keys)))
    return _moved(at, parts)


MOST_PLACES = 1 << 16
"""Above so many positions the maps that a reshape lays beside channels are not told apart."""

STEPS = frozenset(
    {"sign", "floor", "ceil", "round", "cast", "floor_div", "mod", "div", "hard_shrink", "threshold", "thresholded_relu"}
)
"""Ops that jump: copies pass them only where they are copies to the bit."""

PROFILE_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(CONTRACTIONS, nothing),
        "batch_norm": batch_norm,
        "instance_norm": instance_norm,
        **dict.fromkeys(("group_norm", "layer_norm", "lrn"), nothing),
        **dict.fromkeys(UNARY, unary),
        "identity": same,
        "cast": same,
        "neg": neg,
        **dict.fromkeys(BINARY, elementwise),
        **dict.fromkeys(("add", "sub", "rsub"), add),
        **dict.fromkeys(("minimum", "maximum"), extremum),
        "mul": mul,
        "div": div,
        "prelu": prelu,
        "where": elementwise,
        "reshape": reshape,
        "transpose": transpose,
        **dict.fromkeys(("slice", "split", "gather", "expand", "tile"), moves),
        "concat": concat,
        "pad": pad,
        **dict.fromkeys(("depth_to_space", "space_to_depth", "im2col", "scatter_slice", "full"), nothing),
        **dict.fromkeys(("max_pool", "avg_pool", "resize"), spatial),
        **dict.fromkeys(("max_unpool", "sample", "linear"), nothing),
        **dict.fromkeys(("quantize", "dequantize", "dynamic_quantize"), nothing),
        "reduce": reduce,
        "along": mixed,
        **dict.fromkeys(("arg_reduce", "shape_of", "opaque"), nothing),
    }
)
