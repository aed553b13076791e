"""Runs that are killed, interrupted or damaged: they go on bit for bit, or say why not."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from training_bars import Stop, StopAt, assert_same_run, config, summary

from prunec.errors import BadInput, Interrupted
from prunec.training.run import loop
from prunec.training.run.run import train_prune
from prunec.training.settings.presets import resume_config


@pytest.mark.parametrize("step", [3, 17, 24, 47, 91, 105, 119])
def test_a_run_killed_at_any_moment_ends_the_same(tmp_path: Path, bars: Path, finished: Path, step: int) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train_prune(config(folder, bars), StopAt(step))
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 9')
    assert not (folder / "pruned.onnx").exists()
    train_prune(resume_config(str(folder)))
    assert_same_run(folder, finished)
    assert summary(folder)["accuracy"] == summary(finished)["accuracy"]


@pytest.mark.parametrize(("seconds", "step"), [(0.0, 48), (3600.0, 24)])
def test_without_a_number_of_steps_checkpoints_go_by_the_clock(
    tmp_path: Path, bars: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, step: int
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train_prune(config(folder, bars, checkpoint_every=None), StopAt(50))
    assert torch.load(folder / "checkpoint" / "state.pt", weights_only=True)["step"] == step  # 24 ends the warm-up
    train_prune(resume_config(str(folder)))
    assert (folder / "pruned.safetensors").read_bytes() == (finished / "pruned.safetensors").read_bytes()


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


def test_a_setting_that_comes_too_late_is_said_to_have_no_effect(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars), StopAt(110))
    reasons = train_prune(resume_config(str(tmp_path / "run"), lr=0.001, finetune_lr=0.002)).reasons
    assert "lr 0.001 from step 110 on: given, without effect: fine-tuning goes by finetune-lr" in reasons
    assert "finetune-lr 0.002 from step 110 on: given" in reasons


def test_settings_that_shape_the_run_cannot_change_when_it_goes_on(tmp_path: Path, bars: Path) -> None:
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars), StopAt(15))
    with pytest.raises(BadInput, match=r"batch_size 8 \(the run has \d+\)"):
        resume_config(str(tmp_path / "run"), batch_size=8)


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
