"""A sweep: points, what groups cost, the page, and going on where it was stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from prunec.api import analyze_onnx, prune_onnx
from prunec.cli.main import execute
from prunec.data import observing, saliency
from prunec.data.calibration import Calibration
from prunec.errors import BadInput, BudgetNotMet
from prunec.fitting import opened, reconstruct
from prunec.fitting.fit_data import FitData
from prunec.lookup.resolve import OnnxModel, TorchModel
from prunec.pipeline.export import export_onnx
from prunec.sweep import sweep as steps
from prunec.sweep.findings import SweepReport, headline
from prunec.sweep.page import sweep_page
from prunec.timing import latency

INPUT = torch.zeros(1, 3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    path = tmp_path_factory.mktemp("sweep") / "net.onnx"
    export_onnx(network(), (INPUT,), path)
    return OnnxModel("net", path, {})


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files take what their MACs say, and layers what their weights do."""

    def kernels(models: Sequence[bytes], _runs: int, _seconds: float, **_how: Any) -> list[float]:
        weights = [onnx.load_from_string(each).graph.initializer[0].dims for each in models]
        return [1.0 + 1e-2 * math.prod(dims) for dims in weights]

    def timed(before: Path, after: Path, _feed: Any, **_how: Any) -> tuple[float, float]:
        return analyze_onnx(before).macs / 1e6, analyze_onnx(after).macs / 1e6

    monkeypatch.setattr(latency, "kernel_times", kernels)
    monkeypatch.setattr(steps, "timed", timed)


def run(model: OnnxModel | TorchModel, folder: Path, **options: Any) -> SweepReport:
    return steps.sweep(model, folder, **{"fractions": (0.8, 0.5), **options})


def test_each_point_is_a_file_below_its_budget_and_the_report_recounts_it(model: OnnxModel, tmp_path: Path) -> None:
    report = run(model, tmp_path / "out")
    assert [point.target for point in report.points] == [0.8, 0.5]
    for point in report.points:
        found = analyze_onnx(tmp_path / "out" / point.file)
        assert (found.macs, found.params) == (point.macs, point.params)
        assert found.macs <= point.target * report.macs
        assert point.bytes == (tmp_path / "out" / point.file).stat().st_size < report.bytes
        assert point.agreement is not None
        assert headline(point.agreement)[0] == "equal argmax"
    assert "random inputs" in report.inputs


def test_every_coupled_group_tells_what_its_parts_cost_or_why_it_stays(model: OnnxModel, tmp_path: Path) -> None:
    report = run(model, tmp_path / "out")
    analysed = analyze_onnx(model.path)
    assert [group.id for group in report.groups] == [group.id for group in analysed.groups]
    free = [group for group in report.groups if group.steps]
    assert [group.channels for group in free] == [32, 64]
    for group in free:
        assert [step.removed for step in group.steps] == [group.channels * n // 4 for n in (1, 2, 3)]
        assert all(step.error > 0 for step in group.steps)
        assert [step.macs for step in group.steps] == sorted(step.macs for step in group.steps)
        assert all(step.microseconds > 0 for step in group.steps)
    held = [group for group in report.groups if not group.steps]
    assert held
    assert all(group.reason for group in held)
    assert any("output" in group.reason for group in held)


def test_a_group_costs_what_a_pruning_that_keeps_all_others_saves(model: OnnxModel, tmp_path: Path) -> None:
    report = run(model, tmp_path / "out")
    wide = next(group for group in report.groups if group.channels == 64 and group.steps)
    half = next(step for step in wide.steps if step.share == 0.5)
    # The second convolution makes 64 of 32x3x3 each, at 6x6 places; the last layer reads them.
    assert half.macs == 32 * (32 * 9 * 36 + 10)


def test_a_sweep_that_was_stopped_goes_on_where_it_was(
    model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    point = steps._point

    def noted(network: Any, folder: Path, fraction: float) -> Any:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(fraction)
        return point(network, folder, fraction)

    monkeypatch.setattr(steps, "_point", noted)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "out")
    assert "net" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    monkeypatch.setattr(steps, "_point", lambda *given: (made.append(given[2]), point(*given))[1])
    first = run(model, tmp_path / "out")
    assert made == [0.8, 0.5]
    told: list[str] = []
    again = run(model, tmp_path / "out", progress=told.append)
    assert made == [0.8, 0.5]
    assert told == []
    assert again.to_json_dict() == first.to_json_dict()
    (tmp_path / "out" / "macs-50.onnx").unlink()
    assert run(model, tmp_path / "out").to_json_dict() == first.to_json_dict()
    assert made == [0.8, 0.5, 0.5]
    more = run(model, tmp_path / "out", fractions=(0.8, 0.6, 0.5))
    assert [p.target for p in more.points] == [0.8, 0.6, 0.5]
    assert made[3:] == [0.6]
    other = run(model, tmp_path / "out", fractions=(0.7,))
    assert [p.target for p in other.points] == [0.8, 0.7, 0.6, 0.5]
    with pytest.raises(BudgetNotMet):
        run(model, tmp_path / "out", fractions=(1e-5,))
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert all(f"macs-{at}.onnx" in page for at in (80, 70, 60, 50))


def test_a_folder_with_another_sweep_is_left_alone(model: OnnxModel, tmp_path: Path) -> None:
    run(model, tmp_path / "out", sensitivity=False)
    before = (tmp_path / "out" / "sweep.json").read_text(encoding="utf-8")
    with pytest.raises(BadInput, match="holds another sweep") as error:
        run(model, tmp_path / "out", criterion="random")
    assert error.value.why == "other than now: criterion"
    assert (tmp_path / "out" / "sweep.json").read_text(encoding="utf-8") == before
    report = run(model, tmp_path / "out", criterion="random", force=True, sensitivity=False)
    assert report.criterion == "random"
    (tmp_path / "out" / "sweep.json").write_text('{"settings": 3}')
    with pytest.raises(BadInput, match="is no report of a sweep"):
        run(model, tmp_path / "out")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of twelve samples, of which the numbers 3, 7 and 11 are held out."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(12):
        np.save(folder / f"{number:02}.npy", rng.standard_normal((3, 8, 8)).astype(np.float32))
    return folder


def held_out_among(feeds: Any, data: Path) -> int:
    """Return how many of the held-out samples are among what something looks at."""
    seen = np.concatenate([value for feed in feeds for value in feed.values()])
    return sum(int((seen == np.load(data / f"{number:02}.npy")).all(axis=(1, 2, 3)).any()) for number in (3, 7, 11))


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_agreement_is_measured_on_samples_that_nothing_else_looked_at(
    model: OnnxModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    looked: list[int] = []
    for module, name in ((observing, "observe_onnx"), (saliency, "onnx_saliency"), (opened, "OpenedOnnx")):
        whole = getattr(module, name)

        def watched(*given: Any, whole: Any = whole) -> Any:
            feeds = next(each for each in reversed(given) if isinstance(each, FitData | Sequence))
            looked.append(held_out_among(feeds, data))
            return whole(*given)

        monkeypatch.setattr(module, name, watched)
    report = run(model, tmp_path / "out", calibration=Calibration(data), criterion=criterion, sensitivity=False)
    assert looked == [0] * (3 if criterion == "taylor" else 2)
    assert report.inputs.startswith("3 samples: every fourth of")
    assert all(point.agreement is not None and point.agreement.samples == 3 for point in report.points)


def test_with_data_the_points_are_fitted_from_one_look_at_them(
    model: OnnxModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("summed", "removals"):
        whole = getattr(reconstruct, name)
        monkeypatch.setattr(reconstruct, name, lambda *g, n=name, w=whole, **k: (calls.append(n), w(*g, **k))[1])
    report = run(model, tmp_path / "out", calibration=Calibration(data), fractions=(0.8, 0.5, 0.3))
    assert report.criterion == "reconstruct"
    assert sorted(calls) == ["removals"] * (len(reconstruct.ORDERS) - 1) + ["summed"]  # each order once, for all points
    calls.clear()
    again = run(model, tmp_path / "out", calibration=Calibration(data), fractions=(0.8, 0.5, 0.3))
    assert not calls
    assert again.to_json_dict() == report.to_json_dict()


def test_a_point_is_the_file_that_prune_writes(model: OnnxModel, data: Path, tmp_path: Path) -> None:
    given = Calibration(data)
    report = run(model, tmp_path / "out", calibration=given, fractions=(0.5,), sensitivity=False)
    once = prune_onnx(model.path, tmp_path / "once.onnx", calibration=given, target_macs=0.5, validate=False)
    assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "out" / report.points[0].file).read_bytes()
    assert once.agreement is not None
    assert report.points[0].agreement is not None
    assert report.points[0].agreement.outputs[0].error == pytest.approx(once.agreement.outputs[0].error, rel=1e-3)


def test_with_labels_the_curve_is_one_of_accuracy(
    model: OnnxModel, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(f"{number:02}.npy,{number % 10}" for number in range(12)))
    given = Calibration(data, labels=labels)
    report = run(model, tmp_path / "out", calibration=given, sensitivity=False)
    for point in report.points:
        assert point.agreement is not None
        assert headline(point.agreement) == ("accuracy", point.agreement.accuracy_after)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "accuracy against MACs" in page
    arguments = ["sweep", str(model.path), "-o", str(tmp_path / "out"), "--calibrate", str(data), "--no-sensitivity"]
    arguments += ["--labels", str(labels), "--target-macs", "0.8", "--target-macs", "0.5"]
    assert execute(arguments) == 0
    assert "accuracy of the original: " in capfd.readouterr().out
    with pytest.raises(BadInput, match="holds another sweep") as error:
        run(model, tmp_path / "out", calibration=Calibration(data), sensitivity=False)
    assert error.value.why == "other than now: labels"


def test_what_a_group_costs_is_told_as_its_points_are_made(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = network()
    with torch.no_grad():  # the second half of the first layer's channels are nearly multiples of the first half's
        factors = 0.5 + torch.rand(16)
        net[0].weight[16:] = net[0].weight[:16] * factors[:, None, None, None] * (1 + 1e-5 * torch.randn(16, 3, 3, 3))
        net[0].bias[16:] = net[0].bias[:16] * factors
    export_onnx(net, (INPUT,), tmp_path / "net.onnx")
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x.npy", np.random.default_rng(0).standard_normal((24, 3, 8, 8), dtype=np.float32))
    errors = {}
    for name, options in (("made up for", {}), ("not", {"compensate": False})):
        report = run(
            OnnxModel("net", tmp_path / "net.onnx", {}), tmp_path / name,
            calibration=Calibration(tmp_path / "data"), **options,
        )  # fmt: skip
        group = next(group for group in report.groups if group.channels == 32)
        errors[name] = next(step.error for step in group.steps if step.share == 0.25)
    assert errors["made up for"] < 1e-3
    assert errors["not"] > 0.05


@pytest.mark.parametrize(
    ("arrays", "labels", "what"),
    [
        ([], None, "holds no data"),
        ([np.ones((8, 3, 8, 8))], None, "are constant"),
        ([np.full((8, 3, 8, 8), np.nan)], None, "NaN or infinity"),
        ([np.zeros((8, 3, 9, 8))], None, "does not take"),
        ([np.random.default_rng(0).random((8, 3, 8, 8))], "1\n2\n", "there are 8 samples"),
        ([np.random.default_rng(0).random((8, 3, 8, 8))], "1\n" * 7 + "10\n", "the network scores 10"),
        ([np.random.default_rng(0).random((8, 3, 8, 8))], "cat\ndog\n" * 4, "2 classes are named"),
    ],
)
def test_data_that_do_not_fit_leave_no_folder(
    model: OnnxModel, tmp_path: Path, arrays: list[Any], labels: str | None, what: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "data").mkdir()
    for number, array in enumerate(arrays):
        np.save(tmp_path / "data" / f"{number}.npy", array.astype(np.float32))
    arguments = ["sweep", str(model.path), "-o", str(tmp_path / "out"), "--calibrate", str(tmp_path / "data")]
    if labels is not None:
        (tmp_path / "labels.csv").write_text(labels)
        arguments += ["--labels", str(tmp_path / "labels.csv")]
    assert execute(arguments) == 2
    err = capfd.readouterr().err
    assert what in err
    assert err.count("error[") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_too_few_samples_to_hold_out_are_fitted_and_not_measured_on(model: OnnxModel, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x.npy", np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32))
    report = run(model, tmp_path / "out", calibration=Calibration(tmp_path / "data"), sensitivity=False)
    assert "random inputs" in report.inputs
    text = " ".join(report.notes)
    assert "too few samples to hold some out" in text
    assert "fewer positions than they have inputs" in text


def test_a_point_out_of_reach_says_so_and_the_others_stand(model: OnnxModel, tmp_path: Path) -> None:
    report = run(model, tmp_path / "out", fractions=(0.5, 1e-5), sensitivity=False)
    assert [bool(point.file) for point in report.points] == [True, False]
    assert "of the MACs and" in report.points[1].note
    assert report.points[1].note.split(":")[0] in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    with pytest.raises(BudgetNotMet, match="no point of the sweep"):
        run(model, tmp_path / "none", fractions=(1e-5,), sensitivity=False)


def test_the_page_stands_by_itself_and_tells_groups_points_and_reasons(model: OnnxModel, tmp_path: Path) -> None:
    report = run(model, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page == sweep_page(report)
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert page.count("<circle") == 3 * (1 + len(report.points))
    for point in report.points:
        assert f'href="{point.file}"' in page
    for group in report.groups:
        if not group.steps:
            assert group.reason.split("'")[0] in page


def test_a_module_is_swept_by_its_export(tmp_path: Path) -> None:
    net = network()
    report = run(TorchModel("mine", net, (INPUT,)), tmp_path / "out", sensitivity=False)
    assert (tmp_path / "out" / "original.onnx").is_file()
    assert report.model == "mine"


def test_the_command_prints_a_table_or_one_json_document(
    model: OnnxModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", str(model.path), "-o", str(tmp_path / "out"), "--target-macs", "0.7", "--no-sensitivity"]
    assert execute(arguments) == 0
    out, err = capfd.readouterr()
    assert "70%" in out
    assert "index.html" in out.replace("\n", "")
    assert "70% of the MACs" in err
    assert execute([*arguments, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["points"][0]["score_is"] == "equal argmax"
    assert 0 <= document["points"][0]["score"] <= 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"criterion": "taylor"}, "the taylor criterion needs gradients"),
        ({"multiple_of": 0}, "multiple_of is 0"),
        ({"fractions": (1.5,)}, "target_macs is 1.5"),
    ],
)
def test_options_that_make_no_sense_leave_no_folder(
    model: OnnxModel, tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    with pytest.raises(BadInput, match=what):
        run(model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(model: OnnxModel, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BadInput, match="is a file"):
        run(model, tmp_path / "out")
    with pytest.raises(BadInput, match="there is no folder"):
        run(model, tmp_path / "not" / "there")
