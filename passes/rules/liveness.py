"""Which elements of a node's inputs its needed outputs read: the table LIVENESS_RULES.

A rule gets, per output, a bool abstract array (passes/rules/arrays.py) that is True where the element
is needed and not already constant, and returns one per input: True where it is read. ``ALL`` stands
for every element, None for none. Where a rule cannot tell, an element counts as read. Knows no other
op and no framework; the backward sweep is in passes/liveness.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Node, Shape
from prunec.ir.ops import BINARY, UNARY
from prunec.passes.rules.arrays import along, any_along, lift, narrow, others, passed, stretched
from prunec.passes.rules.moves import MOVES, factor
from prunec.passes.rules.weights import Weight

Needs = Sequence[Array | None]

ALL: Array = np.ones((), dtype=np.bool_)
"""Every element of a value, whatever its rank."""

MAX_INDEX = 1 << 18
"""Above this many elements, a movement is followed along fewer axes."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One node, and what is needed of it.

    Args:
        node: the node.
        needs: per output, bool abstract array of the output's rank; None where nothing is needed.
        known: per input, what passes/constants.py knows; None where that is nothing.
        in_shapes, out_shapes: None where absent or of unknown rank.
        weight: the contraction's weight, where it is known.
    """

    node: Node
    needs: tuple[Array | None, ...]
    known: tuple[Array | None, ...]
    in_shapes: tuple[Shape | None, ...]
    out_shapes: tuple[Shape | None, ...]
    weight: Weight | None = None

    @property
    def need(self) -> Array:
        """What is needed of an output-shaped value: of the outputs together, in the rank of the first."""
        if len(self.needs) == 1 and self.needs[0] is not None:
            return self.needs[0]
        rank = len(self.out_shapes[0] or ())
        total = np.zeros((1,) * rank, dtype=np.bool_)
        for need in self.needs:
            if need is not None:
                total = total | (need if need.ndim == rank else ALL)
        return total

    def with_rest(self, *first: Array | None) -> Needs:
        """Return the given needs for the first inputs, and ``ALL`` for the others."""
        return [*first, *[ALL] * (len(self.node.inputs) - len(first))]

    def rank_of(self, index: int) -> int:
        return len(self.in_shapes[index] or ())


Rule = Callable[[Step], Needs]


def everything(step: Step) -> Needs:
    """Each input is read in full."""
    return [ALL] * len(step.node.inputs)


def nothing(step: Step) -> Needs:
    """No element is read, only the input's shape."""
    return [None] * len(step.node.inputs)


# --- contractions -----------------------------------------------------------------------------------


def conv(step: Step) -> Needs:
    """An input channel is read by the needed outputs that have a non-zero tap on it."""
    if step.weight is None or step.need.ndim < 2:
        return everything(step)
    read = _read_by(step.weight, any_along(step.need, others(step.need.ndim, 1)).ravel())
    return step.with_rest(along(read, 1, step.need.ndim))


def _read_by(weight: Weight, outputs: Array) -> Array:
    return weight.read_by(stretched(outputs, weight.num_outputs))


def matmul(step: Step) -> Needs:
    """a[m, k] is read where some needed n has b[k, n] != 0, and the other way round."""
    rank_a, rank_b = step.rank_of(0), step.rank_of(1)
    if rank_a < 2 or rank_b < 2:
        return everything(step)
    swap_a, swap_b = step.node.attrs.get("transpose_a"), step.node.attrs.get("transpose_b")
    need = any_along(step.need, range(step.need.ndim - 2))
    rows, columns = any_along(need, [need.ndim - 1]), any_along(need, [need.ndim - 2])
    rows, columns = rows.reshape(-1, 1), columns.reshape(1, -1)
    if step.weight is not None:
        read_a = rows & _read_by(step.weight, columns.ravel())
        return step.with_rest(lift(read_a.T if swap_a else read_a, rank_a))
    read_a = rows & _inner(step.known[1], swap=not swap_b).reshape(1, -1)
    read_b = columns & _inner(step.known[0], swap=bool(swap_a)).reshape(-1, 1)
    return step.with_rest(lift(read_a.T if swap_a else read_a, rank_a), lift(read_b.T if swap_b else read_b, rank_b))


def _inner(known: Array | None, swap: bool) -> Array:
    """Return bool[K]: False where an operand [..., free, K] is known to be zero throughout."""
    if known is None:
        return np.ones(1, dtype=np.bool_)
    axis = known.ndim - (2 if swap else 1)
    return any_along(known != 0, others(known.ndim, axis)).ravel()


def attention(step: Step) -> Needs:
    """All of q and k shapes the weights; a value channel is read where the same output channel is needed."""
    if len(step.node.inputs) < 3 or step.need.ndim != step.rank_of(2):
        return everything(step)
    value = any_along(step.need, range(step.need.ndim - 1))
    return step.with_rest(ALL, ALL, value)


# --- elementwise and normalisation ------------------------------------------------------------------


def elementwise(step: Step) -> Needs:
    """An operand's element is read where any element that it broadcasts to is needed."""
    return [_fit(step.need, shape) for shape in step.in_shapes]


def _fit(need: Array, shape: Shape | None) -> Array:
    """Bring a need to an operand's shape; open axes may be broadcast, so they count as read throughout."""
    if shape is None or len(shape) > need.ndim:
        return ALL
    extra = need.ndim - len(shape)
    if extra:
        need = any_along(need, range(extra)).reshape(need.shape[extra:])
    return any_along(need, [axis for axis, size in enumerate(shape) if size != need.shape[axis]])


def first_like_output(step: Step) -> Needs:
    """Element by element; gamma, slopes, scales and bounds are read in full."""
    return step.with_rest(_fit(step.need, step.in_shapes[0]))


def where(step: Step) -> Needs:
    """A choice is read where the condition may take it."""
    condition, known = _fit(step.need, step.in_shapes[0]), step.known[0]
    if known is None:
        return elementwise(step)
    rank = step.need.ndim
    first, second = step.need & lift(known != 0, rank), step.need & lift(known != 1, rank)
    return [condition, _fit(first, step.in_shapes[1]), _fit(second, step.in_shapes[2])]


def batch_norm(step: Step) -> Needs:
    """Element by element; batch statistics read a channel in full."""
    attrs, inputs = step.node.attrs, step.node.inputs
    if attrs.get("training") or len(inputs) < 5 or not (inputs[3] and inputs[4]):
        return step.with_rest(any_along(step.need, others(step.need.ndim, attrs.get("axis", 1))))
    return first_like_output(step)


def instance_norm(step: Step) -> Needs:
    """A channel is read in full."""
    axis = step.node.attrs.get("axis", 1)
    return step.with_rest(any_along(step.need, range(axis + 1, step.need.ndim)))


def group_norm(step: Step) -> Needs:
    """A group is read in full."""
    axis, groups = step.node.attrs.get("axis", 1), step.node.attrs["num_groups"]
    need = any_along(step.need, others(step.need.ndim, axis))
    if need.size > 1:
        grouped = need.reshape(groups, -1)
        need = along(np.repeat(grouped.any(axis=1), grouped.shape[1]), axis, need.ndim)
    return step.with_rest(need)


def mixing(step: Step) -> Needs:
    """All elements along the normalised, sorted or summed axes are read."""
    attrs = step.node.attrs
    axes = attrs.get("axes") or (attrs.get("axis", 1),)
    return step.with_rest(any_along(step.need, axes))


def reduce(step: Step) -> Needs:
    """As mixing, over axes that the output may have lost."""
    need = step.need
    axes = step.node.attrs["axes"]
    if not step.node.attrs.get("keepdims", True):
        need = np.expand_dims(need, tuple(axes))
    return step.with_rest(any_along(need, axes))


def channelwise(step: Step) -> Needs:
    """A channel is read where any of its positions is needed."""
    need = step.need
    if need.ndim != step.rank_of(0):
        return everything(step)
    return step.with_rest(any_along(need, step.node.attrs.get("spatial_axes") or range(2, need.ndim)))


def max_unpool(step: Step) -> Needs:
    """A channel, and where its elements go, are read where any of its positions is needed."""
    read = channelwise(step)[0]
    return [read, read]


def linear(step: Step) -> Needs:
    """All elements along the axes that are mixed are read."""
    axes = [(after, before) for before, after in step.node.attrs["passes"]]
    if any(after >= step.need.ndim or before >= step.rank_of(0) for after, before in axes):
        return everything(step)
    mixed = others(step.need.ndim, *(axis for axis, _ in axes))
    return [passed(any_along(step.need, mixed), axes, step.rank_of(0))]


def sample(step: Step) -> Needs:
    """A channel is read where any of its positions, in any sample, is needed."""
    if step.need.ndim != step.rank_of(0):
        return everything(step)
    return step.with_rest(any_along(step.need, others(step.need.ndim, 1)))


# --- movement ---------------------------------------------------------------------------------------


def _followed(step: Step, axes: Iterable[int]) -> Needs:
    """Move indices instead of values: an input element is read where its index arrives at a needed place.

    Elements are told apart along ``axes`` of the inputs; along the others all are read if any is.
    """
    return [_positions(step, index, axes) for index in range(len(step.node.inputs))]


def _positions(step: Step, index: int, axes: Iterable[int]) -> Array:
    if any(shape is None for shape in (*step.in_shapes, *step.out_shapes)):
        return ALL
    shapes = [shape for shape in step.in_shapes if shape is not None]
    outs = [shape for shape in step.out_shapes if shape is not None]
    sizes = _resolved(shapes[index], axes)
    places = np.arange(math.prod(sizes)).reshape(sizes)
    arrays = [places if i == index else np.full((1,) * len(shape), -1) for i, shape in enumerate(shapes)]
    moved = MOVES[step.node.op](step.node, arrays, shapes, outs, -1)
    if moved is None:
        return ALL
    read = np.zeros(places.size, dtype=np.bool_)
    for arrived, need in zip(moved, step.needs, strict=True):
        if need is not None:
            need = any_along(need, [axis for axis, size in enumerate(arrived.shape) if size == 1])
            needed, arrived = np.broadcast_arrays(need, arrived)
            arrived = arrived[needed]
            read[arrived[arrived >= 0]] = True
    return narrow(read.reshape(sizes))


def _resolved(shape: Shape, axes: Iterable[int]) -> tuple[int, ...]:
    """Return the sizes of an index array along ``axes``: fewer, shortest first, where they would be too many."""
    sizes = [1] * len(shape)
    extents = {axis: size for axis in axes if 0 <= axis < len(shape) and isinstance(size := shape[axis], int)}
    for axis, size in sorted(extents.items(), key=lambda item: item[1]):
        if math.prod(sizes) * size <= MAX_INDEX:
            sizes[axis] = size
    return tuple(sizes)


def _varying(need: Array) -> set[int]:
    return {axis for axis, size in enumerate(need.shape) if size != 1}


def _needed_axes(step: Step) -> set[int]:
    return {axis for need in step.needs if need is not None for axis in _varying(need)}


def _uniform(step: Step) -> bool:
    """Tell whether every element of every output is needed."""
    return all(need is not None and not _varying(need) for need in step.needs)


def picks(axes_key: str) -> Rule:
    """slice, split, gather, scatter_slice: what lies along the axes named by the attribute is told apart."""

    def rule(step: Step) -> Needs:
        named = step.node.attrs[axes_key]
        axes = {named} if isinstance(named, int) else set(named)
        return _followed(step, axes | _needed_axes(step))

    return rule


def gather(step: Step) -> Needs:
    """Constant indices say what is read; an index array with several axes shifts those behind it."""
    indices = step.node.attrs.get("indices")
    if indices is None:
        return everything(step)
    axis, shift = step.node.attrs["axis"], np.ndim(indices) - 1
    back = {a if a < axis else a - shift for a in _needed_axes(step) if not axis <= a <= axis + shift}
    return _followed(step, back | {axis})


def concat(step: Step) -> Needs:
    """Each input is read where its stretch of the output is needed."""
    axis, need = step.node.attrs["axis"], step.need
    if need.shape[axis] == 1:
        return [need] * len(step.node.inputs)
    reads: list[Array] = []
    start = 0
    for shape in step.in_shapes:
        size = None if shape is None else shape[axis]
        if not isinstance(size, int):
            return everything(step)
        reads.append(narrow(need[(slice(None),) * axis + (slice(start, start + size),)]))
        start += size
    return reads


def transpose(step: Step) -> Needs:
    """The same permutation, backward."""
    return [step.need.transpose(np.argsort(step.node.attrs["perm"]))]


def reshape(step: Step) -> Needs:
    """The groups of axes along which the need varies are followed back."""
    before, after = step.in_shapes[0], step.out_shapes[0]
    if _uniform(step) or before is None or after is None:
        return everything(step)
    groups, varied = factor(before, after) or [], _needed_axes(step)
    axes = {axis for ins, outs in groups if varied & set(outs) for axis in ins}
    return _followed(step, axes)


def moved(step: Step) -> Needs:
    """tile, space_to_depth, im2col: the axes along which the need varies are followed back."""
    if _uniform(step):
        return everything(step)
    axes = {1} if step.node.op != "tile" else {a - step.need.ndim + step.rank_of(0) for a in _needed_axes(step)}
    return _followed(step, axes)


def pad(step: Step) -> Needs:
    """What is cropped away is not read, nor what lands where nothing is needed."""
    pads, rank = step.node.attrs["pads"], step.rank_of(0)
    axes = _needed_axes(step) | {axis for axis in range(rank) if min(pads[axis], pads[rank + axis]) < 0}
    return _followed(step, axes) if axes else everything(step)


def depth_to_space(step: Step) -> Needs:
    """The block² channels that make a needed channel's pixels are read."""
    block = step.node.attrs["block"]
    need = any_along(step.need, others(step.need.ndim, 1))
    if need.size == 1:
        return [need]
    spread = np.repeat if step.node.attrs["mode"] == "CRD" else np.tile
    return [along(spread(need.ravel(), block * block), 1, need.ndim)]


LIVENESS_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "conv": conv,
        "conv_transpose": conv,
        "matmul": matmul,
        "attention": attention,
        "rnn": everything,
        "batch_norm": batch_norm,
        "instance_norm": instance_norm,
        "group_norm": group_norm,
        "layer_norm": mixing,
        "lrn": mixing,
        **dict.fromkeys(UNARY, elementwise),
        **dict.fromkeys(BINARY, elementwise),
        "prelu": first_like_output,
        "where": where,
        "reshape": reshape,
        "transpose": transpose,
        "slice": picks("axes"),
        "split": picks("axis"),
        "concat": concat,
        "gather": gather,
        "expand": elementwise,
        "tile": moved,
        "pad": pad,
        "depth_to_space": depth_to_space,
        "space_to_depth": moved,
        "im2col": moved,
        "scatter_slice": picks("axis"),
        "full": nothing,
        **dict.fromkeys(("max_pool", "avg_pool", "resize"), channelwise),
        "sample": sample,
        "max_unpool": max_unpool,
        "linear": linear,
        "quantize": first_like_output,
        "dequantize": first_like_output,
        "dynamic_quantize": everything,
        "reduce": reduce,
        "along": mixing,
        "arg_reduce": reduce,
        "shape_of": nothing,
        "opaque": everything,
    }
)
