"""Groups gather classes on the same axes, and the dependency graph carries them on its edges."""

from __future__ import annotations

from graphs.classes import IMAGE, chain, classes_on, conv, ended, param_of
from graphs.tiny import Tiny

from prunec.passes.channels import channels
from prunec.passes.groups import dependency_graph, group_classes


def test_groups_gather_classes_that_lie_on_the_same_axes() -> None:
    graph = chain()
    classes = channels(graph)
    groups = group_classes(classes)
    assert [len(group) for group in groups] == [4, 5, 2]
    assert list(groups[0]) == classes_on(classes, param_of(graph, 0), 0)


def test_a_concat_of_two_branches_makes_two_groups() -> None:
    t = Tiny()
    x = t.input(*IMAGE)
    joined = t.node("concat", [conv(t, x, 3, 2), conv(t, x, 3, 3)], ("N", 5, 8, 8), axis=1)
    groups = group_classes(channels(ended(t, joined, 5)))
    assert [len(group) for group in groups] == [2, 3, 2]


def test_the_dependency_graph_carries_classes_on_its_edges() -> None:
    graph = chain()
    classes = channels(graph)
    found = dependency_graph(graph, classes)
    assert found.nodes["x0"]["op"] == "input"
    assert found.nodes["conv0"]["op"] == "conv"
    assert found.nodes["output:0"]["op"] == "output"
    assert found.edges["conv0", "batch_norm1"]["classes"] == sorted(classes_on(classes, param_of(graph, 0), 0))
    assert found.edges["x0", "conv0"]["classes"] == []
    assert found.edges["batch_norm1", "conv2"]["shape"] == ("N", 4, 8, 8)
