"""No file grows: what would be larger without its channels is written as it was, and that is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from click.testing import CliRunner
from onnx_models.nets import Net, run

from prunec.api import prune_onnx
from prunec.cli.main import main


def narrow(path: Path) -> Path:
    """Write a network that would lose one channel, and get a bias that takes more bytes."""
    net = Net()
    x = net.conv(net.input("x", [1, 1, 4, 4]), 1, 2, kernel=1, silent=(0,))
    net.output(
        net.op("Conv", net.op("Sigmoid", x), net.const(net.weight(64, 2, 1, 1), stem="a_weight_with_a_long_name"))
    )
    onnx.save(net.model(), path)
    return path


def test_a_result_that_would_be_larger_is_not_written(tmp_path: Path) -> None:
    before, after = narrow(tmp_path / "before.onnx"), tmp_path / "after.onnx"
    report = prune_onnx(before, after)
    assert report.removed_channels == 0
    assert report.after == report.before
    assert "larger" in report.message
    assert after.stat().st_size <= before.stat().st_size
    feeds = {"x": np.ones((1, 1, 4, 4), np.float32)}
    assert np.array_equal(run(before, feeds)[0], run(after, feeds)[0])


def test_a_run_that_removes_nothing_says_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["prune", str(narrow(tmp_path / "b.onnx")), "-o", str(tmp_path / "a.onnx")])
    assert done.exit_code == 0
    assert "nothing was removed" in done.output
