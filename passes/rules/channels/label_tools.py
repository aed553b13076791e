"""What every channel rule is made of: its signature, ids along an axis, pins, and operands that broadcast.

Does not know any op: those are in the other files of this room, and ``table.py`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prunec.ir.arrays import Ids
from prunec.ir.graph import Dim, Node, Shape
from prunec.ir.labels import Label, Ties, varying

Rule = Callable[[Node, Sequence[Label], Sequence[Shape | None], Ties], Sequence[Label]]
"""(node, label per input, shape per output, ties) -> label per output. Absent inputs have Label(None).

All other inputs and outputs have a rank, but for the ops in ``RANKLESS``; any size may be open.
"""

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


def pin_other_axes(label: Label, axes: Sequence[int], ties: Ties, reason: str) -> None:
    """Pin the fields that vary along none of ``axes``."""
    ties.pin([f for f in label.fields if all(f.shape[axis] == 1 for axis in axes)], reason)


def to_rank(label: Label, rank: int) -> Label:
    """Prepend axes of size 1, as numpy broadcasting does."""
    if label.shape is None or len(label.shape) == rank:
        return label
    ones = (1,) * (rank - len(label.shape))
    return Label(ones + label.shape, tuple(field.reshape(ones + field.shape) for field in label.fields))


def extent(label: Label, axis: int) -> Dim:
    """Return the size of one axis of a label of known rank; None or a symbol where it is open."""
    assert label.shape is not None
    return label.shape[axis]


def merge(labels: Sequence[Label], out_shape: Shape, ties: Ties) -> Label:
    """Unify operands that broadcast against each other; return the label of the result.

    An operand of size 1 on an axis does not hinder removal there. One that has positions but no ids
    on the axis pins the ids of the others: it cannot give the position up.
    """
    rank = len(out_shape)
    labels = [to_rank(label, rank) for label in labels]
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
    axes = [axis for axis in varying(field) if extent(other, axis) != 1]
    if axes and not any(other_field.shape[axis] != 1 for other_field in other.fields for axis in axes):
        ties.pin(field, "meets an axis that has no channels of its own (an input, or a computed tensor)")


def across(x: Label, axes: Sequence[int], ties: Ties, reason: str) -> tuple[Ids, ...]:
    """Return the fields of ``x`` without their ids along ``axes``, which an op mixes.

    A field that varies elsewhere too (heads, branches) has its ids tied along ``axes``: all positions that are
    mixed go together, or stay. One that varies along ``axes`` only is pinned.
    """
    ties.pin([f for f in x.fields if varying(f) and set(varying(f)) <= set(axes)], reason)
    passed = [f for f in x.fields if not set(varying(f)) <= set(axes)]
    return tuple(ties.tie_along(f, [axis for axis in range(x.rank) if axis not in axes]) for f in passed)


def summed(node: Node, x: Label) -> list[tuple[int, Ids]]:
    """Return the axes that a marked reduction (passes/rewrites/sums.py) sums over, each with its channels."""
    if not node.attrs.get("sums") or x.shape is None:
        return []
    fields = [(axis, x.on(axis)) for axis in node.attrs["axes"]]
    return [(axis, on[0]) for axis, on in fields if len(on) == 1 and varying(on[0]) == (axis,)]


def known(shape: Shape | None) -> Shape:
    """Return a shape that is there: rules whose op is not in ``RANKLESS`` are given ranks only."""
    assert shape is not None, "the rule was reached with a value of unknown rank"
    return shape
