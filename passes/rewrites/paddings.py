"""Paddings: a convolution that reads a zero padding pads by itself.

Owns the rewrite. TensorFlow's exporters, and ports of its networks, write SAME padding as a node of its own. Behind it
a constant channel is no longer uniform; as the convolution's own padding it is, and a carrier keeps its border exact.
The model stays as it is: only the passes see it this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from prunec.ir.graph import Graph, Node
from prunec.passes.rewrites.permutations import replace_nodes, without_dead
from prunec.passes.rules.moves import pads_space


def fuse_paddings(graph: Graph) -> Graph:
    """Return the graph in which convolutions read what is padded with zeros, and pad it themselves.

    Ensures: the values that stay are computed as before; paddings that nothing else reads are gone.
    """
    nodes = tuple(_padding_itself(graph, node) for node in graph.nodes)
    if all(new is old for new, old in zip(nodes, graph.nodes, strict=True)):
        return graph
    return without_dead(replace_nodes(graph, nodes))


def _padding_itself(graph: Graph, node: Node) -> Node:
    pad = graph.producer(node.inputs[0]) if node.op == "conv" else None
    if pad is None or not pads_space(pad) or min(pad.attrs["pads"]) < 0:
        return node
    rank = len(pad.attrs["pads"]) // 2
    around = [*pad.attrs["pads"][2:rank], *pad.attrs["pads"][rank + 2 :]]
    own = node.attrs["pads"]
    if len(own) != len(around) or (any(own) and node.attrs.get("auto_pad")):
        return node
    attrs: Mapping[str, Any] = {**node.attrs, "pads": [a + b for a, b in zip(own, around, strict=True)]}
    return replace(node, inputs=(pad.inputs[0], *node.inputs[1:]), attrs=MappingProxyType(attrs))
