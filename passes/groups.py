"""Coupled groups, read off the channel classes, and the dependency graph for users.

Owns the view of classes as groups (channels whose members are the same parameter axes) and its
networkx form. The classes themselves come from channels.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.ir.graph import Graph
from prunec.ir.labels import ChannelClasses, Label, distinct

if TYPE_CHECKING:
    import networkx as nx


def group_classes(classes: ChannelClasses) -> tuple[tuple[int, ...], ...]:
    """Return the channel classes, gathered into groups that lie on the same parameter axes.

    Groups follow the first parameter that they touch; classes within a group follow its indices.
    """
    if classes.groups is None:  # many ask
        object.__setattr__(classes, "groups", _groups(classes))
    assert classes.groups is not None
    return classes.groups


def _groups(classes: ChannelClasses) -> tuple[tuple[int, ...], ...]:
    members = classes.members
    owners = classes.class_of[np.concatenate([np.zeros(0, np.int64), *(member.ids.ravel() for member in members)])]
    numbers = np.repeat(np.arange(len(members)), [member.ids.size for member in members])
    # Pairs of channel and member, each once, sorted: what a channel touches stands side by side.
    pairs = distinct((owners * len(members) + numbers)[classes.is_channel[owners]])
    channels, touched = pairs // max(1, len(members)), (pairs % max(1, len(members))).tolist()
    first = np.flatnonzero(np.diff(channels, prepend=-1))
    starts = first.tolist()
    groups: dict[tuple[int, ...], list[int]] = {}
    for channel, start, stop in zip(channels[first].tolist(), starts, [*starts[1:], len(touched)], strict=False):
        groups.setdefault(tuple(touched[start:stop]), []).append(channel)
    return tuple(tuple(groups[key]) for key in sorted(groups))


def dependency_graph(graph: Graph, classes: ChannelClasses) -> nx.DiGraph:
    """Return the graph as networkx: nodes are ops, edges carry the channel classes that flow along them.

    Node attributes: ``op``, ``source``, ``origin``; ``params`` (names of the parameters that it reads); ``makes`` and
    ``reads`` (sorted lists of the classes of channels on its results and operands); ``pinned`` (how many of those
    that it makes cannot go); ``generation`` (0 for inputs, else one more than the last of what it reads). Edge
    attributes: ``value`` (name), ``shape`` and ``classes``. Class 0, "no channel", is left out. Graph inputs and
    outputs are nodes with ``op`` "input" and "output". Parallel edges of one pair are merged.
    """
    import networkx as nx

    result = nx.DiGraph(name=graph.name)
    for name in graph.inputs:
        result.add_node(name, op="input", source="", origin=name, params=[], **_classes(classes, [name], []))
    for node in graph.nodes:
        params = [name for name in node.inputs if name in graph.params and not graph.params[name].literal]
        told = _classes(classes, node.outputs, node.inputs)
        result.add_node(node.name, op=node.op, source=node.source, origin=node.origin, params=params, **told)
        for value in node.inputs:
            _connect(result, graph, classes, value, node.name)
    for number, value in enumerate(graph.outputs):
        told = _classes(classes, [], [value])
        result.add_node(f"output:{number}", op="output", source="", origin=value, params=[], **told)
        _connect(result, graph, classes, value, f"output:{number}")
    for generation, names in enumerate(nx.topological_generations(result)):
        for name in names:
            result.nodes[name]["generation"] = generation
    return result


def _classes(classes: ChannelClasses, made: Sequence[str], read: Sequence[str]) -> dict[str, Any]:
    makes = _carried(classes, made)
    pinned = sum(bool(classes.pinned[number]) for number in makes)
    return {"makes": makes, "reads": _carried(classes, read), "pinned": pinned}


def _carried(classes: ChannelClasses, values: Sequence[str]) -> list[int]:
    """Return the classes of the channels that values carry, sorted; a kernel's taps are no channels."""
    labels = [classes.labels[name] for name in values if name in classes.labels]
    found = {c for label in labels for field in label.fields for c in distinct(classes.class_of[field]).tolist() if c}
    return sorted(number for number in found if classes.is_channel[number])


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
