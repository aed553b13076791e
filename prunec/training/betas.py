"""Betas of channels that are gone but for their constant: brought to zero too, where that is asked for.

Owns the proximal step on betas. A channel whose gamma is zero still carries act(β). At β = 0 it carries nothing behind
every activation with act(0) = 0: it then leaves no constant to fold, needs no carrier at padded borders, and can go
behind a squeeze-excite gate.
"""

from __future__ import annotations

import torch
from torch import nn

from prunec.training.sparsity import Sparsity, named_parameters


class BetaDrive:
    """Shrinks the betas of zero gammas by μρλ a step, towards exact zeros; never waits for the device.

    Args:
        plan: which gammas are penalised, and λ.
        module: holds them.
    """

    def __init__(self, plan: Sparsity, module: nn.Module) -> None:
        parameters = named_parameters(module)
        self._parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for gamma in plan.gammas:
            mask = torch.from_numpy(plan.channels_of(gamma))
            if gamma.beta in parameters and bool(mask.any()):
                weight = torch.from_numpy(plan.penalty[gamma.classes]).float() * mask
                beta = parameters[gamma.beta]
                self._parts.append((parameters[gamma.param], beta, weight.to(beta.device)))

    @torch.no_grad()
    def step(self, threshold: float) -> None:
        """Make one step; ``threshold`` is μρ, ≥ 0."""
        for gamma, beta, weight in self._parts:
            beta.copy_(torch.where(gamma == 0, _soft(beta, threshold * weight), beta))


def _soft(values: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Return sgn(x)·max(|x| − t, 0)."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)
