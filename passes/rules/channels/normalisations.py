"""Channel rules of normalisations and scales per channel: their vectors go with the channels that they lie along."""

from __future__ import annotations

from collections.abc import Sequence

from prunec.ir.graph import Node, Shape
from prunec.ir.labels import Label, Ties, varying
from prunec.passes.rules.channels.label_tools import SPATIAL, extent, known, pin_all, vector


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
        Label(outputs[0], (*Label.along(known(x.shape), axis, ids).fields, *others)),
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
    size = extent(x, axis)
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
