"""Legalisation: give back channels until a keep mask can be carried out.

Owns the demands that go beyond single classes: equal counts in the groups of a grouped convolution, at
least one channel wherever a node still runs. Each only ever keeps more, so applying them in turn ends. Round
counts are widths.py's.
"""

from __future__ import annotations

import numpy as np

from prunec.ir.arrays import Floats, Ids, Mask
from prunec.ir.graph import Node
from prunec.ir.labels import Balance, ChannelClasses, distinct
from prunec.passes.selection.needs import Needs, Sweep
from prunec.passes.selection.widths import ANY, Widths


def legalise(sweep: Sweep, keep: Mask, priority: Floats, widths: Widths = ANY) -> tuple[Mask, dict[str, Mask], Needs]:
    """Return the smallest superset of ``keep`` found that can be carried out, and what each demand gave back.

    Args:
        sweep: of the graph that is pruned.
        keep: bool[num_classes].
        priority: float64[num_classes]; of channels that would do, the highest is given back.
        widths: in which steps the groups of a grouped convolution change.

    Returns:
        The mask; node name -> bool[num_classes] of the classes given back at that node; what still runs then.
    """
    classes = sweep.classes
    keep = keep.copy()
    given: dict[str, Mask] = {}
    while True:
        before = keep.copy()
        for balance in classes.balances:
            _record(given, balance.node.name, _balance(balance, classes, keep, priority, widths))
        kept = sweep.kept(keep)
        wanted, empty = sweep(kept), kept.empty()
        for node in sweep.holding(empty):  # what a reader gets back, its source need not, too
            if node.name in wanted.nodes:
                _record(given, node.name, _fill(node, wanted, classes, keep, priority, empty))
        if (keep == before).all():
            return keep, given, wanted


def _record(given: dict[str, Mask], name: str, mask: Mask | None) -> None:
    if mask is not None:
        given[name] = given.get(name, False) | mask


def _balance(balance: Balance, classes: ChannelClasses, keep: Mask, priority: Floats, widths: Widths) -> Mask | None:
    """Give back channels (in place) until every convolution group that survives has the same counts."""
    before = keep.copy()
    sides = [classes.class_of[ids] for ids in (balance.in_ids, balance.out_ids)]
    alive = keep[sides[0]].any(axis=1) | keep[sides[1]].any(axis=1)
    for side, step in zip(sides, widths.within(balance.node.name), strict=True):
        rows = side[alive]
        while rows.size:
            counts = keep[rows].sum(axis=1)
            target = min(-(-max(1, int(counts.max())) // step) * step, rows.shape[1])
            short = np.flatnonzero(counts < target)
            if not short.size:
                break
            row = rows[short[0]]
            _give_back(row[~keep[row]], target - int(counts[short[0]]), keep, priority)
    return _difference(before, keep)


def _give_back(candidates: Ids, count: int, keep: Mask, priority: Floats) -> None:
    order = np.argsort(-priority[candidates], kind="stable")
    keep[candidates[order[:count]]] = True


def _difference(before: Mask, after: Mask) -> Mask | None:
    changed = after & ~before
    return changed if changed.any() else None


def _fill(
    node: Node, wanted: Needs, classes: ChannelClasses, keep: Mask, priority: Floats, empty: set[int]
) -> Mask | None:
    """Give back one channel (in place) on every axis of a running node's tensors that would be empty.

    Args:
        empty: the identities of the fields that nothing stayed of when this node's readers had given back nothing.
    """
    before: Mask | None = None
    gone = wanted.dropped.get(node.name, ())
    names = [n for i, n in enumerate(node.inputs) if n and i not in gone and (node.name, i) not in wanted.cuts]
    for name in (*names, *(name for name in node.outputs if name)):
        for field in classes.labels[name].fields:
            owners = classes.class_of[field] if id(field) in empty else None
            if owners is not None and not keep[owners].any():
                before = keep.copy() if before is None else before
                _give_back(distinct(owners), 1, keep, priority)
    return None if before is None else _difference(before, keep)
