"""What each coupled group costs: a quarter, a half, three quarters of it removed, and nothing else.

Owns which channels go for that, and the reasons of groups of which none can. A group is removed in all layers that it
runs through, as a pruning would: single layers of it cannot be pruned, so what one layer by itself costs says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from prunec.ir.arrays import Floats, Ids
from prunec.ir.edits import CannotRewrite
from prunec.ir.plan import InputSpec, PrunePlan
from prunec.passes.groups import group_classes
from prunec.passes.selection.select import Facts, Selection, plan, recount, select
from prunec.passes.selection.shares import shares, sides
from prunec.report.analysis import analysis
from prunec.report.findings import Group
from prunec.sweep.findings import GroupCost, Step
from prunec.timing.staircases import Staircases

SHARES = (0.25, 0.5, 0.75)
_NAMED = 12
"""Layers and patterns that a group lists, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What is needed to remove a part of a group and look at the outputs.

    Args:
        facts: of the network.
        scores: float64[num_classes]; the lowest go first.
        specs: of its inputs.
        error: the error of the outputs of what a plan, and the selection that it is of, make of the network.
        clock: layers' times.
    """

    facts: Facts
    scores: Floats
    specs: tuple[InputSpec, ...]
    error: Callable[[PrunePlan, Selection], float]
    clock: Staircases


def group_costs(probe: Probe, skip: Mapping[int, GroupCost]) -> Iterator[GroupCost]:
    """Yield every coupled group, in the order of the network.

    Args:
        skip: those that are known already.
    """
    facts = probe.facts
    found = analysis(facts, select(facts), "").groups
    reasons = _reasons(facts)
    for group, classes in zip(found, group_classes(facts.classes), strict=True):
        if group.id in skip:
            yield skip[group.id]
            continue
        members = np.asarray(classes, dtype=np.int64)
        free = members[~facts.classes.pinned[members]]
        reason = next((reasons[c] for c in classes if c in reasons), "pinned") if not free.size else ""
        if not reason and free.size == 1:
            reason = "a single channel, which has to stay"
        steps: tuple[Step, ...] = ()
        if not reason:
            steps, reason = _steps(probe, free)
        yield _told(group, steps, reason)


def _told(group: Group, steps: tuple[Step, ...], reason: str) -> GroupCost:
    layers = tuple(dict.fromkeys(member.node for member in group.members if member.node))
    patterns = tuple(dict.fromkeys(member.param for member in group.members))
    return GroupCost(group.id, group.channels, layers[:_NAMED], patterns[:_NAMED], steps, reason)


def _reasons(facts: Facts) -> dict[int, str]:
    """Return why each pinned class stays: the first pin on it, in the words of the user's model."""
    reasons: dict[int, str] = {}
    for pin in facts.classes.pins:
        origin = pin.node.origin if pin.node is not None else ""
        where = f"{origin}: " if origin and origin not in pin.reason else ""
        for owner in np.unique(facts.classes.class_of[pin.ids]).tolist():
            reasons.setdefault(owner, where + pin.reason)
    return reasons


def _steps(probe: Probe, free: Ids) -> tuple[tuple[Step, ...], str]:
    """Return what parts of a group cost, or why none of it can go."""
    order = free[np.argsort(probe.scores[free], kind="stable")]
    if not np.isfinite(probe.scores[free]).any():
        return (), "what reads its channels cannot make up for any (products of two activations)"
    steps = []
    before = 0
    for share in SHARES:
        try:
            step = _step(probe, order, share)
        except CannotRewrite as error:
            return (), f"{error.origin}: {error.reason}"
        if step is not None and step.removed > before:
            steps.append(step)
            before = step.removed
    return tuple(steps), "" if steps else "other layers need all of its channels (equal counts per group, or shapes)"


def _step(probe: Probe, order: Ids, share: float) -> Step | None:
    facts = probe.facts
    able = int(np.isfinite(probe.scores[order]).sum())
    gone = order[: min(able, order.size - 1, round(share * order.size))]
    wish = np.ones(facts.classes.num_classes, dtype=bool)
    wish[gone] = False
    chosen = select(facts, wish, priority=probe.scores)
    removed = int((~chosen.keep[order]).sum())
    if not removed:
        return None
    made = plan(facts, chosen, probe.specs)
    whole, left = recount(facts, select(facts, np.ones_like(wish))), recount(facts, chosen)
    rest = shares(sides(facts.graph, facts.classes), chosen.keep, chosen.wanted.nodes)
    saved = probe.clock.whole - probe.clock.microseconds(rest)
    return Step(share, removed, probe.error(made, chosen), whole.macs - left.macs, saved)
