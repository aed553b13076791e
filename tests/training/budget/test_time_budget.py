"""--target-latency: the line through the probes, its correction, and runs by a clock that goes by size."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from training_bars import Stop, StopAt, assert_same_run, config

from prunec.errors import BudgetNotMet
from prunec.training.run import time_budget
from prunec.training.run.results import RunResult
from prunec.training.run.run import train_prune
from prunec.training.run.time_budget import Point, corrected, latency_at, macs_for
from prunec.training.settings.onnx_network import Interface
from prunec.training.settings.presets import resume_config

LINE = (Point(0.1, 0.3), Point(0.4, 0.5), Point(0.6, 0.8), Point(1.0, 1.0))


def by_weights(original: Path, pruned: Path, _feed: Any) -> tuple[float, float]:
    """A clock that goes by size: 20 microseconds, and 50 nanoseconds for each weight."""

    def milliseconds(path: Path) -> float:
        return 0.02 + 5e-5 * sum(math.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer)

    return milliseconds(original), milliseconds(pruned)


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_budget, "timed", by_weights)


# --- the line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "share"), [(0.3, 0.1), (0.4, 0.25), (0.65, 0.5), (0.9, 0.8), (0.1, 0.1)])
def test_the_budget_is_read_off_the_line_through_the_probes(asked: float, share: float) -> None:
    assert macs_for(LINE, asked) == pytest.approx(share)


def test_probes_may_come_in_any_order() -> None:
    assert macs_for(LINE[::-1], 0.65) == macs_for(LINE, 0.65)


def test_of_equally_fast_networks_the_largest_is_taken() -> None:
    stairs = (Point(0.2, 0.5), Point(0.5, 0.5), Point(0.75, 0.5), Point(1.0, 1.0))
    assert macs_for(stairs, 0.5) == pytest.approx(0.75)


def test_a_smaller_network_that_is_slower_is_averaged_with_the_larger_one() -> None:
    odd = (Point(0.2, 0.3), Point(0.5, 0.8), Point(0.6, 0.6), Point(1.0, 1.0))
    assert latency_at(odd, 0.5) == pytest.approx(latency_at(odd, 0.6)) == pytest.approx(0.7)
    assert macs_for(odd, 0.7) == pytest.approx(0.6)


# --- correction -------------------------------------------------------------------------------------


def clock(time_of: Callable[[float], float], asked_for: list[float]) -> Callable[[float], Point]:
    def measure(budget: float) -> Point:
        asked_for.append(budget)
        return Point(budget, time_of(budget))

    return measure


def test_a_budget_that_holds_is_left_alone() -> None:
    tried: list[float] = []
    budget, found = corrected(LINE, 0.5, 0.39, 0.1, clock(lambda share: latency_at(LINE, share), tried))
    assert (budget, tried) == (0.39, [0.39])
    assert 0.95 * 0.5 <= found.latency <= 0.5


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.2, 1.4])
def test_a_trained_network_of_another_speed_moves_the_budget(factor: float) -> None:
    tried: list[float] = []
    _, found = corrected(LINE, 0.6, 0.45, 0.1, clock(lambda share: factor * latency_at(LINE, share), tried))
    assert len(tried) > 1
    assert 0.95 * 0.6 <= found.latency <= 0.6


def test_on_a_staircase_the_largest_network_that_is_fast_enough_is_taken() -> None:
    tried: list[float] = []
    budget, found = corrected(LINE, 0.5, 0.39, 0.1, clock(lambda share: 0.3 if share < 0.3 else 0.7, tried))
    assert found.latency == 0.3
    assert budget == max(share for share in tried if share < 0.3)
    assert len(tried) <= 4


def test_no_budget_below_the_smallest_network_is_tried() -> None:
    tried: list[float] = []
    budget, _ = corrected(LINE, 0.35, 0.2, 0.18, clock(lambda _: 0.9, tried))
    assert min(tried) >= 0.18
    assert budget in tried


# --- runs -------------------------------------------------------------------------------------------


GIVEN: dict[str, Any] = {"rho": None, "target_latency": 0.7}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> RunResult:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time_budget, "timed", by_weights)
        return train_prune(config(tmp_path_factory.mktemp("whole") / "run", bars, **GIVEN))


def test_a_run_meets_the_latency_and_says_what_was_measured(finished: RunResult) -> None:
    _, now = by_weights(Path(finished.output) / "pruned.onnx", Path(finished.output) / "pruned.onnx", None)
    assert finished.latency is not None
    assert finished.latency["measured"] == pytest.approx(now / (finished.validation.latency_a_ms or 0))
    assert 0.6 <= finished.latency["measured"] <= 0.7, "a channel of this network is a twentieth of it"
    summary = json.loads((Path(finished.output) / "summary.json").read_text())
    assert summary["latency"] == finished.latency
    assert (summary["latency"]["asked"], summary["latency"]["provider"]) == (0.7, "cpu")
    assert len(summary["latency"]["probes"]) == 6
    assert any("were asked for; measured in ONNX Runtime (cpu) on this machine" in text for text in finished.reasons)


@pytest.mark.usefixtures("fake_clock")
@pytest.mark.parametrize(("step", "phase"), [(33, 1), (70, 2)])
def test_a_killed_run_ends_the_same_without_measuring_its_first_budget_anew(
    tmp_path: Path, bars: Path, step: int, phase: int, finished: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, **GIVEN), StopAt(step))
    assert _checkpoint(tmp_path / "run")["phase"] == phase
    monkeypatch.setattr(time_budget, "begin", lambda *_: pytest.fail("measured anew"))
    train_prune(resume_config(str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", Path(finished.output))


def _checkpoint(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoint" / "state.pt", weights_only=True)
    return state


@pytest.mark.usefixtures("fake_clock")
def test_a_latency_out_of_reach_is_refused_before_anything_is_written(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(BudgetNotMet, match=r"at the least .* must stay \(5.0% were asked for\)") as error:
        train_prune(config(tmp_path / "run", bars, target_latency=0.05))
    assert error.value.exit_status == 1
    assert not (tmp_path / "run").exists()


def test_an_exported_network_that_is_too_slow_fails_the_run_after_writing_it(
    tmp_path: Path, bars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_at_the_end(original: Path, pruned: Path, feed: Any) -> tuple[float, float]:
        was, now = by_weights(original, pruned, feed)
        return was, now if pruned.parent == original.parent else 0.9 * was

    monkeypatch.setattr(time_budget, "timed", slow_at_the_end)
    with pytest.raises(BudgetNotMet, match=r"takes 90.0% of the original's time, 70.0% were asked for"):
        train_prune(config(tmp_path / "run", bars, rho=None, target_latency=0.7))
    assert (tmp_path / "run" / "pruned.onnx").is_file()


def test_one_slow_measurement_of_three_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([(1.0, 0.9), (1.0, 0.6), (1.0, 0.7)])
    monkeypatch.setattr(time_budget, "timed", lambda *_: next(taken))
    watch = time_budget.Stopwatch(tmp_path / "unpruned.onnx", (torch.zeros(1, 3, 8, 8),), Interface())
    assert watch.time(tmp_path / "pruned.onnx", at_most=0.75) == (1.0, 0.7)


@pytest.mark.usefixtures("fake_clock")
def test_measuring_changes_nothing_in_the_network(tmp_path: Path, bars: Path) -> None:
    """What ISTA begins with is the first checkpoint: it is the same with a target that was measured."""
    for name, target in (("latency", {"target_latency": 0.7}), ("macs", {"target_macs": 0.7})):
        with pytest.raises(Stop):
            train_prune(config(tmp_path / name, bars, rho=None, **target), StopAt(0))
    first, second = (_checkpoint(tmp_path / name)["module"] for name in ("latency", "macs"))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_by_onnx_runtimes_own_clock_a_quarter_of_the_channels_takes_less_time() -> None:
    def network(width: int) -> nn.Module:
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), *convs)

    with time_budget.stopwatch(network(128), (torch.zeros(2, 3, 32, 32),), Interface()) as watch:
        assert 0.01 < watch.share(network(32)) < 0.8
