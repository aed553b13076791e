"""Channel rules of what sums over channels: convolutions, matrix products, attention, recurrent layers.

Input channels end at the weight, whose other channel axis gives the output its ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prunec.ir.arrays import Ids
from prunec.ir.graph import Node, Shape
from prunec.ir.labels import Label, Ties
from prunec.passes.rules.channels.label_tools import (
    NO_RANK,
    OPEN_GROUPS,
    SPATIAL,
    TAPS,
    known,
    merge,
    pin_all,
    pin_other_axes,
    to_rank,
    vector,
)


def conv(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Contract: input channels end at the weight's axis 1; the output carries the ids of its axis 0.

    A depthwise convolution passes its input's ids through; a grouped one, and one that makes several channels of each,
    asks for balance.
    """
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else Label(None)
    pin_other_axes(x, [1], ties, SPATIAL)
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
    return [_made(outputs[0], out_ids, bias, ties)]


def _made(shape: Shape | None, ids: Ids, bias: Label, ties: Ties) -> Label:
    """Return the label of channels that a convolution makes; its bias has one element for each."""
    ties.channel(ids)
    if bias.shape is not None:
        ties.unify(vector(bias, 0, ties), ids)
    if shape is None:
        ties.pin(ids, NO_RANK)
        return Label(None)
    return Label.along(shape, 1, ids)


def conv_transpose(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Contract: input channels end at the weight's axis 0; the output carries the ids of its axis 1.

    With groups the weight's axis 1 is shared by the groups, so the output gets ids of its own.
    """
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else Label(None)
    pin_other_axes(x, [1], ties, SPATIAL)
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
    return [_made(outputs[0], out_ids, bias, ties)]


def matmul(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Contract: a[..., M, K] and b[..., K, N] meet on K; the output carries a's ids on M and b's on N."""
    a = _swapped(inputs[0], bool(node.attrs.get("transpose_a")))
    b = _swapped(inputs[1], bool(node.attrs.get("transpose_b")))
    out_shape = known(outputs[0])
    lone_a, lone_b = a.rank == 1, b.rank == 1
    if lone_b:
        b = Label((*known(b.shape), 1), tuple(field.reshape(-1, 1) for field in b.fields))
    rank = max(a.rank, b.rank, 2)
    a, b = to_rank(a, rank), to_rank(b, rank)
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
        Label((*known(v.shape)[: rank - 2], 1, 1), tuple(f for f in v.fields if f.shape[rank - 2 :] == (1, 1)))
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
    pin_other_axes(x, [x.rank - 1], ties, "a recurrent layer mixes positions")
    pin_other_axes(weight, [weight.rank - 1], ties, "a recurrent state feeds itself")
    pin_all(rest, ties, "a recurrent state feeds itself")
    return [Label(shape) for shape in outputs]
