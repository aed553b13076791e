"""A budget of time: prune until the result takes a given share of the original's latency, measured.

Owns the search. Channels are chosen by a budget on the times of single layers (prunec/timing/staircases.py); every
result is timed as a whole against the original, and the budget is changed until that time is as asked for.
Intermediate results are not fitted to data, since weights do not affect times. The final one is fitted and measured
again as it will be written; if that does not confirm it, the search continues. Training has its own search, over MACs
(prunec/training/run/time_budget.py), because each of its steps is a training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from prunec.errors import BudgetNotMet
from prunec.ir.graph import Graph
from prunec.passes.selection.budget import Target
from prunec.pipeline.options import Options
from prunec.pipeline.planning import Job
from prunec.report.findings import Latency
from prunec.runtime import sessions
from prunec.runtime.probes import Feed
from prunec.timing import latency, staircases
from prunec.timing.pairs import ONE, PROVIDER, Pair, middle, ratio

if TYPE_CHECKING:
    from torch import nn

Result = TypeVar("Result")
Progress = Callable[[str], None]

LEAST_USED = 0.93
"""Of the share asked for: below this a result does not end the search, because more channels could stay."""
_AIM = 0.97
_TRIES, _CONFIRMED = 8, 4
"""Most prunings that are timed, and most of these that are fitted and measured again."""
_FEWEST_OPENED, _MOST_OPENED, _RUNS, _SECONDS, _FAST = 3, 8, 40, 8.0, 0.25
"""How often two files are opened, the rounds each time, the seconds after which they are not opened again, and the
quantile of the times that counts."""
_SURE = 3
"""Measurements before a share is refused."""
_SMALLEST = 1e-6
"""A budget that nothing meets, so that as little as possible stays."""


def pruned_to(
    options: Options,
    graph: Graph,
    planned: Callable[..., Job[Result]],
    time: Callable[[Job[Result]], Pair],
    progress: Progress,
) -> tuple[Job[Result], Latency]:
    """Prune until the result takes at most ``options.target_latency`` of the original's time, but not much less.

    Args:
        graph: as it was read; its layers are timed by themselves.
        planned: (target, fit=…) -> the result; without a fit it is only good for timing.
        time: milliseconds of the original and of a result, measured at each call.
        progress: called with what is being measured.

    Raises:
        BudgetNotMet: with the smallest share that is possible.
    """
    asked = options.target_latency
    assert asked is not None
    clock = staircases.measured(graph, progress)
    search = _Search(options.target, clock, planned, time, progress)
    for _ in range(_CONFIRMED):
        best = _searched(search, asked)
        job = planned(best.target, fit=True)
        best.pairs.append(time(job) if best.smaller else best.pair)
        progress(f"the file takes {best.share:.1%} of the latency, measured {len(best.pairs)} times")
        if _is_near(best, asked) or (best.share <= asked and search.is_over):
            break
    else:
        best = _searched(search, asked)
        job = planned(best.target, fit=True)
    told = Latency(asked, best.share, *best.pair, provider=PROVIDER, tries=len(search.tried), untimed=clock.untimed)
    return job, told


def _searched(search: _Search[Result], asked: float) -> _Found[Result]:
    """Return the slowest measured result within the budget, after trying more if it is far below it.

    Raises:
        BudgetNotMet: the least that can stay takes more.
    """
    goal = asked
    if search.tried:
        goal = next_goal([(each.goal, each.share) for each in search.tried], asked)
    while not search.is_over and not any(_is_near(each, asked) for each in search.tried):
        found = search.at(goal)
        if found.least and search.surely_above(found, asked):
            raise _out_of_reach(asked, found, search.tried)
        goal = next_goal([(each.goal, each.share) for each in search.tried], asked)
    fitting = [each for each in search.tried if each.share <= asked]
    if not fitting:
        last = search.at(_SMALLEST)
        if search.surely_above(last, asked):
            raise _out_of_reach(asked, last, search.tried)
        fitting = [last]
    return max(fitting, key=lambda each: each.share)


def _is_near(found: _Found[Any], asked: float) -> bool:
    return found.share <= asked and (found.share >= LEAST_USED * asked or not found.smaller)


@dataclass(frozen=True, slots=True, eq=False)
class _Found(Generic[Result]):
    """A pruning that was timed: the budget of layer times that led to it, and its share of the latency.

    Args:
        pairs: all measurements of it; the median counts.
        least: nothing more can be removed.
        smaller: something was removed.
    """

    goal: float
    target: Target
    job: Job[Result]
    pairs: list[Pair]
    least: bool
    smaller: bool

    @property
    def pair(self) -> Pair:
        """The median measurement; of two the slower one."""
        return middle(self.pairs)

    @property
    def share(self) -> float:
        return ratio(self.pair) if self.smaller else 1.0


class _Search(Generic[Result]):
    """The prunings that were tried."""

    def __init__(
        self,
        target: Target,
        clock: staircases.Staircases,
        planned: Callable[..., Job[Result]],
        time: Callable[[Job[Result]], Pair],
        progress: Progress,
    ) -> None:
        self._target, self._clock, self._planned, self._time = target, clock, planned, time
        self._progress = progress
        self.tried: list[_Found[Result]] = []

    @property
    def is_over(self) -> bool:
        """Enough has been tried."""
        return len(self.tried) >= _TRIES

    def surely_above(self, found: _Found[Result], asked: float) -> bool:
        """Tell whether a pruning takes too long in repeated measurements, so that nothing is refused by chance."""
        while found.share > asked and len(found.pairs) < _SURE:
            found.pairs.append(self._time(found.job))
        return found.share > asked

    def at(self, goal: float) -> _Found[Result]:
        """Prune to a budget of layer times, or as far as possible, and time the result."""
        target = replace(self._target, time=goal, clock=self._clock, or_least=True)
        job = self._planned(target, fit=False)
        same = next((each for each in self.tried if (each.job.selection.keep == job.selection.keep).all()), None)
        pairs = [self._time(job)] if same is None else same.pairs
        least = bool(same is not None and same.least) or not job.selection.fits
        found = _Found(goal, target, job, pairs, least, bool((~job.selection.keep).any()))
        self.tried.append(found)
        self._progress(f"try {len(self.tried)}: {found.share:.1%} of the latency, measured")
        return found


def next_goal(tried: Sequence[tuple[float, float]], asked: float) -> float:
    """Return the budget of layer times to try next, interpolated between the results around the share asked for.

    Args:
        tried: (budget, share of the latency that was measured).
    """
    aim = _AIM * asked
    above = min([(1.0, 1.0), *(each for each in tried if each[1] > asked)])
    below = [each for each in tried if each[1] <= asked and each[0] < above[0]]
    if below:
        low = max(below)
        part = (aim - low[1]) / max(1e-9, above[1] - low[1])
        return low[0] + min(0.9, max(0.1, part)) * (above[0] - low[0])
    # A line through the unpruned network and the smallest budget that was tried, within bounds.
    goal, share = above
    slope = (1.0 - share) / max(1e-9, 1.0 - goal)
    further = 1.0 - (1.0 - aim) / slope if slope > 0 else 0.0
    return min(0.95 * goal, max(0.5 * goal, further))


def _out_of_reach(asked: float, least: _Found[Any], tried: Sequence[_Found[Any]]) -> BudgetNotMet:
    smallest = min([least, *tried], key=lambda each: each.share)
    return BudgetNotMet(
        f"at the least {smallest.share:.1%} of the latency must stay ({asked:.1%} were asked for)",
        why=f"measured in ONNX Runtime ({PROVIDER}, one thread) on this machine, with as many channels removed as the "
        "widths and pins allow: the rest is in layers that have to stay, and in overhead at any width",
        do="raise the target, or pin fewer channels with --keep",
    )


# --- the two kinds of networks --------------------------------------------------------------------------


@contextmanager
def file_timer(
    path: str | Path, input_shapes: Mapping[str, Sequence[int]] | None, seed: int
) -> Iterator[Callable[[Job[Any]], Pair]]:
    """Return a function that times the file at ``path`` against the ONNX backend's results."""
    from prunec.backends.onnx.save import save_onnx
    from prunec.check.finding import working_feed

    runner = sessions.open_runner(path, str(path), PROVIDER, optimise=True)
    feed = working_feed(runner, path, input_shapes, seed)
    with tempfile.TemporaryDirectory(prefix="prunec-") as scratch:
        target = Path(scratch) / "pruned.onnx"

        def time(job: Job[Any]) -> Pair:
            save_onnx(job.result, target)
            return steady(Path(path), target, feed)

        yield time


@contextmanager
def module_timer(module: nn.Module, example_inputs: Sequence[Any]) -> Iterator[Callable[[Job[Any]], Pair]]:
    """Return a function that times the export of a pruned module against the original's."""
    from prunec.check.finding import working_feed
    from prunec.pipeline.export import export_onnx

    with tempfile.TemporaryDirectory(prefix="prunec-") as scratch:
        before, after = Path(scratch) / "unpruned.onnx", Path(scratch) / "pruned.onnx"
        export_onnx(module, example_inputs, before)
        feed = working_feed(sessions.open_runner(before, "the module", PROVIDER, optimise=True), before, None)

        def time(job: Job[Any]) -> Pair:
            export_onnx(job.result, example_inputs, after)
            return steady(before, after, feed)

        yield time


def steady(original: Path, pruned: Path, feed: Feed) -> Pair:
    """Return the milliseconds of both files on one thread, in turns, in the faster runs of each.

    Medians depend on other work on the machine; that can only add time, so the fast quartile is reproducible.
    """
    times: tuple[list[float], list[float]] = ([], [])
    started = perf_counter()
    for turn in range(_MOST_OPENED):
        if turn >= _FEWEST_OPENED and perf_counter() - started > _SECONDS:
            break
        before, after = (
            sessions.open_runner(path, f"the {kind} network", PROVIDER, optimise=True, threads=ONE)
            for path, kind in ((original, "unpruned"), (pruned, "pruned"))
        )
        found = latency.timed_in_turns(before, after, feed, _RUNS, _SECONDS / 3, fewest=3)
        for kept, new in zip(times, found, strict=True):
            kept += new
    fast = [float(np.quantile(each, _FAST)) for each in times]
    return fast[0], fast[1]
