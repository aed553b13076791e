"""Runs that are killed or interrupted, in processes of their own: what is left, and how they go on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from training_bars import assert_same_run

SETTINGS = ("--arch", "digits", "--data", "digits", "--device", "cpu", "--steps", "40", "--batch-size", "16")
"""The demo on scikit-learn's digits, cut short: a few seconds, most of them the start of the process."""
LAST_STEP = 40


def start(output: Path, *arguments: str) -> subprocess.Popen[str]:
    command = (sys.executable, "-m", "prunec", "train-prune", "-o", str(output), *arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(output: Path, *arguments: str) -> None:
    process = start(output, *arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def steps_of(folder: Path) -> list[int]:
    """Return the steps of metrics.jsonl; every line must be whole."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    assert text == "" or text.endswith("\n")
    return [json.loads(line)["step"] for line in text.splitlines()]


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> bool:
    """Wait until a row of ``step`` (0: none) or later is logged; tell whether the process is still there."""
    deadline = time.monotonic() + 300
    while process.poll() is None:
        steps = steps_of(folder)
        if step <= 0 or (steps and steps[-1] >= step):
            return True
        assert time.monotonic() < deadline, f"the run never logged step {step}"
        time.sleep(0.005)
    return False


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("untouched") / "run"
    finish(folder, *SETTINGS)
    return folder


@pytest.fixture
def process_group() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that must not outlive the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def kill_and_resume(folder: Path, moments: Iterable[tuple[int, float]]) -> int:
    """Run to the end through kills, each some seconds after a step is logged; return how many hit a living process."""
    kills = 0
    arguments = SETTINGS
    for step, delay in moments:
        process = start(folder, *arguments)
        alive = wait_for_step(process, folder, step)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        if not alive or process.returncode == 0:
            return kills
        kills += 1
        steps = steps_of(folder)
        assert steps == sorted(set(steps))
        # Killed before it had written its settings, there is nothing to resume.
        arguments = ("--resume",) if (folder / "config.json").exists() else SETTINGS
    finish(folder, *arguments)
    return kills


def assert_untouched(folder: Path, untouched: Path) -> None:
    """The same weights, plan and log, bit for bit, and nothing half-written beside them."""
    assert_same_run(folder, untouched)
    assert {path.name for path in folder.rglob("*")} == {path.name for path in untouched.rglob("*")}


def test_kills_while_training_and_while_writing_change_no_bit(tmp_path: Path, untouched: Path) -> None:
    rng = random.Random(7)
    moments = [(1, rng.uniform(0, 0.1)), (LAST_STEP // 2, rng.uniform(0, 0.1)), (LAST_STEP, rng.uniform(0, 0.5))]
    assert kill_and_resume(tmp_path / "run", moments) == 3
    assert_untouched(tmp_path / "run", untouched)


@pytest.mark.slow
def test_five_kills_at_random_moments_change_no_bit(tmp_path: Path, untouched: Path) -> None:
    rng = random.Random(11)
    kills = number = 0
    while kills < 5:
        folder = tmp_path / f"run{number}"
        number += 1
        moments = sorted((rng.randint(0, LAST_STEP), rng.uniform(0, 2)) for _ in range(min(3, 5 - kills)))
        kills += kill_and_resume(folder, moments)
        assert_untouched(folder, untouched)
        assert number < 10, "the runs are over before they are killed"


def test_a_signal_saves_and_the_message_says_how_to_go_on(
    tmp_path: Path, process_group: list[subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "my run"
    process = start(folder, *SETTINGS)
    process_group.append(process)
    assert wait_for_step(process, folder, 20)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"and saved; go on with: prunec train-prune -o '{folder}' --resume" in errors
    assert "Traceback" not in errors
