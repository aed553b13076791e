"""Gammas that are almost zero, which averaging over training leaves of a sparse network.

Owns the note that distinguishes such a copy from a network that was never sparse. passes/rules/weights.py says what
counts as zero.
"""

from __future__ import annotations

import numpy as np

from prunec.ir.graph import Graph
from prunec.passes.rules.weights import negligible

_SMALL = 0.02
"""Of the largest gamma of a layer. After training without a penalty hardly any is as small."""
_SHARE, _FEWEST = 0.1, 8
"""Of all gammas, and how many, make a note."""


def remnants(graph: Graph) -> tuple[str, ...]:
    """Return a note if many gammas are tiny but not zero; empty if they are zeros, or if there are none."""
    read = {node.inputs[1] for node in graph.nodes if node.op == "batch_norm" and len(node.inputs) > 1}
    stored = [np.abs(graph.params[name].array.astype(np.float64)) for name in sorted(read) if name in graph.params]
    found = [gamma for gamma in stored if gamma.size > 1 and np.isfinite(gamma).all()]
    small = sum(int(((gamma > negligible(gamma)) & (gamma <= _SMALL * gamma.max())).sum()) for gamma in found)
    total = sum(gamma.size for gamma in found)
    if small < max(_FEWEST, _SHARE * total):
        return ()
    told = f"{small} of {total} gammas are under a fiftieth of their layer's largest and not zero"
    known = "so is an average over training (EMA) of a network whose gammas have become zero"
    do = "prune the weights that were trained, or set these gammas to zero and see if the accuracy stays (docs/faq.md)"
    return (f"{told}: {known}; {do}",)
