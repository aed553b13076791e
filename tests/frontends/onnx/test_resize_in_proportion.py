"""Resize with keep_aspect_ratio_policy (opset 18): sizes are those of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models.nets import Net, assert_pruned_agrees, num_removed, run

from prunec.frontends.onnx.frontend import trace_onnx

SIZES = [((6, 8), (12, 20)), ((6, 8), (13, 11)), ((5, 7), (8, 8)), ((7, 5), (3, 3)), ((4, 6), (9, 9)), ((5, 9), (2, 9))]


def model(
    policy: str, size: Sequence[int | str], asked: Sequence[int], axes: Sequence[int] | None = None, **attrs: Any
) -> Net:
    net = Net(18)
    y = net.op("Relu", net.conv(net.input("x", ["n" if axes else 1, 3, *size]), 3, 8, silent=(1, 4)))
    attrs |= {} if axes is None else {"axes": axes}
    y = net.op("Resize", y, "", "", net.ints(*asked), keep_aspect_ratio_policy=policy, **attrs)
    net.output(net.conv(y, 8, 4), shape=["a", "b", "c", "d"])
    return net


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize(("size", "asked"), SIZES)
def test_sizes_are_those_of_the_runtime(policy: str, size: Sequence[int], asked: Sequence[int]) -> None:
    built = model(policy, size, asked, (2, 3)).model()
    graph = trace_onnx(built).graph
    (made,) = run(built.SerializeToString(), {"x": np.zeros((2, 3, *size), np.float32)})
    assert graph.shape(graph.outputs[0]) == ("n", *made.shape[1:])


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_sizes_that_follow_from_open_ones_stay_open(policy: str) -> None:
    graph = trace_onnx(model(policy, ("h", "w"), (13, 11), (2, 3)).model()).graph
    batch, channels, *rest = graph.shape(graph.outputs[0]) or ()
    assert (batch, channels) == ("n", 4)
    assert not any(isinstance(size, int) for size in rest)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller", "stretch"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_channels_in_front_of_it_go(policy: str, mode: str, tmp_path: Path) -> None:
    _, made, _ = assert_pruned_agrees(model(policy, (6, 8), (13, 11), (2, 3), mode=mode).model(), tmp_path)
    assert num_removed(made) > 0


def test_a_scale_of_all_axes_counts_the_channels_too(tmp_path: Path) -> None:
    built = model("not_larger", (6, 8), (1, 8, 12, 16)).model()
    _, made, _ = assert_pruned_agrees(built, tmp_path)
    assert num_removed(made) > 0
