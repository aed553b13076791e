"""The name that a node had when its network was traced: it goes along through every rewrite."""

from __future__ import annotations

from torch import fx

ORIGIN = "prunec_origin"


def origin_of(n: fx.Node) -> str:
    """Return the name that the node had when the network was traced."""
    return str(n.meta.get(ORIGIN, n.name))
