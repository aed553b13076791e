"""Layers by themselves: that a layer's model is the layer, its other widths, and ONNX Runtime's clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs.tiny import Tiny
from hypothesis import given, settings
from modules.strategies import IN_CHANNELS, SIZE, Spec, specs
from modules.strategies import build as build_spec
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.errors import UnsupportedModel
from prunec.ir.graph import Graph
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.cost import sample_sizes
from prunec.pipeline.reading import read_module
from prunec.runtime import sessions
from prunec.timing import latency
from prunec.timing.layers_alone import Layer, at, layers_alone, made, onnx_model, read

IMAGE = torch.zeros(2, 3, 8, 8)
Clock = Callable[[Sequence[bytes], int, float], list[float]]


def graph_of(module: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> Graph:
    return read_module(module, (torch.zeros(shape, dtype=dtype),)).graph


def only_layer(graph: Graph) -> Layer:
    (layer,) = layers_alone(graph).values()
    assert layer is not None
    return layer


def stored(model: bytes) -> list[Tensor]:
    weights = onnx.load_from_string(model).graph.initializer
    return [torch.from_numpy(numpy_helper.to_array(weight).copy()) for weight in weights]


# --- the model of a layer ---------------------------------------------------------------------------


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 8, 8)),
    "strided, dilated": (nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (2, 3, 9, 8)),
    "same padding": (nn.Conv2d(3, 5, (3, 5), padding="same"), (2, 3, 8, 8)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 8, 8)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), (2, 6, 8, 8)),
    "conv1d": (nn.Conv1d(3, 5, 3, stride=2), (2, 3, 11)),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 4, 5, 6)),
    "transposed": (nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=(1, 0)), (2, 4, 5, 5)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 2, groups=2, dilation=2), (2, 4, 5, 5)),
    "linear": (nn.Linear(7, 5), (2, 7)),
    "linear over tokens": (nn.Linear(7, 5), (2, 6, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_model_of_a_layer_is_the_layer(name: str) -> None:
    module, shape = LAYERS[name]
    model = onnx_model(only_layer(graph_of(module, *shape)))
    (weight,) = stored(model)
    with torch.no_grad():
        module.weight.copy_(weight.T if isinstance(module, nn.Linear) else weight)
        module.bias.zero_()
    x = torch.randn(1, *shape[1:])
    (found,) = sessions.open_runner(model, "layer", "cpu", optimise=True)({"input0": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(x).detach(), atol=1e-5, rtol=1e-5)


class Product(nn.Module):
    """Two values times each other, one of them turned."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.transpose(-1, -2)


def test_a_product_of_two_values_has_nothing_stored() -> None:
    model = onnx_model(only_layer(graph_of(Product(), 2, 5, 7)))
    a, b = torch.randn(1, 5, 7), torch.randn(1, 7, 5)
    runner = sessions.open_runner(model, "layer", "cpu", optimise=True)
    (found,) = runner({"input0": a.numpy(), "input1": b.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), a @ b)


def test_the_model_of_attention_is_attention() -> None:
    t = Tiny()
    q, k, v = t.input(2, 3, 6, 4), t.input(2, 3, 9, 4), t.input(2, 3, 9, 5)
    layer = only_layer(t.graph(t.node("attention", [q, k, v, ""], (2, 3, 6, 5))))
    assert layer.inputs == ((1, 3, 6, 4), (1, 3, 4, 9), (1, 3, 9, 5))
    widths = [at(layer, side, side.units // 2).inputs for side in (made(layer), read(layer)) if side is not None]
    assert widths == [((1, 3, 6, 4), (1, 3, 4, 9), (1, 3, 9, 2)), ((1, 3, 6, 2), (1, 3, 2, 9), (1, 3, 9, 5))]
    query, keys, values = (torch.randn(sizes) for sizes in layer.inputs)
    runner = sessions.open_runner(onnx_model(layer), "layer", "cpu", optimise=True)
    (found,) = runner({"input0": query.numpy(), "input1": keys.numpy(), "input2": values.numpy()})
    expected = F.scaled_dot_product_attention(query, keys.transpose(-1, -2), values, scale=1.0)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)


class Computed(nn.Module):
    """A convolution whose weight is made of two parameters; its axis 0 is a multiple of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.ones(6, 3, 3, 3)), nn.Parameter(torch.ones(6, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain)


def test_a_weight_that_is_computed_from_parameters_is_stored() -> None:
    layer = only_layer(graph_of(Computed(), 2, 3, 8, 8))
    assert (layer.inputs, layer.stored) == (((1, 3, 8, 8), (6, 3, 3, 3)), (False, True))


def test_what_is_not_known_is_not_measured() -> None:
    t = Tiny()
    unknown = t.node("matmul", [t.node("opaque", [t.input(1, 3)], None), t.param(np.ones((3, 2)))], (1, 2))
    recurrent = t.node("rnn", [unknown, t.param(np.ones((1, 8, 2))), t.param(np.ones((1, 8, 8)))], (1, 8))
    assert set(layers_alone(t.graph(recurrent)).values()) == {None}


def test_a_layer_that_no_file_can_hold_is_not_measured() -> None:
    t = Tiny()
    weight = np.broadcast_to(np.float32(1), (1 << 14, 1 << 15))
    product = t.node("matmul", [t.input(1, 1 << 14), t.param(weight)], (1, 1 << 15))
    assert list(layers_alone(t.graph(product)).values()) == [None]


@given(specs())
@settings(max_examples=25, deadline=None)
def test_in_any_network_the_model_of_a_layer_makes_what_the_layer_makes(spec: Spec) -> None:
    graph = graph_of(build_spec(spec), 2, IN_CHANNELS, SIZE, SIZE, dtype=torch.float64)
    layers = layers_alone(graph)
    assert set(layers) == {node.name for node in graph.nodes if node.op in CONTRACTIONS}
    for node in graph.nodes:
        if node.name in layers:
            layer = layers[node.name]
            assert layer is not None
            runner = sessions.open_runner(onnx_model(layer), "layer", "cpu", optimise=True)
            feed = {name: np.zeros(shape, np.float32) for name, shape, _ in runner.inputs}
            assert runner(feed)[0].shape == sample_sizes(graph, node.outputs[0])


# --- other widths -----------------------------------------------------------------------------------


def conv(c_in: int, c_out: int, groups: int = 1) -> Layer:
    return only_layer(graph_of(nn.Conv2d(c_in, c_out, 3, groups=groups, padding=1), 2, c_in, 8, 8))


@pytest.mark.parametrize(
    ("c_in", "c_out", "groups", "other"),
    [(96, 96, 96, (48, 48, 48)), (16, 16, 16, (8, 8, 8)), (128, 128, 32, (64, 64, 16)), (64, 96, 2, (32, 48, 1))],
)
def test_of_a_grouped_convolution_whole_groups_go(
    c_in: int, c_out: int, groups: int, other: tuple[int, int, int]
) -> None:
    layer = conv(c_in, c_out, groups)
    side = made(layer)
    assert side is not None
    assert side == read(layer)
    found = at(layer, side, side.units // 2)
    assert (found.inputs[0][1], found.inputs[1][0], found.groups) == other
    assert found.inputs[1][1] == layer.inputs[1][1]


@pytest.mark.parametrize("name", LAYERS)
def test_other_widths_run(name: str) -> None:
    module, shape = LAYERS[name]
    layer = only_layer(graph_of(module, *shape))
    for side in {made(layer), read(layer)}:
        assert side is not None
        other = at(layer, side, max(1, side.units // 2))
        model = onnx_model(other)
        runner = sessions.open_runner(model, "layer", "cpu", optimise=True)
        runner({"input0": np.zeros(other.inputs[0], np.float32)})


def test_a_weight_in_front_makes_the_rows() -> None:
    t = Tiny()
    product = t.node("matmul", [t.param(np.ones((48, 32))), t.input(2, 32, 10)], (2, 48, 10))
    layer = only_layer(t.graph(product))
    side = made(layer)
    assert side is not None
    assert at(layer, side, side.units // 2).inputs == ((24, 32), (1, 32, 10))


def test_a_vector_has_no_channels_to_make() -> None:
    t = Tiny()
    layer = only_layer(t.graph(t.node("matmul", [t.input(2, 4, 32), t.param(np.ones(32))], (2, 4))))
    assert made(layer) is None
    side = read(layer)
    assert side is not None
    assert at(layer, side, side.units // 2).inputs == ((1, 4, 16), (16,))


# --- timing -----------------------------------------------------------------------------------------


def test_a_profile_is_read_without_layouts_and_slow_runs(tmp_path: Path) -> None:
    def event(name: str, op: str, microseconds: int) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": op}}

    session = {"cat": "Session", "name": "model_run", "dur": 999, "args": {}}
    warm = [event("a", "Conv", 500), event("b", "Softmax", 500), event("in", "ReorderInput", 500)]
    runs = [(10, 4), (90, 4), (12, 2), (10, 80)]
    events = [*warm, *warm]
    for a, b in runs:
        events += [event("in", "ReorderInput", 50), event("a", "Conv", a), event("b", "Softmax", b), session]
    (tmp_path / "profile.json").write_text(json.dumps(events))
    assert latency._own_time(tmp_path / "profile.json") == pytest.approx(14 + 2 * 0.5)


@pytest.mark.parametrize(
    "layer",
    [
        Layer("conv", ((1, 3, 4, 4), (5, 3, 7, 7)), (False, True)),  # fails when it runs
        Layer("conv", ((1, 3, 4, 4), (5, 3, 3, 3)), (False, True), (("pads", (-1,) * 4),)),  # cannot be opened
        Layer("attention", ((1, 8, 5, 4), (1, 2, 4, 5), (1, 2, 5, 4)), (False, False, False)),
    ],
)
def test_a_layer_that_onnx_runtime_cannot_run_is_refused(layer: Layer) -> None:
    with pytest.raises(UnsupportedModel, match="cannot run the layer"):
        latency.kernel_times([onnx_model(conv(3, 4)), onnx_model(layer)], 5, 0.1)


def test_by_onnx_runtimes_own_clock_more_channels_take_more_time() -> None:
    small, large = latency.kernel_times([onnx_model(conv(16, 16)), onnx_model(conv(256, 256))], 20, 0.5)
    assert 0 < small < large  # 256 times the MACs: even beside other work
