"""The folder of a run: room on its disk, permissions, and what lies there already."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from training_bars import StopAt, assert_same_run, config

from prunec.errors import BadInput, WriteFailed
from prunec.files import read_lines
from prunec.training.logs.progress import Silent
from prunec.training.run.run import train_prune
from prunec.training.settings.presets import resume_config


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
    assert_same_run(folder, finished)


def test_too_little_space_is_found_before_anything_is_written(
    tmp_path: Path, bars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(WriteFailed, match=r"has 1 MiB free, the run needs about 16 MiB"):
        train_prune(config(tmp_path / "run", bars))
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_replaced_unasked(finished: Path, bars: Path) -> None:
    before = (finished / "pruned.onnx").read_bytes()
    with pytest.raises(BadInput, match="already holds a run"):
        train_prune(config(finished, bars))
    assert (finished / "pruned.onnx").read_bytes() == before


def test_a_folder_of_other_things_is_called_that(tmp_path: Path, bars: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(BadInput, match=r"is not empty\n(.*)--force to put the run beside the other files") as error:
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
