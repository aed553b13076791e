"""Two ONNX models in ONNX Runtime: opened together, or one at a time if their weights are large.

Owns the sessions of a check. Both its parts, comparing and timing, use the same ones, at the default level of
optimisation; sessions without optimisation are opened only where outputs differ. What is compared is comparison.py's.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from prunec.check.clock import Budget
from prunec.check.comparison import Run
from prunec.errors import BadInput, PrunecError
from prunec.ir.arrays import Array
from prunec.runtime import model_inputs, sessions
from prunec.runtime.probes import Feed
from prunec.runtime.sessions import Model, Runner
from prunec.timing import latency

LARGE_BYTES = 2**28
"""Models whose sizes add up to this are opened one at a time: a session holds its weights, often twice."""

_TIMING_S = 10.0
_SLOW_S = 1.0
"""If a run of both takes longer, no time is spent on warming up again."""

Provider = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Latency:
    """Median milliseconds of each model, and how many runs of each they come from; 0 runs: nothing was timed."""

    first_ms: float = 0.0
    second_ms: float = 0.0
    runs: int = 0

    @property
    def pair(self) -> tuple[float, float] | tuple[None, None]:
        return (self.first_ms, self.second_ms) if self.runs else (None, None)


def opened(model: Model, name: str, provider: Provider, *, optimise: bool = True) -> Runner:
    """Open one model; messages call it by its path, or ``name`` if it has none."""
    return sessions.open_runner(model, name if isinstance(model, bytes) else str(model), provider, optimise=optimise)


def are_large(a: Model, b: Model) -> bool:
    """Tell whether two models are opened one at a time."""
    return sum(map(_num_bytes, (a, b))) >= LARGE_BYTES


def _num_bytes(model: Model) -> int:
    """Return the size of a model and the weights beside it."""
    if isinstance(model, bytes):
        return len(model)
    path = Path(model)
    try:
        size = path.stat().st_size
    except OSError:
        return 0
    return size if size >= LARGE_BYTES else size + model_inputs.external_bytes(path)


def plain_runs(a: Model, b: Model, provider: Provider, *, together: bool) -> tuple[Run, Run]:
    """Return both models without optimisation; each is opened at its first run.

    Args:
        a, b: the models.
        provider: where they run.
        together: keep both open; otherwise each is closed after its run.
    """

    def run_of(model: Model, name: str) -> Run:
        open_plain = functools.partial(opened, model, name, provider, optimise=False)
        kept = functools.cache(open_plain)
        return (lambda values: kept()(values)) if together else (lambda values: open_plain()(values))

    return run_of(a, "the first model"), run_of(b, "the second model")


def recorded(results: Sequence[list[Array] | Exception]) -> Run:
    """Return a run that returns recorded results in their order, whatever its inputs."""
    left: Iterator[list[Array] | Exception] = iter(results)

    def run(_: Feed) -> list[Array]:
        result = next(left)
        if isinstance(result, Exception):
            raise result
        return result

    return run


def timed_together(a: Runner, b: Runner, feed: Feed, runs: int, budget: Budget, pair_s: float) -> Latency:
    """Time two open models in turn, as far as the budget goes.

    Args:
        a, b: they have run before.
        feed: what they run on.
        runs: of each at most.
        budget: the rest of it is used, but at most 10 seconds if these are enough for three runs of each.
        pair_s: seconds of a run of both in the comparison.
    """
    if budget.left < pair_s:
        return Latency()
    budget.now("how long both take")
    seconds = min(budget.left, max(_TIMING_S, 3 * pair_s))
    warm_ups = 0 if pair_s > _SLOW_S else 1
    first, second = latency.timed_in_turns(a, b, feed, runs, seconds, warm_ups=warm_ups, until_clear=True)
    return Latency(fast(first), fast(second), len(first))


def fast(times: Sequence[float]) -> float:
    """Return the time of the faster runs: other work on the machine can only add to it, and does so unevenly."""
    return float(np.quantile(times, _FAST))


_FAST = 0.25
"""The quantile of the times that counts."""


def timed_alone(runner: Runner, feed: Feed, runs: int, seconds: float) -> list[float]:
    """Return the milliseconds of each run of one open model: ``runs`` at most, one at least."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < runs and (not times or time.perf_counter() - started < seconds):
        before = time.perf_counter()
        runner.session.run(None, feed)
        times.append(1e3 * (time.perf_counter() - before))
    return times


class Remembering:
    """A model that remembers the results on the inputs with which its input shapes were found."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._seen: list[tuple[Feed, list[Array]]] = []

    def failure(self, values: Feed) -> Exception | None:
        """Run; return what went wrong.

        Raises:
            PrunecError: an output is no tensor.
        """
        try:
            self._seen.append((values, self._runner(values)))
        except PrunecError:
            raise
        except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common base class
            return error
        return None

    def __call__(self, values: Feed) -> list[Array]:
        for place, (feed, outputs) in enumerate(self._seen):
            if feed is values:
                del self._seen[place]
                return outputs
        return self._runner(values)


@dataclass(frozen=True, slots=True)
class Interface:
    """The names and types of a model's inputs, and the names of its outputs."""

    inputs: dict[str, str]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, runner: Runner) -> Interface:
        return cls({name: onnx_type for name, _, onnx_type in runner.inputs}, runner.outputs)

    def must_equal(self, other: Interface) -> None:
        """Raise BadInput unless another model has the same inputs and outputs."""
        if self.inputs != other.inputs:
            raise BadInput(
                "the two models take different inputs",
                why=f"{', '.join(self.inputs) or 'none'} against {', '.join(other.inputs) or 'none'}",
            )
        if self.outputs != other.outputs:
            raise BadInput(
                "the two models have different outputs",
                why=f"{', '.join(self.outputs)} against {', '.join(other.outputs)}",
            )
