"""train_prune on masks: a small network on the embedded set, what it leaves, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from training_bars import Stop, StopAt, assert_same_run

from prunec.errors import BadInput, UnsupportedModel
from prunec.files import read_lines
from prunec.training.run.run import train_prune
from prunec.training.settings.config import RunConfig
from prunec.training.settings.presets import PRESETS, make_config, resume_config


def config(output: Path, **given: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "model": "modules.training:masks",
        "data": "digits-on-photos",
        "augment": "crop-flip",
        "batch_size": 8,
        "steps": 90,
        "shares": (0.3, 0.4, 0.3),
        "gamma_lr": 0.3,
        "rho": 0.02,
        "target_macs": 0.5,
        "ema_decay": 0.9,
        "log_every": 6,
        "checkpoint_every": 10,
        "device": "cpu",
        **given,
    }
    return make_config(str(output), preset="segment", **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks") / "run"
    train_prune(config(folder))
    return folder


def summary(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return document


def test_a_segmentation_run_halves_the_network_and_scores_it_by_miou(finished: Path) -> None:
    found = summary(finished)
    assert found["metric"] == "miou"
    assert set(found["miou"]) == set(found["foreground_iou"]) == {"before", "removed", "after"}
    assert found["after"]["macs"] <= 0.5 * found["before"]["macs"]
    # The background alone gives 0.45; a network that found nothing would stop there.
    assert found["miou"]["before"] > 0.55
    assert found["miou"]["after"] > 0.55
    assert found["validation"]["passed"]
    rows = read_lines(finished / "metrics.jsonl")
    assert all(0 <= row["miou"] <= 1 and 0 <= row["foreground_iou"] <= 1 for row in rows)


def test_the_exported_network_makes_masks_of_the_images_size(finished: Path) -> None:
    session = onnxruntime.InferenceSession(finished / "pruned.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": np.zeros((2, 3, 32, 32), dtype=np.float32)})
    assert np.asarray(logits).shape == (2, 1, 32, 32)


def test_the_report_shows_images_and_masks_before_and_after(finished: Path) -> None:
    assert "masks.png" in summary(finished)["files"]
    with Image.open(finished / "masks.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (6 * 36, 5 * 36, 3)
    truth = pixels[:32, 36:68]
    assert set(np.unique(truth).tolist()) == {0, 255}
    document = (finished / "report.html").read_text()
    assert "data:image/png;base64," in document
    for caption in ("true mask", "right after removal", "mIoU, from"):
        assert caption in document


@pytest.mark.parametrize("step", [35, 77])
def test_a_segmentation_run_that_is_killed_ends_the_same(tmp_path: Path, finished: Path, step: int) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train_prune(config(folder), StopAt(step))
    train_prune(resume_config(str(folder)))
    assert_same_run(folder, finished, "masks.png")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"data": "digits"}, UnsupportedModel, "give --data digits-on-photos"),
        ({"model": "modules.training:tiny"}, UnsupportedModel, "not one score per image, class and pixel"),
    ],
)
def test_a_network_and_data_of_different_kinds_are_refused(
    tmp_path: Path, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as found:
        train_prune(config(tmp_path / "run", **given))
    assert message in str(found.value)
    assert not (tmp_path / "run").exists()


def write_classes(folder: Path) -> None:
    """Three stripes of classes, and void between."""
    for split in ("train", "test"):
        for root in ("images", "masks"):
            (folder / root / split).mkdir(parents=True)
        for index in range(6):
            mask = np.repeat(np.array([0, 1, 2, 3], dtype=np.uint8), 8)[:, None].repeat(32, axis=1)
            mask = np.roll(mask, 5 * index, axis=0)
            image = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0], [90, 90, 90]], dtype=np.uint8)[mask]
            Image.fromarray(image).save(folder / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(folder / "masks" / split / f"{index}.png")
    (folder / "classes.txt").write_text("sky\ngrass\nroof\nvoid\n")


def test_several_classes_with_void_are_learned(tmp_path: Path) -> None:
    write_classes(tmp_path / "data")
    given = {"model": "modules.training:three_masks", "data": str(tmp_path / "data"), "augment": "none"}
    result = train_prune(config(tmp_path / "run", **given, batch_size=3, steps=60))
    assert set(result.scores) == {"miou", "pixel_accuracy"}
    assert result.score["after"] > 0.8


@pytest.mark.parametrize(
    ("given", "preset"),
    [
        ({"arch": "segnet"}, "segnet-demo"),
        ({"arch": "SegNet"}, "segnet-demo"),
        ({"arch": "segnet", "data": "somewhere"}, "segment"),
        ({"arch": "resnet20"}, "scratch"),
    ],
)
def test_a_segmentation_architecture_needs_no_other_option(given: dict[str, str], preset: str) -> None:
    assert make_config("run", **given).preset == preset


def test_the_papers_recipe_has_the_papers_numbers() -> None:
    settings = PRESETS["segnet"].settings
    wanted = {"alpha": 0.01, "rho": 0.5, "gamma_lr": 2e-5, "batch_size": 24}
    assert {name: settings[name] for name in wanted} == wanted
    with pytest.raises(BadInput, match="needs --data"):
        make_config("run", preset="segnet")
