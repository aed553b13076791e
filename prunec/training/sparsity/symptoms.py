"""The three symptoms by which a run shows that its settings are wrong.

Owns their detection, on plain numbers. They are those of Ye, Lu, Lin, Wang, ICLR 2018, section 3.4. When they are
looked for is controller.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

OnSymptom = Literal["warn", "stop"]

WINDOW = 10
"""Readings that are compared with the same number before them."""
_EARLIEST_LASSO = 0.3
_STRAIGHT = 0.98
_ALL = 0.97
_CHANCE = 0.95


@dataclass(frozen=True, slots=True)
class Reading:
    """One log line of the ISTA phase.

    ``progress`` is the share of the phase's steps done; ``excess`` the remaining part of the way to the
    budget (see budget/goals.py): 1 for the full network, 0 or less if the budget holds.
    """

    progress: float
    loss: float
    sparsity: float
    lasso: float
    excess: float = 1.0


@dataclass(frozen=True, slots=True)
class Symptom:
    """Something that the curves show.

    Args:
        name: ``lasso``, ``sparsity`` or ``loss``.
        sentence: what it means and what to do.
    """

    name: str
    sentence: str


LASSO = Symptom(
    "lasso",
    "the lasso falls in a straight line while no gamma reaches zero, and will not get there in this phase: the gammas "
    "are large for this step size; lower alpha (or train longer)",
)
SPARSITY = Symptom("sparsity", "almost every gamma has reached zero, or all of some layer: rho is too large; lower rho")
LOSS = Symptom(
    "loss",
    "the loss has risen to that of guessing: the gammas move too fast; lower their learning rate (mu) or rho",
)


def find_symptoms(readings: Sequence[Reading], warmup: float, chance_loss: float) -> list[Symptom]:
    """Return the symptoms that the readings of a phase show, oldest reading first.

    Args:
        warmup: share of the phase over which ρ rises; the lasso means nothing during it.
        chance_loss: the loss of guessing.
    """
    if len(readings) < WINDOW:
        return []
    last = readings[-1]
    holds = (
        (LASSO, _lasso_falls_alone(readings, warmup)),
        (SPARSITY, last.sparsity > _ALL),
        (LOSS, last.loss > _CHANCE * chance_loss > readings[0].loss),
    )
    return [symptom for symptom, shown in holds if shown]


def _lasso_falls_alone(readings: Sequence[Reading], warmup: float) -> bool:
    """Whether the lasso falls in a straight line that ends after the phase, while no gamma has reached zero."""
    recent = [reading for reading in readings if reading.progress > warmup][-2 * WINDOW :]
    if len(recent) < WINDOW or recent[-1].progress < _EARLIEST_LASSO or any(r.sparsity > 0 for r in recent):
        return False
    first, last = recent[0], recent[-1]
    if not last.lasso < 0.99 * first.lasso or _straightness([r.lasso for r in recent]) <= _STRAIGHT:
        return False
    slope = (first.lasso - last.lasso) / max(1e-12, last.progress - first.progress)
    return last.progress + last.lasso / slope > 1


def _straightness(values: Sequence[float]) -> float:
    """Return R² of a straight line through ``values`` over their positions."""
    count = len(values)
    xs = [index - (count - 1) / 2 for index in range(count)]
    mean = sum(values) / count
    covariance = sum(x * (value - mean) for x, value in zip(xs, values, strict=True))
    spread = sum((value - mean) ** 2 for value in values)
    return 0.0 if spread == 0 else covariance**2 / (sum(x * x for x in xs) * spread)
