"""Opening models: what a large file's weights take while ONNX Runtime opens it, and that the result is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models.nets import Net

from prunec.errors import BadInput
from prunec.runtime import sessions
from prunec.runtime.sessions import open_runner


@pytest.fixture
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_MAPPED_BYTES", 0)


def saved(path: Path, constants: str = "initializer") -> Path:
    net = Net(constants=constants)
    x = net.input("x", [1, 3, 16, 16])
    for c_in in (3, 32, 32):
        x = net.op("Relu", net.conv(x, c_in, 32))
    net.output(x)
    onnx.save(net.model(), path)
    return path


@pytest.mark.parametrize("constants", ["initializer", "node"])
@pytest.mark.parametrize("optimise", [True, False])
def test_a_mapped_model_gives_the_same_bits(
    constants: str, optimise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "net.onnx", constants)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 16, 16), dtype=np.float32)}
    plain = open_runner(path, "it", "cpu", optimise=optimise)(feed)
    monkeypatch.setattr(sessions, "_MAPPED_BYTES", 0)
    mapped = open_runner(path, "it", "cpu", optimise=optimise)(feed)
    assert all(np.array_equal(a, b) for a, b in zip(plain, mapped, strict=True))


def test_libraries_of_cuda_from_pip_are_loaded_where_cuda_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with pip's packages only has them where no loader looks."""
    import onnxruntime

    path, calls = saved(tmp_path / "net.onnx"), []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: calls.append(1))
    open_runner(path, "it", "cpu", optimise=True)
    assert not calls
    open_runner(path, "it", "cuda", optimise=True)
    assert len(calls) == 1


@pytest.mark.usefixtures("every_file_is_large")
def test_a_mapped_model_is_found_by_a_relative_path_and_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "net.onnx")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.onnx").symlink_to(tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    for path in ("net.onnx", Path("elsewhere") / "link.onnx"):
        assert open_runner(path, "it", "cpu", optimise=True).outputs


@pytest.mark.usefixtures("every_file_is_large")
def test_a_large_file_that_is_no_model_is_told_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(os.urandom(5000))
    with pytest.raises(BadInput, match="is not an ONNX model"):
        open_runner(path, "it", "cpu", optimise=True)


PEAK = r"""
import re, sys
from pathlib import Path
from prunec.runtime import sessions
sessions._MAPPED_BYTES = int(sys.argv[2])
runner = sessions.open_runner(sys.argv[1], "it", "cpu", optimise=True)
print(1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells it")
def test_opening_a_large_file_takes_its_weights_less_often(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", [1, 512, 4, 4])
    for _ in range(5):
        x = net.conv(x, 512, 512)
    net.output(x)
    path = tmp_path / "net.onnx"
    onnx.save(net.model(), path)
    size = path.stat().st_size

    def peak(mapped_from: int) -> int:
        command = [sys.executable, "-c", PEAK, str(path), str(mapped_from)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak(0) < peak(2 * size) - 0.6 * size
