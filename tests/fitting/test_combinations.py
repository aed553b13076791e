"""Channels that are combinations of others: exact where the dependence is exact, never worse with more budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from assertions import outputs_of, relative_error
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st
from modules.dependent import copy_channels
from modules.strategies import IN_CHANNELS, SIZE, Spec, build, specs
from torch import nn

from prunec.api import prune_module, prune_onnx
from prunec.backends.fx.backend import apply_edits
from prunec.cli.main import execute
from prunec.data.calibration import Calibration
from prunec.errors import BadInput, BadPlan
from prunec.fitting.fit_data import FitData
from prunec.fitting.reconstruct import Reconstruction
from prunec.fitting.stages_module import OpenedModule
from prunec.ir.plan import PrunePlan
from prunec.passes.fitting.combinations import macs_of
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.select import plan, select
from prunec.pipeline.apply import apply_plan
from prunec.pipeline.apply_onnx import apply_plan_onnx
from prunec.pipeline.export import export_onnx
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import input_specs, read_module


@given(specs(), st.sampled_from([64 << 20, 0]))
@settings(max_examples=40, deadline=None)
def test_channels_that_depend_on_others_go_without_an_error(spec: Spec, memory: int) -> None:
    net = build(spec)
    rng = np.random.default_rng(spec.seed)
    feeds = tuple({"x": rng.standard_normal((8, IN_CHANNELS, SIZE, SIZE))} for _ in range(3))
    traced = read_module(net, (torch.from_numpy(feeds[0]["x"]),))
    keep = copy_channels(net, gather_facts(traced.graph))
    assume(not keep.all())
    traced = read_module(net, (torch.from_numpy(feeds[0]["x"]),))
    facts = gather_facts(traced.graph)
    selection = select(facts, keep)
    assume(not selection.keep.all())
    named = tuple({traced.graph.inputs[0]: feed["x"]} for feed in feeds)
    data = Reconstruction(OpenedModule(traced, named), FitData("data", named, (), 24, 0, ()), memory)
    specs_ = input_specs(traced.graph, (torch.from_numpy(feeds[0]["x"]),))
    made = data.prepared(facts, plan(facts, selection, specs_), selection.wanted, frozenset(), new=True)
    edits = lower(facts.graph, facts.classes, made, facts.constants)
    fitted = data.fitted(facts, made, edits, apply_edits(traced, edits))
    pruned = apply_edits(traced, lower(facts.graph, facts.classes, fitted, facts.constants))
    note(f"{spec}\nremoved {int((~selection.keep).sum())}")
    if not all(operand.takes == "weights" or operand.is_depthwise for operand in data.operands(facts)):
        return
    batch = torch.from_numpy(rng.standard_normal((2, IN_CHANNELS, SIZE, SIZE)))
    assert relative_error(outputs_of(net, batch), outputs_of(pruned, batch)) <= 1e-5
    again = apply_plan(net, PrunePlan.from_json(fitted.to_json()))
    assert relative_error(outputs_of(pruned, batch), outputs_of(again, batch)) == 0


def mixed() -> nn.Module:
    """One of each kind of read: plain, depthwise, transposed and grouped convolutions, a sum, a linear layer."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
            self.inner, self.deep = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.wide = nn.ConvTranspose2d(16, 12, 3, 2, padding=1, output_padding=1)
            self.grouped = nn.Conv2d(12, 24, 3, padding=1, groups=4)
            self.head, self.act = nn.Linear(24, 10), nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> Any:
            x = self.act(self.norm(self.stem(x)))
            x = x + self.deep(self.act(self.inner(x)))
            x = self.act(self.grouped(self.act(self.wide(x))))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    net = Mixed().eval()
    with torch.no_grad():
        net.norm.running_mean.uniform_(-0.3, 0.3)
        net.norm.weight.uniform_(0.5, 1.5)
    return net


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((64, 3, 1, 1))  # images are smooth: a part of them all pixels share
    np.save(folder / "inputs.npy", (shared + 0.5 * rng.standard_normal((64, 3, 12, 12))).astype(np.float32))
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.onnx"
    export_onnx(mixed(), (torch.zeros(1, 3, 12, 12),), path)
    return path


def error(report: Any) -> float:
    assert report.agreement is not None
    assert report.agreement.samples == 16
    found: float = report.agreement.outputs[0].error
    return found


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_making_up_for_what_goes_is_better_than_leaving_it_out(file: Path, data: Path, criterion: str) -> None:
    how: dict[str, Any] = {"calibration": Calibration(data), "criterion": criterion, "target_macs": 0.7}
    with_it = prune_onnx(file, file.with_name("a.onnx"), **how)
    without = prune_onnx(file, file.with_name("b.onnx"), **how, compensate=False)
    assert error(with_it) < 0.9 * error(without)


def test_without_data_the_means_that_batchnorms_tell_are_folded() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 1),
    ).train()  # fmt: skip
    with torch.no_grad():
        net[1].bias.uniform_(0.5, 1.5)
        for _ in range(60):
            net(torch.randn(32, 3, 12, 12))
    net.eval()
    batch = torch.randn(64, 3, 12, 12)
    how: dict[str, Any] = {"criterion": "l1", "target_macs": 0.5}
    made = prune_module(net, (batch,), **how)
    zeros = prune_module(net, (batch,), **how, compensate=False)
    assert any(fold.kind == "bias" and fold.positions for fold in made.plan.folds)
    off = [(outputs_of(net, batch)[0] - outputs_of(found.module, batch)[0]).mean((0, 2, 3)) for found in (made, zeros)]
    assert float(off[0].abs().max()) < 0.1 * float(off[1].abs().max())


def test_a_module_and_its_file_are_fitted_alike(file: Path, data: Path) -> None:
    how: dict[str, Any] = {"calibration": Calibration(data), "target_macs": 0.7}
    from_file = prune_onnx(file, file.with_name("p.onnx"), **how)
    from_module = prune_module(mixed(), (torch.zeros(1, 3, 12, 12),), **how).report
    assert "make up for" in from_file.reason
    assert "make up for" in from_module.reason
    assert error(from_file) == pytest.approx(error(from_module), rel=0.25)


def test_a_plan_does_the_same_to_a_fresh_file(file: Path, data: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "p.onnx", tmp_path / "again.onnx"
    prune_onnx(file, first, calibration=Calibration(data), target_macs=0.6, plan_file=tmp_path / "plan.json")
    made = PrunePlan.load(tmp_path / "plan.json")
    assert made.refits
    assert not made.exact
    apply_plan_onnx(file, made, again)
    assert first.read_bytes() == again.read_bytes()


def test_a_plan_with_weights_of_other_sizes_is_refused(data: Path) -> None:
    result = prune_module(mixed(), (torch.zeros(1, 3, 12, 12),), calibration=Calibration(data), target_macs=0.7)
    other = mixed()
    other.head = nn.Linear(24, 7)
    with pytest.raises(BadPlan, match="weights for head"):
        apply_plan(other, result.plan)


def test_more_budget_never_gives_more_error_on_the_fitted_data(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 8, 3, padding=1)).eval()
    inputs = torch.randn(6, 3, 10, 10)  # too few to hold any out: all are fitted
    np.save(tmp_path / "x.npy", inputs.numpy())
    expected, errors = outputs_of(net, inputs), []
    for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        made = prune_module(net, (inputs[:1],), calibration=Calibration(tmp_path), target_macs=share, multiple_of=1)
        assert made.report.after.macs <= share * made.report.before.macs
        found = outputs_of(made.module, inputs)
        errors.append(float((expected[0] - found[0]).square().sum()))
    assert errors == sorted(errors)
    assert errors[0] > 0


class _Summed(nn.Module):
    """Two layers of different depth that are added before a ReLU, and a third one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.side, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        summed = self.deep(torch.relu(self.first(x))) + self.side(x)
        return self.last(torch.relu(summed))


def test_layers_that_meet_before_a_relu_are_fitted_one_after_the_other(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "summed.onnx"
    export_onnx(_Summed().eval(), (torch.zeros(1, 3, 12, 12),), path)
    how: dict[str, Any] = {"calibration": Calibration(data), "target_macs": 0.7}
    with_it = prune_onnx(path, tmp_path / "a.onnx", **how)
    without = prune_onnx(path, tmp_path / "b.onnx", **how, compensate=False)
    assert error(with_it) < 0.7 * error(without)


def test_the_order_is_made_once_for_all_budgets(data: Path) -> None:
    net = mixed()
    batch = torch.from_numpy(np.load(data / "inputs.npy"))
    traced = read_module(net, (batch[:1],))
    feeds = ({traced.graph.inputs[0]: batch.numpy()},)
    facts = gather_facts(traced.graph)
    held = Reconstruction(OpenedModule(traced, feeds), FitData("data", feeds, (), 64, 0, ()), 1 << 30)
    wide, narrow = (held.removals(facts, of_params=False, least=least) for least in (0.8, 0.2))
    reached = int((wide.left > 0.8).sum())
    assert reached > 0
    assert wide.order[:reached].tolist() == narrow.order[:reached].tolist()
    assert (narrow.errors >= 0).all()
    assert sum(macs_of(facts.graph).values()) > 0


# --- what data can be wrong with ------------------------------------------------------------------------


def refused(file: Path, data: Path, **how: Any) -> str:
    output = file.with_name("never.onnx")
    with pytest.raises(BadInput) as caught:
        prune_onnx(file, output, calibration=Calibration(data, **how), target_macs=0.7)
    assert not output.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.ones((4, 3, 12, 12))], "are constant"),
        ([np.random.default_rng(0).random((1, 3, 12, 12))] * 3, "are constant"),
        ([np.full((4, 3, 12, 12), np.nan)], "NaN or infinity"),
        ([np.zeros((4, 3, 9, 12))], "does not take"),
        ([], "holds no data"),
    ],
)
def test_data_that_nothing_can_be_fitted_to(file: Path, tmp_path: Path, arrays: list[Any], message: str) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for number, array in enumerate(arrays):
        np.save(folder / f"{number}.npy", array.astype(np.float32))
    assert message in refused(file, folder)


def test_labels_that_do_not_match_are_refused(file: Path, data: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["999"] * 64))
    assert "there is a class 999, but the network scores" in refused(file, data, labels=labels)
    torch.manual_seed(0)
    pictures = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1)).eval()
    export_onnx(pictures, (torch.zeros(1, 3, 12, 12),), tmp_path / "pictures.onnx")
    assert "labels are for classifiers" in refused(tmp_path / "pictures.onnx", data, labels=labels)


def test_too_few_samples_are_fitted_and_told_how_many_would_do(file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((5, 3, 12, 12), dtype=np.float32))
    (tmp_path / "few").mkdir()
    (tmp_path / "x.npy").rename(tmp_path / "few" / "x.npy")
    report = prune_onnx(file, tmp_path / "p.onnx", calibration=Calibration(tmp_path / "few"), target_macs=0.7)
    text = " ".join(report.notes)
    assert "fewer positions than they have inputs" in text
    assert "samples do" in text
    assert report.agreement is not None
    assert report.agreement.samples == 0
    assert "too few samples to hold any out" in text


@pytest.mark.parametrize("memory", [2 << 30, 64 << 20])
def test_layers_without_bias_are_fitted_under_a_budget_of_parameters(data: Path, memory: int) -> None:
    """No biases may be made, though the moments of the original are those of a layer that could have one."""
    torch.manual_seed(0)
    shape = {"kernel_size": 3, "padding": 1, "bias": False}
    layers = [nn.Conv2d(3, 24, **shape), nn.ReLU(), nn.Conv2d(24, 24, **shape), nn.ReLU(), nn.Conv2d(24, 4, **shape)]
    net, example = nn.Sequential(*layers).eval(), (torch.zeros(1, 3, 12, 12),)
    pruned = prune_module(net, example, target_params=0.5, calibration=Calibration(data, memory=memory))
    assert error(pruned.report) < 0.5
    assert all(module.bias is None for module in pruned.module.modules() if isinstance(module, nn.Conv2d))


def test_the_criterion_needs_data(file: Path) -> None:
    with pytest.raises(BadInput, match="needs data"):
        prune_onnx(file, file.with_name("p.onnx"), criterion="reconstruct", target_macs=0.7)


def test_little_memory_is_enough(file: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least 64 MB"):
        Calibration(data, memory=1)
    report = prune_onnx(file, tmp_path / "p.onnx", calibration=Calibration(data, memory=64 << 20), target_macs=0.7)
    assert error(report) < 0.5


# --- the command line -----------------------------------------------------------------------------------


def test_the_command_line_tells_what_held_out_samples_say(
    file: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(str(number % 10) for number in range(64)))
    arguments = ["prune", str(file), "-o", str(tmp_path / "p.onnx"), "--calibrate", str(data), "--target-macs", "0.7"]
    assert execute([*arguments, "--labels", str(labels), "--no-validate"]) == 0
    out = capfd.readouterr().out
    assert "16 held-out samples" in out
    assert "accuracy" in out
    assert "same class" in out
    onnx.checker.check_model(str(tmp_path / "p.onnx"))
    page = ["--labels", str(labels), "--no-validate", "--force", "--report", str(tmp_path / "p.html")]
    assert execute([*arguments, *page]) == 0
    assert "16 held-out samples" in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert f"wrote {tmp_path / 'p.html'}" in capfd.readouterr().err
    assert execute([*arguments, "--memory", "lots", "--force"]) == 2
    assert "--memory is 'lots'" in capfd.readouterr().err
    labels.write_text("1\n2\n")
    assert execute([*arguments, "--labels", str(labels), "--force"]) == 2
    assert "there are 64 samples" in capfd.readouterr().err
