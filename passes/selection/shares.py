"""Shares: how many of the channels of each contraction are left under a keep mask.

Owns the counting that is fast enough to be asked for thousands of masks; exact sizes are shapes.py's.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

from prunec.ir.arrays import Ids, Mask
from prunec.ir.graph import Graph
from prunec.ir.labels import ChannelClasses
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.cost import contracted

Sides = Mapping[str, tuple[tuple[Ids, ...], tuple[Ids, ...]]]
"""Contraction (IR node name) -> the classes of the fields that it makes, and of those that it sums over."""
Shares = Mapping[str, tuple[float, float]]
"""Contraction (IR node name) -> the share of the channels that it makes, and of those that it reads, in [0, 1]."""


def sides(graph: Graph, classes: ChannelClasses) -> Sides:
    """Return the classes that contractions make and read."""
    found = {}
    for node in graph.nodes:
        if node.op in CONTRACTIONS:
            fields = (classes.labels[node.outputs[0]].fields, contracted(node, classes))
            made, read = (tuple(classes.class_of[field.ravel()] for field in each) for each in fields)
            found[node.name] = (made, read)
    return found


def shares(found: Sides, keep: Mask, running: Container[str]) -> Shares:
    """Return what is left of each contraction that still runs.

    Args:
        keep: bool[num_classes].
        running: the names of the nodes that do.
    """
    return {name: (_left(made, keep), _left(read, keep)) for name, (made, read) in found.items() if name in running}


def _left(fields: tuple[Ids, ...], keep: Mask) -> float:
    return float(np.prod([keep[owners].mean() for owners in fields])) if fields else 1.0
