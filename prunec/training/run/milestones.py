"""Several pruned networks from one run: ``--milestones 0.7,0.5,0.3``.

Owns what a milestone is: its budget, its folder, its row in the run's table, and the run folder's own result, which
is the last milestone's. run.py owns the order (ISTA, prune and fine-tune a copy, continue ISTA).
"""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

from prunec.files import RunFolder, replacing, write_json
from prunec.report.run_page import write_run_page
from prunec.training.budget.goals import Goal
from prunec.training.run.results import RunResult
from prunec.training.settings.config import RunConfig
from prunec.training.settings.setup import Setup

QUANTITY = "macs"


def goals_at(config: RunConfig, index: int) -> tuple[Goal, ...]:
    """Return the run's present budget: that of milestone ``index``, or the only one."""
    if not config.milestones:
        return config.goals
    start = config.milestones[index - 1] if index else 1.0
    return (Goal(QUANTITY, config.milestones[index], start),)


def folder_of(run: RunFolder, share: float) -> RunFolder:
    """Return the folder of a milestone: ``milestone-50`` for half of the MACs."""
    return RunFolder(run.path / f"milestone-{100 * share:g}")


def open_folder(setup: Setup, index: int) -> Setup:
    """Make a milestone's folder, with the run's settings and log in it, and return the setup that writes there."""
    folder = folder_of(setup.folder, setup.config.milestones[index])
    folder.path.mkdir(exist_ok=True)
    write_json(folder.config, setup.config.to_json_dict())
    _copy_file(setup.folder, folder, "metrics")
    return dataclasses.replace(setup, folder=folder)


def entry(result: RunResult, share: float) -> dict[str, Any]:
    """Return a milestone's row of the table: target, folder, sizes, score and speed; plain data."""
    return {
        "target": share,
        "folder": result.output,
        "params": result.after["params"],
        "macs": result.after["macs"],
        "score": dict(result.score),
        "latency_ratio": result.validation.latency_ratio,
    }


def conclude(setup: Setup, last: RunResult, entries: list[dict[str, Any]]) -> RunResult:
    """Give the run folder the last milestone's result, and the table of all of them."""
    source = RunFolder(folder_of(setup.folder, setup.config.milestones[-1]).path)
    for name in ("weights", "plan", "onnx", "pictures"):
        if getattr(source, name).is_file():
            _copy_file(source, setup.folder, name)
    result = dataclasses.replace(last, output=str(setup.folder.path), milestones=tuple(entries))
    write_json(setup.folder.summary, result.to_json_dict())
    write_run_page(setup.folder)
    return result


def _copy_file(source: RunFolder, target: RunFolder, name: str) -> None:
    with replacing(getattr(target, name)) as aside:
        shutil.copyfile(getattr(source, name), aside)
