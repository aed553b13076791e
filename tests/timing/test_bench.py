"""``prunec bench``: what is promised is counted on the files that are timed, and unmet budgets are told."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx_models.nets import Net

from prunec.bench import BenchReport, BenchRow, bench
from prunec.cli.main import execute
from prunec.lookup.resolve import OnnxModel, resolve

# x[batch, 3, h, w] -> 48 -> 48 -> 4 channels, 3x3.
WIDTHS = (3, 48, 48, 4)
MACS_PER_PIXEL = sum(9 * a * b for a, b in itertools.pairwise(WIDTHS))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    net = Net()
    value = net.input("x", ["batch", 3, "h", "w"])
    for c_in, c_out in itertools.pairwise(WIDTHS):
        value = net.op("Relu", net.conv(value, c_in, c_out))
    net.output(value)
    onnx.save(net.model(), tmp_path / "chain.onnx")
    return tmp_path / "chain.onnx"


def test_every_fraction_is_measured_without_and_with_rounding(chain: Path) -> None:
    model = resolve(str(chain), {"x": (1, 3, 20, 24)})
    report = bench(model, fractions=(0.75, 0.5), multiple_of=16, provider="cpu", runs=3)
    assert report.inputs == {"x": (1, 3, 20, 24)}
    assert report.macs == MACS_PER_PIXEL * 20 * 24
    assert [(row.target_macs, row.multiple_of) for row in report.rows] == [(0.75, 1), (0.75, 16), (0.5, 1), (0.5, 16)]
    for row in report.rows:
        assert row.macs is not None
        assert row.macs <= row.target_macs * report.macs
        promised, measured, ratio = report.promised(row), report.measured(row), report.ratio(row)
        assert promised == pytest.approx(report.macs / row.macs)
        assert promised is not None
        assert measured is not None
        assert ratio == pytest.approx(measured / promised)


def test_the_original_is_left_as_it_is(chain: Path) -> None:
    before = chain.read_bytes()
    bench(OnnxModel(str(chain), chain, {"x": (1, 3, 8, 8)}), fractions=(0.5,), multiple_of=1, provider="cpu", runs=3)
    assert chain.read_bytes() == before
    assert list(chain.parent.iterdir()) == [chain]


def test_a_budget_that_cannot_be_met_is_a_row_with_a_note(chain: Path) -> None:
    report = bench(OnnxModel("chain", chain, {"x": (1, 3, 8, 8)}), fractions=(0.01,), multiple_of=16, provider="cpu")
    row = report.rows[-1]
    assert row.macs is None
    assert "budget" in row.note
    assert report.ratio(row) is None


def test_the_ratio_is_measured_over_promised() -> None:
    row = BenchRow(0.5, 1, macs=50, params=5, original_ms=3.0, pruned_ms=2.0)
    report = BenchReport("m", "cpu", "l1", {"x": (1, 3, 8, 8)}, 100, 10, (row,))
    assert (report.promised(row), report.measured(row), report.ratio(row)) == (2.0, 1.5, 0.75)


def test_bench_of_a_module_prints_one_json_document(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "digits", "--target-macs", "0.5", "--runs", "3", "--provider", "cpu", "--json"]
    assert execute(arguments) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert document["model"] == "digits"
    assert [row["multiple_of"] for row in document["rows"]] == [1, "auto"]
    assert all(row["promised"] >= 2 and row["ratio"] > 0 for row in document["rows"])
    assert "50% of the MACs" in err


def test_bench_prints_a_table(chain: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", str(chain), "--input-shape", "1x3x8x8", "--target-macs", "0.5", "--runs", "3"]) == 0
    out, _ = capfd.readouterr()
    assert f"{MACS_PER_PIXEL * 64 / 1e6:.3g} M MACs, input 1x3x8x8" in out
    assert " ms" in out


def test_bench_of_a_file_does_not_load_torch(chain: Path) -> None:
    code = (
        "import sys\nfrom prunec.cli.main import execute\n"
        "status = execute(['bench', sys.argv[1], '--input-shape', '1x3x8x8', '--runs', '3', '--target-macs', '0.5'])\n"
        "sys.exit(status or ('torch' in sys.modules and 99))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(chain)], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
