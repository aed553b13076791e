"""Profiles: channels that are not constant, but a constant times one map that they share.

A constant channel that is padded with zeros, or averaged together with padded zeros, is uneven at the
border; so are its neighbours, in the same way. Channel k is then coefficient_k · p, with one map p for all
of them, whatever the input's size, and a convolution can fold one into another as at its own padding
(passes/selection/carriers.py). Owns the forward sweep that finds them; passes/constants.py knows the constants that it
starts from, passes/reads.py takes the result to the contractions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Graph, Node, Shape
from prunec.passes.constants import Constants
from prunec.passes.rules.arrays import narrow
from prunec.passes.rules.moves import MOVES


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What is known of one value: each element is ``coefficients`` times the map that ``keys`` names.

    Both broadcast against the value. NaN is an element that is not known in this way; key 0 is the map that
    is 1 everywhere (a constant), other keys are maps of this graph.
    """

    coefficients: Array
    keys: Array


def profiles(graph: Graph, constants: Constants) -> Mapping[str, Profile]:
    """Find the values in which channels share a map other than 1.

    Requires: nodes in topological order; ``constants`` of the same graph.
    Ensures:  within a value, elements of equal key differ by their coefficients' ratio only, for any input.
    Cost: linear in nodes.
    """
    found: dict[str, Profile] = {}
    keys: dict[tuple[str, int], int] = {}
    for node in graph.nodes:
        if node.op in ("pad", "avg_pool"):
            made = _shaped(graph, node, constants, found, keys)
        elif node.op in ("identity", "transpose", "concat") and any(name in found for name in node.inputs):
            made = _moved(graph, node, constants, found)
        else:
            continue
        if made is not None and (made.keys != 0).any():
            found[node.outputs[0]] = made
    return MappingProxyType(found)


def _known(name: str, constants: Constants, found: Mapping[str, Profile]) -> Profile | None:
    if name in found:
        return found[name]
    known = constants.of(name)
    return None if known is None else Profile(known, np.zeros((1,) * known.ndim, dtype=np.int64))


def _shaped(
    graph: Graph, node: Node, constants: Constants, found: Mapping[str, Profile], keys: dict[tuple[str, int], int]
) -> Profile | None:
    """Return what a linear op that treats all channels alike makes of maps: other maps, the same coefficients."""
    before, shape = _known(node.inputs[0], constants, found), graph.shape(node.inputs[0])
    if before is None or shape is None or before.coefficients.ndim != len(shape):
        return None
    if any(before.coefficients.shape[axis] != 1 for axis in _shaped_axes(node, shape)):
        return None
    if not graph.values[node.outputs[0]].dtype.startswith("float"):
        return None  # quantised averages round
    if node.op == "pad" and (node.attrs.get("mode", "constant") != "constant" or node.attrs.get("value")):
        return None
    after = before.keys.copy()
    for key in np.unique(before.keys):
        after[before.keys == key] = keys.setdefault((node.name, int(key)), len(keys) + 1)
    # What stays a constant, as zeros do, is one to everybody.
    still = constants.of(node.outputs[0])
    known = ~np.isnan(before.coefficients)
    if still is not None and still.ndim == known.ndim:
        known = known & np.isnan(still)
    return Profile(np.where(known, before.coefficients, np.nan), np.where(known, after, 0))


def _shaped_axes(node: Node, shape: Shape) -> list[int]:
    rank = len(shape)
    if node.op == "pad":
        pads = node.attrs["pads"]
        return [axis for axis in range(rank) if pads[axis] or pads[rank + axis]]
    return list(node.attrs.get("spatial_axes") or range(2, rank))


def _moved(graph: Graph, node: Node, constants: Constants, found: Mapping[str, Profile]) -> Profile | None:
    """Move coefficients and keys as the op moves the elements; what is constant comes along with key 0."""
    shapes = [graph.shape(name) for name in node.inputs]
    out = graph.shape(node.outputs[0])
    known = [shape for shape in shapes if shape is not None]
    if out is None or len(known) < len(shapes):
        return None
    parts = [
        _known(name, constants, found) or Profile(np.full((1,) * len(shape), np.nan), np.zeros((1,) * len(shape), int))
        for name, shape in zip(node.inputs, known, strict=True)
    ]
    if node.op == "identity":
        return parts[0]
    coefficients = MOVES[node.op](node, [part.coefficients for part in parts], known, [out], np.nan)
    spread = [np.broadcast_to(part.keys, part.coefficients.shape) for part in parts]
    keys = MOVES[node.op](node, spread, known, [out], 0)
    return None if coefficients is None or keys is None else Profile(narrow(coefficients[0]), narrow(keys[0]))
