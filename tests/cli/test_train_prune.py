"""prunec train-prune: a short run leaves a whole folder, and the same line goes on with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run


def test_a_short_training_run_leaves_a_whole_folder(run: Run, tmp_path: Path) -> None:
    status, out, err = run("train-prune", "--preset", "digits", "--steps", "12", "-o", "r", "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document["validation"]["passed"] is True
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert {"pruned.onnx", "pruned.safetensors", "plan.json", "metrics.jsonl", "report.html", "config.json"} <= names
    assert run("train-prune", "--preset", "digits", "--steps", "12", "-o", "r")[0] == 2
    assert run("report", "r", "-o", "page.html")[0] == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_same_line_starts_a_run_and_goes_on_with_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Job schedulers start the line again that they started first."""
    from prunec.training.run import run as training
    from prunec.training.settings.config import RunConfig

    begun: list[RunConfig] = []

    def begin(config: RunConfig, _: object) -> None:
        begun.append(config)
        (tmp_path / "r").mkdir(exist_ok=True)
        (tmp_path / "r" / "config.json").write_text(json.dumps(config.to_json_dict()))
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_prune", begin)
    line = (
        "train-prune", "-o", "r", "--resume", "--arch", "digits", "--preset", "digits", "--epochs", "3",
        "--rho", "0.01", "--batch-size", "16", "--shares", "0.3,0.4,0.3", "--keep", "head*", "--input-shape", "2x1x8x8",
        "--no-channels-last",
    )  # fmt: skip
    run(*line)
    run(*line)
    assert [config.resume for config in begun] == [False, True]
    assert begun[0].to_json() == begun[1].to_json()
    status, _, err = run(*line, "--seed", "7", "--keep", "tail")
    assert status == 2
    assert "seed 7 (the run has 0)" in err
    assert "keep head*,tail (the run has head*)" in err
    run("train-prune", "-o", "r", "--resume", "--lr", "0.5")
    assert begun[-1].lr == 0.5


def test_a_mistyped_folder_is_not_taken_for_the_demos(run: Run, tmp_path: Path) -> None:
    status, _, err = run("train-prune", "-o", "typo", "--resume", "--lr", "0.1")
    assert status == 2
    assert "typo holds no run to resume" in err
    assert not (tmp_path / "typo").exists()
