"""Shrinking the betas of channels whose gamma is zero, if a channel can only go without its constant.

Owns the step on betas. A channel whose gamma is zero still carries act(β). Multiplied by a squeeze-excite gate, this is
no longer constant unless it is zero, which it is at β = 0 behind every activation with act(0) = 0. Such a channel
leaves nothing to fold and needs no carrier at padded borders either. sparsify.py finds these betas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True, eq=False)
class Driven:
    """A beta that follows its gamma to zero.

    Args:
        gamma, beta: float[C].
        penalty: float32[C], λ of each channel; 0 leaves a channel alone.
    """

    gamma: nn.Parameter
    beta: nn.Parameter
    penalty: torch.Tensor


class BetaDrive:
    """Shrinks the betas of zero gammas by μρλ a step, to exact zeros; never waits for the device.

    Such a beta makes no other step: changes by gradient, momentum or weight decay are undone. Otherwise a beta
    in front of an activation with a slope at 0 (SiLU) would leave zero at every step.
    """

    def __init__(self, driven: Sequence[Driven]) -> None:
        self._gammas: list[torch.Tensor] = [each.gamma for each in driven]
        self._betas: list[torch.Tensor] = [each.beta for each in driven]
        self._sizes = [each.beta.numel() for each in driven]
        self._penalty = torch.cat([each.penalty.detach().float() for each in driven])
        self._held: torch.Tensor | None = None

    @torch.no_grad()
    def hold(self) -> None:
        """Remember the betas before the optimiser's step."""
        self._held = torch.cat(self._betas)

    @torch.no_grad()
    def step(self, threshold: float) -> None:
        """Make one step from the betas at ``hold``; ``threshold`` is μρ, and 0 does nothing."""
        if self._held is None or not threshold:
            return
        now = torch.cat(self._betas)
        if self._penalty.device != now.device:
            self._penalty = self._penalty.to(now.device)
        gone = (torch.cat(self._gammas) == 0) & (self._penalty > 0)
        moved = torch.where(gone, _soft(self._held, threshold * self._penalty), now)
        torch._foreach_copy_(self._betas, list(moved.split(self._sizes)))
        self._held = None


def _soft(values: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Return sgn(x)·max(|x| − t, 0)."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)
