"""Permutations: rewrite reshape-transpose-reshape detours that only reorder channels into one Gather.

Owns the recognition. ShuffleNet's shuffle splits the channel axis; left as it is, what survives of the
split would have to be rectangular and channels would be tied in pairs. As a Gather every channel is
free. Recognised by what the moves do to index arrays, not by their pattern, so that other spellings
(merging positions, picking halves) are found too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Dim, Graph, Node, Shape
from prunec.ir.labels import spread, varying
from prunec.passes.rules.moves import MOVES

DETOURS = frozenset({"reshape", "transpose", "identity", "gather", "split", "slice"})
"""Ops that a detour may consist of."""

MAX_STEPS = 10
"""Longest detour that is followed."""


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A value on a detour: where each index of each axis of the detour's source has come to."""

    name: str
    arrays: tuple[Array | None, ...]


def fuse_permutations(graph: Graph) -> Graph:
    """Return the graph with detours that only reorder, or pick, channels replaced by Gathers.

    Ensures: the values that stay are computed as before; nodes that nothing reads any more are gone.
    """
    gathers: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op == "reshape" and node.outputs[0] not in gathers and _splits_channels(graph, node):
            gathers.update(_detour(graph, node))
    if not gathers:
        return graph
    nodes = tuple(gathers.get(node.outputs[0], node) if node.outputs else node for node in graph.nodes)
    return without_dead(replace_nodes(graph, nodes))


def replace_nodes(graph: Graph, nodes: tuple[Node, ...]) -> Graph:
    """Return the graph with other nodes and the same values."""
    return Graph(nodes, graph.values, graph.params, graph.inputs, graph.outputs, graph.name, graph.frontend)


def without_dead(graph: Graph) -> Graph:
    """Return the graph without the nodes, values and parameters that nothing reads."""
    read, nodes = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if not any(node.outputs) or any(name in read for name in node.outputs):
            nodes.append(node)
            read.update(node.inputs)
    kept = tuple(reversed(nodes))
    named = {name for node in kept for name in node.outputs} | set(graph.inputs)
    values = MappingProxyType({name: value for name, value in graph.values.items() if name in named})
    params = MappingProxyType({name: param for name, param in graph.params.items() if name in read})
    return Graph(kept, values, params, graph.inputs, graph.outputs, graph.name, graph.frontend)


def _splits_channels(graph: Graph, node: Node) -> bool:
    """Tell whether a reshape takes axis 1 of a map apart (channels, then positions)."""
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if before is None or after is None or len(before) < 3 or node.inputs[0] in graph.params:
        return False
    channels = before[1]
    return isinstance(channels, int) and channels > 1 and (len(after) < 2 or after[1] != channels)


def _detour(graph: Graph, first: Node) -> dict[str, Node]:
    """Return the Gathers (by output) that replace a detour beginning at ``first``; none unless all of its ends fit."""
    source = first.inputs[0]
    shape = _numbers(graph, source)
    if shape is None:
        return {}
    begin = _Place(source, tuple(spread(np.arange(s), a, len(shape)) if s > 1 else None for a, s in enumerate(shape)))
    found: dict[str, Node] = {}
    pending = [(first, begin, 0)]
    while pending:
        node, place, depth = pending.pop()
        for end in _step(graph, node, place):
            indices = _as_gather(graph, source, end)
            if indices is not None and end.name != source:
                found[end.name] = _gather_node(graph, source, end.name, indices)
                continue
            readers = graph.consumers(end.name)
            if depth == MAX_STEPS or end.name in graph.outputs or not readers:
                return {}
            if any(reader.op not in DETOURS or reader.inputs[0] != end.name for reader in readers):
                return {}
            pending.extend((reader, end, depth + 1) for reader in readers)
    return found


def _numbers(graph: Graph, name: str) -> tuple[int, ...] | None:
    """Return a shape in numbers: symbols stand for distinct sizes, the same for the same name."""
    shape = graph.shape(name)
    if shape is None or any(size is None for size in shape):
        return None
    return tuple(_number(size) for size in shape)


def _number(size: Dim) -> int:
    """Return a size for a symbol that no other symbol, and hardly a channel count, has (primes by name)."""
    if isinstance(size, int):
        return size
    primes = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
    return primes[sum(str(size).encode()) % len(primes)]


def _step(graph: Graph, node: Node, place: _Place) -> Iterator[_Place]:
    before, afters = _numbers(graph, place.name), [_numbers(graph, name) for name in node.outputs]
    outs: list[Shape] = [after for after in afters if after is not None]
    if before is None or len(outs) < len(afters):
        yield _Place(node.outputs[0], (None,))
        return
    results: list[list[Array | None]] = [[] for _ in outs]
    for array in place.arrays:
        if array is None:
            moved: list[Array] | None = None
        elif node.op == "identity":
            moved = [array]
        else:
            moved = MOVES[node.op](node, [array], [before], outs, -1)
        for number, result in enumerate(results):
            result.append(None if moved is None else moved[number])
        if moved is None and array is not None:
            results = [[None] for _ in outs]
            break
    for name, result in zip(node.outputs, results, strict=True):
        if name:
            yield _Place(name, tuple(result))


def _as_gather(graph: Graph, source: str, place: _Place) -> Array | None:
    """Return the channel indices when a place holds whole maps of the source, each in its own position."""
    before, after = _numbers(graph, source), _numbers(graph, place.name)
    if before is None or after is None or len(before) != len(after) or len(place.arrays) != len(before):
        return None
    if graph.shape(source)[:1] != graph.shape(place.name)[:1]:  # type: ignore[index]  # both are known here
        return None
    for axis, array in enumerate(place.arrays):
        if axis == 1:
            continue
        if before[axis] != after[axis]:
            return None
        if array is not None and (
            varying(array) != (axis,) or not np.array_equal(array.ravel(), np.arange(before[axis]))
        ):
            return None
    channels = place.arrays[1]
    if channels is None or any(axis != 1 for axis in varying(channels)) or channels.size != after[1]:
        return None
    return channels.ravel().astype(np.int64)


def _gather_node(graph: Graph, source: str, name: str, indices: Array) -> Node:
    end = graph.producer(name)
    assert end is not None, "the end of a detour is computed"
    attrs: Mapping[str, Any] = MappingProxyType({"axis": 1, "indices": indices, "fused": True})
    return Node(name, "gather", (source,), (name,), attrs, source=f"shuffle ending in {end.source}", origin=end.origin)
