"""prunec validate: its verdict is its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run, python
from onnx_models.conv import save_conv


def test_validate_does_not_load_torch(conv_file: Path) -> None:
    code = (
        "import sys\nfrom prunec.cli.main import execute\n"
        "status = execute(['validate', sys.argv[1], sys.argv[1], '--provider', 'cpu', '--runs', '1'])\n"
        "sys.exit(status or ('torch' in sys.modules and 99))\n"
    )
    assert python(code, str(conv_file)).returncode == 0


def test_validate_of_equal_files_succeeds(run: Run, conv_file: Path) -> None:
    status, out, _ = run("validate", conv_file, conv_file, "--runs", 2)
    assert status == 0
    assert "agrees with A" in out
    assert "latency on cpu" in out


def test_validate_of_different_files_prints_the_errors_and_exits_1(run: Run, conv_file: Path, tmp_path: Path) -> None:
    other = save_conv(tmp_path / "other.onnx", scale=1.1)
    status, out, err = run("validate", conv_file, other, "--json", "--runs", 0)
    assert status == 1
    assert json.loads(out)["max_rel_error"] == pytest.approx(0.1, rel=1e-3)
    assert json.loads(out)["passed"] is False
    assert "\nerror[validation-failed]: the outputs differ by 0.1 (relative)" in f"\n{err}"
