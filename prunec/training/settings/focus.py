"""Which channels the penalty is on, if a trained network has a budget to meet and no ρ was given.

Owns that choice: the channels that would go if the network were pruned to its budget now (RunConfig.focuses says
whether it is made). A penalty on every channel needs many steps to tell them apart and meanwhile harms those
that stay, but a run from weights is short. With this choice the others are not penalised, and the chosen channels fade
while the rest of the network learns to do without them: growing regularisation, Wang, Qin, Zhang, Fu, "Neural Pruning
via Growing Regularization" (ICLR 2021). ista.py makes the proximal steps, tuning.py chooses their speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prunec.training.settings.setup import Setup


def focused(setup: Setup, entries: Sequence[Sequence[int]]) -> Setup:
    """Return the setup with the last focus of the run: ids of classes, one list for each milestone.

    Without a focus, return the setup unchanged.
    """
    if not entries:
        return setup
    focus = np.zeros_like(setup.sparsity.penalised)
    focus[list(entries[-1])] = True
    sparsity = replace(setup.sparsity, focus=focus)
    return replace(setup, sparsity=sparsity, sizer=replace(setup.sizer, plan=sparsity))
