"""Weights beside the file: read from its folder, refused from anywhere else or where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_models.refused import refused, saved, small_net

from prunec.errors import BadInput
from prunec.frontends.onnx.frontend import load_onnx, trace_onnx


def external(folder: Path, location: str, **entries: str) -> Path:
    model = small_net()
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (folder / "weights.bin").write_bytes(data)
    return saved(model, folder)


def test_external_data_is_read(tmp_path: Path) -> None:
    graph = trace_onnx(load_onnx(external(tmp_path, "weights.bin"))).graph
    assert np.abs(graph.params["w1"].array).sum() > 0


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "", "link.bin"])
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 1000)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    assert "outside the model's folder" in refused(external(folder, location))


@pytest.mark.parametrize(
    ("location", "entries", "what"),
    [
        ("absent.bin", {}, "there is no file"),
        ("weights.bin", {"offset": "500"}, "bytes"),
        ("weights.bin", {"length": "99999999"}, "should lie at bytes"),
        ("weights.bin", {"offset": "-8"}, "should lie at bytes"),
        ("weights.bin", {"offset": "0x10"}, "offset '0x10'"),
        ("weights.bin", {"length": "8"}, "need 864 bytes"),
    ],
)
def test_external_data_that_does_not_fit(location: str, entries: dict[str, str], what: str, tmp_path: Path) -> None:
    assert what in refused(external(tmp_path, location, **entries))


def test_external_data_of_a_model_from_memory(tmp_path: Path) -> None:
    model = onnx.load(external(tmp_path, "weights.bin"), load_external_data=False)
    with pytest.raises(BadInput, match=r"path of the \.onnx file"):
        trace_onnx(model)
