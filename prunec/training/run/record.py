"""What a run has measured and chosen so far; it is saved in the checkpoint and becomes the summary.

Owns the types and their form as plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """A pruned network: its MACs and its latency, as shares of the original's."""

    macs: float
    latency: float


@dataclass(frozen=True, slots=True)
class LatencyBudget:
    """The budget of MACs that is used for a share of the latency.

    Args:
        asked: the share of the latency.
        macs: the share of the MACs.
        probes: the networks that were timed to find it, the original first.
    """

    asked: float
    macs: float
    probes: tuple[Point, ...]


@dataclass(slots=True)
class Record:
    """Mutable; equal on all ranks.

    Args:
        scores, masks: by moment (results.MOMENTS), see context.py.
        reasons, advice: sentences for the user.
        alpha, rho, mu: α, ρ and the gammas' step size that the run began with; ``mu`` is None where it is the
            configuration's. See tuning.py.
        top: right end of the histogram of |γ|.
        focus: ids of the classes that the penalty is on, a list for each milestone that has begun; see focus.py.
        latency: see time_budget.py.
        distill: the teacher's weight while fine-tuning; 0 without one.
        by_data: training images choose the channels that the budget still needs, see removing.py.
        report: of the removal, as JSON data.
        rho_reached: at the end of a milestone's ISTA.
        milestones: see milestones.entry.
    """

    scores: dict[str, Mapping[str, float]] = field(default_factory=dict)
    masks: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    alpha: float = 1.0
    rho: float = 0.0
    mu: float | None = None
    top: float = 1.0
    focus: list[list[int]] = field(default_factory=list)
    latency: LatencyBudget | None = None
    distill: float = 0.0
    by_data: bool = False
    report: Mapping[str, Any] = field(default_factory=dict)
    rho_reached: float = 0.0
    milestones: list[dict[str, Any]] = field(default_factory=list)

    def to_plain(self) -> dict[str, Any]:
        """Return the record as data for ``of_plain``: dicts, lists, numbers, texts and tensors."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["latency"] = asdict(self.latency) if self.latency is not None else None
        return plain

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Record:
        """Return the record from ``to_plain``'s data."""
        record = cls(**plain)
        if plain["latency"] is not None:
            probes = tuple(Point(**point) for point in plain["latency"]["probes"])
            record.latency = LatencyBudget(plain["latency"]["asked"], plain["latency"]["macs"], probes)
        return record
