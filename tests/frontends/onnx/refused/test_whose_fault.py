"""Whose fault a crash is: the file's where it breaks the specification or does not run, else prunec's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_models.nets import Net
from onnx_models.refused import saved, small_net

from prunec.api import analyze_onnx, prune_onnx
from prunec.check.blame import judged
from prunec.errors import BadInput, InternalError


@pytest.mark.parametrize("command", ["analyze", "prune"])
@pytest.mark.parametrize("damage", ["no-input", "long-permutation", "wrong-axis"])
def test_node_that_breaks_the_specification_is_the_files_fault(damage: str, command: str, tmp_path: Path) -> None:
    """The message names the node, its op and what is wrong with it, and no file is written."""
    net = Net(13)
    x = net.op("Transpose", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8), perm=[0, 2, 3, 1])
    net.output(net.conv(net.op("Transpose", net.op("Relu", x), perm=[0, 3, 1, 2]), 8, 4))
    model = net.model()
    if damage == "no-input":
        next(node for node in model.graph.node if node.op_type == "Relu").input[0] = ""
    else:
        extra = 7 if damage == "long-permutation" else -3
        model.graph.node[1].attribute[0].ints.append(extra)
    path, result = tmp_path / "broken.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    broken = "Relu" if damage == "no-input" else "Transpose"
    name = next(node.name for node in model.graph.node if node.op_type == broken)
    with pytest.raises(BadInput, match=rf"node '{name}' \({broken}, opset 13\) is not well formed"):
        analyze_onnx(path) if command == "analyze" else prune_onnx(path, result)
    assert [file.name for file in tmp_path.iterdir()] == ["broken.onnx"]


def test_file_that_loads_and_does_not_run_is_at_fault(tmp_path: Path) -> None:
    """The checker looks into no shapes of recurrent weights, and ONNX Runtime looks when it runs."""
    net = Net(13)
    x = net.op("Reshape", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8), net.ints(8, 1, 36))
    weights = [net.const(net.weight(1, 8, size)) for size in (7, 2)]
    net.output(net.op("LSTM", x, *weights, hidden_size=2), shape=[8, 1, 1, 2])
    path = tmp_path / "broken.onnx"
    onnx.save(net.model(), path)
    with pytest.raises(BadInput, match="not a valid ONNX model"):
        analyze_onnx(path)


def test_crash_on_a_valid_file_stays_a_fault_of_prunec(tmp_path: Path) -> None:
    net = Net(13)
    net.output(net.conv(net.input("x", [1, 3, 6, 6]), 3, 8))
    onnx.save(net.model(), tmp_path / "fine.onnx")
    with pytest.raises(IndexError):
        stumble(tmp_path / "fine.onnx")


@pytest.mark.parametrize("holds", ["sizes", "open sizes", "an index"])
def test_file_that_refuses_random_inputs_is_not_at_fault_for_a_crash(holds: str, tmp_path: Path) -> None:
    """Random numbers are no sizes, and 224 no size that a network of nine rows takes."""
    net = Net(13)
    if holds == "sizes":
        net.output(
            net.op("Reshape", net.input("x", [1, 3, 6, 6]), net.input("shape", [3], TensorProto.INT64)), shape="abc"
        )
    elif holds == "open sizes":
        net.output(net.op("Add", net.input("x", [1, "h"]), net.const(np.ones((1, 9), np.float32))), shape=[1, 9])
    else:
        index = net.input("i", [1], TensorProto.INT32)
        net.output(net.op("Gather", net.input("x", [0, 3]), index), shape="ab")
    onnx.save(net.model(), tmp_path / "fine.onnx")
    with pytest.raises(IndexError):
        stumble(tmp_path / "fine.onnx")


def test_an_output_without_a_rank_is_no_fault_of_the_file(tmp_path: Path) -> None:
    net = Net(13)
    net.output(net.conv(net.input("x", [1, 3, 6, 6]), 3, 8))
    model = net.model()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "fine.onnx")
    with pytest.raises(IndexError):
        stumble(tmp_path / "fine.onnx")


@judged
def stumble(path: str | Path) -> None:
    raise IndexError(path)


@pytest.mark.parametrize(
    "error", [KeyError("axis"), TypeError("'NoneType' object is not iterable"), AttributeError("x")]
)
def test_row_that_fails_on_a_good_node_is_a_fault_of_prunec(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(view: object) -> None:
        raise error

    monkeypatch.setattr("prunec.frontends.onnx.frontend.translate", row)
    path = saved(small_net(), tmp_path)
    with pytest.raises(InternalError, match=r"the row for Conv failed at node 'node_conv.*' \(Conv, opset 13\)"):
        analyze_onnx(path)
