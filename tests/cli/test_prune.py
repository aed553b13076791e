"""prunec prune: a smaller file that computes the same, or none; the input is never overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from command_line import Run, assert_one_message, python


def test_prune_writes_a_smaller_file_that_computes_the_same(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("prune", "networks:with_inputs", "-o", "out.onnx", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["exact"] is True
    assert document["removed_channels"] == 3
    assert document["after"]["params"] < document["before"]["params"]
    assert document["validation"]["passed"] is True
    assert document["validation"]["max_rel_error"] < 1e-5
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["image"]
    assert max(weight.dims[0] for weight in model.graph.initializer if len(weight.dims) == 4) == 5


def test_prune_in_bias_mode_says_how_far_off_the_border_is(run: Run) -> None:
    document = json.loads(run("prune", "networks:with_inputs", "-o", "out.onnx", "--border", "bias", "--json")[1])
    assert document["removed_channels"] == 4
    assert document["exact"] is False
    assert document["border_error"] > 1e-3


def test_a_prune_that_removes_nothing_says_so(run: Run) -> None:
    status, out, _ = run("prune", "networks:with_inputs", "-o", "out.onnx", "--keep", "*")
    assert status == 0
    assert "nothing was removed" in out
    assert "removed 0 channels" in out


def test_prune_to_a_budget_keeps_it(run: Run) -> None:
    status, out, _ = run("prune", "digits", "-o", "o.onnx", "--criterion", "l1", "--target-macs", "0.5", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["after"]["macs"] <= 0.5 * document["before"]["macs"]
    assert document["exact"] is False


def test_a_budget_that_cannot_be_met_exits_1_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    status, out, err = run("prune", "digits", "-o", "o.onnx", "--criterion", "l1", "--target-macs", "0.000001")
    assert (status, out) == (1, "")
    assert_one_message(err)
    assert not (tmp_path / "o.onnx").exists()


def test_a_failed_check_writes_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exported file is another network: the check finds it, and it never gets its name."""
    from prunec.pipeline import export

    right = export.export_onnx

    def wrong(module: object, example_inputs: object, path: Path, **options: object) -> None:
        from networks import Half  # type: ignore[import-not-found]  # written by the fixture

        other = Half()
        other.conv2.bias.data += 1
        right(other, example_inputs, path, **options)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(export, "export_onnx", wrong)
    status, out, err = run("prune", "networks:with_inputs", "-o", "out.onnx")
    assert (status, out) == (1, "")
    assert err.startswith("error[validation-failed]")
    assert not [path for path in tmp_path.iterdir() if "onnx" in path.name]


def test_a_file_is_pruned_into_a_smaller_file_with_the_same_interface(
    run: Run, half_file: Path, tmp_path: Path
) -> None:
    status, out, _ = run("prune", half_file, "-o", "out.onnx", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["removed_channels"] == 3
    assert document["validation"]["max_rel_error"] < 1e-5
    before, after = onnx.load(half_file), onnx.load(tmp_path / "out.onnx")
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert (tmp_path / "out.onnx").stat().st_size < half_file.stat().st_size


def test_a_file_is_timed_against_the_original_where_something_was_removed(run: Run, half_file: Path) -> None:
    for keep, is_timed in (((), True), (("--keep", "*"), False)):
        validation = json.loads(run("prune", half_file, "-o", "out.onnx", "--force", "--json", *keep)[1])["validation"]
        assert validation["passed"]
        assert (validation["latency_a_ms"] is not None) == is_timed


def test_the_input_file_is_never_overwritten(run: Run, half_file: Path) -> None:
    before = half_file.read_bytes()
    status, _, err = run("prune", half_file, "-o", half_file, "--force")
    assert status == 2
    assert "is the input" in err
    assert half_file.read_bytes() == before


def test_an_exact_prune_of_a_file_loads_only_what_it_uses(half_file: Path) -> None:
    """The rest of prunec, and libraries that it does not need, would take as long as the work on a small file."""
    code = (
        "import sys\nfrom prunec.cli.main import execute\n"
        "status = execute(['prune', sys.argv[1], '-o', 'out.onnx', '--no-validate'])\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    result = python(code, str(half_file))
    assert result.returncode == 0, result.stderr
    loaded = set(result.stderr.splitlines())
    assert "prunec.cli.prune" in loaded
    assert not {"torch", "scipy", "onnxruntime", "networkx"} & loaded
    assert {name for name in loaded if name.startswith("prunec.cli.")} == {
        f"prunec.cli.{name}" for name in ("main", "options", "prune", "render")
    }
