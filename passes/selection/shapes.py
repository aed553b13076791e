"""Shapes that are left when a keep mask is applied: the input of the recount of cost.

Owns the arithmetic from a mask to the sizes of every value and parameter; no content is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from prunec.ir.arrays import Mask
from prunec.ir.graph import Graph, Node, Shape
from prunec.ir.labels import ChannelClasses, Kept
from prunec.passes.columns import grouped_values
from prunec.passes.selection.needs import Needs


def pruned_shapes(
    graph: Graph, classes: ChannelClasses, keep: Mask, wanted: Needs
) -> tuple[Graph, Callable[[str], Shape | None]]:
    """Return the graph of the nodes that still run, and the shape of each of its values and parameters."""
    per_group = left_per_group(classes, grouped(graph, classes), keep)
    kept = Kept(classes, keep)
    cache: dict[str, Shape | None] = {}

    def shape_of(name: str) -> Shape | None:
        if name not in cache:
            cache[name] = shape_left(graph, kept, name, per_group.get(name))
        return cache[name]

    return running(graph, wanted), shape_of


def grouped(graph: Graph, classes: ChannelClasses) -> tuple[tuple[str, ...], ...]:
    """Return, for each balance, the tensors that have the columns of its grouped weight."""
    return tuple(grouped_values(graph, balance.node) for balance in classes.balances)


def left_per_group(classes: ChannelClasses, names: Sequence[Sequence[str]], keep: Mask) -> dict[str, int]:
    """Return how many columns stay of each tensor that is cut group by group.

    Args:
        names: see ``grouped``.
    """
    per_group: dict[str, int] = {}
    for balance, cut in zip(classes.balances, names, strict=True):
        per_group.update(dict.fromkeys(cut, int(keep[classes.class_of[balance.slots]].sum(axis=1).max())))
    return per_group


def running(graph: Graph, wanted: Needs) -> Graph:
    """Return the graph of the nodes that still run, less the inputs that they no longer read."""
    if not wanted.cuts and len(wanted.nodes) == len(graph.nodes):
        return graph
    cut = {name for name, _ in wanted.cuts}
    nodes = tuple(
        node if node.name not in cut else replace(node, inputs=_uncut(node, wanted))
        for node in graph.nodes
        if node.name in wanted.nodes
    )
    return Graph(nodes, graph.values, graph.params, graph.inputs, graph.outputs, graph.name, graph.frontend)


def _uncut(node: Node, wanted: Needs) -> tuple[str, ...]:
    return tuple("" if (node.name, index) in wanted.cuts else name for index, name in enumerate(node.inputs))


def shape_left(graph: Graph, kept: Kept, name: str, per_group: int | None) -> Shape | None:
    """Return the shape that is left of a value or parameter, of a grouped weight with so many columns."""
    shape = graph.shape(name)
    if shape is None or name not in kept.classes.labels:
        return shape
    shape = kept.shape(name, shape)
    return shape if per_group is None else (shape[0], per_group, *shape[2:])
