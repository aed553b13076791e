"""Branches: operands of sums that a network can do without, because a shortcut bypasses them.

If such an operand is replaced by a constant, all that only it needs is gone: a residual branch, every channel of it.
Owns the search for them and what each saves; what it costs is measured on data (prunec/fitting/reactions.py), and
needs.py cuts them. Compare Veit, Wilber, Belongie, NIPS 2016, https://arxiv.org/abs/1605.06431: residual networks lose
little with one of their blocks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunec.ir.arrays import Mask
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import ChannelClasses, varying
from prunec.passes.constants import Constants
from prunec.passes.selection.needs import operands_to_cut

SUMS = ("add", "sub")


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """An operand of a sum, and what only it needs.

    Args:
        node: the sum.
        index: the operand's place.
        axis: of its channels.
        nodes: names of the nodes that go with it.
    """

    node: Node
    index: int
    axis: int
    nodes: frozenset[str]

    @property
    def value(self) -> str:
        """The name of the operand."""
        return self.node.inputs[self.index]

    def saves(self, whole: Mapping[str, float]) -> float:
        """Return the cost of its nodes, of what each contraction costs (IR node name -> MACs or parameters)."""
        return sum(whole.get(name, 0.0) for name in self.nodes)


def branches(graph: Graph, classes: ChannelClasses, constants: Constants) -> tuple[Branch, ...]:
    """Find the operands of sums that could be replaced by a constant per channel, in graph order.

    Ensures: at most one operand of each sum; the other one varies, so no output becomes constant by it; nothing that
        a person asked to keep and nothing opaque is among their nodes.
    """
    place = {node.name: at for at, node in enumerate(graph.nodes)}
    kept = _kept(classes)
    return tuple(found for node in graph.nodes if (found := _branch(graph, node, classes, constants, place, kept)))


def _branch(
    graph: Graph, node: Node, classes: ChannelClasses, constants: Constants, place: Mapping[str, int], kept: Mask
) -> Branch | None:
    """Return the operand of a sum that most depends on; None if neither can go."""
    if node.op not in SUMS or any(name in graph.params or _known(constants, name) for name in node.inputs):
        return None
    found = []
    for index in operands_to_cut(graph, node):
        axis, nodes = _axis(classes, node.inputs[index]), _only_for(graph, node, index, place)
        if axis is not None and nodes and not _holds(classes, nodes, node.inputs[index], kept):
            found.append(Branch(node, index, axis, frozenset(each.name for each in nodes)))
    return max(found, key=lambda each: len(each.nodes), default=None)


def _known(constants: Constants, name: str) -> bool:
    known = constants.known.get(name)
    return known is not None and not np.isnan(known).any()


def _axis(classes: ChannelClasses, name: str) -> int | None:
    """Return the one axis that a value has channels on; None if there is none, or there are more."""
    label = classes.labels.get(name)
    axes = {axis for field in label.fields for axis in varying(field)} if label is not None else set()
    return axes.pop() if len(axes) == 1 else None


def _only_for(graph: Graph, node: Node, index: int, place: Mapping[str, int]) -> Sequence[Node]:
    """Return the nodes that nothing but this operand needs; none if something opaque is among them."""
    found: dict[str, Node] = {}
    pending: list[int] = []

    def ask(name: str) -> None:
        made = graph.producer(name) if name else None
        if made is not None:
            heapq.heappush(pending, -place[made.name])

    value = node.inputs[index]
    if node.inputs.count(value) > 1:
        return ()
    ask(value)
    while pending:  # the last first: all that reads a node has been looked at before it
        each = graph.nodes[-heapq.heappop(pending)]
        if each.name in found:
            continue
        reads = [(reader, name) for name in each.outputs for reader in graph.consumers(name)]
        alone = all(reader.name in found or (reader is node and name == value) for reader, name in reads)
        if not alone or any(name in graph.outputs for name in each.outputs):
            continue
        if each.op == "opaque":
            return ()
        found[each.name] = each
        for name in each.inputs:
            ask(name)
    return tuple(found.values())


def _kept(classes: ChannelClasses) -> Mask:
    """Return bool[num_classes]: what a person asked to keep, with the network's inputs and outputs."""
    kept = np.zeros(classes.num_classes, dtype=bool)
    for pin in classes.pins:
        if pin.node is None:
            kept[classes.class_of[pin.ids.ravel()]] = True
    return kept


def _holds(classes: ChannelClasses, nodes: Sequence[Node], value: str, kept: Mask) -> bool:
    """Tell whether one of the nodes makes channels to be kept, other than those of the sum."""
    own = np.zeros_like(kept)
    for field in classes.labels[value].fields:
        own[classes.class_of[field.ravel()]] = True
    for node in nodes:
        for name in node.outputs:
            for field in classes.labels[name].fields if name in classes.labels else ():
                owners = classes.class_of[field.ravel()]
                if (kept[owners] & ~own[owners]).any():
                    return True
    return False


def cheapest_first(
    found: Sequence[Branch], errors: Mapping[str, float], whole: Mapping[str, float]
) -> tuple[Branch, ...]:
    """Return the branches that save something, those with the least error for what they save first.

    Args:
        errors: value name -> what replacing it costs; those without an entry are left out.
    """
    saving = [each for each in found if each.saves(whole) > 0 and each.value in errors]
    return tuple(sorted(saving, key=lambda each: errors[each.value] / each.saves(whole)))


def prefixes(
    found: Sequence[Branch], whole: Mapping[str, float], to_save: float, parts: Sequence[float]
) -> Iterator[tuple[Branch, ...]]:
    """Yield the first branches, as many as save each part of what is to be saved; each number of them once.

    Args:
        to_save: in the unit of ``whole``.
        parts: ascending.
    """
    last = 0
    for part in parts:
        gone: frozenset[str] = frozenset()
        count = 0
        for each in found:
            more = gone | each.nodes
            if sum(whole.get(name, 0.0) for name in more) > part * to_save:
                break
            gone, count = more, count + 1
        if count > last:
            yield tuple(found[:count])
            last = count
