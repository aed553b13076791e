"""The examples: ordinary loops with three lines more, each run as its reader would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ALL = sorted(path.name for path in EXAMPLES.glob("*.py"))

# torchvision, which timm imports, may lack its compiled part where the tests run; this declares what it then misses.
RUN = (
    "import importlib.util, runpy, sys\n"
    "from prunec.lookup.libraries import import_torchvision\n"
    "importlib.util.find_spec('torchvision') and import_torchvision()\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def run(name: str, output: Path, *options: str) -> tuple[int, int, float]:
    """Run an example; return parameters before and after, and the accuracy in percent."""
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(EXAMPLES / name), "--output", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=output.parent)
    assert done.returncode == 0, done.stderr
    found = re.search(r"parameters: ([\d,]+) -> ([\d,]+)\naccuracy: +([\d.]+)%", done.stdout)
    assert found is not None, done.stdout
    return int(found[1].replace(",", "")), int(found[2].replace(",", "")), float(found[3])


def test_the_plain_pytorch_example_prunes_and_exports(tmp_path: Path) -> None:
    before, after, accuracy = run("plain_pytorch.py", tmp_path / "p.onnx", "--epochs", "12", "--rho", "0.005")
    assert after < 0.8 * before
    assert accuracy > 80
    onnx.checker.check_model(onnx.load(tmp_path / "p.onnx"))


def test_the_accelerate_example_prunes_and_exports(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    before, after, accuracy = run("accelerate_loop.py", tmp_path / "p.onnx", "--epochs", "8")
    assert after < 0.8 * before
    assert accuracy > 70
    onnx.checker.check_model(onnx.load(tmp_path / "p.onnx"))


@pytest.mark.real
def test_the_timm_example_prunes_and_exports(tmp_path: Path) -> None:
    before, after, accuracy = run("timm_style.py", tmp_path / "p.onnx", "--epochs", "6", "--rho", "0.1")
    assert after < 0.8 * before
    assert accuracy > 80
    onnx.checker.check_model(onnx.load(tmp_path / "p.onnx"))


@pytest.mark.parametrize("name", ALL)
def test_an_example_adds_three_lines_to_an_ordinary_loop(name: str) -> None:
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if "  # prunec" in line]) == 3
