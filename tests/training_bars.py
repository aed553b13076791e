"""A small image folder, runs on it that take a second, and a way to end them in the middle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prunec.training.logs.progress import Silent
from prunec.training.settings.config import RunConfig
from prunec.training.settings.presets import make_config

RESULTS = {
    "pruned.onnx",
    "pruned.safetensors",
    "plan.json",
    "metrics.jsonl",
    "summary.json",
    "report.html",
    "config.json",
}
"""What a run leaves, beside its checkpoint."""


def write_bars(folder: Path, train: int = 40, test: int = 10) -> Path:
    """Write images of bars, lying or standing, with noise: ``train`` and ``test`` of each; return the folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in ("lying", "standing"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 60, (8, 8, 3))
                image[rng.integers(1, 7)] += 150
                pixels = (image if name == "lying" else image.transpose(1, 0, 2)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index:02}.png")
    return folder


def config(output: Path, bars: Path, **given: Any) -> RunConfig:
    """Return the settings of a run of the tiny network on the bars."""
    settings: dict[str, Any] = {
        "model": "modules.training:tiny",
        "data": str(bars),
        "augment": "shift",
        "batch_size": 16,
        "steps": 120,
        "shares": (0.2, 0.55, 0.25),
        "gamma_lr": 0.3,
        "rho": 0.02,
        "ema_decay": 0.9,
        "log_every": 6,
        "checkpoint_every": 10,
        "device": "cpu",
        **given,
    }
    return make_config(str(output), preset="scratch", **settings)


def from_weights(output: Path, bars: Path, weights: Path, **given: Any) -> RunConfig:
    """Return the settings of a run of the tiny network from weights to half of its MACs."""
    settings: dict[str, Any] = {
        "model": "modules.training:tiny",
        "data": str(bars),
        "weights": str(weights),
        "batch_size": 16,
        "steps": 60,
        "target_macs": 0.5,
        "log_every": 4,
        "checkpoint_every": 10,
        "device": "cpu",
        **given,
    }
    return make_config(str(output), preset="pretrained", **settings)


class Stop(Exception):
    """Stands for kill -9: nothing of the run gets to clean up after it."""


class StopAt(Silent):
    """Ends the run at a step of it."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, done: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stop


def summary(folder: Path) -> dict[str, Any]:
    """Return what a run says of itself."""
    document: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return document


def assert_same_run(one: Path, other: Path, *more: str) -> None:
    """Two runs left the same network, log and plan, to the bit, and whatever else is named."""
    for name in ("pruned.safetensors", "metrics.jsonl", "plan.json", *more):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
