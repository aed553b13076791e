"""The value of ρ at each step, the end of ISTA, and the symptoms to report.

Owns the decisions; pure numbers, no tensors. symptoms.py recognises symptoms. The loop passes one
``Reading`` per log line. The whole state is saved in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prunec.training.sparsity.symptoms import SPARSITY, WINDOW, Reading, Symptom, find_symptoms

_LOSS_SETTLED = 0.01
_LASSO_SETTLED = 0.01
_SPARSITY_SETTLED = 0.002
_BUDGET_STEP = 1.15
_LOSS_ROOM = 0.1
_BUDGET_START, _BUDGET_END = 0.1, 0.85
BUDGET_READINGS = 80
"""Fewest readings of a phase under a budget; each may change ρ by a step."""


@dataclass(slots=True)
class Controller:
    """Adjusts ρ during the ISTA phase.

    Args:
        rho: the base value.
        factors: continuation; the phase is divided evenly among rho times each of these.
        warmup: share of the phase over which ρ rises linearly from 0.
        budgeted: there is a size to reach.
        stop_on_plateau: end when loss, sparsity and lasso have settled at the last factor.
        chance_loss: the loss of guessing, ln(number of classes).
        committed: the penalised channels have to go whatever happens to the loss, so ρ never falls below its base.
    """

    rho: float
    factors: Sequence[float] = (1.0,)
    warmup: float = 0.0
    budgeted: bool = False
    stop_on_plateau: bool = True
    chance_loss: float = math.inf
    committed: bool = False
    readings: list[Reading] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    budget_factor: float = 1.0

    def rho_at(self, progress: float) -> float:
        """Return ρ at a share of the phase, in [0, 1)."""
        stage = min(int(progress * len(self.factors)), len(self.factors) - 1)
        rise = 1.0 if self.warmup <= 0 else min(1.0, progress / self.warmup)
        return self.rho * self.factors[stage] * rise * self.budget_factor

    def observe(self, reading: Reading) -> None:
        """Take in a log line; under a budget, adjust ρ towards the planned course."""
        self.readings.append(reading)
        if self.budgeted and reading.progress > self.warmup:
            behind = reading.excess - planned_excess(reading.progress)
            if self._hurts(reading) and not self.committed:
                self.budget_factor /= _BUDGET_STEP
            elif abs(behind) > 0.02:
                self.budget_factor *= _BUDGET_STEP if behind > 0 else 1 / _BUDGET_STEP
            if self.committed:
                self.budget_factor = max(1.0, self.budget_factor)

    def _hurts(self, reading: Reading) -> bool:
        """Whether the loss has gone a tenth of the way to guessing, so that more penalty would do more harm."""
        start = self.readings[0].loss
        return reading.loss > start + _LOSS_ROOM * (self.chance_loss - start)

    def is_done(self) -> str:
        """Return why the phase should end now; "" if it should continue."""
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

    def symptoms(self, emptied: bool = False) -> list[Symptom]:
        """Return the symptoms to report now, each once.

        Args:
            emptied: a layer has lost its last channel.
        """
        found = find_symptoms(self.readings, self.warmup, self.chance_loss)
        if emptied and SPARSITY not in found:
            found.append(SPARSITY)
        found = [symptom for symptom in found if symptom.name not in self.told]
        self.told += [symptom.name for symptom in found]
        return found

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


def restarted(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a controller's state for a phase towards the next goal; its changes of ρ are in ρ already."""
    return {**state, "readings": state["readings"][:1], "budget_factor": 1.0}


def planned_excess(progress: float) -> float:
    """Return the planned excess at ``progress``, with which the budget is met in time.

    It falls linearly from 1 at a tenth of the phase to 0 at 85%; the rest is for settling.
    """
    return 1 - min(1.0, max(0.0, (progress - _BUDGET_START) / (_BUDGET_END - _BUDGET_START)))


def _mean(readings: Sequence[Reading], name: str) -> float:
    return sum(float(getattr(reading, name)) for reading in readings) / len(readings)


def _relative_change(before: Sequence[Reading], after: Sequence[Reading], name: str) -> float:
    was, now = _mean(before, name), _mean(after, name)
    return abs(now - was) / max(abs(was), 1e-12)
