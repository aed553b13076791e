"""Sums over channels: reductions that read channels as a contraction does, and can do without zeros.

A sum or a norm over channels stays what it is when channels of zeros leave it; a mean does once it is multiplied by
what is left of their number (GRN of ConvNeXt V2, arXiv:2301.00808; L2 normalisation; spatial attention). Owns which
reductions are marked with the attribute ``sums``. Read next: passes/reads.py, where they are read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import MappingProxyType

from prunec.ir.graph import Graph, Node
from prunec.ir.ops import CONTRACTIONS, MOVEMENTS, NORMALISATIONS
from prunec.passes.rewrites.permutations import replace_nodes

_KINDS = ("sum", "mean", "l1", "l2")

_ALL = frozenset(range(32))
"""Axes of a value whose axes have moved."""

_ENDS = (*CONTRACTIONS, *NORMALISATIONS)
"""Ops behind which a value says nothing of what the channels in front of them had in common."""


def mark_sums(graph: Graph) -> Graph:
    """Return the graph with the attribute ``sums`` on reductions that channels of zeros can leave.

    A variance by hand is none: x - mean(x) of a channel of zeros is not zero. A mean has to be the only node of its
    call, for a backend multiplies its result.

    Ensures: nodes, values and what they compute are as before.
    """
    fixed = graph.fixed_values()
    parts = Counter(node.origin for node in graph.nodes)
    reduced: dict[str, frozenset[int]] = {}
    found: set[str] = set()
    for node in graph.nodes:
        met = frozenset().union(*(reduced.get(name, ()) for name in node.inputs if name))
        axes = frozenset(node.attrs["axes"]) if node.op == "reduce" else frozenset[int]()
        alone = node.attrs.get("kind") != "mean" or parts[node.origin] == 1
        if axes and node.attrs["kind"] in _KINDS and alone and not axes & met and _is_free(graph, node, fixed):
            found.add(node.name)
        if node.op not in _ENDS and (axes or met):
            after = _ALL if met and node.op in MOVEMENTS else axes | met
            reduced.update(dict.fromkeys(node.outputs, after))
    if not found:
        return graph
    return replace_nodes(graph, tuple(_marked(node) if node.name in found else node for node in graph.nodes))


def _marked(node: Node) -> Node:
    return replace(node, attrs=MappingProxyType({**node.attrs, "sums": True}))


def _is_free(graph: Graph, node: Node, fixed: frozenset[str]) -> bool:
    """Tell whether what is reduced are numbers that depend on the input."""
    value = graph.values.get(node.inputs[0])
    return value is not None and value.name not in fixed and "float" in value.dtype
