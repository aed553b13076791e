"""Channel rules of ops whose elements stay where they are: Add and its like unify their operands."""

from __future__ import annotations

from collections.abc import Sequence

from prunec.ir.graph import Node, Shape
from prunec.ir.labels import Label, Ties, spread
from prunec.passes.rules.channels.label_tools import extent, known, merge


def elementwise(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Unify the operands along the axes on which they line up."""
    return [merge([label for label in inputs if label.shape is not None], known(outputs[0]), ties)]


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
    shape = tuple(extent(slope, 0) if i == axis else 1 for i in range(x.rank))
    along = Label(shape, tuple(spread(field.ravel(), axis, x.rank) for field in slope.fields))
    return [merge([x, along], known(outputs[0]), ties)]
