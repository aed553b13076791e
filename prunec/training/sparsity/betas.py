"""Betas of channels whose gamma is zero: brought to zero too, where a channel can only go without its constant.

Owns the step on betas. A channel whose gamma is zero still carries act(β). Behind a squeeze-excite gate that is no
constant any more, unless it is zero; at β = 0 it is, behind every activation with act(0) = 0. Such a channel leaves
nothing to fold and needs no carrier at padded borders either. Which betas there are is worked out in sparsity.py.
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

    Such a beta makes no other step: what the gradient, momentum or weight decay would have done is undone. Else one
    behind an activation with a slope at 0 (SiLU) would move off its zero with every step.
    """

    def __init__(self, driven: Sequence[Driven]) -> None:
        self._gammas: list[torch.Tensor] = [each.gamma for each in driven]
        self._betas: list[torch.Tensor] = [each.beta for each in driven]
        self._sizes = [each.beta.numel() for each in driven]
        self._penalty = torch.cat([each.penalty.detach().float() for each in driven])
        self._held: torch.Tensor | None = None

    @torch.no_grad()
    def hold(self) -> None:
        """Remember the betas as they are before the optimiser's step."""
        self._held = torch.cat(self._betas)

    @torch.no_grad()
    def step(self, threshold: float) -> None:
        """Make one step from where ``hold`` was called; ``threshold`` is μρ, and nothing happens at 0."""
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
