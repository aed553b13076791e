"""train_prune on a tiny network: the run folder, resuming bit for bit, and runs that must not go on."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_bars import Stop, StopAt, config
from training_nets import tiny

from prunec.errors import (
    BadInput,
    BudgetNotMet,
    CheckFailed,
    EmptyNetwork,
    Interrupted,
    MissingDependency,
    UnsupportedModel,
    WriteFailed,
)
from prunec.files import read_lines
from prunec.ir.plan import PrunePlan
from prunec.pipeline.apply import apply_plan
from prunec.training.logs.progress import Silent
from prunec.training.run import context as context_module
from prunec.training.run import run as run_module
from prunec.training.run.run import train_prune
from prunec.training.settings.config import RunConfig
from prunec.training.settings.presets import make_config, resume_config

RESULTS = {
    "pruned.onnx",
    "pruned.safetensors",
    "plan.json",
    "metrics.jsonl",
    "summary.json",
    "report.html",
    "config.json",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_prune(config(folder, bars))
    return folder


def summary(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return document


def test_a_run_prunes_and_leaves_everything_it_promises(finished: Path) -> None:
    found = summary(finished)
    assert {path.name for path in finished.iterdir()} == {*RESULTS, "checkpoint"}
    assert found["after"]["params"] < 0.8 * found["before"]["params"]
    assert found["after"]["macs"] < found["before"]["macs"]
    assert found["accuracy"]["after"] >= 0.9
    assert set(found["accuracy"]) == {"before", "removed", "after"}
    assert found["validation"]["passed"]
    assert found["validation"]["max_rel_error"] <= 1e-4
    assert found["validation"]["latency_ratio"] > 0
    assert all(layer["after"] <= layer["before"] for layer in found["layers"])
    assert set(found["files"]) == RESULTS


def test_sparsity_rises_and_the_metrics_say_so(finished: Path) -> None:
    rows = read_lines(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert list(dict.fromkeys(row["phase"] for row in rows)) == ["warmup", "ista", "finetune"]
    sparse = [row for row in rows if row["phase"] == "ista"]
    assert sparse[-1]["sparsity"] > sparse[0]["sparsity"]
    assert sparse[-1]["params_if_pruned"] < sparse[0]["params_if_pruned"]
    assert sum(sparse[-1]["gamma_histogram"]["counts"]) == 8 * 3 + 6 + 4
    assert all(row["rho"] == 0 for row in rows if row["phase"] != "ista")


def test_the_estimate_while_training_is_close_to_what_removal_finds(finished: Path) -> None:
    last = [row for row in read_lines(finished / "metrics.jsonl") if row["phase"] == "ista"][-1]
    assert summary(finished)["after"]["params"] == pytest.approx(last["params_if_pruned"], rel=0.02)


def test_plan_and_weights_give_the_pruned_network_again_as_the_users_own_class(finished: Path) -> None:
    module, _ = tiny()
    pruned = apply_plan(module, PrunePlan.load(finished / "plan.json"), keep_class=True)
    pruned.load_state_dict(load_file(finished / "pruned.safetensors"))
    images = np.random.default_rng(1).standard_normal((5, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        ours = pruned.eval()(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(finished / "pruned.onnx", providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": images})
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [3, 17, 24, 47, 91, 105, 119])
def test_a_run_killed_at_any_moment_ends_the_same(tmp_path: Path, bars: Path, finished: Path, step: int) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train_prune(config(folder, bars), StopAt(step))
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 9')
    assert not (folder / "pruned.onnx").exists()
    train_prune(resume_config(str(folder)))
    for name in ("pruned.safetensors", "metrics.jsonl", "plan.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    assert summary(folder)["accuracy"] == summary(finished)["accuracy"]


def test_ctrl_c_saves_at_the_step_it_came_in_and_the_run_goes_on_from_there(
    tmp_path: Path, bars: Path, finished: Path
) -> None:
    class PressAt(StopAt):
        def step(self, done: int) -> None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_prune(config(folder, bars), PressAt(33))
    assert signal.getsignal(signal.SIGINT) is before
    state = torch.load(folder / "checkpoint" / "state.pt", weights_only=True)
    assert state["step"] == 33
    train_prune(resume_config(str(folder)))
    assert (folder / "pruned.safetensors").read_bytes() == (finished / "pruned.safetensors").read_bytes()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write files beyond ``size`` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_checkpoint_is_found_before_the_first_step(tmp_path: Path, bars: Path) -> None:
    steps: list[int] = []

    class Counting(Silent):
        def step(self, done: int) -> None:
            steps.append(done)

    with largest_file(4096), pytest.raises(WriteFailed, match=r"state\.pt") as error:
        train_prune(config(tmp_path / "run", bars), Counting())
    assert error.value.why == os.strerror(errno.EFBIG)
    assert steps == []
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == ["checkpoint", "config.json", "metrics.jsonl"]


@pytest.mark.parametrize("file", ["checkpoint/state.pt", "metrics.jsonl"])
def test_a_disk_that_fills_up_leaves_the_checkpoint_and_the_run_goes_on_when_there_is_space(
    tmp_path: Path, bars: Path, finished: Path, file: str
) -> None:
    folder = tmp_path / "run"
    full = ExitStack()

    class FullAt(StopAt):
        def step(self, done: int) -> None:
            self.left -= 1
            if self.left == 0:
                full.enter_context(largest_file((folder / file).stat().st_size - 1))

    with full, pytest.raises(WriteFailed, match=f"cannot write {re.escape(str(folder / file))}") as error:
        train_prune(config(folder, bars), FullAt(35))
    assert f"go on from the last checkpoint: prunec train-prune -o {folder} --resume" in error.value.do
    assert torch.load(folder / "checkpoint" / "state.pt", weights_only=True)["step"] == 30
    assert not list(folder.rglob("*.tmp*"))
    train_prune(resume_config(str(folder)))
    for name in ("pruned.safetensors", "metrics.jsonl", "plan.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def test_too_little_space_is_found_before_anything_is_written(
    tmp_path: Path, bars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(WriteFailed, match=r"has 1 MiB free, the run needs about 16 MiB"):
        train_prune(config(tmp_path / "run", bars))
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_stops_at_once_and_the_last_checkpoint_stays(tmp_path: Path, bars: Path) -> None:
    class PressTwiceAt(StopAt):
        def step(self, done: int) -> None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("the second one was not immediate")

    folder = tmp_path / "my run"
    with pytest.raises(Interrupted, match="go on from the last checkpoint with: ") as error:
        train_prune(config(folder, bars), PressTwiceAt(33))
    assert f"prunec train-prune -o '{folder}' --resume" in str(error.value)
    assert error.value.exit_status == 130
    assert torch.load(folder / "checkpoint" / "state.pt", weights_only=True)["step"] == 30


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path, bars: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.0123456789ab.tmp.json").write_text("{")
    with pytest.raises(Stop):
        train_prune(config(folder, bars), StopAt(15))
    (folder / "checkpoint" / ".state.0123456789ab.tmp.pt").write_bytes(b"half")
    train_prune(resume_config(str(folder)))
    assert not list(folder.rglob("*.tmp*"))


def test_a_run_that_diverges_goes_on_with_a_smaller_learning_rate(tmp_path: Path, bars: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train_prune(config(folder, bars, log_every=1), StopAt(15))
    with pytest.raises(CheckFailed, match="loss is not a number") as error:
        train_prune(resume_config(str(folder), lr=1e30))
    assert f"prunec train-prune -o {folder} --resume --lr" in error.value.do
    state = torch.load(folder / "checkpoint" / "state.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["module"].values())
    result = train_prune(resume_config(str(folder), lr=0.05, rho=0.03))
    assert "lr 0.05 from step" not in " ".join(result.reasons)  # what the checkpoint was made with
    assert any(reason.startswith("rho 0.03 from step ") for reason in result.reasons)
    rows = read_lines(folder / "metrics.jsonl")
    assert max(row["rho"] for row in rows) == pytest.approx(0.03)
    assert json.loads((folder / "config.json").read_text())["rho"] == 0.03


def test_a_setting_that_comes_too_late_is_said_to_have_no_effect(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars), StopAt(110))
    reasons = train_prune(resume_config(str(tmp_path / "run"), lr=0.001, finetune_lr=0.002)).reasons
    assert "lr 0.001 from step 110 on: given, without effect: fine-tuning goes by finetune-lr" in reasons
    assert "finetune-lr 0.002 from step 110 on: given" in reasons


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what TensorBoard imports
def test_the_log_can_be_had_as_tensorboard_curves(tmp_path: Path, bars: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train_prune(config(folder, bars, steps=40, tensorboard=True), StopAt(25))
    train_prune(resume_config(str(folder)))
    curves = EventAccumulator(str(folder / "tensorboard"))
    curves.Reload()
    rows = read_lines(folder / "metrics.jsonl")
    assert [event.step for event in curves.Scalars("loss")] == [row["step"] for row in rows]
    assert [event.value for event in curves.Scalars("sparsity")] == pytest.approx(
        [row["sparsity"] for row in rows if row["sparsity"] is not None]
    )


def test_tensorboard_that_is_missing_is_told_before_the_run(
    tmp_path: Path, bars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(MissingDependency, match="--tensorboard needs TensorBoard"):
        train_prune(config(tmp_path / "run", bars, tensorboard=True))
    assert not (tmp_path / "run").exists()


def test_settings_that_shape_the_run_cannot_change_when_it_goes_on(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars), StopAt(15))
    with pytest.raises(BadInput, match=r"batch_size 8 \(the run has \d+\)"):
        resume_config(str(tmp_path / "run"), batch_size=8)


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path, bars: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_prune(config(tmp_path / "run", bars, steps=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_existing_run_is_not_replaced_unasked(finished: Path, bars: Path) -> None:
    before = (finished / "pruned.onnx").read_bytes()
    with pytest.raises(BadInput, match="already holds a run"):
        train_prune(config(finished, bars))
    assert (finished / "pruned.onnx").read_bytes() == before


def test_a_folder_of_other_things_is_called_that(tmp_path: Path, bars: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(BadInput, match=r"is not empty\n(.*)--force to put the run beside what is there") as error:
        train_prune(config(tmp_path, bars))
    assert "--resume" not in str(error.value)


def test_every_file_of_a_run_has_the_permissions_that_the_umask_gives(finished: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in finished.iterdir() if path.is_file()}
    assert set(modes.values()) == {modes["config.json"]}, modes


def test_force_replaces_a_run_and_leaves_nothing_of_it(tmp_path: Path, bars: Path) -> None:
    folder = tmp_path / "run"
    train_prune(config(folder, bars, steps=4))
    rows = len(read_lines(folder / "metrics.jsonl"))
    train_prune(config(folder, bars, steps=4, force=True))
    assert len(read_lines(folder / "metrics.jsonl")) == rows


def test_a_run_that_removes_nothing_says_so(tmp_path: Path, bars: Path) -> None:
    result = train_prune(config(tmp_path / "run", bars, steps=8, rho=1e-6))
    assert result.after == result.before
    assert any("no channel was removed" in reason for reason in result.reasons)


def test_a_rho_that_would_empty_the_network_is_refused_before_it_does(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(EmptyNetwork, match="no channel would be left in front of") as error:
        train_prune(config(tmp_path / "run", bars, rho=50.0))
    assert "lower rho" in error.value.do
    assert error.value.exit_status == 1
    assert not (tmp_path / "run" / "pruned.onnx").exists()


def test_adjusting_brings_a_rho_that_would_empty_the_network_to_a_result(tmp_path: Path, bars: Path) -> None:
    given = {"rho": 2.0, "on_symptom": "adjust", "log_every": 1}
    result = train_prune(config(tmp_path / "run", bars, **given))
    rows = [row for row in read_lines(tmp_path / "run" / "metrics.jsonl") if row["phase"] == "ista"]
    assert any("sparsity: rho x 0.25" in row["symptoms"] for row in rows)
    assert any("adjusted: rho x 0.25" in sentence for sentence in result.advice)
    assert 0 < result.after["params"] < result.before["params"]


def test_adjusting_alpha_in_the_middle_keeps_the_function_and_can_be_resumed(tmp_path: Path, bars: Path) -> None:
    given = {"rho": 1e-3, "gamma_lr": 0.1, "on_symptom": "adjust", "log_every": 2, "stop_on_plateau": False}
    result = train_prune(config(tmp_path / "whole", bars, **given))
    assert any("adjusted: alpha x 0.1" in sentence for sentence in result.advice)
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, **given), StopAt(88))
    train_prune(resume_config(str(tmp_path / "run")))
    for name in ("pruned.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_stopping_at_a_symptom_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, bars: Path) -> None:
    given = {"rho": 1e-3, "gamma_lr": 0.1, "on_symptom": "stop", "log_every": 2, "stop_on_plateau": False}
    with pytest.raises(CheckFailed, match="the lasso falls in a straight line") as error:
        train_prune(config(tmp_path / "run", bars, **given))
    assert error.value.exit_status == 1
    assert "lower alpha" in error.value.do
    assert not (tmp_path / "run" / "pruned.onnx").exists()
    train_prune(resume_config(str(tmp_path / "run")))
    assert (tmp_path / "run" / "pruned.onnx").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(CheckFailed, match="loss is not a number"):
        train_prune(config(tmp_path / "run", bars, lr=1e18, checkpoint_every=1, log_every=1))
    state = torch.load(tmp_path / "run" / "checkpoint" / "state.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["module"].values() if v.is_floating_point() and v.dim() > 1)


def test_a_budget_is_met_without_naming_rho(tmp_path: Path, bars: Path) -> None:
    result = train_prune(config(tmp_path / "run", bars, rho=None, target_params=0.6, steps=300))
    share = result.after["params"] / result.before["params"]
    assert 0.6 * 0.96 <= share <= 0.6, "a channel of this network is a twentieth of it"
    assert any(reason.startswith("budget: ") for reason in result.reasons)


def test_a_budget_is_met_even_where_the_penalty_does_nothing(tmp_path: Path, bars: Path) -> None:
    result = train_prune(config(tmp_path / "run", bars, rho=1e-9, target_macs=0.5, steps=8))
    assert result.after["macs"] <= 0.5 * result.before["macs"]
    (said,) = (reason for reason in result.reasons if reason.startswith("budget: "))
    assert re.search(r"of (\d+) channel classes that go, \1 had not reached zero", said)


def test_a_budget_that_overshoots_gives_back_what_went_last(tmp_path: Path, bars: Path) -> None:
    result = train_prune(config(tmp_path / "run", bars, rho=0.5, rho_warmup=0.0, target_macs=0.8, steps=120))
    assert 0.8 * 0.9 <= result.after["macs"] / result.before["macs"] <= 0.8
    (said,) = (reason for reason in result.reasons if reason.startswith("budget: "))
    assert int(re.search(r"and (\d+) that had stay", said)[1]) > 0  # type: ignore[index]


def test_a_budget_below_what_is_pinned_is_refused_before_training(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(BudgetNotMet, match=r"at the least .* of the MACs .* must stay") as error:
        train_prune(config(tmp_path / "run", bars, target_macs=0.2, keep=("*outer*", "*stem*")))
    assert error.value.exit_status == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [33, 70])
def test_a_run_under_a_budget_that_is_killed_ends_the_same(tmp_path: Path, bars: Path, step: int) -> None:
    given = {"rho": None, "target_macs": 0.6}
    train_prune(config(tmp_path / "whole", bars, **given))
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, **given), StopAt(step))
    train_prune(resume_config(str(tmp_path / "run")))
    for name in ("pruned.safetensors", "metrics.jsonl", "plan.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


MILESTONES: dict[str, Any] = {"rho": None, "milestones": (0.8, 0.6), "steps": 160, "shares": (0.2, 0.5, 0.3)}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Path:
    folder = tmp_path_factory.mktemp("several") / "run"
    train_prune(config(folder, bars, **MILESTONES))
    return folder


def test_each_milestone_has_a_folder_with_a_network_of_its_size(several: Path) -> None:
    whole = summary(several)["before"]["macs"]
    for name, share in (("milestone-80", 0.8), ("milestone-60", 0.6)):
        assert {path.name for path in (several / name).iterdir()} == RESULTS
        found = summary(several / name)
        assert share * 0.9 <= found["after"]["macs"] / whole <= share
        assert found["validation"]["passed"]
        assert found["accuracy"]["after"] > 0.6
        pruned = apply_plan(tiny()[0], PrunePlan.load(several / name / "plan.json"), keep_class=True)
        pruned.load_state_dict(load_file(several / name / "pruned.safetensors"))


def test_the_run_folder_has_one_table_one_plot_and_the_last_network(several: Path) -> None:
    found = summary(several)
    assert [item["target"] for item in found["milestones"]] == [0.8, 0.6]
    assert [item["macs"] for item in found["milestones"]] == [
        summary(several / name)["after"]["macs"] for name in ("milestone-80", "milestone-60")
    ]
    assert {path.name for path in several.iterdir()} == {*RESULTS, "checkpoint", "milestone-80", "milestone-60"}
    for name in ("pruned.onnx", "pruned.safetensors", "plan.json"):
        assert (several / name).read_bytes() == (several / "milestone-60" / name).read_bytes()
    page = (several / "report.html").read_text()
    assert page.count("accuracy against MACs") == 2, "the plot and its label"
    assert "milestone-80" in page


def test_ista_goes_on_from_the_network_that_was_not_fine_tuned(several: Path) -> None:
    rows = read_lines(several / "metrics.jsonl")
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    phases = [row["phase"] for row in rows]
    assert [b for a, b in zip(["", *phases], phases, strict=False) if a != b] == [
        "warmup", "ista", "finetune", "ista", "finetune",
    ]  # fmt: skip
    sparse = [row for row in rows if row["phase"] == "ista"]
    second = next(index for index in range(1, len(sparse)) if sparse[index]["step"] > sparse[index - 1]["step"] + 20)
    assert sparse[second]["macs_if_pruned"] <= 1.1 * sparse[second - 1]["macs_if_pruned"]


@pytest.mark.parametrize("step", [45, 70, 95])
def test_a_run_with_milestones_that_is_killed_ends_the_same(
    tmp_path: Path, bars: Path, several: Path, step: int
) -> None:
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, **MILESTONES), StopAt(step))
    train_prune(resume_config(str(tmp_path / "run")))
    for name in ("pruned.safetensors", "metrics.jsonl", "plan.json", "milestone-80/pruned.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (several / name).read_bytes(), name


def test_without_fine_tuning_the_removal_is_exact(tmp_path: Path, bars: Path) -> None:
    result = train_prune(config(tmp_path / "run", bars, shares=(0.3, 0.7, 0.0)))
    plan = PrunePlan.load(tmp_path / "run" / "plan.json")
    assert plan.exact
    assert not plan.is_empty
    assert result.score["after"] == result.score["removed"]


def test_pretrained_weights_are_measured_first_and_rescaled(tmp_path: Path, bars: Path) -> None:
    torch.manual_seed(0)
    module, _ = tiny()
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    given = {"weights": str(tmp_path / "weights.safetensors"), "rho": None, "shares": (0.0, 0.7, 0.3)}
    result = train_prune(config(tmp_path / "run", bars, alpha=0.1, **given))
    assert result.score["before"] < result.score["after"]
    assert any(re.match(r"rho [\d.]+: .*(loss of guessing|reaches zero)", reason) for reason in result.reasons)


def pretrained(folder: Path, bars: Path, **given: Any) -> RunConfig:
    """Return the settings of a run of the tiny network with weights, by the recipe for such."""
    torch.manual_seed(0)
    weights = folder.parent / "weights.safetensors"
    save_file(tiny()[0].state_dict(), weights)
    settings: dict[str, Any] = {"model": "training_nets:tiny", "data": str(bars), "weights": str(weights)}
    settings |= {"batch_size": 16, "steps": 60, "log_every": 4, "checkpoint_every": 10, "device": "cpu", **given}
    return make_config(str(folder), preset="pretrained", **settings)


def test_a_network_with_weights_keeps_its_scales_and_its_gammas_get_a_step_size(tmp_path: Path, bars: Path) -> None:
    chosen = train_prune(pretrained(tmp_path / "chosen", bars)).reasons
    assert any(reason.startswith("alpha 1: gammas have a step size of their own") for reason in chosen)
    # Both sentences are about the run as it begins, with the rho that it got.
    said = {reason.partition(" ")[0]: reason.partition(": ")[2] for reason in chosen}
    assert said["mu"].startswith("a gamma without use then reaches zero")
    assert said["mu"] == said["rho"]
    papers = train_prune(pretrained(tmp_path / "papers", bars, gamma_lr=0.01, rho=0.02)).reasons
    assert any(re.match(r"alpha (1|0.1): of 1, 0.1 the one", reason) for reason in papers)
    assert not any(reason.startswith("mu") for reason in papers)


def test_an_alpha_that_is_likely_to_wreck_a_trained_network_is_named(tmp_path: Path, bars: Path) -> None:
    small = train_prune(pretrained(tmp_path / "small", bars, alpha=0.01, gamma_lr=1e-4, rho=0.02)).reasons
    assert "alpha 0.01: given, but betas then learn as with a rate of 100 (lr/α²): lower lr, or raise alpha" in small
    assert "alpha 0.1: given" in train_prune(pretrained(tmp_path / "usual", bars, alpha=0.1, rho=0.02)).reasons


def test_a_chosen_step_size_is_kept_when_the_run_is_resumed(tmp_path: Path, bars: Path) -> None:
    train_prune(pretrained(tmp_path / "whole", bars, target_macs=0.7))
    with pytest.raises(Stop):
        train_prune(pretrained(tmp_path / "killed", bars, target_macs=0.7), StopAt(23))
    train_prune(resume_config(str(tmp_path / "killed")))
    for name in ("pruned.safetensors", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def spoilt(kind: str, folder: Path) -> Mapping[str, Any]:
    """Return settings with one thing wrong with them."""
    if kind == "weights-missing":
        return {"weights": str(folder / "none.safetensors")}
    if kind == "weights-of-another-network":
        save_file({"stem.0.weight": torch.zeros(3)}, folder / "other.safetensors")
        return {"weights": str(folder / "other.safetensors")}
    if kind == "data-missing":
        return {"data": str(folder / "none")}
    if kind == "too-many-classes":
        return {"data": "digits"}
    if kind == "no-such-model":
        return {"model": "training_nets:nothing"}
    return {"input_shape": (4, 8, 8)}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("weights-missing", "none.safetensors"),
        ("weights-of-another-network", "do not fit the network"),
        ("data-missing", "there is no data set"),
        ("too-many-classes", "tells 2 classes apart"),
        ("no-such-model", "nothing"),
        ("input-shape", "cannot run on an input"),
    ],
)
def test_bad_input_is_told_in_one_message_and_nothing_is_written(
    tmp_path: Path, bars: Path, kind: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        train_prune(config(tmp_path / "run", bars, **spoilt(kind, tmp_path)))
    assert not (tmp_path / "run").exists()


def test_a_network_without_class_scores_is_refused(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(UnsupportedModel, match="not one score per image"):
        train_prune(config(tmp_path / "run", bars, model="torch.nn:Identity", input_shape=(3, 8, 8)))


def test_a_network_without_gammas_is_refused(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(BadInput, match="no channel of the network can be trained away"):
        train_prune(config(tmp_path / "run", bars, model="training_nets:without_norms", input_shape=(3, 8, 8)))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path, bars: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train_prune(config(folder, bars), StopAt(15))
    with pytest.raises(BadInput, match="belongs to other settings: batch_size"):
        train_prune(config(folder, bars, batch_size=8, resume=True))


def test_a_damaged_checkpoint_is_told(tmp_path: Path, bars: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train_prune(config(folder, bars), StopAt(15))
    (folder / "checkpoint" / "state.pt").write_bytes(b"damaged")
    with pytest.raises(BadInput, match="cannot read the checkpoint"):
        train_prune(resume_config(str(folder)))


def test_progress_is_told_of_phases_steps_and_rows(tmp_path: Path, bars: Path) -> None:
    class Listening(Silent):
        def __init__(self) -> None:
            self.phases: list[tuple[str, int, int]] = []
            self.steps = self.rows = 0
            self.closed = False

        def phase(self, name: str, total: int, done: int) -> None:
            self.phases.append((name, total, done))

        def step(self, done: int) -> None:
            self.steps += 1

        def row(self, row: Mapping[str, Any], full_params: int) -> None:
            self.rows += 1

        def close(self) -> None:
            self.closed = True

    progress = Listening()
    run_module.train_prune(config(tmp_path / "run", bars, steps=20), progress)
    assert progress.phases == [("warmup", 4, 0), ("ista", 11, 0), ("finetune", 5, 0)]
    assert progress.steps == 20
    assert progress.rows == len(read_lines(tmp_path / "run" / "metrics.jsonl"))
    assert progress.closed


def test_the_statistics_of_the_result_are_those_of_all_classes(
    tmp_path: Path, bars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying: list[torch.Tensor] = []

    def watch(module: torch.nn.Module, batches: Any) -> None:
        for inputs in batches:
            rows, columns = inputs.mean(dim=(1, 3)).var(dim=1), inputs.mean(dim=(1, 2)).var(dim=1)
            lying.append(rows > columns)

    monkeypatch.setattr(context_module, "reestimate", watch)
    train_prune(config(tmp_path / "run", bars, batch_size=2, steps=4))
    assert 0.2 < torch.cat(lying).float().mean() < 0.8


def test_the_statistics_of_the_result_are_those_of_augmented_images(
    tmp_path: Path, bars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResNet-20 ended 1.6 points lower with the statistics of images that no step of training had seen so."""
    measured: list[torch.Tensor] = []
    monkeypatch.setattr(context_module, "reestimate", lambda module, batches: measured.extend(batches))
    setup = {}
    original = context_module.sampled_batches

    def watch(images: Any, pipeline: Any, *given: Any, **options: Any) -> Any:
        setup["plain"] = [inputs for inputs, _ in original(images, pipeline, *given)]
        return original(images, pipeline, *given, **options)

    monkeypatch.setattr(context_module, "sampled_batches", watch)
    train_prune(config(tmp_path / "run", bars, augment="shift", steps=4))
    plain, seen = torch.cat(setup["plain"]), torch.cat(measured)[: sum(map(len, setup["plain"]))]
    moved = (plain != seen).flatten(1).any(1)
    assert moved.float().mean() > 0.5
