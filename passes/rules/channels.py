"""What each op does with channel ids: the table CHANNEL_RULES, one small function per family.

The first word of each docstring says which of four things a rule does: move, unify, contract or
refuse. A rule sees labels and attributes only; it knows no framework and no other op. To teach prunec
an op: name it in prunec/ir/ops.py, map it in a frontend, and give it a row in each table of this folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from prunec.ir.graph import Dim, Node, Shape
from prunec.ir.labels import Ids, Label, Ties, spread, varying
from prunec.ir.ops import BINARY, UNARY
from prunec.passes.rules.arrays import passed
from prunec.passes.rules.moves import MOVES, factor, reshape_array

Rule = Callable[[Node, Sequence[Label], Sequence[Shape | None], Ties], Sequence[Label]]
"""(node, label per input, shape per output, ties) -> label per output. Absent inputs have Label(None).

All other inputs and outputs have a rank, but for the ops in ``RANKLESS``; any size may be open.
"""

RANKLESS = frozenset({"conv", "conv_transpose", "shape_of", "opaque"})
"""Ops whose rules take values of unknown rank; of the others ``unranked`` is asked there."""

OPEN_GROUPS = "is read or made by a grouped convolution whose number of channels is not known"
TAPS = "kernel taps are not channels"
NO_RANK = "reads or makes a value of unknown rank"
SPATIAL = "a spatial position is not a channel"


def vector(label: Label, axis: int, ties: Ties) -> Ids:
    """Return int64[size] ids along one axis, zeros where it has none.

    Ids of one index that differ along other axes are tied; a second field on the axis is pinned.
    """
    if label.shape is None:
        return np.zeros(1, dtype=np.int64)
    fields = label.on(axis)
    if not fields:
        size = label.shape[axis]
        return np.zeros(size if isinstance(size, int) else 1, dtype=np.int64)
    if len(fields) > 1:
        ties.pin(fields[1:], "two labelled axes were merged into one")
    return ties.tie_along(fields[0], [axis]).ravel()


def pin_all(labels: Sequence[Label], ties: Ties, reason: str) -> None:
    """Pin everything that the labels carry."""
    ties.pin([field for label in labels for field in label.fields], reason)


def _pin_other_axes(label: Label, axes: Sequence[int], ties: Ties, reason: str) -> None:
    """Pin the fields that vary along none of ``axes``."""
    ties.pin([f for f in label.fields if all(f.shape[axis] == 1 for axis in axes)], reason)


def _to_rank(label: Label, rank: int) -> Label:
    """Prepend axes of size 1, as numpy broadcasting does."""
    if label.shape is None or len(label.shape) == rank:
        return label
    ones = (1,) * (rank - len(label.shape))
    return Label(ones + label.shape, tuple(field.reshape(ones + field.shape) for field in label.fields))


# --- contract ---------------------------------------------------------------------------------------


def conv(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Contract: input channels end at the weight's axis 1; the output carries the ids of its axis 0.

    A depthwise convolution passes its input's ids through; a grouped one, and one that makes several channels of each,
    asks for balance.
    """
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else Label(None)
    _pin_other_axes(x, [1], ties, SPATIAL)
    ties.pin([f for f in weight.fields if math.prod(f.shape[2:]) != 1], TAPS)
    groups = node.attrs["conv_groups"]
    in_ids, out_ids = vector(x, 1, ties), vector(weight, 0, ties)
    if groups == 1:
        ties.unify(in_ids, vector(weight, 1, ties))
    else:
        pin_all([Label(weight.shape, weight.on(1))], ties, TAPS)
        if out_ids.size == groups and in_ids.size in (1, groups):  # 1: the input's channel axis is not known
            ties.unify(in_ids, out_ids)
        elif in_ids.size % groups or out_ids.size % groups:
            ties.pin([in_ids, out_ids], OPEN_GROUPS)
        else:
            ties.balance(in_ids.reshape(groups, -1), out_ids.reshape(groups, -1))
    ties.channel(out_ids)
    if bias.shape is not None:
        ties.unify(vector(bias, 0, ties), out_ids)
    return [_made(outputs[0], out_ids, ties)]


def _made(shape: Shape | None, ids: Ids, ties: Ties) -> Label:
    if shape is None:
        ties.pin(ids, NO_RANK)
        return Label(None)
    return Label.along(shape, 1, ids)


def conv_transpose(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Contract: input channels end at the weight's axis 0; the output carries the ids of its axis 1.

    With groups the weight's axis 1 is shared by the groups, so the output gets ids of its own.
    """
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else Label(None)
    _pin_other_axes(x, [1], ties, SPATIAL)
    ties.pin([f for f in weight.fields if math.prod(f.shape[2:]) != 1], TAPS)
    groups = node.attrs["conv_groups"]
    in_ids = vector(weight, 0, ties)
    ties.unify(vector(x, 1, ties), in_ids)
    per_group = vector(weight, 1, ties)
    if groups == 1:
        out_ids = per_group
    else:
        ties.pin(per_group, TAPS)
        if in_ids.size == groups and per_group.size == 1:
            out_ids = in_ids
        else:
            out_ids = ties.fresh(groups * per_group.size)
            if in_ids.size % groups:
                ties.pin([in_ids, out_ids], OPEN_GROUPS)
            else:
                ties.balance(in_ids.reshape(groups, -1), out_ids.reshape(groups, -1))
    ties.channel(out_ids)
    if bias.shape is not None:
        ties.unify(vector(bias, 0, ties), out_ids)
    return [_made(outputs[0], out_ids, ties)]


def matmul(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Contract: a[..., M, K] and b[..., K, N] meet on K; the output carries a's ids on M and b's on N."""
    a = _swapped(inputs[0], bool(node.attrs.get("transpose_a")))
    b = _swapped(inputs[1], bool(node.attrs.get("transpose_b")))
    out_shape = _known(outputs[0])
    lone_a, lone_b = a.rank == 1, b.rank == 1
    if lone_b:
        b = Label((*_known(b.shape), 1), tuple(field.reshape(-1, 1) for field in b.fields))
    rank = max(a.rank, b.rank, 2)
    a, b = _to_rank(a, rank), _to_rank(b, rank)
    _meet(_contracted(a, rank - 1, rank - 2, ties), _contracted(b, rank - 2, rank - 1, ties), ties)
    if inputs[1].rank == 2:
        ties.channel(vector(b, rank - 1, ties))
    fields = [
        field
        for operand, free, gone in ((a, rank - 2, rank - 1), (b, rank - 1, rank - 2))
        for field in operand.fields
        if field.shape[free] != 1 and field.shape[gone] == 1
    ]
    fields.extend(_batch_fields(a, b, out_shape, ties))
    drop = [axis for axis, gone in ((rank - 2, lone_a), (rank - 1, lone_b)) if gone]
    product = Label(out_shape, tuple(np.squeeze(field, axis=tuple(drop)) if drop else field for field in fields))
    if len(inputs) > 2 and inputs[2].shape is not None:
        return [merge([product, inputs[2]], out_shape, ties)]
    return [product]


def _batch_fields(a: Label, b: Label, out_shape: Shape, ties: Ties) -> tuple[Ids, ...]:
    """Unify the ids that lie along the batch axes of a matrix product: it takes one product for each."""
    rank = a.rank
    batches = [
        Label((*_known(v.shape)[: rank - 2], 1, 1), tuple(f for f in v.fields if f.shape[rank - 2 :] == (1, 1)))
        for v in (a, b)
    ]
    return merge(batches, (*(1,) * (rank - len(out_shape)), *out_shape), ties).fields if rank > 2 else ()


def _swapped(label: Label, swap: bool) -> Label:
    if not swap or label.shape is None:
        return label
    shape = (*label.shape[:-2], label.shape[-1], label.shape[-2])
    return Label(shape, tuple(np.swapaxes(field, -1, -2) for field in label.fields))


def _contracted(label: Label, axis: int, free: int, ties: Ties) -> Ids | None:
    """Return the ids on the contracted axis, that axis last and the free axis gone; None where unlabelled."""
    fields = label.on(axis)
    if not fields:
        return None
    ties.pin(fields[1:], "two labelled axes were merged into one")
    field = ties.tie_along(fields[0], [other for other in range(label.rank) if other != free])
    return np.moveaxis(field, axis, -1).squeeze(-2) if axis < free else field.squeeze(free)


def _meet(a_ids: Ids | None, b_ids: Ids | None, ties: Ties) -> None:
    reason = "is summed against an operand that has no channels of its own"
    if a_ids is not None and b_ids is not None:
        ties.unify(a_ids, b_ids, reason)
    else:
        ties.pin([ids for ids in (a_ids, b_ids) if ids is not None], reason)


def _extent(label: Label, axis: int) -> Dim:
    assert label.shape is not None
    return label.shape[axis]


def attention(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Contract: q and k meet on their last axis; the output carries v's ids on its last axis."""
    q, k, v = inputs[:3]
    last = q.rank - 1
    lone = [label.on(last) for label in (q, k)]
    if lone[0] and lone[1]:
        ties.unify(
            ties.tie_along(lone[0][0], [axis for axis in range(q.rank) if axis != last - 1]),
            ties.tie_along(lone[1][0], [axis for axis in range(k.rank) if axis != last - 1]),
        )
    else:
        ties.pin([*lone[0], *lone[1]], "is summed against an operand that has no channels of its own")
    passed = v.on(v.rank - 1)
    for label in (q, k, v):
        ties.pin([field for field in label.fields if field.shape[-1] == 1], "attention mixes positions")
    pin_all(inputs[3:], ties, "an attention mask is not made of channels")
    return [Label(outputs[0], passed)]


def rnn(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Contract: x[..., I] ends at W[dirs, gates·H, I]; the recurrent state is refused."""
    x, weight, *rest = inputs
    ties.unify(vector(x, x.rank - 1, ties), vector(weight, weight.rank - 1, ties))
    _pin_other_axes(x, [x.rank - 1], ties, "a recurrent layer mixes positions")
    _pin_other_axes(weight, [weight.rank - 1], ties, "a recurrent state feeds itself")
    pin_all(rest, ties, "a recurrent state feeds itself")
    return [Label(shape) for shape in outputs]


# --- unify ------------------------------------------------------------------------------------------


def merge(labels: Sequence[Label], out_shape: Shape, ties: Ties) -> Label:
    """Unify operands that broadcast against each other; return the label of the result.

    An operand of size 1 on an axis does not hinder removal there. One that has positions but no ids
    on the axis pins the ids of the others: it cannot give the position up.
    """
    rank = len(out_shape)
    labels = [_to_rank(label, rank) for label in labels]
    kept: list[Ids] = []
    for index, label in enumerate(labels):
        # Axes that were merged into one keep a field each: those of one operand are not tied to one another.
        met, own = list(range(len(kept))), list[Ids]()
        for field in label.fields:
            if not _absorb(field, kept, met, ties):
                own.append(field)
        kept.extend(own)
        for field in label.fields:
            for other in labels[:index] + labels[index + 1 :]:
                _check_room(field, other, ties)
    return Label(out_shape, tuple(kept))


def _absorb(field: Ids, kept: list[Ids], met: list[int], ties: Ties) -> bool:
    """Unify ``field`` with a field of the result that varies along the same, or nested, axes.

    Args:
        met: places in ``kept`` that come from other operands; one that this operand has met goes to the end.
    """
    axes = set(varying(field))
    for position in list(met):
        other = kept[position]
        other_axes = set(varying(other))
        if axes == other_axes or axes < other_axes or axes > other_axes:
            ties.unify(field, other)
            met.remove(position)
            met.append(position)
            if axes > other_axes:
                kept[position] = field
            return True
        if axes & other_axes:
            ties.pin([field, other], "its operands label overlapping axes in different ways")
            return True
    return False


def _check_room(field: Ids, other: Label, ties: Ties) -> None:
    """Pin ``field`` where ``other`` has positions along its axes, but no ids that could go with it."""
    axes = [axis for axis in varying(field) if _extent(other, axis) != 1]
    if axes and not any(other_field.shape[axis] != 1 for other_field in other.fields for axis in axes):
        ties.pin(field, "meets an axis that has no channels of its own (an input, or a computed tensor)")


def elementwise(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Unify the operands along the axes on which they line up."""
    return [merge([label for label in inputs if label.shape is not None], _known(outputs[0]), ties)]


def unary(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: each element stays where it is. Further inputs (bounds of a clip) unify like any operand."""
    if len(inputs) > 1:
        return elementwise(node, inputs, outputs, ties)
    return [Label(outputs[0], inputs[0].fields)]


def prelu(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Unify: a slope per channel lies along attribute ``axis`` where it has one axis only."""
    x, slope = inputs
    axis = node.attrs.get("axis")
    if axis is None or slope.rank != 1:
        return elementwise(node, inputs, outputs, ties)
    shape = tuple(_extent(slope, 0) if i == axis else 1 for i in range(x.rank))
    along = Label(shape, tuple(spread(field.ravel(), axis, x.rank) for field in slope.fields))
    return [merge([x, along], _known(outputs[0]), ties)]


def per_channel(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Unify: vectors (gamma, beta, statistics, scales) with the axis that they lie along."""
    x, *vectors = inputs
    axis = node.attrs.get("axis", 1)
    labelled = [v for v in vectors if v.shape is not None and v.rank == 1 and v.shape[0] != 1]
    pin_all([v for v in vectors if v.shape is not None and v.rank > 1], ties, "a blocked scale is not per channel")
    if not labelled:
        return [Label(outputs[0], x.fields), *(Label(shape) for shape in outputs[1:])]
    ids = vector(x, axis, ties)
    for v in labelled:
        ties.unify(ids, vector(v, 0, ties))
    others = tuple(field for field in x.fields if field.shape[axis] == 1)
    return [
        Label(outputs[0], (*Label.along(_known(x.shape), axis, ids).fields, *others)),
        *(Label(s) for s in outputs[1:]),
    ]


def batch_norm(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Unify, as ``per_channel``; with statistics of its own it averages over the other axes, which are refused."""
    x, axis = inputs[0], node.attrs.get("axis", 1)
    if node.attrs.get("training") or len(node.inputs) < 5 or not (node.inputs[3] and node.inputs[4]):
        own = "averages over its positions: its statistics are those of its input"
        ties.pin([field for field in x.fields if any(other != axis for other in varying(field))], own)
    return per_channel(node, inputs, outputs, ties)


def dynamic_quantize(
    node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties
) -> Sequence[Label]:
    """Move: each element stays where it is; the scale, which spans them all, is not made of channels."""
    return [Label(shape, inputs[0].fields if i == 0 else ()) for i, shape in enumerate(outputs)]


def instance_norm(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Unify gamma and beta with the channel axis; what it averages over goes together, or is refused."""
    axis = node.attrs.get("axis", 1)
    x = inputs[0]
    ties.pin([f for f in x.fields if f.shape[axis] == 1 and any(a > axis for a in varying(f))], SPATIAL)
    return per_channel(node, inputs, outputs, ties)


def group_norm(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Unify gamma and beta with the channel axis; the channels of a group, which it averages over, go together."""
    x, axis, groups = inputs[0], node.attrs.get("axis", 1), node.attrs["num_groups"]
    size = _extent(x, axis)
    if not isinstance(size, int) or size % groups or groups == 1 < size:
        pin_all(inputs, ties, "GroupNorm averages over the channels of a group")
        return [Label(shape, x.fields if i == 0 else ()) for i, shape in enumerate(outputs)]
    if x.on(axis):
        members = vector(x, axis, ties).reshape(groups, -1)
        ties.unify(members, members[:, :1])
    return instance_norm(node, inputs, outputs, ties)


def layer_norm(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Refuse the axes that it averages over; the others pass."""
    x, *vectors = inputs
    axes = node.attrs["axes"]
    reason = "LayerNorm averages over its channels"
    ties.pin([f for f in x.fields if any(f.shape[axis] != 1 for axis in axes)], reason)
    pin_all(vectors, ties, reason)
    return [Label(shape, x.fields if i == 0 else ()) for i, shape in enumerate(outputs)]


# --- refuse -----------------------------------------------------------------------------------------


def mixes(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Refuse the axes that are mixed (softmax, LRN, cumulative sum); channels on the others pass."""
    x = inputs[0]
    axes = node.attrs.get("axes") or [node.attrs.get("axis", 1)]
    kind = node.attrs.get("kind", node.op)
    fields = _across(x, axes, ties, f"{kind} mixes its channels")
    pin_all(inputs[1:], ties, f"is read by {kind}")
    return [Label(shape, fields if i == 0 else ()) for i, shape in enumerate(outputs)]


def _across(x: Label, axes: Sequence[int], ties: Ties, reason: str) -> tuple[Ids, ...]:
    """Return the fields of ``x`` without their ids along ``axes``, which an op mixes.

    A field that varies elsewhere too (heads, branches) has its ids tied along ``axes``: all positions that are
    mixed go together, or stay. One that varies along ``axes`` only is pinned.
    """
    ties.pin([f for f in x.fields if varying(f) and set(varying(f)) <= set(axes)], reason)
    passed = [f for f in x.fields if not set(varying(f)) <= set(axes)]
    return tuple(ties.tie_along(f, [axis for axis in range(x.rank) if axis not in axes]) for f in passed)


def reduces(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Refuse the axes that are reduced away; channels on the others pass.

    The norm of a weight whose gain is rescaled (passes/weight_norms.py) can give up elements: nothing is refused.
    """
    x = inputs[0]
    axes = sorted(node.attrs["axes"])
    kind = node.attrs.get("kind", node.op)
    if node.attrs.get("rescaled"):
        fields = tuple(field for field in x.fields if all(field.shape[axis] == 1 for axis in axes))
    else:
        fields = _across(x, axes, ties, node.attrs.get("reason") or f"{kind} runs over its channels")
    if not node.attrs.get("keepdims", True):
        fields = tuple(np.squeeze(field, axis=tuple(axes)) for field in fields)
    return [Label(shape, fields) for shape in outputs]


def unranked(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Refuse everything: without a rank nobody can tell where channels lie."""
    pin_all(inputs, ties, NO_RANK)
    return [Label(shape) for shape in outputs]


def opaque(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Refuse everything: prunec does not know this op, or does not look inside it."""
    pin_all(inputs, ties, node.attrs.get("reason") or f"prunec has no rule for {node.source or node.op}")
    return [Label(shape) for shape in outputs]


def shape_of(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Refuse: a channel count that is read as data must not change."""
    pin_all(inputs, ties, "its shape is read as data")
    return [Label(shape) for shape in outputs]


# --- move -------------------------------------------------------------------------------------------


def channelwise(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: channels pass, positions do not (pooling, resizing, sampling)."""
    x, *rest = inputs
    spatial = node.attrs.get("spatial_axes")
    if spatial is None:
        spatial = range(2, x.rank)
    mixed = [f for f in x.fields if any(f.shape[axis] != 1 for axis in spatial)]
    ties.pin(mixed, SPATIAL)
    pin_all(rest, ties, f"is read by {node.source or node.op}")
    fields = x.without(mixed).fields
    return [Label(shape, fields) for shape in outputs]


def max_unpool(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Unify the channels of a map with those of the indices that its elements go to; positions do not pass."""
    spatial = node.attrs["spatial_axes"]
    mixed = [[f for f in label.fields if any(f.shape[axis] != 1 for axis in spatial)] for label in inputs]
    ties.pin([field for fields in mixed for field in fields], SPATIAL)
    rest = [
        Label(tuple(1 if axis in spatial else size for axis, size in enumerate(_known(v.shape))), v.without(m).fields)
        for v, m in zip(inputs, mixed, strict=True)
    ]
    after = _known(outputs[0])
    met = merge(rest, tuple(1 if axis in spatial else size for axis, size in enumerate(after)), ties)
    return [Label(after, met.fields)]


def linear(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move along the axes that pass; refuse, or tie, along those that are mixed."""
    x, axes = inputs[0], node.attrs["passes"]
    mixed = [axis for axis in range(x.rank) if axis not in [before for before, _ in axes]]
    fields = _across(x, mixed, ties, f"{node.source or node.op} runs over its channels")
    rank = len(_known(outputs[0]))
    return [Label(outputs[0], tuple(passed(field, axes, rank) for field in fields))]


def reshape(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move. What survives of an axis that is split must be rectangular; a merge with the batch ties or refuses."""
    x, before, after = inputs[0], _known(inputs[0].shape), _known(outputs[0])
    groups = factor(before, after) or []
    with_batch = {a for ins, _ in groups if 0 in ins and before[0] != 1 and len(ins) > 1 for a in ins}
    fields = []
    for field in x.fields:
        rest = [axis for axis in varying(field) if axis not in with_batch]
        if rest and len(rest) < len(varying(field)):
            field = ties.tie_along(field, rest)  # attention heads merged with the batch: the heads lose the same slots
        moved = reshape_array(field, before, after) if rest else None
        if moved is None and rest:
            moved = _past_open_sizes(field, groups, after, ties)
        if moved is None:
            ties.pin(field, "is merged with the batch or with an axis of open size")
            continue
        fields.append(moved)
    return [Label(after, tuple(fields))]


def _past_open_sizes(
    field: Ids, groups: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], after: Shape, ties: Ties
) -> Ids | None:
    """Move ids along the first or last of several axes, some of them open, that become others.

    (64, H, W) -> (8, 8·H·W): each new row is made of several old ones, which are tied, or is a part of one.
    (L, N, 24) -> (L, 4·N, 6), attention heads merged with an open batch: the heads lose the same slots.
    None where it is neither.
    """
    axis = varying(field)[0]
    ins, outs = next(group for group in groups if axis in group[0])
    if varying(field) != (axis,) or axis not in (ins[0], ins[-1]) or len(outs) < 2:
        return None
    first = axis == ins[0]
    at = outs[0] if first else outs[-1]
    size, new = field.shape[axis], after[at]
    ids = field.ravel()
    if not isinstance(new, int) or (size % new and new % size):
        return None
    if new >= size:
        return spread(np.repeat(ids, new // size) if first else np.tile(ids, new // size), at, len(after))
    rows = ids.reshape(new, -1) if first else ids.reshape(-1, new).T
    ties.unify(rows, rows[:, :1])
    return spread(rows[:, 0].copy(), at, len(after))


def moves(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move the ids as the op moves the elements (transpose, slice, split, space to depth, im2col)."""
    x = inputs[0]
    results: list[list[Ids]] = [[] for _ in outputs]
    for field in x.fields:
        moved = MOVES[node.op](node, [field], [_known(x.shape)], [_known(shape) for shape in outputs], 0)
        if moved is None:
            ties.pin(field, "its channels move in a way that prunec cannot follow")
            continue
        for result, part in zip(results, moved, strict=True):
            if varying(part):
                result.append(part)
            else:
                ties.pin(part, "is picked out by its index")
    return [Label(shape, tuple(result)) for shape, result in zip(outputs, results, strict=True)]


def gather(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move along constant indices; refuse indices that are computed."""
    x = inputs[0]
    if node.attrs.get("indices") is None:
        return opaque(node, inputs, outputs, ties)
    if np.ndim(node.attrs["indices"]) != 1:
        axis, indices = node.attrs["axis"], np.asarray(node.attrs["indices"])
        for field in x.on(axis):
            if varying(field) == (axis,):
                ties.pin(field.take(indices, axis=axis), "is picked out by its index")
    return moves(node, inputs[:1], outputs, ties)


def concat(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: ids lie end to end along the axis, and are unified across the operands elsewhere."""
    axis, out_shape = node.attrs["axis"], _known(outputs[0])
    fields: list[Ids] = []
    main = [(label.on(axis) or (np.zeros((1,) * label.rank, dtype=np.int64),)) for label in inputs]
    for _, *others in main:
        ties.pin(others, "two labelled axes were merged into one")
    if any(first.any() for first, *_ in main):
        shapes = [_known(label.shape) for label in inputs]
        joined = MOVES["concat"](node, [first for first, *_ in main], shapes, [out_shape], 0)
        if joined is None:
            ties.pin([first for first, *_ in main], "is concatenated along an axis of open size")
        else:
            fields.append(joined[0])
    rest = [label.without(label.on(axis)) for label in inputs]
    # Along the other axes a concat is like an elementwise op: a channel goes from all operands or from none.
    free = [
        Label(tuple(1 if i == axis else s for i, s in enumerate(_known(label.shape))), label.fields) for label in rest
    ]
    if any(label.fields for label in free):
        crossing = [label for label, (first, *_) in zip(inputs, main, strict=True) if len(varying(first)) > 1]
        if crossing:
            pin_all(inputs, ties, "its operands label overlapping axes in different ways")
        fields.extend(merge(free, tuple(1 if i == axis else s for i, s in enumerate(out_shape)), ties).fields)
    return [Label(out_shape, tuple(fields))]


def expand(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move; an axis grown from size 1 gets ids of its own, for its size can be rewritten."""
    x, after = inputs[0], _known(outputs[0])
    label = _to_rank(x, len(after))
    grown = [
        spread(ties.fresh(size), axis, len(after))
        for axis, size in enumerate(after)
        if axis > 0 and isinstance(size, int) and size > 1 and _extent(label, axis) == 1
    ]
    if node.op == "tile":
        moved = MOVES["tile"]
        shapes: tuple[list[Shape], list[Shape]] = ([_known(x.shape)], [after])
        return [Label(after, (*(m for f in label.fields for m in moved(node, [f], *shapes, 0) or ()), *grown))]
    return [Label(after, (*label.fields, *grown))]


def pad(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move; positions added to a labelled axis get ids of their own, for their number can be rewritten."""
    x, before, after = inputs[0], _known(inputs[0].shape), _known(outputs[0])
    pads = node.attrs["pads"]
    fields = []
    for field in x.fields:
        axes = [axis for axis in varying(field) if pads[axis] or pads[x.rank + axis]]
        if axes and (len(varying(field)) > 1 or node.attrs.get("mode", "constant") != "constant"):
            ties.pin(field, "is padded in a way that prunec cannot rewrite")
        moved = MOVES["pad"](node, [field], [before], [after], 0)
        assert moved is not None, "padding can always be followed"
        new = moved[0]
        if axes and node.attrs.get("mode", "constant") == "constant":
            inside = MOVES["pad"](node, [np.ones(field.shape, dtype=bool)], [before], [after], False)
            assert inside is not None, "padding can always be followed"
            new = new.copy()
            new[~inside[0]] = ties.fresh(int((~inside[0]).sum()))
        fields.append(new)
    return [Label(after, tuple(fields))]


def depth_to_space(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: the block² channels that become one channel's pixels are tied, and go together."""
    x, after = inputs[0], _known(outputs[0])
    ids, block = vector(x, 1, ties), node.attrs["block"]
    _pin_other_axes(x, [1], ties, SPATIAL)
    if not x.on(1):
        return [Label(after)]
    pixels = ids.reshape(-1, block * block) if node.attrs["mode"] == "CRD" else ids.reshape(block * block, -1).T
    ties.unify(pixels, pixels[:, :1])
    return [Label.along(after, 1, pixels[:, 0].copy())]


def scatter_slice(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: ``source``'s ids replace ``base``'s between start and end.

    Those that are replaced are unified with them: the result has the shape of ``base``, which gives up the same
    positions. Along the other axes both give up the same ones.
    """
    base, source = inputs
    after, axis = _known(outputs[0]), node.attrs["axis"]
    outer = [
        Label(tuple(1 if i == axis else s for i, s in enumerate(_known(v.shape))), v.without(v.on(axis)).fields)
        for v in inputs
    ]
    fields = list(merge(outer, tuple(1 if i == axis else s for i, s in enumerate(after)), ties).fields)
    if base.on(axis) or source.on(axis):
        for label in inputs:
            ties.pin([f for f in label.on(axis) if len(varying(f)) > 1], "is overwritten in part")
        ids = [spread(vector(label, axis, ties), axis, base.rank) for label in inputs]
        moved = MOVES["scatter_slice"](node, ids, [_known(v.shape) for v in inputs], [after], 0)
        if moved is None:
            ties.pin(ids, "is overwritten along an axis of open size")
        else:
            fields.extend(moved)
            replaced = vector(base, axis, ties)[node.attrs["start"] : node.attrs["end"] : node.attrs["step"]]
            ties.unify(replaced, vector(source, axis, ties), "is overwritten in part")
    return [Label(after, tuple(fields))]


def full(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: a tensor of one value gets ids of its own on every axis but the batch, for its shape can be rewritten."""
    after = _known(outputs[0])
    fields = [
        spread(ties.fresh(size), axis, len(after))
        for axis, size in enumerate(after)
        if axis > 0 and isinstance(size, int) and size > 1
    ]
    return [Label(after, tuple(fields))]


def _known(shape: Shape | None) -> Shape:
    assert shape is not None, "the rule was reached with a value of unknown rank"
    return shape


CHANNEL_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "conv": conv,
        "conv_transpose": conv_transpose,
        "matmul": matmul,
        "attention": attention,
        "rnn": rnn,
        "batch_norm": batch_norm,
        "instance_norm": instance_norm,
        "group_norm": group_norm,
        "layer_norm": layer_norm,
        "lrn": mixes,
        **dict.fromkeys(UNARY, unary),
        **dict.fromkeys(BINARY, elementwise),
        "prelu": prelu,
        "where": elementwise,
        "reshape": reshape,
        "transpose": moves,
        "slice": moves,
        "split": moves,
        "concat": concat,
        "gather": gather,
        "expand": expand,
        "tile": expand,
        "pad": pad,
        "depth_to_space": depth_to_space,
        "space_to_depth": moves,
        "im2col": moves,
        "scatter_slice": scatter_slice,
        "full": full,
        **dict.fromkeys(("max_pool", "avg_pool", "resize", "sample"), channelwise),
        "max_unpool": max_unpool,
        "linear": linear,
        "quantize": per_channel,
        "dequantize": per_channel,
        "dynamic_quantize": dynamic_quantize,
        "reduce": reduces,
        "arg_reduce": reduces,
        "along": mixes,
        "shape_of": shape_of,
        "opaque": opaque,
    }
)
