"""Distillation: the pruned network also learns what the unpruned one says.

Owns the loss of it (Hinton, Vinyals, Dean, arXiv:1503.02531). Which network teaches, and when, is run.py's.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

TEMPERATURE = 2.0
"""Softens both distributions, so that what the teacher holds for second best counts too."""


def distillation_loss(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return T²·KL(teacher ‖ student) of the distributions at temperature T, as a mean over images (and pixels).

    Args:
        logits, teacher: float[N, K] or float[N, K, H, W]; a single logit per image or pixel is one of a
            yes-or-no question.
    """
    if logits.shape[1] == 1:
        logits, teacher = _two_sided(logits), _two_sided(teacher)
    mine = F.log_softmax(logits.float() / TEMPERATURE, dim=1)
    wanted = F.log_softmax(teacher.float() / TEMPERATURE, dim=1)
    divergence = F.kl_div(mine, wanted, reduction="none", log_target=True).sum(1)
    return TEMPERATURE**2 * divergence.mean()


def _two_sided(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits of both answers: softmax over them is the sigmoid of the one given."""
    return torch.cat((torch.zeros_like(logits), logits), dim=1)
