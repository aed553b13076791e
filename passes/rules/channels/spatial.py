"""Channel rules of ops that work on each channel by itself: pooling, resizing, sampling, maps of positions."""

from __future__ import annotations

from collections.abc import Sequence

from prunec.ir.graph import Node, Shape
from prunec.ir.labels import Label, Ties
from prunec.passes.rules.arrays import passed
from prunec.passes.rules.channels.label_tools import SPATIAL, across, known, merge, pin_all, vector


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


def sample(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: as ``channelwise``; where groups of channels have a grid each, the nth of all groups go together.

    Which grid a channel is sampled at is told by its place alone: as many as before have to stay in each group.
    """
    groups = node.attrs.get("groups", 1)
    if groups > 1 and inputs[0].on(1):
        ids = vector(inputs[0], 1, ties).reshape(groups, -1)
        ties.unify(ids, ids[:1])
    return channelwise(node, inputs, outputs, ties)


def max_unpool(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Unify the channels of a map with those of the indices that its elements go to; positions do not pass."""
    spatial = node.attrs["spatial_axes"]
    mixed = [[f for f in label.fields if any(f.shape[axis] != 1 for axis in spatial)] for label in inputs]
    ties.pin([field for fields in mixed for field in fields], SPATIAL)
    rest = [
        Label(tuple(1 if axis in spatial else size for axis, size in enumerate(known(v.shape))), v.without(m).fields)
        for v, m in zip(inputs, mixed, strict=True)
    ]
    after = known(outputs[0])
    met = merge(rest, tuple(1 if axis in spatial else size for axis, size in enumerate(after)), ties)
    return [Label(after, met.fields)]


def linear(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move along the axes that pass; refuse, or tie, along those that are mixed."""
    x, axes = inputs[0], node.attrs["passes"]
    mixed = [axis for axis in range(x.rank) if axis not in [before for before, _ in axes]]
    fields = across(x, mixed, ties, f"{node.source or node.op} runs over its channels")
    rank = len(known(outputs[0]))
    return [Label(outputs[0], tuple(passed(field, axes, rank) for field in fields))]
