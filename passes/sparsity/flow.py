"""What a per-class fact needs to travel through a graph: which classes each value carries, and look-ups.

Owns nothing but these two helpers; gammas.py and scaling.py carry a small number per (value, class) along
the graph with them. A fact lives on classes rather than on positions, so no movement has to be followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunec.ir.arrays import Ids
from prunec.ir.graph import Graph
from prunec.ir.labels import ChannelClasses

Facts = np.ndarray[Any, Any]

_NONE: Ids = np.zeros(0, dtype=np.int64)


def carried_classes(graph: Graph, classes: ChannelClasses) -> Mapping[str, Ids]:
    """Return the classes of every value and parameter: int64[k], ascending, without class 0."""
    return {name: _distinct(classes, name) for name in (*graph.params, *graph.values, "")}


def _distinct(classes: ChannelClasses, name: str) -> Ids:
    label = classes.labels.get(name)
    if label is None or not label.fields:
        return _NONE
    found: Ids = np.unique(np.concatenate([classes.class_of[field].ravel() for field in label.fields]))
    kept: Ids = found[found != 0]
    return kept


def look_up(facts: Facts, have: Ids, want: Ids, absent: int) -> Facts:
    """Return the fact of each class of ``want``; ``absent`` where ``have`` (ascending) lacks it."""
    if have.size == 0:
        return np.full(want.shape, absent, dtype=facts.dtype)
    at = np.minimum(np.searchsorted(have, want), have.size - 1)
    return np.where(have[at] == want, facts[at], absent).astype(facts.dtype)
