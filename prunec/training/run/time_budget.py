"""The time of pruned networks relative to the original, measured, and the budget of MACs for a share of that time.

Owns ``--target-latency``: the measurement in ONNX Runtime, and the MACs budget that is used for the share asked
for. A few prunings of the network are timed before training; after ISTA, networks that fit the budget are timed to
correct it. controller.py adjusts ρ towards the budget, landing.py chooses channels; read those next.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prunec.errors import BudgetNotMet
from prunec.ir.arrays import Floats, Ids, Mask
from prunec.pipeline.export import export_onnx
from prunec.timing.pairs import PROVIDER, middle, ratio, timed
from prunec.training.budget.goals import Arrays, Goal, Sizer
from prunec.training.budget.landing import GammaHistory, expendable, fit, set_gammas, smallest
from prunec.training.run.record import LatencyBudget, Point
from prunec.training.settings.onnx_network import Interface
from prunec.training.settings.removal import remove_constant
from prunec.training.settings.setup import FINETUNE, Setup
from prunec.training.sparsity.sparsify import Sparsity, gamma_values

TOLERANCE = 0.05
"""Share of the target by which a measurement may miss it: two measurements of one network differ by about as much."""
_PROBES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the removable channels at which the network is timed before training."""
_CORRECTIONS = 4
_AIM = 0.98
_LARGEST = 0.99


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Times files against the original network.

    Args:
        original: its file.
        inputs: one image, on the CPU.
        names: of the files' input.
    """

    original: Path
    inputs: tuple[torch.Tensor, ...]
    names: Interface

    def time(self, pruned: Path, at_most: float = math.inf) -> tuple[float, float]:
        """Return the median milliseconds of the original and of ``pruned``, timed in turns.

        Args:
            pruned: its file.
            at_most: share of the original's; a file that takes more is timed twice more, and the median counts.
        """
        pairs = [self._once(pruned)]
        if ratio(pairs[0]) > at_most:
            pairs += [self._once(pruned), self._once(pruned)]
        return middle(pairs)

    def _once(self, pruned: Path) -> tuple[float, float]:
        rng = np.random.default_rng(0)
        values = rng.standard_normal(tuple(self.inputs[0].shape)).astype(np.float32)
        return timed(self.original, pruned, {self.names.input_name: values})

    def share(self, module: nn.Module) -> float:
        """Return the latency of ``module``, on the CPU, as a share of the original's."""
        path = self.original.with_name("pruned.onnx")
        export_onnx(module, self.inputs, path, input_names=(self.names.input_name,))
        return ratio(self.time(path))


@contextmanager
def stopwatch(original: nn.Module, inputs: Sequence[torch.Tensor], names: Interface) -> Iterator[Stopwatch]:
    """Export ``original``, on the CPU, to time others against it.

    Args:
        inputs: example inputs; the first image of the batch is timed.
    """
    one_image = tuple(tensor[:1] for tensor in inputs)
    with tempfile.TemporaryDirectory(prefix="prunec-") as scratch:
        path = Path(scratch) / "unpruned.onnx"
        export_onnx(original, one_image, path, input_names=(names.input_name,))
        yield Stopwatch(path, one_image, names)


@contextmanager
def pruned_timer(setup: Setup, arrays: Arrays) -> Iterator[Callable[[Mask], Point]]:
    """Return a function that measures ``setup.module`` without the classes that are ``gone``: bool[num_classes].

    Args:
        arrays: the gammas of the classes that stay, float[C] per parameter; the module has them afterwards.
    """
    plan, module = setup.sparsity, setup.module.to("cpu")
    none = np.zeros(plan.classes.num_classes, dtype=bool)
    try:
        set_gammas(plan, module, arrays, none)
        with stopwatch(setup.module.to("cpu"), setup.example_inputs, setup.interface) as watch:

            def measure(gone: Mask) -> Point:
                set_gammas(plan, module, arrays, gone)
                pruned = remove_constant(module, setup.example_inputs, setup.config, setup.phases[FINETUNE].steps)
                return Point(pruned.report.after.macs / setup.full.macs, watch.share(pruned.module))

            yield measure
    finally:
        set_gammas(plan, module, arrays, none)
        setup.execution.place(module)


def begin(setup: Setup, asked: float) -> LatencyBudget:
    """Find the MACs budget with which a run towards the share ``asked`` of the latency begins.

    Raises:
        BudgetNotMet: even the smallest network takes longer.
    """
    points = probe(setup)
    least = min(points, key=lambda point: point.latency)
    if least.latency > asked * (1 + TOLERANCE):
        raise _out_of_reach(asked, least)
    return LatencyBudget(asked, min(_LARGEST, macs_for(points, _AIM * asked)), tuple(points))


def correct(setup: Setup, history: GammaHistory, sizer: Sizer, before: LatencyBudget) -> tuple[LatencyBudget, str]:
    """Correct the MACs budget so that the network takes the time asked for; also return a sentence on that."""
    points = list(before.probes)
    least = smallest(sizer, history.values).macs / setup.full.macs
    with pruned_timer(setup, history.values) as measure:

        def fitted(budget: float) -> Point:
            return measure(fit(history, sizer, (Goal("macs", budget),), setup.full).gone)

        budget, found = corrected(points, before.asked, before.macs, least, fitted)
    said = (
        f"latency: a budget of {budget:.1%} of the MACs ({before.macs:.1%} before training) stands for "
        f"{found.latency:.1%} of the original's time, measured"
    )
    return LatencyBudget(before.asked, budget, tuple(points)), said


def goals(budget: LatencyBudget) -> tuple[Goal, ...]:
    """Return the budget of MACs that is used for the latency."""
    return (Goal("macs", budget.macs),)


def in_words(budget: LatencyBudget) -> str:
    """Describe the measurements before training."""
    probes = ", ".join(f"{point.latency:.1%} at {point.macs:.1%} of the MACs" for point in budget.probes[1:])
    return (
        f"latency {budget.asked:.1%} of the original's: a budget of {budget.macs:.1%} of the MACs to begin with; "
        f"measured in ONNX Runtime ({PROVIDER}) on this machine: {probes}"
    )


def probe(setup: Setup) -> tuple[Point, ...]:
    """Time the network with more and more channels removed, equal shares of all layers, the smallest gammas first."""
    plan = setup.sparsity
    history = GammaHistory(plan)
    history.observe(gamma_values(plan, setup.module))
    order = expendable(plan, _evenly(plan, history.norms()), np.zeros(plan.classes.num_classes, dtype=bool))
    points = [Point(1.0, 1.0)]
    with pruned_timer(setup, history.values) as measure:
        for share in _PROBES:
            gone = np.zeros(plan.classes.num_classes, dtype=bool)
            gone[order[: round(share * order.size)]] = True
            points.append(measure(gone))
    return tuple(points)


def _evenly(plan: Sparsity, norms: Floats) -> Ids:
    """Return the penalised classes, ordered so that any number of first ones is about the same share of every layer."""
    place = np.zeros(plan.classes.num_classes)
    for gamma in plan.gammas:
        mine = np.unique(gamma.classes[plan.channels_of(gamma)])
        ranks = np.argsort(np.argsort(norms[mine], kind="stable"), kind="stable")
        place[mine] = np.maximum(place[mine], (ranks + 1) / max(1, mine.size))
    candidates = np.flatnonzero(plan.penalised)
    return candidates[np.argsort(place[candidates], kind="stable")]


def _out_of_reach(asked: float, least: Point) -> BudgetNotMet:
    return BudgetNotMet(
        f"at the least {least.latency:.1%} of the latency must stay ({asked:.1%} were asked for)",
        why=f"measured in ONNX Runtime ({PROVIDER}) on this machine, with {least.macs:.1%} of the MACs left: the rest "
        "is in channels that cannot be trained away, and in what a network costs however narrow it is",
        do="raise the target, pin fewer channels with --keep, or prune residual streams too (--residual group)",
    )


def macs_for(points: Sequence[Point], latency: float) -> float:
    """Return the largest share of the MACs at which a rising line through ``points`` is at ``latency``.

    Latency is a staircase (kernels work on blocks of channels) with noise on it, so fewer MACs may have taken longer.
    """
    line = _rising(points)
    for low, high in reversed(list(pairwise(line))):
        if low.latency <= latency:
            part = (latency - low.latency) / (high.latency - low.latency) if high.latency > low.latency else 1.0
            return low.macs + min(1.0, part) * (high.macs - low.macs)
    return line[0].macs


def latency_at(points: Sequence[Point], macs: float) -> float:
    """Return the latency at a share of the MACs, on the rising line through ``points``."""
    line = _rising(points)
    return float(np.interp(macs, [point.macs for point in line], [point.latency for point in line]))


def _rising(points: Sequence[Point]) -> list[Point]:
    """Return the points by MACs, with latencies that do not fall: isotonic regression by pooling neighbours."""
    pools: list[list[float]] = []
    for point in sorted(points):
        pools.append([point.latency])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    latencies = [float(np.mean(pool)) for pool in pools for _ in pool]
    return [Point(point.macs, latency) for point, latency in zip(sorted(points), latencies, strict=True)]


def corrected(
    points: Sequence[Point], asked: float, budget: float, smallest: float, measure: Callable[[float], Point]
) -> tuple[float, Point]:
    """Return the largest MACs budget found whose network takes at most the share ``asked``, and its measurement.

    If none does, return the fastest one. Each measurement scales the line of the probes; if this leads outside of the
    budgets that are known to be too small and too large, the middle between these is tried.

    Args:
        points: of the probes.
        budget: to begin with.
        smallest: share of the MACs below which no budget can be met.
        measure: fits the network to a budget, and times it.
    """
    low, high = smallest, 1.0
    tried: list[tuple[float, Point]] = []
    for _ in range(_CORRECTIONS):
        budget = min(_LARGEST, max(smallest, budget))
        found = measure(budget)
        tried.append((budget, found))
        if (1 - TOLERANCE) * asked <= found.latency <= asked:
            break
        low, high = (budget, high) if found.latency <= asked else (low, budget)
        factor = found.latency / latency_at(points, found.macs)
        budget = macs_for(points, _AIM * asked / factor)
        if not low < budget < high:
            budget = (low + high) / 2
    fitting = [each for each in tried if each[1].latency <= asked]
    return max(fitting) if fitting else min(tried, key=lambda each: each[1].latency)
