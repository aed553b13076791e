"""Channel rules of what prunec does not prune through: mixed or reduced axes, unknown ops, shapes read as data.

What these pin is named in the report, with the reason that stands here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunec.ir.graph import Node, Shape
from prunec.ir.labels import Label, Ties
from prunec.passes.rules.channels.label_tools import NO_RANK, across, pin_all, summed


def mixes(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Refuse the axes that are mixed (softmax, LRN, cumulative sum); channels on the others pass."""
    x = inputs[0]
    axes = node.attrs.get("axes") or [node.attrs.get("axis", 1)]
    kind = node.attrs.get("kind", node.op)
    fields = across(x, axes, ties, f"{kind} mixes its channels")
    pin_all(inputs[1:], ties, f"is read by {kind}")
    return [Label(shape, fields if i == 0 else ()) for i, shape in enumerate(outputs)]


def reduces(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Refuse the axes that are reduced away; channels on the others pass.

    The norm of a weight whose gain is rescaled (passes/weight_norms.py) can give up elements: nothing is refused. A sum
    that zeros can leave (passes/rewrites/sums.py) contracts: such channels end here.
    """
    x = inputs[0]
    axes = sorted(node.attrs["axes"])
    kind = node.attrs.get("kind", node.op)
    if node.attrs.get("rescaled"):
        fields = tuple(field for field in x.fields if all(field.shape[axis] == 1 for axis in axes))
    else:
        x = x.without(field for _, field in summed(node, x))
        fields = across(x, axes, ties, node.attrs.get("reason") or f"{kind} runs over its channels")
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
