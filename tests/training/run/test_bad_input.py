"""What a run refuses before it writes anything, in one message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from training_bars import config

from prunec.errors import BadInput, UnsupportedModel
from prunec.training.run.run import train_prune


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
        return {"model": "modules.training:nothing"}
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
        train_prune(config(tmp_path / "run", bars, model="modules.training:without_norms", input_shape=(3, 8, 8)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["weights", "onnx", "data"])
def test_a_run_does_not_delete_what_it_reads(tmp_path: Path, bars: Path, setting: str) -> None:
    names = {"weights": "pruned.safetensors", "onnx": "pruned.onnx", "data": "milestone-50"}
    folder, given = tmp_path / "run", tmp_path / "run" / names[setting]
    folder.mkdir()
    given.mkdir() if setting == "data" else given.write_bytes(b"precious")
    network = {"model": ""} if setting == "onnx" else {}
    with pytest.raises(BadInput, match="which lies where it writes its results"):
        train_prune(config(folder, bars, force=True, **{**network, setting: str(given)}))
    assert given.exists()
    assert [path.name for path in folder.iterdir()] == [names[setting]]
