"""Graph, options, data -> a plan, and what a backend made of it.

Owns the order of the analysis passes and the loop around a backend that cannot rewrite a node. Reading,
reporting.py and checking.py come after it; the choice itself is made in passes/selection/select.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np

from prunec.data.calibration import Observed
from prunec.errors import InternalError
from prunec.ir.edits import CannotRewrite, Edits
from prunec.ir.graph import Graph
from prunec.ir.plan import InputSpec, PrunePlan
from prunec.passes.channels import channels
from prunec.passes.constants import constants
from prunec.passes.liveness import liveness
from prunec.passes.lowering.lower import lower
from prunec.passes.reads import reads
from prunec.passes.rewrites.gates import gate_folds_of
from prunec.passes.rewrites.residuals import expansions_of
from prunec.passes.selection.budget import Target, select_budget
from prunec.passes.selection.scores import score
from prunec.passes.selection.select import Facts, Selection, plan, select
from prunec.pipeline.options import Options

Result = TypeVar("Result")
PROVABLE = "removed what is provably constant or dead"
SHOWN = "removed what is constant or dead, provably or on the calibration data"

SAME_KIND = 3
"""Calls of one kind found unrewritable, one after another, before all of that kind are taken to be."""


def gather_facts(
    graph: Graph,
    keep: Sequence[str] = (),
    frozen: Mapping[str, str] | None = None,
    observed: Mapping[str, np.ndarray[Any, Any]] = MappingProxyType({}),
) -> Facts:
    """Run the analysis passes over a graph.

    Args:
        keep: shell patterns of parameters and nodes to leave alone.
        frozen: nodes that a backend cannot rewrite, and why.
        observed: what calibration found constant; see passes.constants.
    """
    classes = channels(graph, keep, frozen)
    known = constants(graph, observed=observed)
    live = liveness(graph, known)
    return Facts(graph, classes, known, live, reads(graph, classes, known, live))


def choose(
    facts: Facts,
    options: Options,
    saliency: Mapping[str, np.ndarray[Any, Any]] | None = None,
    target: Target | None = None,
) -> tuple[Selection, str]:
    """Return what to keep, and in one sentence how that was chosen.

    Args:
        saliency: for the ``taylor`` criterion: parameter name -> importance of each of its elements.
        target: what may stay, where that is not the options' to say: a budget of time has a clock.
    """
    if options.criterion is None:
        chosen = select(facts, border=options.border, multiple_of=options.rounding)
        return chosen, PROVABLE
    scores = score(facts, options.criterion, seed=options.seed, saliency=saliency)
    chosen = select_budget(
        facts,
        scores,
        target or options.target,
        border=options.border,
        multiple_of=options.rounding,
    )
    goals = [
        f"{value:.0%} of the {what}"
        for what, value in (
            ("MACs", options.target_macs),
            ("parameters", options.target_params),
            ("latency", options.target_latency),
        )
        if value is not None
    ]
    return (
        chosen,
        f"removed the channels that score lowest by {options.criterion} until {' and '.join(goals)} were left",
    )


@dataclass(frozen=True, slots=True, eq=False)
class Job(Generic[Result]):
    """A pruning that was carried out.

    Args:
        proven: what would have been planned without data, where they allowed more; None where not.
    """

    facts: Facts
    selection: Selection
    plan: PrunePlan
    result: Result
    proven: Job[Any] | None = None

    @property
    def by_data(self) -> bool:
        """The plan rests on what data showed: it keeps the function on them, and is not proven beyond."""
        return self.proven is not None


def plan_and_apply(
    graph: Graph,
    inputs: tuple[InputSpec, ...],
    options: Options,
    saliency: Mapping[str, np.ndarray[Any, Any]] | None,
    apply: Callable[[Graph, Edits], Result],
    observed: Observed | None = None,
    target: Target | None = None,
) -> Job[Result]:
    """Plan and apply; where a backend cannot rewrite a node, pin what it touches and plan again.

    Args:
        target: see ``choose``.
        apply: a backend; the graph is the given one, rewritten where the plan has expansions.
    """
    frozen: dict[str, str] = {}
    while True:
        planned = _planned(graph, inputs, options, saliency, frozen, observed, target)
        facts, made = planned.facts, planned.plan
        try:
            edits = lower(facts.graph, facts.classes, made, facts.constants)
            return replace(planned, result=apply(facts.graph, edits))
        except CannotRewrite as error:
            added = _to_freeze(graph, frozen, error)
            if not added:
                raise InternalError(
                    "backend", f"{error.origin}: {error.reason}, although its channels are pinned"
                ) from error
            frozen.update(added)


def _to_freeze(graph: Graph, frozen: Mapping[str, str], error: CannotRewrite) -> dict[str, str]:
    """Return the user's nodes to pin after a failure, with the reason; none where all are pinned already.

    The node that failed comes first. After ``SAME_KIND`` of a kind all of that kind follow, so that a deep network
    is not planned once per block. Where pinning a node does not help, nothing is removed at all.
    """
    origins = dict.fromkeys(node.origin for node in graph.nodes)
    if error.origin in frozen or error.origin not in origins:
        reason = f"{error.origin} cannot be changed: {error.reason}"
        return {origin: reason for origin in origins if origin not in frozen}
    kinds = {node.origin: node.source for node in reversed(graph.nodes)}
    same = [origin for origin in origins if kinds[origin] == kinds[error.origin]]
    if sum(origin in frozen for origin in same) < SAME_KIND:
        return {error.origin: error.reason}
    return {origin: error.reason for origin in same if origin not in frozen}


def _planned(
    graph: Graph,
    inputs: tuple[InputSpec, ...],
    options: Options,
    saliency: Mapping[str, np.ndarray[Any, Any]] | None,
    frozen: Mapping[str, str],
    observed: Observed | None,
    target: Target | None,
) -> Job[Any]:
    """Plan on what is proven and, where data were given, on what they show as well."""

    def planned(found: Mapping[str, np.ndarray[Any, Any]]) -> Job[Any]:
        facts, rewrites = _rewritten(graph, options, frozen, found)
        selection, reason = choose(facts, options, saliency, target)
        made = plan(facts, selection, inputs, border=options.border, reason=reason)
        return Job(facts, selection, replace(made, **rewrites), None)

    proven = planned({})
    if observed is None or not observed.constants:
        return proven
    shown = planned(observed.constants)
    if shown.plan == proven.plan:
        return proven
    reason = shown.plan.reason.replace(PROVABLE, SHOWN)
    made = replace(shown.plan, exact=False, reason=reason)
    return replace(shown, plan=made, proven=proven)


def _rewritten(
    graph: Graph, options: Options, frozen: Mapping[str, str], found: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[Facts, dict[str, Any]]:
    """Return the facts of the graph, rewritten where the options ask for it and it pays, and what the plan notes."""

    def analyse(rewritten: Graph) -> Facts:
        return gather_facts(rewritten, options.keep, frozen, found)

    facts, notes = analyse(graph), dict[str, Any]()
    how: dict[str, Any] = {"border": options.border, "multiple_of": options.rounding}
    if options.gates == "fold":
        facts, notes["gate_folds"] = gate_folds_of(facts, analyse, **how)
    if options.residual == "expand":
        facts, notes["expansions"] = expansions_of(facts, analyse, **how)
    return facts, notes
