"""Coupled groups, read off the channel classes, and the dependency graph for users.

Owns the view of classes as groups (channels whose members are the same parameter axes) and its
networkx form. The classes themselves come from channels.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunec.ir.graph import Graph
from prunec.ir.labels import ChannelClasses, Label, distinct

if TYPE_CHECKING:
    import networkx as nx


def group_classes(classes: ChannelClasses) -> tuple[tuple[int, ...], ...]:
    """Return the channel classes, gathered into groups that lie on the same parameter axes.

    Groups follow the first parameter that they touch; classes within a group follow its indices.
    """
    members = classes.members
    owners = classes.class_of[np.concatenate([np.zeros(0, np.int64), *(member.ids.ravel() for member in members)])]
    numbers = np.repeat(np.arange(len(members)), [member.ids.size for member in members])
    # Pairs of channel and member, each once, sorted: what a channel touches stands side by side.
    pairs = distinct((owners * len(members) + numbers)[classes.is_channel[owners]])
    channels, touched = pairs // max(1, len(members)), (pairs % max(1, len(members))).tolist()
    starts = np.flatnonzero(np.diff(channels, prepend=-1))
    groups: dict[tuple[int, ...], list[int]] = {}
    for channel, start, stop in zip(channels[starts].tolist(), starts, [*starts[1:], len(touched)], strict=False):
        groups.setdefault(tuple(touched[start:stop]), []).append(channel)
    return tuple(tuple(groups[key]) for key in sorted(groups))


def dependency_graph(graph: Graph, classes: ChannelClasses) -> nx.DiGraph:
    """Return the graph as networkx: nodes are ops, edges carry the channel classes that flow along them.

    Node attributes: ``op``, ``source``, ``origin``. Edge attributes: ``value`` (name), ``shape`` and
    ``classes`` (sorted list of class numbers; 0, "no channel", left out). Graph inputs and outputs are
    nodes with ``op`` "input" and "output". Parallel edges of one pair are merged.
    """
    import networkx as nx

    result = nx.DiGraph(name=graph.name)
    for name in graph.inputs:
        result.add_node(name, op="input", source="", origin=name)
    for node in graph.nodes:
        result.add_node(node.name, op=node.op, source=node.source, origin=node.origin)
        for value in node.inputs:
            _connect(result, graph, classes, value, node.name)
    for number, value in enumerate(graph.outputs):
        result.add_node(f"output:{number}", op="output", source="", origin=value)
        _connect(result, graph, classes, value, f"output:{number}")
    return result


def _connect(result: nx.DiGraph, graph: Graph, classes: ChannelClasses, value: str, reader: str) -> None:
    producer = graph.producer(value)
    source = producer.name if producer is not None else value
    if not value or source not in result:
        return  # an absent operand, or a parameter: those are members, not nodes
    label = classes.labels.get(value, Label(None))
    found = {c for field in label.fields for c in distinct(classes.class_of[field]).tolist() if c}
    if result.has_edge(source, reader):
        found.update(result.edges[source, reader]["classes"])
    result.add_edge(source, reader, value=value, shape=graph.shape(value), classes=sorted(found))
