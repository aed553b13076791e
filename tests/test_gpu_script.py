"""`make gpu` where there is no GPU: it says so, and what it would run is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]  # a script, imported for the test
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "no CUDA device here: nothing was measured\n"


def test_each_part_runs_a_program_that_is_there_within_the_time(gpu) -> None:  # type: ignore[no-untyped-def]
    parts = list(gpu.parts())
    scripts = {argument for part in parts for argument in part.program if argument.endswith(".py")}
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)
    assert {"--bf16", "--compile"} <= {argument for part in parts for argument in part.program}


def test_the_part_on_files_checks_and_times(gpu, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert gpu.files([("resnet20", 0.6)], "cpu") == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["ran"] == "cpu"
    assert row["relative_error"] < 1e-4
    assert row["measured"] > 0


def test_a_program_that_takes_too_long_or_fails_is_named(gpu) -> None:  # type: ignore[no-untyped-def]
    assert gpu.run(gpu.Part("slow", ("-c", "import time; time.sleep(30)"), 1), 0.5).trouble == "stopped after 0 s"
    broken = gpu.run(gpu.Part("broken", ("-c", "raise SystemExit('no such card')"), 30), 30)
    assert broken.trouble == "status 1: no such card"
