"""Bytes that are no ONNX file, or only a part of one."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx_models.refused import refused, saved, small_net

from prunec.errors import PrunecError
from prunec.frontends.onnx.frontend import load_onnx, trace_onnx


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"hello, world\n" * 40,
        b"\x08\x07",
        bytes(range(256)) * 8,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    ],
)
def test_file_that_is_not_onnx(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    text = refused(path)
    assert "is empty" in text if not content else ("not an ONNX model" in text or "graph" in text)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "absent.onnx")
    assert "is not a file" in refused(tmp_path)


def test_truncated_at_every_length(tmp_path: Path) -> None:
    """Whatever part of a file arrives: a message, never a crash and never a model with garbage for weights."""
    whole = small_net().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in [*range(1, 60), *range(60, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(PrunecError):
            trace_onnx(load_onnx(path))


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    whole = bytearray(small_net().SerializeToString())
    path, rng = tmp_path / "model.onnx", np.random.default_rng(0)
    told = []
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        with contextlib.suppress(PrunecError):
            trace_onnx(load_onnx(path))
            continue
        told.append(len(data))
    assert 0 < len(told) < 400, "some bytes are weights, some are structure"


def test_data_shorter_than_its_dims(tmp_path: Path) -> None:
    model = small_net()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    assert "bytes" in refused(saved(model, tmp_path))
    del model.graph.initializer[:]
    tensor = TensorProto(name="w1", data_type=TensorProto.FLOAT, dims=[8, 3, 3, 3], float_data=[1.0, 2.0])
    model.graph.initializer.extend([tensor, numpy_helper.from_array(np.zeros(8, np.float32), "b2")])
    refused(saved(model, tmp_path))
