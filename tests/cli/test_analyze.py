"""prunec analyze: tables, JSON, pages, and what a file leaves open."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import Run, python


def test_analyze_shows_constants_groups_and_pins(run: Run) -> None:
    status, out, _ = run("analyze", "networks:Half", "--input-shape", "1x3x8x8")
    assert status == 0
    for shown in ("conv1", "4 constant", "Coupled groups", "Pinned", "532 parameters"):
        assert shown in out


def test_analyze_json_is_one_document_and_nothing_else(run: Run) -> None:
    status, out, _ = run("analyze", "networks:with_inputs", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["model"] == "networks:with_inputs"
    assert document["channels"]["constant"] == 4
    assert document["params"] == 532


def test_a_factory_may_be_given_by_file(run: Run) -> None:
    assert json.loads(run("analyze", "networks.py:with_inputs", "--json")[1])["params"] == 532


def test_analyze_writes_a_page_and_does_not_replace_one(run: Run, tmp_path: Path) -> None:
    arguments = ("analyze", "networks:with_inputs", "--report", "page.html")
    assert run(*arguments)[0] == 0
    assert "networks:with_inputs" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert run(*arguments)[0] == 2
    assert run(*arguments, "--force")[0] == 0


def test_debug_tells_what_each_tracer_made_of_a_network(run: Run) -> None:
    status, out, err = run("--debug", "analyze", "networks:asks_values")
    assert status == 0
    assert "torch.fx cannot trace the network" in err
    assert "torch.export is tried" in err
    assert "note: the network was read by torch.export, for torch.fx could not" in " ".join((out + err).split())


def test_sizes_that_a_file_leaves_open_are_told_beside_its_macs(run: Run, conv_file: Path) -> None:
    note = "open sizes count as 1 in MACs and activations: give --input-shape for input x (?x3x?x?)"
    assert run("analyze", conv_file)[2] == f"note: {note}\n"
    assert json.loads(run("analyze", conv_file, "--json")[1])["notes"] == [note]
    assert f"note: {note}\n" in run("prune", conv_file, "-o", "out.onnx")[2]
    assert run("analyze", conv_file, "--input-shape", "1x3x8x8")[2] == ""


def test_analyze_of_a_file_loads_neither_torch_nor_scipy(conv_file: Path) -> None:
    """Each takes longer than the analysis of most files."""
    code = (
        "import sys\nfrom prunec.cli.main import execute\n"
        "status = execute(['analyze', sys.argv[1], '--json'])\n"
        "sys.exit(status or (not {'torch', 'scipy'}.isdisjoint(sys.modules) and 99))\n"
    )
    result = python(code, str(conv_file))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["frontend"] == "onnx"
