"""What ρ is at each step, when ISTA ends, and what the curves say is going wrong.

Owns the decisions; pure numbers, no tensors. The loop feeds it one ``Reading`` per log line. Everything it
remembers goes into the checkpoint and comes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

WINDOW = 10
"""Readings that are compared with the same number before them."""
_LOSS_SETTLED = 0.01
_LASSO_SETTLED = 0.01
_SPARSITY_SETTLED = 0.002
_BUDGET_STEP = 1.15
_LOSS_ROOM = 0.25
_BUDGET_START, _BUDGET_END = 0.1, 0.85
BUDGET_READINGS = 80
"""Readings that a phase under a budget has at least: each may move ρ by a step."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One log line of the ISTA phase.

    ``progress`` is the share of the phase's steps done; ``excess`` how much of the way to the budget is still to
    go (see budget.py): 1 for the full network, 0 or less where the budget holds.
    """

    progress: float
    loss: float
    sparsity: float
    lasso: float
    excess: float = 1.0


@dataclass(slots=True)
class Controller:
    """Moves ρ through the ISTA phase.

    Args:
        rho: the base value.
        factors: continuation; the phase is divided evenly among rho times each of these.
        warmup: share of the phase over which ρ rises linearly from 0.
        budgeted: there is a size to reach.
        stop_on_plateau: end when loss, sparsity and lasso have settled at the last factor.
        chance_loss: the loss of guessing, ln(number of classes).
    """

    rho: float
    factors: Sequence[float] = (1.0,)
    warmup: float = 0.0
    budgeted: bool = False
    stop_on_plateau: bool = True
    chance_loss: float = math.inf
    readings: list[Reading] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    budget_factor: float = 1.0

    def rho_at(self, progress: float) -> float:
        """Return ρ at a share of the phase, in [0, 1)."""
        stage = min(int(progress * len(self.factors)), len(self.factors) - 1)
        rise = 1.0 if self.warmup <= 0 else min(1.0, progress / self.warmup)
        return self.rho * self.factors[stage] * rise * self.budget_factor

    def observe(self, reading: Reading) -> None:
        """Take in a log line; under a budget, move ρ towards the planned course."""
        self.readings.append(reading)
        if self.budgeted and reading.progress > self.warmup:
            behind = reading.excess - planned_excess(reading.progress)
            if self._hurts(reading):
                self.budget_factor /= _BUDGET_STEP
            elif abs(behind) > 0.02:
                self.budget_factor *= _BUDGET_STEP if behind > 0 else 1 / _BUDGET_STEP

    def _hurts(self, reading: Reading) -> bool:
        """The loss has gone a quarter of the way to guessing: more penalty would cost more than it decides."""
        start = self.readings[0].loss
        return reading.loss > start + _LOSS_ROOM * (self.chance_loss - start)

    def is_done(self) -> str:
        """Return why the phase should end now; "" while it should go on."""
        if not self.readings:
            return ""
        if self.budgeted:
            return "the budget is reached" if self.readings[-1].excess <= 0 else ""
        if self.stop_on_plateau and self._settled():
            return "loss, sparsity and lasso have settled"
        return ""

    def _settled(self) -> bool:
        last_stage_from = max(self.warmup, (len(self.factors) - 1) / len(self.factors))
        recent = [r for r in self.readings if r.progress > last_stage_from]
        if len(recent) < 2 * WINDOW or recent[-1].sparsity == 0:
            return False
        before, after = recent[-2 * WINDOW : -WINDOW], recent[-WINDOW:]
        return (
            _relative_change(before, after, "loss") < _LOSS_SETTLED
            and _relative_change(before, after, "lasso") < _LASSO_SETTLED
            and abs(_mean(after, "sparsity") - _mean(before, "sparsity")) < _SPARSITY_SETTLED
        )

    def advice(self) -> list[str]:
        """Return what to tell the user now: each of the paper's three symptoms, once."""
        found = []
        if len(self.readings) >= WINDOW:
            last = self.readings[-1]
            for name, holds, sentence in (
                ("lasso", last.progress >= 0.7 and self._lasso_falls_alone(), _LOWER_ALPHA),
                ("sparsity", last.sparsity > 0.97, _LOWER_RHO),
                ("loss", last.loss > 0.95 * self.chance_loss > self.readings[0].loss, _LOWER_MU),
            ):
                if holds and name not in self.told:
                    self.told.append(name)
                    found.append(sentence)
        return found

    def _lasso_falls_alone(self) -> bool:
        """The lasso falls in a straight line while no gamma has reached zero."""
        recent = [reading for reading in self.readings if reading.progress > self.warmup][-2 * WINDOW :]
        if len(recent) < WINDOW or any(reading.sparsity > 0 for reading in recent):
            return False
        return recent[-1].lasso < 0.99 * recent[0].lasso and _straightness([r.lasso for r in recent]) > 0.98

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers, as plain data."""
        return {
            # The first one too: the loss is compared with the start of the phase.
            "readings": [asdict(reading) for reading in [*self.readings[:1], *self.readings[1:][-4 * WINDOW :]]],
            "told": list(self.told),
            "budget_factor": self.budget_factor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.readings = [Reading(**reading) for reading in state["readings"]]
        self.told = list(state["told"])
        self.budget_factor = state["budget_factor"]


_LOWER_ALPHA = (
    "the lasso falls in a straight line while no gamma reaches zero: the gammas are large for this step size; "
    "lower alpha (or train longer)"
)
_LOWER_RHO = "almost every gamma has reached zero: rho is too large; lower rho"
_LOWER_MU = "the loss has risen to that of guessing: lower the gammas' learning rate (mu) or rho"


def planned_excess(progress: float) -> float:
    """Return the excess that there should be at ``progress`` so that the budget is met in time.

    Straight from 1 at a tenth of the phase to 0 at 85%: what is left is for settling.
    """
    return 1 - min(1.0, max(0.0, (progress - _BUDGET_START) / (_BUDGET_END - _BUDGET_START)))


def _mean(readings: Sequence[Reading], name: str) -> float:
    return sum(float(getattr(reading, name)) for reading in readings) / len(readings)


def _relative_change(before: Sequence[Reading], after: Sequence[Reading], name: str) -> float:
    was, now = _mean(before, name), _mean(after, name)
    return abs(now - was) / max(abs(was), 1e-12)


def _straightness(values: Sequence[float]) -> float:
    """Return R² of a straight line through ``values`` over their positions."""
    count = len(values)
    xs = [index - (count - 1) / 2 for index in range(count)]
    mean = sum(values) / count
    covariance = sum(x * (value - mean) for x, value in zip(xs, values, strict=True))
    spread = sum((value - mean) ** 2 for value in values)
    return 0.0 if spread == 0 else covariance**2 / (sum(x * x for x in xs) * spread)
