"""Which channels the penalty is on, where a trained network has a budget to meet and no ρ was given.

Owns that choice: the channels that would go if the network were pruned to its budget now. (Whether it is made is
RunConfig.focuses.) A penalty on every channel needs long until it has told them apart, and meanwhile takes from those
that stay; the steps of a run that starts from weights are few. On the others it does nothing, and these channels fade
while the rest of the network learns to do without them: growing regularisation, Wang, Qin, Zhang, Fu, "Neural Pruning
via Growing Regularization" (ICLR 2021). The proximal steps are ista.py's, how fast ρ makes them is tuning.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prunec.passes.sparsity.gammas import Mask
from prunec.training.settings.setup import Setup


def entry(gone: Mask, shrinkings: int) -> dict[str, Any]:
    """Return a focus as plain data.

    Args:
        gone: bool[num_classes] of the network as it is.
        shrinkings: how often channels have left it while it was trained.
    """
    return {"shrinkings": shrinkings, "classes": np.flatnonzero(gone).tolist()}


def focused(setup: Setup, entries: Sequence[Mapping[str, Any]], shrinkings: int) -> Setup:
    """Return the setup with the last focus that was made after so many shrinkings; without one it stays."""
    made = [each for each in entries if each["shrinkings"] == shrinkings]
    if not made:
        return setup
    focus = np.zeros_like(setup.sparsity.penalised)
    focus[made[-1]["classes"]] = True
    sparsity = replace(setup.sparsity, focus=focus)
    return replace(setup, sparsity=sparsity, sizer=replace(setup.sizer, plan=sparsity))
