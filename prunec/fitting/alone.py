"""Fits from the Grams of the original network alone, without running it again.

This is exact if one coupled group is pruned by itself: the channels that stay still have their original values
wherever a layer reads them, so W_kept + W_gone · A, with A from the original's Gram, is the least-squares fit. If
several groups are pruned at once, errors add up and layers have to be fitted front to back: prunec/fitting/refit.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prunec.fitting.reconstruct import Reconstruction, places
from prunec.fitting.refit import Place, combined_start
from prunec.ir.edits import Edits
from prunec.ir.plan import PrunePlan, Refit
from prunec.passes.fitting.operands import as_matrix, from_matrix
from prunec.passes.lowering.refits import stored
from prunec.passes.selection.select import Facts


def made_up(data: Reconstruction, facts: Facts, plan: PrunePlan, edits: Edits) -> PrunePlan:
    """Return the plan with new weights for the layers that read removed channels.

    Args:
        plan: from ``data.prepared``; ``edits`` are its edits of the graph.
    """
    found = data.operands(facts)
    chosen = places(facts, found, edits, data.grams(facts, found))
    made = [_refit(place) for place in chosen if place.inputs is not None and not place.operand.pooled]
    return replace(plan, refits=tuple(item for item in made if item is not None), exact=False)


def _refit(place: Place) -> Refit | None:
    """Return the fit of one contraction; None if the data give no numbers."""
    start = combined_start(place)
    width = as_matrix(place.node, place.weight).shape[2]
    if not np.isfinite(start).all():
        return None
    matrix = start[:, :width].swapaxes(1, 2)
    weight = from_matrix(place.node, matrix, place.weight.shape).astype(place.weight.dtype)
    name, own = place.node.name, place.operand.weight
    if not place.operand.biased:
        return Refit(name, own, stored(weight), "none", "", None)
    vector = place.vector_for(start[:, width].ravel())
    return Refit(name, own, stored(weight), place.kind, place.target, stored(vector))
