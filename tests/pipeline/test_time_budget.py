"""A budget of time: the search for what meets it, on a clock that is made up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunec.api import analyze_onnx, prune_module, prune_onnx
from prunec.cli.main import execute
from prunec.data.calibration import Calibration
from prunec.errors import BudgetNotMet
from prunec.fitting.reconstruct import Reconstruction
from prunec.models import build
from prunec.passes.selection.budget import Target, select_budget
from prunec.passes.selection.criteria import score
from prunec.passes.selection.staircase import stepped
from prunec.pipeline import time_budget
from prunec.pipeline.export import export_onnx
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import read_module
from prunec.pipeline.time_budget import next_goal
from prunec.timing import latency
from prunec.timing.staircases import LayerStairs, measured, time_of

INPUTS = (torch.zeros(1, 3, 32, 32),)


def kernels(models: Sequence[bytes], _runs: int, _seconds: float, **_how: Any) -> list[float]:
    """Return times that follow the weights of a layer's model, blocks of 8 channels as a whole."""
    times = []
    for model in models:
        (weight,) = onnx.load_from_string(model).graph.initializer
        sizes = [-(-size // 8) * 8 for size in weight.dims[:2]] + list(weight.dims[2:])
        times.append(1.0 + 1e-3 * float(np.prod(sizes)))
    return times


def whole_files(fixed: float, power: float = 1.0) -> Callable[..., tuple[float, float]]:
    """Return a timer of files: a fixed part, and one that follows the MACs."""

    def steady(original: Path, pruned: Path, _feed: Any) -> tuple[float, float]:
        share = analyze_onnx(pruned).macs / analyze_onnx(original).macs
        return 10.0, 10.0 * (fixed + (1 - fixed) * share**power)

    return steady


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(latency, "kernel_times", kernels)
    monkeypatch.setattr(time_budget, "steady", whole_files(0.1))
    return monkeypatch


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("latency") / "resnet20.onnx"
    export_onnx(build("resnet20").eval(), INPUTS, path)
    return path


@pytest.mark.parametrize(("fixed", "power"), [(0.1, 1.0), (0.3, 1.0), (0.0, 0.7)])
@pytest.mark.parametrize("asked", [0.8, 0.6])
def test_a_file_is_pruned_until_the_whole_of_it_takes_what_was_asked_for(
    clock: pytest.MonkeyPatch, file: Path, tmp_path: Path, asked: float, fixed: float, power: float
) -> None:
    clock.setattr(time_budget, "steady", whole_files(fixed, power))
    told: list[str] = []
    report = prune_onnx(
        file, tmp_path / "out.onnx", criterion="l1", target_latency=asked, validate=False, progress=told.append
    )
    assert report.latency is not None
    assert 0.9 * asked <= report.latency.share <= asked
    share = analyze_onnx(tmp_path / "out.onnx").macs / analyze_onnx(file).macs
    assert report.latency.share == pytest.approx(fixed + (1 - fixed) * share**power)
    assert any("timing layers" in line for line in told)
    assert report.to_json_dict()["latency"]["asked"] == asked
    assert f"until {asked:.0%} of the latency were left" in report.reason


def test_a_module_is_pruned_to_a_share_of_its_time(clock: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = build("resnet20").eval()
    result = prune_module(net, INPUTS, criterion="l1", target_latency=0.7, validate=False)
    assert result.report.latency is not None
    assert 0.63 <= result.report.latency.share <= 0.7
    assert result.report.latency.untimed == ()


def test_a_share_out_of_reach_is_told_with_the_smallest_that_is_possible(
    clock: pytest.MonkeyPatch, file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clock.setattr(time_budget, "steady", whole_files(0.5))
    with pytest.raises(BudgetNotMet) as error:
        prune_onnx(file, tmp_path / "out.onnx", criterion="l1", target_latency=0.4)
    least = float(error.value.what.split("at the least ")[1].split("%")[0])
    assert 50 < least < 60
    assert "40.0% were asked for" in error.value.what
    assert "do:  raise the target" in str(error.value)
    assert not list(tmp_path.iterdir())
    arguments = ["prune", str(file), "-o", str(tmp_path / "out.onnx"), "--criterion", "l1", "--target-latency", "0.4"]
    assert execute(arguments) == 1
    assert "at the least" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_share_that_is_not_confirmed_moves_the_budget(clock: pytest.MonkeyPatch, file: Path, tmp_path: Path) -> None:
    whole, seen = whole_files(0.1), dict[bytes, int]()

    def drifting(original: Path, pruned: Path, feed: Any) -> tuple[float, float]:
        before, after = whole(original, pruned, feed)
        content = pruned.read_bytes()
        seen[content] = seen.get(content, 0) + 1
        # What is measured first looks faster than it is, until it is measured again.
        return before, after * (0.9 if seen[content] == 1 and len(seen) <= 3 else 1.0)

    clock.setattr(time_budget, "steady", drifting)
    report = prune_onnx(file, tmp_path / "out.onnx", criterion="l1", target_latency=0.6, validate=False)
    assert report.latency is not None
    share = analyze_onnx(tmp_path / "out.onnx").macs / analyze_onnx(file).macs
    assert 0.54 <= 0.1 + 0.9 * share <= 0.6
    assert report.latency.share == pytest.approx(0.1 + 0.9 * share)


def test_nothing_is_refused_on_one_measurement(clock: pytest.MonkeyPatch, file: Path, tmp_path: Path) -> None:
    whole, calls = whole_files(0.5), list[int]()

    def disturbed(original: Path, pruned: Path, feed: Any) -> tuple[float, float]:
        before, after = whole(original, pruned, feed)
        calls.append(1)
        return before, after * (1.6 if len(calls) == 1 else 1.0)

    clock.setattr(time_budget, "steady", disturbed)
    least = 0.5 + 0.5 * 0.06  # about what is left of the MACs at the least
    report = prune_onnx(file, tmp_path / "out.onnx", criterion="l1", target_latency=least + 0.05, validate=False)
    assert report.latency is not None
    assert report.latency.share <= least + 0.05


def test_with_data_only_what_is_found_is_fitted(clock: pytest.MonkeyPatch, file: Path, tmp_path: Path) -> None:
    clock.setattr(time_budget, "steady", whole_files(0.3, 0.7))
    fits: list[int] = []
    whole = Reconstruction.fitted
    clock.setattr(Reconstruction, "fitted", lambda *given: (fits.append(1), whole(*given))[1])
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((16, 3, 32, 32), dtype=np.float32))
    data = Calibration(tmp_path / "x.npy")
    report = prune_onnx(file, tmp_path / "out.onnx", calibration=data, target_latency=0.7, validate=False)
    assert report.latency is not None
    assert 0.63 <= report.latency.share <= 0.7
    assert report.latency.tries > 1
    assert len(fits) == 1
    assert report.agreement is not None
    assert report.agreement.samples == 4


def test_a_network_that_gets_no_faster_is_refused(clock: pytest.MonkeyPatch, file: Path, tmp_path: Path) -> None:
    clock.setattr(time_budget, "steady", lambda *_: (10.0, 10.5))
    with pytest.raises(BudgetNotMet, match=r"at the least 105\.0% of the latency"):
        prune_onnx(file, tmp_path / "out.onnx", criterion="l1", target_latency=0.9)


def test_a_budget_of_time_holds_beside_one_of_parameters(clock: pytest.MonkeyPatch, file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"criterion": "l1", "validate": False}
    report = prune_onnx(file, tmp_path / "out.onnx", target_latency=0.9, target_params=0.5, **options)
    assert report.after.params <= 0.5 * report.before.params
    assert report.latency is not None
    assert report.latency.share <= 0.9


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.05, 1.2)), max_size=6, unique=True), st.floats(0.1, 0.95))
def test_the_next_budget_lies_between_those_around_what_was_asked_for(
    tried: list[tuple[float, float]], asked: float
) -> None:
    goal = next_goal(tried, asked)
    above = min([1.0, *(g for g, share in tried if share > asked)])
    below = [g for g, share in tried if share <= asked and g < above]
    assert max(below, default=0.0) < goal < above


# --- staircases ---------------------------------------------------------------------------------------


def test_channels_of_a_step_that_saves_nothing_go_with_the_next_one() -> None:
    scores = np.arange(1.0, 17.0)
    group = np.arange(16)
    found = stepped(scores, group, 4, lambda gone: 0.1 * (gone.size // 8))
    assert found[:8].tolist() == [found[0]] * 8
    assert found[0] == pytest.approx(4.5)
    assert found[8:].min() > scores.max()
    assert (np.diff(found) >= 0).all()
    even = stepped(scores, group, 4, lambda gone: 0.01 * gone.size)
    assert len(np.unique(even[:12])) == 3
    assert even[12:].min() > even[:12].max()


def test_what_saves_no_time_goes_last() -> None:
    scores = np.arange(1.0, 33.0)
    nothing = stepped(scores, np.arange(16), 4, lambda _: 0.0)
    assert nothing.min() > scores.max()


def test_the_time_of_a_width_lies_on_a_line_between_those_that_were_measured() -> None:
    stairs = ((0.5, 0.8), (1.0, 1.0))
    assert [time_of(stairs, share) for share in (1.0, 0.75, 0.5, 0.25, 0.0)] == pytest.approx([1, 0.9, 0.8, 0.6, 0])
    assert LayerStairs(10.0, stairs, ()).at(0.5, 0.1) == pytest.approx(8.0)


def test_layers_are_timed_at_blocks_and_their_times_never_rise_as_they_get_narrower(
    clock: pytest.MonkeyPatch,
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 24, 1))
    graph = read_module(net.eval(), (torch.zeros(2, 3, 9, 9),)).graph
    table = measured(graph)
    first, depthwise, last = table.layers.values()
    assert [width for width, _ in first.made] == [0.25, 0.5, 0.75, 1.0]
    assert first.read == ((1 / 3, 1.0), (1.0, 1.0)) or first.read == ((1.0, 1.0),)
    assert depthwise.read == ()
    assert [width for width, _ in last.made] == pytest.approx([1 / 3, 2 / 3, 1.0])
    for layer in table.layers.values():
        for stairs in (layer.made, layer.read):
            assert all(a[1] <= b[1] for a, b in itertools.pairwise(stairs))
    assert table(dict.fromkeys(table.layers, (1.0, 1.0))) == pytest.approx(1.0)
    assert table({}) == 0.0


def test_the_widths_of_a_budget_of_time_lie_on_the_steps_of_the_clock() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 2, 1))
    facts = gather_facts(read_module(net.eval(), (torch.zeros(2, 3, 8, 8),)).graph)

    def clock(left: Any) -> float:
        return float(sum(-(-round(64 * made) // 32) * 32 for made, _ in left.values())) / 192

    chosen = select_budget(facts, score(facts, "l1"), Target(time=0.84, clock=clock), multiple_of="auto")
    widths = {int(chosen.keep[facts.classes.class_of[m.ids]].sum()) for m in facts.classes.members if m.ids.size == 64}
    assert widths <= {32, 64}
    assert 32 in widths
