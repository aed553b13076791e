"""The dependency graph: what it answers, and its three texts read back."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import networkx as nx
import onnx
import pytest
import torch
from onnx_models.dead_channels import WIDTH, Module, as_kind, message

import prunec
from prunec.cli.main import execute
from prunec.errors import BadInput
from prunec.report.dependencies import writer


def graph_of_message() -> nx.DiGraph:
    return prunec.dependency_graph(message())


def test_nodes_tell_what_they_make_and_who_reads_it() -> None:
    found = graph_of_message()
    assert nx.is_directed_acyclic_graph(found)
    assert found.nodes["first"]["makes"] == found.nodes["second"]["reads"][:WIDTH] or set(
        found.nodes["first"]["makes"]
    ) <= set(found.nodes["second"]["reads"])
    assert len(found.nodes["first"]["makes"]) == WIDTH
    assert found.nodes["first"]["pinned"] == 0
    assert found.nodes["second"]["pinned"] == 4
    assert found.nodes["first"]["params"] == ["w1", "b1"]
    assert [found.nodes[n]["generation"] for n in ("x", "first", "act", "second")] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["ir", "gs"])
def test_every_kind_gives_the_same_graph(kind: str) -> None:
    expected, found = graph_of_message(), prunec.dependency_graph(as_kind(kind, message()))
    assert dict(found.nodes) == dict(expected.nodes)
    assert dict(found.edges) == dict(expected.edges)


def test_files_and_modules_are_taken(tmp_path: Path) -> None:
    onnx.save(message(), tmp_path / "m.onnx")
    assert dict(prunec.dependency_graph(tmp_path / "m.onnx").nodes) == dict(graph_of_message().nodes)
    found = prunec.dependency_graph(Module(), example_inputs=(torch.zeros(1, 3, 8, 8),), keep=("head*",))
    assert {"input", "output", "conv"} <= {op for _, op in found.nodes(data="op")}


def test_each_text_can_be_read_back(tmp_path: Path) -> None:
    graph = graph_of_message()
    (tmp_path / "g.graphml").write_text(writer(tmp_path / "g.graphml")(graph), encoding="utf-8")
    again = nx.read_graphml(tmp_path / "g.graphml")
    assert set(again.edges) == set(graph.edges)
    assert again.nodes["first"]["op"] == "conv"
    document = json.loads(writer(tmp_path / "g.json")(graph))
    linked = nx.node_link_graph(document, edges="edges")
    assert set(linked.edges) == set(graph.edges)
    assert linked.nodes["first"]["makes"] == graph.nodes["first"]["makes"]
    dot = writer(tmp_path / "g.dot")(graph)
    assert len(re.findall(r"^  \".*\" -> \".*\"", dot, re.MULTILINE)) == graph.number_of_edges()


def test_odd_names_do_not_break_the_texts(tmp_path: Path) -> None:
    model = message()
    for index, name in enumerate(('a "quoted" \\ name', "line\nbreak", "<tag> & \x01", "ünïcode/層")):
        model.graph.node[index].name = name
    graph = prunec.dependency_graph(model)
    (tmp_path / "g.graphml").write_text(writer(tmp_path / "g.graphml")(graph), encoding="utf-8")
    assert nx.read_graphml(tmp_path / "g.graphml").number_of_nodes() == graph.number_of_nodes()
    assert json.loads(writer(tmp_path / "g.json")(graph))
    assert "\nbreak" not in writer(tmp_path / "g.dot")(graph)
    if subprocess.run(["sh", "-c", "command -v dot"], capture_output=True, check=False).returncode == 0:
        subprocess.run(["dot", "-Tsvg"], input=writer(tmp_path / "g.dot")(graph).encode(), check=True)


def test_the_command_writes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(message(), "m.onnx")
    assert execute(["analyze", "m.onnx", "--graph", "deps.json"]) == 0
    assert json.loads(Path("deps.json").read_text(encoding="utf-8"))["nodes"]
    assert execute(["analyze", "m.onnx", "--graph", "deps.json"]) == 2  # not overwritten
    assert execute(["analyze", "m.onnx", "--graph", "deps.png"]) == 2
    assert ".graphml" in capfd.readouterr().err


def test_another_ending_is_told() -> None:
    with pytest.raises(BadInput, match=r"\.graphml"):
        writer(Path("deps"))
