"""Layers timed by themselves: that a layer's model is the layer, its other widths, and the rates that follow."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs.tiny import Tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from modules.strategies import IN_CHANNELS, SIZE, Spec, specs
from modules.strategies import build as build_spec
from modules.training import Chain, Inverted
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F
from training_bars import Stop, StopAt, config

from prunec.errors import BadInput, UnsupportedModel
from prunec.ir.graph import Graph
from prunec.ir.ops import CONTRACTIONS
from prunec.models import build
from prunec.passes.channels import channels
from prunec.passes.cost import Rates, sample_sizes
from prunec.passes.sparsity.penalty import penalty
from prunec.pipeline.reading import read_module
from prunec.runtime import sessions
from prunec.timing import latency, layer_times
from prunec.timing.layer_times import marginal, measure
from prunec.timing.layers_alone import Layer, layers_alone, made, onnx_model, read, resized
from prunec.training import Ista, sparsify
from prunec.training.run.results import RunResult
from prunec.training.run.run import train_prune
from prunec.training.settings.presets import resume_config

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
    widths = [resized(layer, side).inputs for side in (made(layer), read(layer)) if side is not None]
    assert widths == [((1, 3, 6, 4), (1, 3, 4, 9), (1, 3, 9, 21)), ((1, 3, 6, 20), (1, 3, 20, 9), (1, 3, 9, 5))]
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


@given(specs(), st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_in_any_network_equal_rates_are_the_penalty_of_macs(spec: Spec, rate: float) -> None:
    graph = graph_of(build_spec(spec), 2, IN_CHANNELS, SIZE, SIZE, dtype=torch.float64)
    classes = channels(graph)
    rates = dict.fromkeys(layers_alone(graph), (rate, rate))
    np.testing.assert_allclose(penalty(graph, classes, "latency", rates), penalty(graph, classes, "macs"), rtol=1e-9)


# --- other widths -----------------------------------------------------------------------------------


def conv(c_in: int, c_out: int, groups: int = 1) -> Layer:
    return only_layer(graph_of(nn.Conv2d(c_in, c_out, 3, groups=groups, padding=1), 2, c_in, 8, 8))


@pytest.mark.parametrize(
    ("width", "other"), [(64, 32), (48, 16), (32, 16), (31, 47), (24, 40), (16, 32), (8, 24), (1, 17)]
)
def test_about_half_of_the_channels_go_or_where_there_are_few_a_block_is_added(width: int, other: int) -> None:
    layer = conv(3, width)
    side = made(layer)
    assert side is not None
    assert resized(layer, side).inputs == ((1, 3, 8, 8), (other, 3, 3, 3))
    layer = conv(width, 5)
    side = read(layer)
    assert side is not None
    assert resized(layer, side).inputs == ((1, other, 8, 8), (5, other, 3, 3))


@pytest.mark.parametrize(
    ("c_in", "c_out", "groups", "other"),
    [(96, 96, 96, (48, 48, 48)), (16, 16, 16, (32, 32, 32)), (128, 128, 32, (64, 64, 16)), (64, 96, 2, (32, 48, 1))],
)
def test_of_a_grouped_convolution_whole_groups_go(
    c_in: int, c_out: int, groups: int, other: tuple[int, int, int]
) -> None:
    layer = conv(c_in, c_out, groups)
    side = made(layer)
    assert side is not None
    assert side == read(layer)
    found = resized(layer, side)
    assert (found.inputs[0][1], found.inputs[1][0], found.groups) == other
    assert found.inputs[1][1] == layer.inputs[1][1]


@pytest.mark.parametrize("name", LAYERS)
def test_other_widths_run_and_their_volume_goes_with_their_weights(name: str) -> None:
    module, shape = LAYERS[name]
    layer = only_layer(graph_of(module, *shape))
    for side in {made(layer), read(layer)}:
        assert side is not None
        other = resized(layer, side)
        model = onnx_model(other)
        runner = sessions.open_runner(model, "layer", "cpu", optimise=True)
        runner({"input0": np.zeros(other.inputs[0], np.float32)})
        tokens = shape[1] if len(shape) == 3 and layer.op == "matmul" else 1
        assert other.volume == tokens * stored(model)[0].numel()


def test_a_weight_in_front_makes_the_rows() -> None:
    t = Tiny()
    product = t.node("matmul", [t.param(np.ones((48, 32))), t.input(2, 32, 10)], (2, 48, 10))
    layer = only_layer(t.graph(product))
    side = made(layer)
    assert side is not None
    assert resized(layer, side).inputs == ((16, 32), (1, 32, 10))


def test_a_vector_has_no_channels_to_make() -> None:
    t = Tiny()
    layer = only_layer(t.graph(t.node("matmul", [t.input(2, 4, 32), t.param(np.ones(32))], (2, 4))))
    assert made(layer) is None
    side = read(layer)
    assert side is not None
    assert resized(layer, side).inputs == ((1, 4, 16), (16,))


# --- timing -----------------------------------------------------------------------------------------


def by_weights(models: Sequence[bytes], _runs: int, _seconds: float) -> list[float]:
    """A clock that goes by size: 20 microseconds however small a layer is, and 10 nanoseconds for each weight."""
    return [20 + 0.01 * sum(weight.numel() for weight in stored(model)) for model in models]


def test_the_rate_is_that_of_a_channel_and_leaves_out_what_no_channel_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "kernel_times", by_weights)
    graph = graph_of(nn.Conv2d(48, 64, 3, padding=1), 2, 48, 8, 8)
    (rate,) = measure(graph).rates.values()
    assert rate == pytest.approx((10 / 64, 10 / 64))  # 10 ns a weight, of 64 positions


def test_a_channel_takes_between_a_tenth_of_its_share_and_twice_of_it() -> None:
    assert marginal(10.0, 5.0, 64, 32) == pytest.approx(1.0)
    assert marginal(10.0, 8.0, 64, 32) == pytest.approx(0.4)
    assert marginal(10.0, 15.0, 16, 32) == pytest.approx(0.5)
    assert marginal(10.0, 10.1, 64, 32) == marginal(10.0, 9.99, 16, 32) == 0.1
    assert marginal(10.0, 50.0, 16, 32) == 2.0


def test_layers_of_equal_sizes_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(models: Sequence[bytes], runs: int, seconds: float) -> list[float]:
        calls.append(len(models))
        return by_weights(models, runs, seconds)

    monkeypatch.setattr(latency, "kernel_times", counted)
    found = measure(graph_of(build("resnet20"), 2, 3, 32, 32))
    assert len(found.rates) == 20
    assert calls == [3] * 7 * 3, "all are gone through three times"


def test_what_cannot_be_run_takes_the_median_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_wide_ones(models: Sequence[bytes], runs: int, seconds: float) -> list[float]:
        if stored(models[0])[0].shape[0] == 6:
            raise UnsupportedModel("no")
        return by_weights(models, runs, seconds)

    monkeypatch.setattr(latency, "kernel_times", without_wide_ones)
    graph = graph_of(Chain(), 2, 3, 8, 8)
    found = measure(graph)
    assert set(found.rates) == {"first_0", "head"}
    assert found.said.startswith("penalty: 2 of 3 layers were timed by themselves in ONNX Runtime")
    assert found.said.endswith("the middle is taken for those that cannot be: second_0")


def test_with_nothing_measured_lambda_is_that_of_the_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> list[float]:
        raise UnsupportedModel("no")

    monkeypatch.setattr(latency, "kernel_times", never)
    graph = graph_of(Chain(), 2, 3, 8, 8)
    classes, found = channels(graph), measure(graph)
    assert found.said.startswith("penalty: 0 of 3 layers were timed")
    np.testing.assert_array_equal(penalty(graph, classes, "latency", found.rates), penalty(graph, classes, "macs"))


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


def test_all_layers_of_a_network_are_measured() -> None:
    found = measure(graph_of(Inverted(), 2, 3, 8, 8))
    assert len(found.rates) == 5
    assert all(0 < value < np.inf for rate in found.rates.values() for value in rate)
    assert "5 of 5 layers" in found.said
    assert pickle.loads(pickle.dumps(found)) == found, "rank 0 sends it to the others"


# --- in loops of one's own --------------------------------------------------------------------------


def lambdas(ista: Ista) -> list[float]:
    return sorted(ista._buffers.penalty.tolist())


def wrapped(rates: Rates | None, kind: Any = "latency") -> Ista:
    module = Chain()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return sparsify(module, (IMAGE,), optimizer, rho=0.1, penalty=kind, rates=rates)


def test_sparsify_measures_unless_it_is_given_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "kernel_times", by_weights)
    rates = measure(graph_of(Chain(), 2, 3, 8, 8)).rates
    measured = lambdas(wrapped(None))
    assert measured != lambdas(wrapped({}))
    assert lambdas(wrapped({})) == lambdas(wrapped(None, "macs"))
    monkeypatch.setattr(layer_times.latency, "kernel_times", lambda *_: pytest.fail("measured"))
    assert lambdas(wrapped(rates)) == measured
    # What a user keeps as JSON beside a checkpoint is as good.
    assert lambdas(wrapped(json.loads(json.dumps(dict(rates))))) == measured


def test_processes_that_have_not_joined_do_not_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="before the processes have joined") as error:
        wrapped(None)
    assert "init_process_group" in error.value.do
    assert lambdas(wrapped({})) == lambdas(wrapped({}, "macs"))


# --- runs -------------------------------------------------------------------------------------------


def random_clock(seed: int) -> Clock:
    """A clock on which every measurement, and so every λ, is another."""
    rng = np.random.default_rng(seed)
    return lambda models, _runs, _seconds: [float(1 + 9 * rng.random()) for _ in models]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> RunResult:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(latency, "kernel_times", random_clock(1))
        return train_prune(config(tmp_path_factory.mktemp("whole") / "run", bars, penalty="latency"))


def test_a_run_prunes_and_says_what_was_measured(finished: RunResult) -> None:
    assert finished.after["params"] < 0.9 * finished.before["params"]
    (said,) = (text for text in finished.reasons if text.startswith("penalty: "))
    assert "6 of 6 layers were timed by themselves in ONNX Runtime on this machine's CPU" in said
    assert "6 of 6 layers were timed by themselves" in (Path(finished.output) / "report.html").read_text()


@pytest.mark.parametrize("step", [0, 33, 100])
def test_a_killed_run_goes_on_with_the_times_that_it_began_with(
    tmp_path: Path, bars: Path, step: int, finished: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "kernel_times", random_clock(1))
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars, penalty="latency"), StopAt(step))
    monkeypatch.setattr(layer_times, "measure", lambda *_: pytest.fail("measured anew"))
    train_prune(resume_config(str(tmp_path / "run")))
    for name in ("pruned.safetensors", "metrics.jsonl", "plan.json"):
        assert (tmp_path / "run" / name).read_bytes() == (Path(finished.output) / name).read_bytes(), name


def test_other_times_are_another_run(
    tmp_path: Path, bars: Path, finished: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "kernel_times", random_clock(2))
    train_prune(config(tmp_path / "run", bars, penalty="latency"))
    log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert log != (Path(finished.output) / "metrics.jsonl").read_bytes()
