"""Fixtures of the command line's tests: a folder to run lines in, and a file to prune."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import NETWORKS, Run

from prunec.cli.main import execute


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in a fresh folder that holds ``networks.py``; return status, stdout, stderr."""
    (tmp_path / "networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    # Each test has its own networks.py, under the same name.
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def execute_and_read(*arguments: object) -> tuple[int, str, str]:
        status = execute([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return execute_and_read


@pytest.fixture
def half_file(run: Run, tmp_path: Path) -> Path:
    """An ONNX file with constant channels, as PyTorch exports it: BatchNorm kept, batch open."""
    assert run("prune", "networks:with_inputs", "-o", "half.onnx", "--keep", "*")[0] == 0
    return tmp_path / "half.onnx"
