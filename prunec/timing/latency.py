"""How long models take, measured: two in turns, or the kernels of many; every latency that is reported comes from here.

Owns turns, warm-ups, and the decision to stop. Models are opened by prunec/runtime/sessions.py; pairs.py opens two
files several times, for results that can be reproduced.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prunec.runtime.model_inputs import input_kinds
from prunec.runtime.probes import Feed
from prunec.runtime.sessions import Runner, cannot_open, open_runner


def interleaved_latency(a: Runner, b: Runner, feed: Feed, runs: int, budget_s: float = 10.0) -> tuple[float, float]:
    """Return the median milliseconds per run of two models, timed in turn; see ``timed_in_turns``."""
    first, second = timed_in_turns(a, b, feed, runs, budget_s, fewest=3)
    return statistics.median(first), statistics.median(second)


def timed_in_turns(
    a: Runner,
    b: Runner,
    feed: Feed,
    runs: int,
    budget_s: float,
    *,
    warm_ups: int = 2,
    fewest: int = 1,
    until_clear: bool = False,
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each run of two models, timed in turn.

    Turns alternate in order, so that neither always runs on the other's warm caches.

    Args:
        a, b: the models.
        feed: what they run on.
        runs: most rounds.
        budget_s: seconds; beyond the fewest, no round begins that would end later.
        warm_ups: rounds that do not count.
        fewest: least rounds.
        until_clear: stop once the ratio is known well enough.
    """
    times: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for _ in range(warm_ups):
        a.session.run(None, feed)
        b.session.run(None, feed)
    for turn in range(max(fewest, runs)):
        spent = time.perf_counter() - started
        round_s = (times[0][-1] + times[1][-1]) / 1e3 if turn else 0.0
        if turn >= fewest and (spent + round_s > budget_s or (until_clear and _is_clear(*times))):
            break
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            before = time.perf_counter()
            (a, b)[which].session.run(None, feed)
            times[which].append(1e3 * (time.perf_counter() - before))
    return times


_CLEAR_ENOUGH = 0.02
"""The ratio of two latencies is known well enough when its standard error is this."""

_SHORTEST_MS = 300.0
"""Models that take no longer are always timed as often as allowed."""


def _is_clear(first: Sequence[float], second: Sequence[float]) -> bool:
    """Tell whether the ratio of two models' times is known well enough."""
    if len(first) < 5 or sum(first) + sum(second) < _SHORTEST_MS:
        return False
    ratios = sorted(x / max(y, 1e-9) for x, y in zip(first, second, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    # The quartiles of a normal distribution lie 1.35 standard deviations apart; a median errs by 1.25 of a mean's.
    return bool(1.25 * (high - low) / 1.35 / len(ratios) ** 0.5 <= _CLEAR_ENOUGH * middle)


def kernel_times(models: Sequence[bytes], runs: int, budget_s: float, *, threads: int = 0) -> list[float]:
    """Return the microseconds that the kernels of each model take in a run on the CPU, the models run in turns.

    They come from ONNX Runtime's own profile, without the overhead of a call, and without the conversion into and out
    of the blocked layout of convolutions, which a whole network needs only at its ends. Other work on the machine can
    only add time, so the mean of the faster half counts.

    Args:
        models: all inputs are float32, of known sizes; noise is fed.
        runs: of each model at most, and at least five.
        budget_s: seconds after which no run begins.
        threads: as for ``open_runner``.

    Raises:
        UnsupportedModel: ONNX Runtime cannot run one of them.
    """
    rng = np.random.default_rng(0)
    # A session that fails still has its profile open.
    with tempfile.TemporaryDirectory(prefix="prunec-", ignore_cleanup_errors=True) as scratch:
        # Names of profiles end in the second: sessions opened in the same second would write into one file.
        prefixes = [Path(scratch) / f"profile{index}" for index in range(len(models))]
        runners = [
            open_runner(model, "the layer", "cpu", optimise=True, profile=prefix, threads=threads)
            for model, prefix in zip(models, prefixes, strict=True)
        ]
        feeds = [
            {kind.name: rng.standard_normal(kind.shape, dtype=np.float32) for kind in input_kinds(runner)}
            for runner in runners
        ]
        started = time.perf_counter()
        for turn in range(_WARMUP + max(5, runs)):
            if turn >= _WARMUP + 5 and time.perf_counter() - started > budget_s:
                break
            for runner, feed in zip(runners, feeds, strict=True):
                try:
                    runner.session.run(None, feed)
                except Exception as error:  # onnxruntime's exceptions have no common base class
                    raise cannot_open(error, runner.name) from error
        return [_own_time(Path(runner.session.end_profiling())) for runner in runners]


_WARMUP = 2

_LAYOUT_OPS = ("ReorderInput", "ReorderOutput")

_CUT_OFF = 0.5
"""The profile has whole microseconds, rounded down: this much is lost on average."""


def _own_time(profile: Path) -> float:
    """Return the microseconds of a run in a profile."""
    kernels: dict[str, list[float]] = {}
    for event in json.loads(profile.read_text(encoding="utf-8")):
        if event["name"].endswith("_kernel_time") and event["args"]["op_name"] not in _LAYOUT_OPS:
            kernels.setdefault(event["name"], []).append(event["dur"] + _CUT_OFF)
    runs = sorted(map(sum, zip(*(times[_WARMUP:] for times in kernels.values()), strict=True)))
    return statistics.fmean(runs[: (len(runs) + 1) // 2])
