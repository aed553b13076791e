"""Which channels the penalty is on, where a trained network has a budget to meet and no ρ was given.

Owns that choice: the channels that would go if the network were pruned to its budget now. (Whether it is made is
RunConfig.focuses.) A penalty on every channel needs long until it has told them apart, and meanwhile takes from those
that stay; the steps of a run that starts from weights are few. On the others it does nothing, and these channels fade
while the rest of the network learns to do without them: growing regularisation, Wang, Qin, Zhang, Fu, "Neural Pruning
via Growing Regularization" (ICLR 2021). The proximal steps are ista.py's, how fast ρ makes them is tuning.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prunec.training.settings.setup import Setup


def focused(setup: Setup, entries: Sequence[Sequence[int]]) -> Setup:
    """Return the setup with the last focus of the run: ids of classes, of which each milestone adds a list.

    Without one it stays.
    """
    if not entries:
        return setup
    focus = np.zeros_like(setup.sparsity.penalised)
    focus[list(entries[-1])] = True
    sparsity = replace(setup.sparsity, focus=focus)
    return replace(setup, sparsity=sparsity, sizer=replace(setup.sizer, plan=sparsity))
