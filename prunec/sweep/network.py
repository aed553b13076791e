"""The network of a sweep, read once, and what data show of it, looked at once.

Owns what the points and the groups share: the samples and their split, the order in which channels go, the sums that
weights are fitted with. Nothing of it is made before something asks: a sweep that is complete looks at no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import model_bytes
from prunec.check.agreement import agreement
from prunec.check.finding import working_feed
from prunec.data.calibration import Calibration
from prunec.data.samples import num_rows
from prunec.fitting.alone import made_up
from prunec.frontends.onnx.frontend import TracedOnnx
from prunec.ir.arrays import Array, Floats
from prunec.ir.edits import CannotRewrite, Edits
from prunec.ir.graph import Graph
from prunec.ir.plan import PrunePlan
from prunec.passes.cost import Cost, as_it_came, cost
from prunec.passes.groups import group_classes
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.budget import Target
from prunec.passes.selection.criteria import needs
from prunec.passes.selection.select import Facts, Selection
from prunec.pipeline.evidence import Evidence, onnx_evidence
from prunec.pipeline.options import Options
from prunec.pipeline.planning import Job, gather_facts, plan_and_apply, scores_of
from prunec.pipeline.reading import open_specs, read_onnx
from prunec.report.findings import Agreement
from prunec.runtime import sessions
from prunec.runtime.probes import Feed
from prunec.runtime.sessions import Runner
from prunec.timing.pairs import PROVIDER

_RANDOM = 16
"""Random inputs, where there are no samples that could be held out."""
_MOST_PROBED = 8
"""Samples on which parts of single groups are compared with the original, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What points are compared with the original on.

    Args:
        feeds: batches; none of them was looked at or fitted on.
        labels: the class of each sample; None where there are none.
        words: one sentence's end: "12 samples: …".
        notes: what a person must know besides.
    """

    feeds: Sequence[Feed]
    labels: tuple[int, ...] | None
    words: str
    notes: tuple[str, ...] = ()


class Network:
    """A file that is pruned to several sizes.

    Args:
        least: the smallest share of the MACs that will be asked for.
        progress: told what is being done.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        options: Options,
        calibration: Calibration | None,
        least: float,
        progress: Callable[[str], None],
    ) -> None:
        self.path, self.shapes, self.options, self.calibration = path, shapes, options, calibration
        self._least, self._progress = least, progress
        self.traced: TracedOnnx = read_onnx(path, shapes)
        self.specs = open_specs(self.traced.graph)

    @property
    def whole(self) -> Cost:
        """What the network costs as it came."""
        return cost(as_it_came(self.traced.graph))

    @property
    def num_groups(self) -> int:
        return len(group_classes(self.facts.classes))

    @cached_property
    def facts(self) -> Facts:
        return gather_facts(self.traced.graph, self.options.keep)

    @cached_property
    def evidence(self) -> Evidence:
        """What data show; without any, nothing."""
        found = onnx_evidence(self.path, self.traced, self.options, self.calibration, None, self.shapes, self._progress)
        if found.fit is not None:
            found.fit.least = self._least
        return found

    @cached_property
    def original(self) -> Runner:
        return sessions.open_runner(self.path, "the original", PROVIDER, optimise=True)

    @cached_property
    def compared_on(self) -> Compared:
        fit = self.evidence.fit
        if fit is not None and fit.data.held_out:
            words = f"{fit.data.num_held_out} samples: every fourth of {fit.data.name}, which nothing else looked at"
            return Compared(fit.data.held_out, fit.data.labels_held_out, words)
        feeds = tuple(working_feed(self.original, self.path, self.shapes, seed) for seed in range(_RANDOM))
        if fit is None:
            return Compared(
                feeds, None, f"{_RANDOM} random inputs, which say little about real ones: --calibrate helps"
            )
        few = f"{fit.data.name} holds too few samples to hold some out: eight are the least, some hundred are good"
        return Compared(feeds, None, f"{_RANDOM} random inputs, which say little about real ones", (few,))

    @property
    def timed_on(self) -> Feed:
        """What latency is measured on: one sample, where the network takes one at a time."""
        return _first_rows(self.compared_on.feeds, 1, self._cuts)[0]

    @cached_property
    def scores(self) -> Floats:
        """float64[num_classes]: when each class goes."""
        return scores_of(self.facts, self.options, self.evidence.saliency, self.evidence.fit)

    def look(self) -> None:
        """Look at the data, once for all: the order in which channels go, the sums that weights are fitted with."""
        assert self.evidence is not None
        if needs(self.options.criterion) == "data":
            assert self.scores is not None

    def make(self, target: Target) -> Job[Any]:
        """Prune to a target."""

        def apply(graph: Graph, edits: Edits) -> Any:
            return apply_onnx(replace(self.traced, graph=graph), edits)

        options, shown = replace(self.options, target_macs=target.macs), self.evidence
        return plan_and_apply(
            self.traced.graph, self.specs, options, shown.saliency, apply, shown.observed, shown.fit, target
        )

    def agreement(self, pruned: Runner) -> Agreement:
        """Hold a pruned network against the original."""
        on = self.compared_on
        return agreement(self.original, pruned, self.original.outputs, on.feeds, on.labels)

    # --- parts of single groups ---------------------------------------------------------------------------

    def error_of(self, made: PrunePlan, selection: Selection) -> float:
        """Return the largest relative error of an output where a part of one group goes, made up for as points are."""
        pruned = sessions.open_runner(
            model_bytes(self._without(made, selection)), "the network without a part", PROVIDER, optimise=False
        )
        feeds, outputs = self._probed
        known = iter(outputs)
        found = agreement(lambda _: next(known), pruned, self.original.outputs, feeds)
        return max((output.error for output in found.outputs), default=0.0)

    def _without(self, made: PrunePlan, selection: Selection) -> Any:
        facts, fit = self.facts, self.evidence.fit
        traced = replace(self.traced, graph=facts.graph)

        def edits(plan: PrunePlan) -> Edits:
            return lower(facts.graph, facts.classes, plan, facts.constants)

        if fit is not None and self.options.compensate:
            prepared = fit.prepared(facts, made, selection.wanted, frozenset(), new=True)
            try:
                return apply_onnx(traced, edits(made_up(fit, facts, prepared, edits(prepared))))
            except CannotRewrite:
                pass  # a bias that cannot be added: what goes is not made up for
        return apply_onnx(traced, edits(made))

    @cached_property
    def _probed(self) -> tuple[tuple[Feed, ...], list[list[Array]]]:
        """Return a few inputs, and what the original makes of them."""
        feeds = tuple(_first_rows(self.compared_on.feeds, _MOST_PROBED, self._cuts))
        return feeds, [self.original(feed) for feed in feeds]

    @property
    def _cuts(self) -> bool:
        fit = self.evidence.fit
        return fit is not None and bool(fit.data.held_out) and fit.data.rows > 0


def _first_rows(feeds: Sequence[Feed], count: int, cuts: bool) -> list[Feed]:
    """Return about the first ``count`` samples."""
    found: list[Feed] = []
    for feed in feeds:
        if count <= 0:
            break
        found.append({name: value[:count] for name, value in feed.items()} if cuts else feed)
        count -= num_rows(found[-1])
    return found
