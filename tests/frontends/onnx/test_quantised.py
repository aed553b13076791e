"""Integer networks: scales and zero points go with their channels, and what is exact is exact to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models.masks import with_masks
from onnx_models.nets import Net, assert_pruned_agrees, num_removed, prune, run
from onnx_models.quantised import CHANNELS, QUANTISED, SILENT, IntegerNet, noise, quantised_cnn

from prunec.api import analyze_onnx, prune_onnx
from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import model_bytes
from prunec.frontends.onnx.frontend import trace_onnx
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.budget import Target, select_budget
from prunec.passes.selection.criteria import score
from prunec.passes.selection.select import plan
from prunec.pipeline.planning import gather_facts

Build = Callable[[IntegerNet, str], str]


@pytest.mark.parametrize("name", QUANTISED)
def test_half_of_the_macs_goes_and_the_rest_computes_what_the_masked_network_does(name: str, tmp_path: Path) -> None:
    path = quantised_cnn(name, tmp_path)
    model = onnx.load(path)
    traced = trace_onnx(model)
    facts = gather_facts(traced.graph)
    assert not facts.classes.pinned[facts.classes.is_channel].all()
    selection = select_budget(facts, score(facts, "l1"), Target(macs=0.5))
    made = plan(facts, selection, ())
    pruned = model_bytes(apply_onnx(traced, lower(traced.graph, facts.classes, made, facts.constants)))
    onnx.checker.check_model(onnx.load_from_string(pruned), full_check=True)
    masked = with_masks(model, traced, facts, selection.keep).SerializeToString()
    for seed in range(3):
        expected, got = run(masked, noise(seed))[0], run(pruned, noise(seed))[0]
        assert np.ptp(expected) > 0.1
        if name.startswith("qoperator"):
            assert (expected == got).all()
        else:  # floats between integers: another order of summation may move a value by a step or two
            assert np.abs(expected - got).max() <= 0.02 * np.ptp(expected)


@pytest.mark.parametrize("name", QUANTISED)
def test_promised_macs_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    path, result = quantised_cnn(name, tmp_path), tmp_path / "half.onnx"
    report = prune_onnx(path, result, validate=False, criterion="l1", target_macs=0.5, multiple_of=1)
    assert report.after.macs <= 0.5 * report.before.macs
    assert analyze_onnx(result).macs == report.after.macs
    assert result.stat().st_size < path.stat().st_size


def test_channels_with_small_weights_go_first_whatever_their_scale(tmp_path: Path) -> None:
    """Integers of one tensor may be large and stand for little: scales per channel count."""
    net = IntegerNet(per_channel=True)
    x = net.qlinear_conv(net.start(), 3, CHANNELS)
    net.end(net.qlinear_conv(x, CHANNELS, 4))
    model = net.model()
    scales = next(t for t in model.graph.initializer if t.name == model.graph.node[1].input[4])
    values = onnx.numpy_helper.to_array(scales).copy()
    values[[0, 3]] *= 1e-2
    scales.CopyFrom(onnx.numpy_helper.from_array(values, scales.name))
    _, made, _ = prune(model, criterion="l1", target_macs=0.8, multiple_of=1)
    kept = next(keep for keep in made.keeps if keep.param == model.graph.node[1].input[3])
    assert set(kept.keep) == set(range(CHANNELS)) - {0, 3}


# --- exact removal, op by op ---------------------------------------------------------------------------


def leaky(net: IntegerNet, x: str) -> str:
    return net.contrib("QLinearLeakyRelu", x, *net.same, *net.same, alpha=0.1)


def sigmoid(net: IntegerNet, x: str) -> str:
    return net.contrib("QLinearSigmoid", x, *net.same, *net.same)


def average(net: IntegerNet, x: str) -> str:
    return net.contrib("QLinearAveragePool", x, *net.same, *net.same, kernel_shape=[2, 2])


def global_average(net: IntegerNet, x: str) -> str:
    return net.contrib("QLinearGlobalAveragePool", x, *net.same, *net.same)


def residual(net: IntegerNet, x: str) -> str:
    return net.contrib("QLinearAdd", x, *net.same, leaky(net, x), *net.same, *net.same)


def times_vector(net: IntegerNet, x: str) -> str:
    vector = net.const(net.rng.integers(100, 200, (CHANNELS, 1, 1)), np.uint8)
    return net.contrib("QLinearMul", x, *net.same, vector, *net.same, *net.same)


def joined(net: IntegerNet, x: str) -> str:
    other = sigmoid(net, x)
    return net.contrib("QLinearConcat", *net.same, x, *net.same, other, *net.same, axis=1)


def depthwise(net: IntegerNet, x: str) -> str:
    return net.qlinear_conv(x, CHANNELS, CHANNELS, 3, group=CHANNELS)


def fake_quantised(net: IntegerNet, x: str) -> str:
    real = net.op("Relu", net.op("DequantizeLinear", x, *net.same))
    return str(net.op("QuantizeLinear", real, *net.same))


def pooled(net: IntegerNet, x: str) -> str:
    return str(net.op("MaxPool", x, kernel_shape=[2, 2]))


BETWEEN: Mapping[str, Build] = {
    "nothing": lambda net, x: x,
    "leaky": leaky,
    "sigmoid": sigmoid,
    "average-pool": average,
    "residual": residual,
    "times-vector": times_vector,
    "concat": joined,
    "depthwise": depthwise,
    "fake-quantised-relu": fake_quantised,
    "max-pool": pooled,
}


@pytest.mark.parametrize("per_channel", [False, True], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("name", BETWEEN)
def test_zero_filters_of_integer_convolutions_are_folded_to_the_bit(
    name: str, bias: bool, per_channel: bool, tmp_path: Path
) -> None:
    net = IntegerNet(per_channel=per_channel)
    y = BETWEEN[name](net, net.qlinear_conv(net.start(), 3, CHANNELS, silent=SILENT))
    net.end(net.qlinear_conv(y, net.channels(y), 4, 1, bias=bias))
    _, made, pruned = assert_pruned_agrees(net.model(), tmp_path, tolerance=0)
    assert made.exact
    stored = {tensor.name: tensor.dims for tensor in pruned.graph.initializer}
    assert stored[pruned.graph.node[1].input[3]][0] == CHANNELS - len(SILENT)


def test_padded_borders_keep_constants_that_int8_weights_cannot_carry(tmp_path: Path) -> None:
    for pads, exact in (([0, 0, 0, 0], True), ([1, 1, 1, 1], False)):
        net = IntegerNet()
        x = net.qlinear_conv(net.start(), 3, CHANNELS, silent=SILENT)
        net.end(net.qlinear_conv(x, CHANNELS, 4, pads=pads))
        _, made, _ = assert_pruned_agrees(net.model(), tmp_path, tolerance=0)
        assert bool(made.folds) == exact


def test_zeros_leave_through_a_padded_border(tmp_path: Path) -> None:
    net = IntegerNet()
    x = net.qlinear_conv(net.start(), 3, CHANNELS, silent=SILENT, bias=False)
    net.end(net.qlinear_conv(x, CHANNELS, 4, pads=[1, 1, 1, 1]))
    _, made, _ = assert_pruned_agrees(net.model(), tmp_path, tolerance=0)
    assert {len(keep.keep) for keep in made.keeps} == {CHANNELS - len(SILENT)}


@pytest.mark.parametrize("kind", ["QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger", "DequantizeLinear"])
def test_what_reads_the_channels(kind: str, tmp_path: Path) -> None:
    """Constants are folded where there is an int32 to fold them into."""
    net = IntegerNet(per_channel=True)
    x = net.qlinear_conv(net.start(), 3, CHANNELS, silent=SILENT)
    flat = net.op("Flatten", global_average(net, x))
    weight = net.const(net.integers(CHANNELS, 5), stem="w")
    scale, zero = net.weight_scale(5, CHANNELS), net.weight_zero(5)
    if kind == "QLinearMatMul":
        net.end(net.op("QLinearMatMul", flat, *net.same, weight, scale, zero, *net.same))
    elif kind == "QGemm":
        net.end(net.contrib("QGemm", flat, *net.same, weight, scale, zero, "", *net.same))
    elif kind == "MatMulInteger":
        net.output(net.op("MatMulInteger", flat, weight, net.zero), onnx.TensorProto.INT32, [2, 5])
    elif kind == "ConvInteger":
        w = net.const(net.integers(4, CHANNELS, 3, 3), stem="w")
        net.output(net.op("ConvInteger", x, w, net.zero), onnx.TensorProto.INT32, [2, 4, 2, 2])
    else:
        real = net.op("DequantizeLinear", weight, scale, zero, axis=1)
        net.output(net.op("MatMul", net.op("DequantizeLinear", flat, *net.same), real))
    _, made, _ = assert_pruned_agrees(net.model(), tmp_path, tolerance=0)
    folds = kind not in ("QLinearMatMul", "DequantizeLinear")
    assert (num_removed(made) > 0) == folds
    assert bool(made.folds) == folds


def test_bias_in_other_steps_than_its_operands_is_left_alone(tmp_path: Path) -> None:
    """A Q/DQ convolution whose int32 bias has a scale of its own: a fold would round."""
    for factor, folds in ((1.0, True), (1.37, False)):
        net = IntegerNet()
        x = net.qlinear_conv(net.start(), 3, CHANNELS, silent=SILENT)
        w_scale = np.float32(0.001)
        weight = net.op("DequantizeLinear", net.const(net.integers(4, CHANNELS, 3, 3)), net.const(w_scale))
        step = net.const(np.float32(0.02) * w_scale * np.float32(factor))
        bias = net.op("DequantizeLinear", net.const(net.rng.integers(-900, 900, 4), np.int32), step)
        real = net.op("Conv", net.op("DequantizeLinear", x, *net.same), weight, bias)
        net.end(net.op("QuantizeLinear", real, *net.same))
        _, made, _ = assert_pruned_agrees(net.model(), tmp_path)
        assert bool(made.folds) == folds


def test_int32_bias_shared_by_two_convolutions_is_folded_once_or_not_at_all(tmp_path: Path) -> None:
    net = IntegerNet()
    x = net.qlinear_conv(net.start(), 3, CHANNELS, silent=SILENT)
    first = net.qlinear_conv(x, CHANNELS, 4, 1)
    second = net.qlinear_conv(leaky(net, x), CHANNELS, 4, 1)
    convs = [node for node in net.nodes if node.op_type == "QLinearConv"]
    convs[2].input[3], convs[2].input[8] = convs[1].input[3], convs[1].input[8]
    net.end(net.contrib("QLinearAdd", first, *net.same, second, *net.same, *net.same))
    assert_pruned_agrees(net.model(), tmp_path, tolerance=0)


def test_output_declared_with_another_rank_has_the_one_that_follows() -> None:
    net = IntegerNet()
    x = net.op("Flatten", global_average(net, net.qlinear_conv(net.start(), 3, CHANNELS, silent=SILENT)))
    y = net.op("MatMulInteger", x, net.const(net.integers(CHANNELS, 5)), net.zero)
    net.output(y, onnx.TensorProto.FLOAT, ["a", "b", "c", "d"])  # and of another type: inference gives up
    traced, made, _ = prune(net.model())
    shape = traced.graph.shape(y)
    assert shape is not None
    assert shape[1:] == (5,)
    assert num_removed(made) > 0


# --- dynamic quantisation ------------------------------------------------------------------------------


def dynamic(net: Net, x: str, weight: np.ndarray) -> str:  # type: ignore[type-arg]  # float or int8
    y, _, zero = net.op("DynamicQuantizeLinear", x, outputs=3)
    return str(net.op("ConvInteger", y, net.const(weight), zero, pads=[1, 1, 1, 1]))


def test_zeros_leave_a_dynamic_quantisation_and_other_constants_stay(tmp_path: Path) -> None:
    """The scale spans all channels: only zeros do not move it."""
    for bias, removed in ((0.0, True), (1.0, False)):
        net = Net(13)
        weight = net.weight(CHANNELS, 3, 3, 3)
        weight[list(SILENT)] = 0
        x = net.op(
            "Conv", net.input("x", [2, 3, 6, 6]), net.const(weight), net.const(np.full(CHANNELS, bias), np.float32)
        )
        net.output(
            dynamic(net, x, net.rng.integers(-60, 61, (4, CHANNELS, 3, 3)).astype(np.int8)), onnx.TensorProto.INT32
        )
        _, made, _ = assert_pruned_agrees(net.model(), tmp_path, tolerance=0)
        assert (num_removed(made) > 0) == removed


def test_channels_that_only_a_dynamic_scale_reads_stay(tmp_path: Path) -> None:
    net = Net(13)
    x = net.conv(net.input("x", [2, 3, 6, 6]), 3, CHANNELS)
    weight = net.rng.integers(-60, 61, (4, CHANNELS, 3, 3)).astype(np.int8)
    weight[:, list(SILENT)] = 0
    net.output(dynamic(net, x, weight), onnx.TensorProto.INT32)
    _, made, _ = assert_pruned_agrees(net.model(), tmp_path, tolerance=0)
    assert num_removed(made) == 0


def test_products_of_dynamically_quantised_values(tmp_path: Path) -> None:
    """com.microsoft's DynamicQuantizeMatMul and MatMulIntegerToFloat: silent channels of zeros go."""
    for kind in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat"):
        net = Net(13)
        weight = net.weight(CHANNELS, 3, 3, 3)
        weight[list(SILENT)] = 0
        x = net.op("Flatten", net.op("GlobalMaxPool", net.op("Conv", net.input("x", [2, 3, 6, 6]), net.const(weight))))
        w, scale = net.const(net.rng.integers(-60, 61, (CHANNELS, 5)), np.int8), net.const(np.full(5, 0.01), np.float32)
        bias = net.const(net.weight(5))
        if kind == "DynamicQuantizeMatMul":
            y = net.op(kind, x, w, scale, "", bias, domain="com.microsoft")
        else:
            q, x_scale, zero = net.op("DynamicQuantizeLinear", x, outputs=3)
            y = net.op(kind, q, w, x_scale, scale, zero, "", bias, domain="com.microsoft")
        net.output(y, shape=[2, 5])
        _, made, _ = assert_pruned_agrees(net.model(), tmp_path)
        assert num_removed(made) > 0, kind
