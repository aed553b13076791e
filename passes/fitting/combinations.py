"""Combinations: the order in which channels go where what stays makes up for them.

Owns the allocation over layers: the cheapest error per unit saved goes first, over all coupled groups together, and
what a class saves falls as its neighbours go. The result is one order for all budgets; selection under a budget
(passes/selection/select.py) cuts it. What a class costs comes from elimination.py. A constant (Ye et al., ICLR 2018)
is the combination of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunec.ir.arrays import Floats, Ids, Mask
from prunec.ir.contractions import conv_groups
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import ChannelClasses
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.cost import cost
from prunec.passes.fitting.elimination import Elimination, Matrix
from prunec.passes.groups import group_classes
from prunec.passes.selection.select import Facts

_PARTS = 48
"""A coupled group goes in so many parts, at most: of 2,048 channels some forty at a time, the cheapest of four times
as many, costed one after the other."""


@dataclass(frozen=True, slots=True, eq=False)
class Removals:
    """Channel classes in the order in which they go.

    Args:
        order: int64[n], the classes.
        errors: float64[n]: what each adds to the error, all before it gone.
        groups: int64[n]: the coupled group of each.
        left: float64[n]: what is left of the cost that is to be saved when it goes, as a fraction.
    """

    order: Ids
    errors: Floats
    groups: Ids
    left: Floats

    def scores(self, classes: ChannelClasses) -> Floats:
        """Return float64[num_classes]: when each class goes; infinite for those that are not in the order.

        Of a grouped convolution equal counts must go from each group: their channels go in step, at the time of the
        last of them.
        """
        result = np.full(classes.num_classes, np.inf)
        result[self.order] = np.arange(self.order.size)
        for balance in classes.balances:
            for ids in (balance.in_ids, balance.out_ids):
                rows = classes.class_of[ids]
                ranked = np.sort(result[rows], axis=1).max(axis=0)
                for row in rows:
                    result[row[np.argsort(result[row], kind="stable")]] = ranked
        return result


class Savings:
    """What removing each class saves, as a fraction of the whole; it falls as others go.

    A contraction's cost is its own times the share of its inputs and the share of its outputs that are left.
    """

    def __init__(self, graph: Graph, classes: ChannelClasses, whole: Mapping[str, float]) -> None:
        self._num = classes.num_classes
        self._total = max(sum(whole.values()), 1e-30)
        self._parts: list[tuple[float, list[tuple[Ids, int]]]] = []
        for node in graph.nodes:
            if whole.get(node.name):
                self._parts.append((whole[node.name], _sides(classes, node)))

    def per_class(self, alive: Mask) -> tuple[Floats, float]:
        """Return (float64[num_classes], what is left of the whole) under ``alive`` (bool[num_classes])."""
        saved, left = np.zeros(self._num), 0.0
        for amount, sides in self._parts:
            shares = [alive[owners].sum() / size for owners, size in sides]
            for number, (owners, size) in enumerate(sides):
                rest = amount * float(np.prod([share for other, share in enumerate(shares) if other != number]))
                np.add.at(saved, owners, rest / size)
            left += amount * float(np.prod(shares))
        return saved / self._total, left / self._total


def _sides(classes: ChannelClasses, node: Node) -> list[tuple[Ids, int]]:
    """Return the classes that a contraction makes, and those that it reads, each with how many positions there are."""
    sides = []
    for name in (node.outputs[0], node.inputs[0]):
        label = classes.labels.get(name)
        if label is None or not label.fields:
            continue
        sides.append((classes.class_of[label.fields[0].ravel()], label.fields[0].size))
    groups = conv_groups(node)
    if len(sides) == 2 and groups > 1 and groups == sides[1][1]:
        sides.pop()  # a depthwise convolution's input channel is its output channel: it counts once
    return sides


def macs_of(graph: Graph) -> Mapping[str, float]:
    """Return what each contraction computes."""
    return {name: float(macs) for name, macs in cost(graph).macs_of.items()}


def params_of(graph: Graph) -> Mapping[str, float]:
    """Return what each contraction's weight holds."""
    return {
        node.name: float(graph.params[node.inputs[1]].array.size)
        for node in graph.nodes
        if node.op in CONTRACTIONS and len(node.inputs) > 1 and node.inputs[1] in graph.params
    }


def removals(
    facts: Facts,
    matrices: Sequence[Matrix],
    free: Mask,
    whole: Mapping[str, float],
    least: float,
    progress: Callable[[float], None] = lambda _: None,
) -> Removals:
    """Order the classes by what they cost for what they save.

    Args:
        matrices: of all reads that a class's removal can be felt at.
        free: bool[num_classes]: classes that may go.
        whole: what each contraction costs (IR node name -> MACs, parameters, microseconds).
        least: go on until this fraction of the whole is left; the rest follows at the price that it has then.

    Ensures: one channel of each coupled group is never in the order.
    """
    elimination = Elimination(matrices, facts.classes.num_classes)
    savings = Savings(facts.graph, facts.classes, whole)
    group_of = np.full(facts.classes.num_classes, -1, dtype=np.int64)
    sizes = []
    for number, group in enumerate(group_classes(facts.classes)):
        group_of[list(group)] = number
        sizes.append(len(group))
    alive = np.ones(facts.classes.num_classes, dtype=bool)
    open_ = free.copy()
    left_in = np.array(sizes, dtype=np.int64)
    order: list[int] = []
    errors: list[float] = []
    lefts: list[float] = []
    while open_.any():
        saved, left = savings.per_class(alive)
        candidates = np.flatnonzero(open_)
        prices = elimination.cost[candidates] / np.maximum(saved[candidates], 1e-30)
        if left <= least:
            rest = candidates[np.argsort(prices, kind="stable")]
            order += rest.tolist()
            errors += elimination.cost[rest].tolist()
            lefts += [left] * rest.size
            break
        chosen = int(group_of[candidates[prices.argmin()]])
        mates = candidates[group_of[candidates] == chosen]
        count = max(1, min(sizes[chosen] // _PARTS, int(left_in[chosen]) - 1)) if chosen >= 0 else 1
        if chosen < 0 or count == 1:
            mates = candidates[[prices.argmin()]] if chosen < 0 else mates
        near = mates[np.argsort(elimination.cost[mates] / np.maximum(saved[mates], 1e-30), kind="stable")[: 4 * count]]
        picked = list(elimination.cheapest(near, count))
        if chosen >= 0 and left_in[chosen] <= 1:
            open_[mates] = False
            continue
        gone = [owner for owner, _ in picked]
        elimination.remove(gone)
        order += gone
        errors += [error for _, error in picked]
        lefts += [left] * len(gone)
        alive[gone] = open_[gone] = False
        if chosen >= 0:
            left_in[chosen] -= len(gone)
        progress(left)
    return Removals(
        np.array(order, dtype=np.int64), np.array(errors), group_of[np.array(order, dtype=np.int64)], np.array(lefts)
    )
