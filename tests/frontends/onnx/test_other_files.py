"""Files and folders that are no ONNX model: the message says what they are, and the way from there."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from prunec.api import analyze_onnx
from prunec.errors import BadInput
from prunec.lookup.resolve import resolve


def _zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "content")


FILES = {
    "m.tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(64), "a TensorFlow Lite model", "--tflite"),
    "m.h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "a Keras file", "--keras"),
    "m.safetensors": (b'\x10\0\0\0\0\0\0\0{"a":1}        ', "a file of weights", "--weights"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_is_stands_in_the_message(name: str, tmp_path: Path) -> None:
    content, what, do = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as error:
        analyze_onnx(tmp_path / name)
    assert what in error.value.why
    assert do in error.value.do


def test_a_file_of_pytorchs_names_the_option_for_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(BadInput) as error:
        analyze_onnx(tmp_path / "w.pt")
    assert "torch.save" in error.value.why
    assert "--weights" in error.value.do


@pytest.mark.parametrize(
    ("names", "what", "do"),
    [
        (("m/code/a.py", "m/data.pkl"), "a TorchScript archive", "torch.onnx.export"),
        (("readme.txt", "net.onnx"), "a zip archive", "net.onnx"),
        (("readme.txt",), "a zip archive", "the .onnx file in it"),
    ],
)
def test_what_an_archive_holds_stands_in_the_message(
    names: tuple[str, ...], what: str, do: str, tmp_path: Path
) -> None:
    _zip(tmp_path / "m.zip", *names)
    with pytest.raises(BadInput) as error:
        analyze_onnx(tmp_path / "m.zip")
    assert what in error.value.why
    assert do in error.value.do


@pytest.mark.parametrize(
    ("file", "what", "do"),
    [
        ("saved_model.pb", "a SavedModel of TensorFlow", "--saved-model"),
        ("net.onnx", "a folder with 1 .onnx file", "net.onnx"),
        ("readme.txt", "a folder without an .onnx file", "an .onnx file"),
    ],
)
def test_a_folder_says_what_it_holds(file: str, what: str, do: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(BadInput) as error:
        resolve(str(tmp_path))
    assert what in error.value.why
    assert do in error.value.do
