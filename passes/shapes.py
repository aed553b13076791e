"""Shapes that are left when a keep mask is applied: the input of the recount of cost.

Owns the arithmetic from a mask to the sizes of every value and parameter; no content is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from prunec.graph import Graph, Shape
from prunec.labels import ChannelClasses
from prunec.passes.needs import Mask, Needs


def pruned_shapes(
    graph: Graph, classes: ChannelClasses, keep: Mask, wanted: Needs
) -> tuple[Graph, Callable[[str], Shape | None]]:
    """Return the graph of the nodes that still run, and the shape of each of its values and parameters."""
    per_group: dict[str, int] = {}
    for balance in classes.balances:
        shared = balance.in_ids if balance.node.op == "conv" else balance.out_ids
        weight = balance.node.inputs[1]
        count = int(keep[classes.class_of[shared]].sum(axis=1).max())
        per_group.update(dict.fromkeys((weight, graph.stored(weight)), count))
    cache: dict[str, Shape | None] = {}

    def shape_of(name: str) -> Shape | None:
        if name not in cache:
            cache[name] = _shape(graph, classes, keep, name, per_group.get(name))
        return cache[name]

    nodes = tuple(
        replace(
            node,
            inputs=tuple("" if (node.name, i) in wanted.cuts else name for i, name in enumerate(node.inputs)),
        )
        for node in graph.nodes
        if node.name in wanted.nodes
    )
    rest = Graph(nodes, graph.values, graph.params, graph.inputs, graph.outputs, graph.name, graph.frontend)
    return rest, shape_of


def _shape(graph: Graph, classes: ChannelClasses, keep: Mask, name: str, per_group: int | None) -> Shape | None:
    shape = graph.shape(name)
    if shape is None or name not in classes.labels:
        return shape
    sizes = list(shape)
    for axis in range(len(sizes)):
        mask = classes.keep_along(name, axis, keep)
        if mask is not None:
            sizes[axis] = int(mask.sum())
    if per_group is not None:
        sizes[1] = per_group
    return tuple(sizes)
