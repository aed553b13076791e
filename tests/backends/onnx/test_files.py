"""Files that are pruned: weights are left in them until they are needed, and a failed write leaves nothing."""

from __future__ import annotations

import errno
import gc
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx_models.chain import CHANNELS, SILENT, chain
from onnx_models.nets import Net, assert_same_outputs, num_removed, prune, random_feeds

from prunec.api import prune_onnx
from prunec.backends.onnx import save as onnx_save
from prunec.backends.onnx.save import model_bytes, save_onnx, staged_onnx
from prunec.errors import WriteFailed
from prunec.frontends.onnx.frontend import load_onnx, trace_onnx
from prunec.frontends.onnx.loading.load import OnnxSource
from prunec.pipeline import checking


def test_big_weights_are_left_in_the_file_until_they_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(chain(Net(13)), path)
    source = load_onnx(path)
    held = {tensor.name: tensor.data_location for tensor in source.model.graph.initializer}
    assert held["w5"] == TensorProto.EXTERNAL, "1152 bytes: by reference"
    assert held["b2"] == TensorProto.DEFAULT
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    for tensor in source.model.graph.initializer:
        assert np.array_equal(source.array(tensor), original[tensor.name])
    assert model_bytes(source) == path.read_bytes()


@pytest.mark.parametrize("field", ["raw_data", "float_data"])
def test_both_forms_of_tensor_data_are_read(field: str, tmp_path: Path) -> None:
    model = chain(Net(13))
    expected = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    if field == "float_data":
        for tensor, array in zip(model.graph.initializer, expected, strict=True):
            tensor.ClearField("raw_data")
            tensor.float_data.extend(array.ravel().tolist())
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    source = load_onnx(path)
    for tensor, array in zip(source.model.graph.initializer, expected, strict=True):
        assert np.array_equal(source.array(tensor), array)
    assert_same_outputs(path, model_bytes(source), random_feeds(model))


def test_external_data_stay_external(tmp_path: Path) -> None:
    model, before = chain(Net(13)), tmp_path / "before.onnx"
    feeds = random_feeds(model)
    onnx.save(model, before, save_as_external_data=True, location="weights.bin", size_threshold=0)
    _, made, pruned = prune(load_onnx(before))
    after = tmp_path / "out" / "after.onnx"
    after.parent.mkdir()
    save_onnx(pruned, after)
    assert num_removed(made) >= 2
    assert sorted(file.name for file in after.parent.iterdir()) == ["after.onnx", "after.onnx.data"]
    onnx.checker.check_model(str(after), full_check=True)
    assert_same_outputs(before, after, feeds)
    total = sum(file.stat().st_size for file in after.parent.iterdir())
    assert total < before.stat().st_size + (tmp_path / "weights.bin").stat().st_size + 2 * 4096


def test_failed_check_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    _, _, pruned = prune(chain(Net(13)))
    with pytest.raises(RuntimeError, match="not good"), staged_onnx(pruned, path) as staged:
        assert staged.stat().st_size > 1000
        raise RuntimeError("not good")
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]
    assert path.read_bytes() == b"old"


def test_a_full_disk_is_a_failed_write_of_the_named_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx_save, "write_onnx", full)
    with pytest.raises(WriteFailed, match=r"cannot write .*out\.onnx"):
        save_onnx(prune(chain(Net(13)))[2], tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_large_model_streams(tmp_path: Path) -> None:
    """A sparse file stands for the weights of a big model: none of it is read where nothing changes."""
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    net.output(net.conv(net.op("Relu", x), CHANNELS, 4))
    big = TensorProto(
        name="big", data_type=TensorProto.FLOAT, dims=[600, 1024, 1024], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "big.bin"), ("length", str(600 * 2**22))):
        entry = big.external_data.add()
        entry.key, entry.value = key, value
    net.initializers.append(big)
    net.output(net.op("ReduceSum", "big", keepdims=0), shape=[])
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(600 * 2**22)
    path = tmp_path / "model.onnx"
    path.write_bytes(net.model().SerializeToString())
    traced = trace_onnx(load_onnx(path))
    assert traced.graph.params["big"].array.nbytes == 600 * 2**22


def test_a_pruned_model_is_out_of_memory_while_it_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    weight = net.weight(64, 3, 3, 3)
    weight[:32] = 0
    x = net.op("Conv", net.input("x", [1, 3, 8, 8]), net.const(weight))
    net.output(net.op("Conv", x, net.const(net.weight(4, 64, 3, 3))))
    onnx.save(net.model(), tmp_path / "net.onnx")
    alive: list[int] = []

    def noting(function: Any) -> Any:
        def called(*given: Any) -> Any:
            alive.append(sum(type(each) is OnnxSource for each in gc.get_objects()))
            return function(*given)

        return called

    monkeypatch.setattr(onnx_save, "write_onnx", noting(onnx_save.write_onnx))
    monkeypatch.setattr(checking, "checked_files", noting(checking.checked_files))
    prune_onnx(tmp_path / "net.onnx", tmp_path / "out.onnx")
    written, checked = alive
    assert checked == written - 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells it")
def test_weights_that_are_let_go_take_no_memory_and_can_be_read_again(tmp_path: Path) -> None:
    weight = np.arange(1 << 22, dtype=np.float32)
    net = Net()
    net.output(net.op("Add", net.input("x", [1 << 22]), net.const(weight)))
    onnx.save(net.model(), tmp_path / "net.onnx")
    source = load_onnx(tmp_path / "net.onnx")
    stored = source.array(source.model.graph.initializer[0])

    def mapped() -> int:
        found = re.search(r"RssFile:\s*(\d+)", Path("/proc/self/status").read_text())
        assert found is not None
        return 1024 * int(found[1])

    assert np.array_equal(stored, weight)
    read = mapped()
    source.files.let_go()
    assert mapped() < read - 0.9 * weight.nbytes
    assert np.array_equal(stored, weight)
