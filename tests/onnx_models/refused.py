"""Files that must be refused: a small model to damage, and the message with which it is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnx_models.nets import Net
from prunec.errors import BadInput, PrunecError
from prunec.frontends.onnx.frontend import load_onnx, trace_onnx


def small_net(constants: str = "initializer") -> onnx.ModelProto:
    net = Net(13, constants=constants)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
    net.output(net.conv(net.op("Relu", x), 8, 4))
    return net.model()


def refused(path: Path, kind: type[PrunecError] = BadInput) -> str:
    """Return the message with which a file is refused; it must say what is wrong."""
    with pytest.raises(kind) as caught:
        trace_onnx(load_onnx(path))
    text = str(caught.value)
    assert text.startswith(f"error[{kind.code}]: ")
    assert len(text) < 2000
    return text


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
