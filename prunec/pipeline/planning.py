"""Graph, options, data -> a plan, and a backend's result.

Owns the order of the analysis passes and the loop around a backend that cannot rewrite a node. Reading,
reporting.py and checking.py come after it; the choice itself is made in passes/selection/select.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from prunec.errors import InternalError
from prunec.garbage import collected_later
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
from prunec.passes.selection.criteria import check_has_data, name_of, needs, score
from prunec.passes.selection.select import Facts, Selection, plan, select
from prunec.pipeline.options import Options

if TYPE_CHECKING:
    from prunec.data.calibration import Observed
    from prunec.fitting.reconstruct import Reconstruction
    from prunec.passes.selection.budget import Target

Result = TypeVar("Result")
PROVABLE = "removed what is provably constant or dead"
MULTIPLES = ", and multiples of channels that stay"
SHOWN = "removed what is constant or dead, provably or on the calibration data"

SAME_KIND = 3
"""After this many calls of one kind that a backend cannot rewrite, all calls of that kind are pinned."""


@collected_later()
def gather_facts(
    graph: Graph,
    keep: Sequence[str] = (),
    frozen: Mapping[str, str] | None = None,
    observed: Mapping[str, np.ndarray[Any, Any]] = MappingProxyType({}),
    replaced: Mapping[str, np.ndarray[Any, Any]] = MappingProxyType({}),
) -> Facts:
    """Run the analysis passes over a graph.

    Args:
        keep: shell patterns of parameters and nodes to leave alone.
        frozen: nodes that a backend cannot rewrite, and why.
        observed: what calibration found constant; see passes.constants.
        replaced: constants that are to stand in the place of whole branches; see there.
    """
    classes = channels(graph, keep, frozen)
    known = constants(graph, observed=observed, replaced=replaced)
    live = liveness(graph, known)
    return Facts(graph, classes, known, live, reads(graph, classes, known, live))


def choose(
    facts: Facts,
    options: Options,
    saliency: Mapping[str, np.ndarray[Any, Any]] | None = None,
    data: Reconstruction | None = None,
    target: Target | None = None,
) -> tuple[Selection, str]:
    """Return what to keep, and a sentence that says how it was chosen.

    Args:
        saliency: for the ``taylor`` criterion: parameter name -> importance of each of its elements.
        data: for the ``reconstruct`` criterion.
        target: used instead of the options'; a budget of time has a clock.
    """
    if options.criterion is None:
        chosen = select(facts, border=options.border, multiple_of=options.rounding)
        return chosen, PROVABLE + (MULTIPLES if chosen.multiples(facts).any() else "")
    from prunec.passes.selection.budget import select_budget

    scores = scores_of(facts, options, saliency, data)
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
    which = f"that score lowest by {name_of(options.criterion)}"
    if needs(options.criterion) == "data":
        which = "that the others make up for at the least error on the data"
    return chosen, f"removed the channels {which} until {' and '.join(goals)} were left"


def scores_of(
    facts: Facts,
    options: Options,
    saliency: Mapping[str, np.ndarray[Any, Any]] | None,
    data: Reconstruction | None,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return float64[num_classes] by the criterion of the options: the lowest go first."""
    assert options.criterion is not None
    if needs(options.criterion) != "data":
        return score(facts, options.criterion, seed=options.seed, saliency=saliency)
    check_has_data(options.criterion, data=data is not None)
    assert data is not None
    goals = (options.target_macs, options.target_params, options.target_latency)
    least = min(goal for goal in goals if goal is not None)
    return data.scores(facts, of_params=_of_params(options), least=least)


def _of_params(options: Options) -> bool:
    """Tell whether it is parameters that are to be saved."""
    return options.target_macs is None and options.target_latency is None


@dataclass(frozen=True, slots=True, eq=False)
class Job(Generic[Result]):
    """A pruning that was carried out.

    Args:
        proven: the plan without data, if the data allowed more; else None.
    """

    facts: Facts
    selection: Selection
    plan: PrunePlan
    result: Result
    proven: Job[Any] | None = None

    @property
    def by_data(self) -> bool:
        """Whether the plan rests on data: it keeps the function on them, but that is not proven elsewhere."""
        return self.proven is not None


@dataclass(frozen=True, slots=True, eq=False)
class _Draft:
    """A plan before it is carried out.

    Args:
        prepared: the plan, with the biases that a fit would fill.
        fits: whether what stays is fitted to data.
    """

    planned: Job[Any]
    prepared: PrunePlan
    fits: bool = True

    @property
    def keeps(self) -> tuple[Any, ...]:
        return self.planned.plan.keeps, self.planned.plan.grouped

    def only_biased(self, origin: str) -> bool:
        """Tell whether a node was to get a bias only for the sake of a fit."""
        added = self.prepared.folds[len(self.planned.plan.folds) :]
        biased = {fold.node for fold in added if not fold.target}
        return any(node.origin == origin and node.name in biased for node in self.planned.facts.graph.nodes)


@dataclass(slots=True, eq=False)
class _Trial(Generic[Result]):
    """A plan that was carried out without the fit.

    Args:
        known: the error of the outputs after a rough fit, once it was asked for.
    """

    draft: _Draft
    edits: Edits
    result: Result
    known: float | None = None

    @property
    def facts(self) -> Facts:
        return self.draft.planned.facts

    def error(self, data: Reconstruction) -> float:
        if self.known is None:
            self.known = data.error(self.facts, self.edits, self.result)
        return self.known


_CLEARLY = 0.95
"""The part of the first plan's error below which another one is taken."""

Means = Mapping[str, np.ndarray[Any, Any]]
"""What stands in the place of whole branches: value name -> its mean per channel, of the value's rank."""
_NOTHING: Means = MappingProxyType({})


def _of_orders(
    first: _Trial[Result],
    data: Reconstruction,
    drafted: Callable[[Reconstruction], _Draft],
    carried: Callable[[_Draft], _Trial[Result]],
) -> _Trial[Result]:
    """Return the first plan, or that of another order of channels which is clearly better."""
    seen, trials = [first.draft.keeps], [first]
    for other in data.alternatives():
        draft = drafted(other)
        if draft.keeps not in seen:
            seen.append(draft.keeps)
            trials.append(carried(draft))
    if len(trials) == 1:
        return first
    for number, trial in enumerate(trials):
        data.progress(f"trying order {number + 1} of {len(trials)}")
        trial.error(data)
    best = min(trials, key=lambda each: each.error(data))
    return best if best.error(data) < _CLEARLY * first.error(data) else first


def _of_branches(
    first: _Trial[Result],
    data: Reconstruction,
    options: Options,
    drafted: Callable[[Means], _Draft],
    carried: Callable[[_Draft], _Trial[Result]],
    frozen: Collection[str],
) -> tuple[_Trial[Result], Means]:
    """Return a plan, or one without whole branches if that is better, and what stands in their place."""
    share = options.target_params if _of_params(options) else options.target_macs
    assert share is not None
    best, last = (first, _NOTHING), np.inf
    for replaced in data.without_branches(first.facts, 1 - share, of_params=_of_params(options), frozen=frozen):
        draft = drafted(replaced)
        if not draft.fits or not _all_cut(draft.planned, replaced):
            continue
        trial = carried(draft)
        data.progress(f"trying without {len(replaced)} branches")
        if trial.error(data) >= last:
            break
        last = trial.error(data)
        best = (trial, replaced) if last < data.surely * first.error(data) else best
    return best


def _all_cut(job: Job[Any], replaced: Means) -> bool:
    """Tell whether nothing computes the branches that are replaced any more."""
    wanted = job.selection.wanted
    made = {name for node in job.facts.graph.nodes if node.name in wanted.nodes for name in node.outputs}
    return made.isdisjoint(replaced)


def _chooses(options: Options, target: Target | None) -> bool:
    """Tell whether data choose the channels, and not for a time that was measured with the channels chosen."""
    by_data = options.criterion is not None and needs(options.criterion) == "data"
    return by_data and (target is None or target.clock is None)


def plan_and_apply(
    graph: Graph,
    inputs: tuple[InputSpec, ...],
    options: Options,
    saliency: Mapping[str, np.ndarray[Any, Any]] | None,
    apply: Callable[[Graph, Edits], Result],
    observed: Observed | None = None,
    data: Reconstruction | None = None,
    target: Target | None = None,
    *,
    fit: bool = True,
) -> Job[Result]:
    """Plan and apply; if a backend cannot rewrite a node, pin the channels that it touches and plan again.

    Args:
        fit: if False, the rest is not fitted to the data, but has the biases that a fit would fill.
        target: see ``choose``.
        apply: a backend; its graph is the given one, rewritten if the plan has expansions.
        data: the rest is fitted to them if a criterion removed channels.
    """
    frozen: dict[str, str] = {}
    unbiased: set[str] = set()

    def drafted(data: Reconstruction | None, replaced: Means = _NOTHING) -> _Draft:
        planned = _planned(graph, inputs, options, saliency, frozen, observed, data, target, replaced)
        if data is None or options.criterion is None or not options.compensate or not planned.plan.keeps:
            return _Draft(planned, planned.plan, fits=False)
        wanted, new = planned.selection.wanted, options.target_params is None
        return _Draft(planned, data.prepared(planned.facts, planned.plan, wanted, frozenset(unbiased), new=new))

    def carried(draft: _Draft) -> _Trial[Result]:
        facts = draft.planned.facts
        edits = lower(facts.graph, facts.classes, draft.prepared, facts.constants)
        return _Trial(draft, edits, apply(facts.graph, edits))

    while True:
        draft = drafted(data)
        try:
            if data is None or not (fit and draft.fits):
                return replace(draft.planned, result=carried(draft).result)
            trial = carried(draft)
            if _chooses(options, target):
                replaced = _NOTHING
                if options.residual == "tie" and options.gates == "tie":
                    trial, replaced = _of_branches(trial, data, options, partial(drafted, data), carried, frozen)
                trial = _of_orders(trial, data, partial(drafted, replaced=replaced), carried)
            draft, facts = trial.draft, trial.facts
            fitted = data.fitted(facts, draft.prepared, trial.edits, trial.result)
            result = apply(facts.graph, lower(facts.graph, facts.classes, fitted, facts.constants))
            return replace(draft.planned, plan=fitted, result=result)
        except CannotRewrite as error:
            if error.origin not in unbiased and draft.only_biased(error.origin):
                unbiased.add(error.origin)
                continue
            added = _to_freeze(graph, frozen, error)
            if not added:
                raise InternalError(
                    "backend", f"{error.origin}: {error.reason}, although its channels are pinned"
                ) from error
            frozen.update(added)


def _to_freeze(graph: Graph, frozen: Mapping[str, str], error: CannotRewrite) -> dict[str, str]:
    """Return the user's nodes to pin after a failure, with the reason; none if all are pinned already.

    The node that failed comes first. After ``SAME_KIND`` of a kind all of that kind follow, so that a deep network
    is not planned once per block. If pinning a node does not help, nothing is removed at all.
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
    data: Reconstruction | None,
    target: Target | None,
    replaced: Means,
) -> Job[Any]:
    """Plan with proven constants and, if data were given, with those that they show."""

    def planned(found: Mapping[str, np.ndarray[Any, Any]]) -> Job[Any]:
        facts, rewrites = _rewritten(graph, options, frozen, found, replaced)
        selection, reason = choose(facts, options, saliency, data, target)
        made = plan(facts, selection, inputs, reason=reason)
        if data is None and options.criterion is not None and options.compensate and not made.exact:
            from prunec.passes.fitting.means import mean_folds

            made = replace(made, folds=(*made.folds, *mean_folds(facts, made)))
        made = replace(made, exact=made.exact and not replaced)
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
    graph: Graph,
    options: Options,
    frozen: Mapping[str, str],
    found: Mapping[str, np.ndarray[Any, Any]],
    replaced: Means,
) -> tuple[Facts, dict[str, Any]]:
    """Return the facts of the graph, rewritten where the options ask for it and it pays, and the rewrites."""

    def analyse(rewritten: Graph) -> Facts:
        return gather_facts(rewritten, options.keep, frozen, found, replaced)

    facts, notes = analyse(graph), dict[str, Any]()
    how: dict[str, Any] = {"border": options.border, "multiple_of": options.rounding}
    if options.gates == "fold":
        facts, notes["gate_folds"] = gate_folds_of(facts, analyse, **how)
    if options.residual == "expand":
        facts, notes["expansions"] = expansions_of(facts, analyse, **how)
    return facts, notes
