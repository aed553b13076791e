"""Distillation: the pruned network also learns the outputs of the unpruned one.

Owns its loss (Hinton, Vinyals, Dean, arXiv:1503.02531), and the rule that decides whether a network with weights
teaches by default. run.py decides which network teaches, and when.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from prunec.runtime.modules import evaluating
from prunec.training.learning.execution import Forward
from prunec.training.learning.objective import Objective

TEMPERATURE = 4.0
"""Softens both distributions, so that the teacher's second choices count too."""
WEIGHT = 0.9
"""Of a trained network's answers in the loss; the labels have the rest."""
LARGEST_LOSS = 0.5
"""Share of the loss of guessing up to which a network has something to teach."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A network that the pruned one learns from.

    Args:
        answer: computes its output for a batch; in eval mode, on the device.
        weight: of its answers in the loss, in [0, 1].
        objective: reads what networks return, and has the loss of the labels.
    """

    answer: Forward
    weight: float
    objective: Objective

    def loss(self, inputs: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return (1 − weight)·loss of the labels + weight·T²·KL(teacher ‖ student)."""
        loss = self.objective.loss(logits, targets)
        with torch.no_grad():
            taught = self.objective.logits(self.answer(inputs))
        return (1 - self.weight) * loss + self.weight * distillation_loss(logits, taught)


def default_weight(
    module: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], objective: Objective
) -> tuple[float, str]:
    """Return the weight of a given network's answers, and why: 0 for masks, or if it knows little about these data.

    Args:
        module: as it was given; left in its mode.
        batches: inputs and targets of the training set.
    """
    if not objective.distils:
        return 0.0, f"fine-tuning learns masks from their labels; --distill {WEIGHT:g} adds the unpruned network's"
    with torch.no_grad(), evaluating(module):
        losses = [float(objective.loss(objective.logits(module(inputs)), targets)) for inputs, targets in batches]
    loss, chance = sum(losses) / max(1, len(losses)), objective.chance_loss
    if loss <= LARGEST_LOSS * chance:
        return WEIGHT, "fine-tuning also learns the unpruned network's answers; --distill 0 leaves that out"
    return 0.0, (
        f"the unpruned network does not teach: its loss on the training images is {loss:.3g}, that of guessing "
        f"{chance:.3g}; --distill {WEIGHT:g} lets it"
    )


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
