"""The ONNX frontend: every op that CNNs use, between two convolutions, in the opsets that changed it.

Each case has a convolution with constant channels, the op, and a convolution that reads the result. The
pruned file must compute the same in ONNX Runtime, and the constant channels must be gone where the op
lets them pass (and stay, with a reason that is not "no rule", where it mixes them).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models.cases.computed_sizes import COMPUTED
from onnx_models.cases.passes import DEAD_PASSES, PASSES, ZERO_PASSES
from onnx_models.cases.refused import REFUSED
from onnx_models.cases.writing import CHANNELS, SILENT
from onnx_models.nets import (
    Net,
    assert_pruned_agrees,
    assert_same_outputs,
    num_removed,
    prune,
    reasons,
    unknown_reasons,
)

from prunec.api import analyze_onnx, prune_onnx
from prunec.backends.onnx.save import save_onnx
from prunec.errors import BadInput
from prunec.frontends.onnx.frontend import trace_onnx
from prunec.passes.channels import channels


@pytest.mark.parametrize("name", PASSES)
def test_constant_channels_are_removed_through(name: str, tmp_path: Path) -> None:
    opset, build = PASSES[name]
    net = Net(opset)
    x = net.conv(net.input("x", [2, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    y = build(net, x)
    net.output(net.conv(y, net.channels(y), 4, 3))
    traced, made, _ = assert_pruned_agrees(net.model(), tmp_path)
    assert not unknown_reasons(traced.graph)
    # One of the three may stay to carry the constants over a padded border.
    assert num_removed(made) >= 2, f"nothing was removed: {reasons(traced.graph)}"


@pytest.mark.parametrize("name", ZERO_PASSES)
def test_zero_channels_are_removed_where_other_constants_are_not(name: str, tmp_path: Path) -> None:
    opset, build = ZERO_PASSES[name]
    for zero in (False, True):
        net = Net(opset)
        x = net.conv(net.input("x", [2, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
        if zero:
            x = net.op(
                "Mul", x, net.const(np.isin(range(CHANNELS), SILENT, invert=True).astype(np.float32).reshape(-1, 1, 1))
            )
        net.output(net.conv(build(net, x), CHANNELS, 4, 3))
        _, made, _ = assert_pruned_agrees(net.model(), tmp_path)
        assert (num_removed(made) > 0) == zero


@pytest.mark.parametrize("name", DEAD_PASSES)
def test_channels_that_nothing_reads_go_through_any_op_that_keeps_them_apart(name: str, tmp_path: Path) -> None:
    opset, build = DEAD_PASSES[name]
    net = Net(opset)
    y = build(net, net.conv(net.input("x", [2, 3, 6, 6]), 3, CHANNELS))
    weight = net.weight(4, CHANNELS, 3, 3)
    weight[:, list(SILENT)] = 0
    net.output(net.op("Conv", y, net.const(weight)))
    _, made, _ = assert_pruned_agrees(net.model(), tmp_path)
    assert {len(keep.keep) for keep in made.keeps} == {CHANNELS - len(SILENT)}


@pytest.mark.parametrize("name", REFUSED)
def test_channels_stay_where_they_are_mixed_and_the_reason_is_told(name: str, tmp_path: Path) -> None:
    opset, build, reason = REFUSED[name]
    net = Net(opset)
    x = net.conv(net.input("x", [2, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    y = build(net, x)
    net.output(y)
    traced, made, _ = assert_pruned_agrees(net.model(), tmp_path, check=name != "group-norm-18")
    assert not unknown_reasons(traced.graph)
    assert any(reason in text for text in reasons(traced.graph)), reasons(traced.graph)
    assert num_removed(made) == 0


# --- sizes that are computed -------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [False, True], ids=["open", "given"])
@pytest.mark.parametrize("name", COMPUTED)
def test_open_sizes_stay_open_and_channels_go(name: str, fixed: bool, tmp_path: Path) -> None:
    net = Net(13)
    x = net.conv(net.input("x", ["N", 3, "H", "W"]), 3, CHANNELS, silent=SILENT)
    y = COMPUTED[name](net, x)
    c_in = {"zeros": 12}.get(name, CHANNELS)
    net.output(net.conv(y, c_in, 4), shape=["N", 4, None, None])
    given = {"x": (2, 3, 6, 8)} if fixed else None
    sizes = ({"N": 1, "H": 6, "W": 8}, {"N": 3, "H": 9, "W": 5})
    _, made, pruned = assert_pruned_agrees(net.model(), tmp_path, sizes, input_shapes=given)
    assert num_removed(made) >= 2
    assert [dim.dim_param for dim in pruned.graph.input[0].type.tensor_type.shape.dim] == ["N", "", "H", "W"]


def test_size_of_all_channels_together_is_left_alone(tmp_path: Path) -> None:
    """A number that mixes channels with open sizes is data: its source keeps its channels."""
    net = Net(13)
    x = net.conv(net.input("x", ["N", 3, "H", "W"]), 3, CHANNELS, silent=SILENT)
    elements = net.op("Cast", net.op("Size", x), to=1)
    net.output(net.conv(net.op("Div", x, elements), CHANNELS, 4), shape=["N", 4, "H", "W"])
    _, made, _ = assert_pruned_agrees(net.model(), tmp_path, ({"N": 1, "H": 6, "W": 8}, {"N": 3, "H": 9, "W": 5}))
    assert num_removed(made) == 0


def test_given_shape_makes_more_known_and_is_checked() -> None:
    net = Net(13)
    x = net.conv(net.input("x", ["N", 3, "H", "W"]), 3, CHANNELS)
    net.output(net.op("Relu", x), shape=["N", CHANNELS, "H", "W"])
    model = net.model()
    assert trace_onnx(model).graph.shape("x") == ("N", 3, "H", "W")
    assert trace_onnx(model, {"x": (2, 3, 6, 8)}).graph.shape("x") == (2, 3, 6, 8)
    for shape, what in ({"y": (1, 3, 6, 6)}, "no input"), ({"x": (1, 4, 6, 6)}, "does not fit"), ({"x": (1, 3)}, "fit"):
        with pytest.raises(BadInput, match=what):
            trace_onnx(model, shape)


# --- where constants come from -----------------------------------------------------------------------


@pytest.mark.parametrize("constants", ["initializer", "node"])
def test_weights_may_be_initializers_or_constant_nodes(constants: str, tmp_path: Path) -> None:
    net = Net(13, constants=constants)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    net.output(net.conv(net.op("Relu", x), CHANNELS, 4))
    _, made, pruned = assert_pruned_agrees(net.model(), tmp_path)
    assert num_removed(made) >= 2
    kinds = {node.op_type for node in pruned.graph.node}
    assert ("Constant" in kinds) == (constants == "node")
    assert bool(pruned.graph.initializer) == (constants == "initializer")


def test_weights_that_are_computed_from_constants_are_read(tmp_path: Path) -> None:
    net = Net(13)
    weight = net.weight(3, 3, 4, CHANNELS)
    weight[..., list(SILENT)] = 0
    turned = net.op("Transpose", net.op("Mul", net.const(weight), net.const(2.0, np.float32)), perm=[3, 2, 0, 1])
    x = net.op("Conv", net.input("x", [1, 4, 6, 6]), turned, net.const(net.weight(CHANNELS)))
    net.output(net.conv(net.op("Relu", x), CHANNELS, 4))
    traced, made, _ = assert_pruned_agrees(net.model(), tmp_path)
    assert traced.graph.params[turned].shape == (CHANNELS, 4, 3, 3)
    assert num_removed(made) >= 2


def test_float16_weights_behind_a_cast_stay_float16(tmp_path: Path) -> None:
    net = Net(13)
    weight = net.weight(CHANNELS, 3, 3, 3).astype(np.float16)
    weight[list(SILENT)] = 0
    whole = net.op("Cast", net.const(weight, stem="half"), to=1)
    x = net.op("Conv", net.input("x", [1, 3, 6, 6]), whole, net.const(np.zeros(CHANNELS, np.float32)))
    net.output(net.conv(net.op("Relu", x), CHANNELS, 4))
    _, made, pruned = assert_pruned_agrees(net.model(), tmp_path)
    assert num_removed(made) >= 3
    kept = [tensor for tensor in pruned.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert [list(tensor.dims) for tensor in kept] == [[CHANNELS - len(SILENT), 3, 3, 3]]


def test_weights_made_by_constant_of_shape_take_no_memory() -> None:
    net = Net(9)
    weight = net.op("ConstantOfShape", net.ints(4096, 1024, 3, 3), value=helper.make_tensor("v", 1, [1], [0.5]))
    x = net.op("Conv", net.input("x", [1, 1024, 6, 6]), weight)
    net.output(x)
    array = trace_onnx(net.model()).graph.params[weight].array
    assert array.shape == (4096, 1024, 3, 3)
    assert not any(array.strides)


def test_scalars_are_literals_and_settings_are_no_parameters() -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS)
    y = net.op("Reshape", net.op("Mul", x, net.const([2.0], np.float32)), net.ints(1, -1))
    net.output(y)
    params = trace_onnx(net.model()).graph.params
    assert sorted((p.literal, p.array.size) for p in params.values()) == [(False, 8), (False, 216), (True, 1)]


def test_output_that_is_a_stored_tensor_is_kept(tmp_path: Path) -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    anchors = net.const(net.weight(5, 4))
    net.output(net.conv(x, CHANNELS, 4))
    net.output(anchors, shape=[5, 4])
    _, made, pruned = assert_pruned_agrees(net.model(), tmp_path)
    assert num_removed(made) >= 2
    assert pruned.graph.output[1].name == anchors


def test_op_of_a_custom_domain_pins_what_it_touches_and_the_rest_goes() -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    y = net.op("Relu", net.conv(x, CHANNELS, CHANNELS, silent=SILENT))
    z = net.op("Mystery", y, domain="my.ops")
    net.output(z, shape=[1, CHANNELS, 6, 6])
    traced, made, _ = prune(net.model())
    assert [text for text in reasons(traced.graph) if "my.ops.Mystery" in text]
    assert {keep.param for keep in made.keeps} == {"w1", "b2", "w4"}


def test_functions_of_the_model_are_read_and_kept(tmp_path: Path) -> None:
    body = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["r"])]
    swish = helper.make_function("my.fns", "Swish", ["a"], ["r"], body, [helper.make_opsetid("", 17)])
    net = Net(17)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    net.output(net.conv(net.op("Swish", x, domain="my.fns"), CHANNELS, 4), shape=[1, 4, 6, 6])
    model = net.model()
    model.functions.append(swish)
    traced, made, pruned = assert_pruned_agrees(model, tmp_path)
    assert [node.op for node in traced.graph.nodes] == ["conv", "sigmoid", "mul", "conv"]
    assert num_removed(made) >= 2
    assert [node.op_type for node in pruned.graph.node] == ["Conv", "Swish", "Conv"]
    assert [function.name for function in pruned.functions] == ["Swish"]


def test_function_that_holds_weights_is_written_out_where_they_change(tmp_path: Path) -> None:
    scale = helper.make_node(
        "Constant",
        [],
        ["k"],
        value=onnx.numpy_helper.from_array(np.linspace(1, 2, CHANNELS, dtype=np.float32).reshape(1, -1, 1, 1)),
    )
    body = [scale, helper.make_node("Mul", ["a", "k"], ["r"])]
    function = helper.make_function("my.fns", "Scale", ["a"], ["r"], body, [helper.make_opsetid("", 17)])
    net = Net(17)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    net.output(net.conv(net.op("Scale", x, domain="my.fns"), CHANNELS, 4), shape=[1, 4, 6, 6])
    model = net.model()
    model.functions.append(function)
    _, made, pruned = assert_pruned_agrees(model, tmp_path)
    assert num_removed(made) >= 2
    assert "Scale" not in {node.op_type for node in pruned.graph.node}


def test_lstm_input_is_a_contraction(tmp_path: Path) -> None:
    net = Net(14)
    x = net.conv(net.input("x", [1, 3, 1, 7]), 3, CHANNELS, 1, silent=SILENT)
    steps = net.op("Transpose", net.op("Squeeze", x, net.ints(2)), perm=[2, 0, 1])
    w, r = net.const(net.weight(1, 20, CHANNELS)), net.const(net.weight(1, 20, 5))
    net.output(net.op("LSTM", steps, w, r, outputs=3, hidden_size=5)[0], shape=[7, 1, 1, 5])
    traced, _, _ = assert_pruned_agrees(net.model(), tmp_path)
    found = channels(traced.graph)
    assert (found.is_channel & ~found.pinned).sum() == CHANNELS


def test_names_are_unique_and_the_same_on_every_run() -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS)
    net.output(net.op("Sum", x, x, x))
    model = net.model()
    for node in model.graph.node:
        node.name = "same"
    first, second = (trace_onnx(model).graph for _ in range(2))
    names = [node.name for node in first.nodes]
    assert len(set(names)) == len(names) == 3
    assert names == [node.name for node in second.nodes]


@pytest.mark.parametrize("first", ["conv", "relu"])
def test_an_input_of_unknown_rank_keeps_no_filters_of_zeros(first: str, tmp_path: Path) -> None:
    """The convolution behind it makes channels of its own, whatever the rank is."""
    net = Net()
    x = net.input("x", None)
    x = net.op("Relu", x) if first == "relu" else x
    x = net.op("Relu", net.conv(x, 5, CHANNELS, silent=SILENT))
    net.output(net.conv(x, CHANNELS, 3), shape=["n", 3, "h", "w"])
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(net.model(), before)
    _, made, pruned = prune(net.model())
    save_onnx(pruned, after)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 5, 9, 7)).astype(np.float32)}
    assert_same_outputs(before, after, feeds)
    assert num_removed(made) > 0


def test_a_bias_that_is_cast_like_the_data_is_known(tmp_path: Path) -> None:
    """As PyTorch's exporter writes a convolution without bias when it does not optimise."""
    net = Net(opset=18)
    x = net.input("x", ["n", 3, "h", "w"])
    weight = net.weight(CHANNELS, 3, 3, 3)
    weight[list(SILENT)] = 0
    name = net.const(weight)
    size = net.op("Expand", net.op("Shape", name, start=0, end=1), net.ints(1))
    bias = net.op("Expand", net.op("CastLike", net.const(0.5, np.float64), x), size)
    x = net.op("Relu", net.op("Conv", x, name, bias, pads=[1] * 4))
    net.output(net.conv(x, CHANNELS, 4), shape=["n", 4, "h", "w"])
    traced, made, _ = assert_pruned_agrees(net.model(), tmp_path, [{"h": 8, "w": 6}])
    assert num_removed(made) >= len(SILENT) - 1
    assert not [node.origin for node in traced.graph.nodes if node.source == "CastLike"]


def test_a_grouped_convolution_of_an_unknown_value_keeps_its_channels(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.input("x", None))
    x = net.op("Relu", net.conv(x, CHANNELS, CHANNELS, silent=SILENT, group=CHANNELS))
    net.output(net.conv(x, CHANNELS, 3), shape=["n", 3, "h", "w"])
    traced, made, _ = prune(net.model())
    assert num_removed(made) == 0
    assert channels(traced.graph).pins


def test_what_follows_from_a_declared_shape_is_known() -> None:
    """Inference stops at axes that nodes make; the file's own notes bridge the gap, and what follows is inferred."""
    net = Net(18)
    x = net.op("Relu", net.conv(net.input("x", [2, 3, 6, 6]), 3, 8))
    mean = net.op("ReduceMean", x, net.op("Reshape", net.ints(2, 3), net.ints(-1)), keepdims=0)
    y = net.op("Gemm", mean, net.const(net.weight(8, 5)))
    net.output(net.op("Softmax", y), shape=[2, 5])
    model = net.model()
    model.graph.value_info.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, [2, 8]))
    assert trace_onnx(model).graph.shape(y) == (2, 5)


@pytest.mark.parametrize(("kind", "rows"), [("Conv", 16), ("ConvTranspose", "K")])
def test_grouped_convolution_of_open_width_is_pinned(kind: str, rows: int | str) -> None:
    net = Net(13)
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8))
    wide = net.op("Reshape", x, net.input("shape", [4], TensorProto.INT64))
    weight = net.input("w", [rows, 4, 3, 3]) if kind == "ConvTranspose" else net.const(net.weight(16, 4, 3, 3))
    y = net.op("Relu", net.op(kind, wide, weight, group=2))
    net.output(net.conv(y, 8 if kind == "ConvTranspose" else 16, 3), shape=[None] * 4)
    graph = trace_onnx(net.model()).graph
    found = channels(graph)
    row = found.labels[y].on(1)[0].ravel() if found.labels[y].on(1) else np.zeros(0, np.int64)
    assert found.pinned[found.class_of[row]].all()


def test_values_of_unknown_rank_are_left_alone(tmp_path: Path) -> None:
    """Both the report on what stays and the removal of the rest meet them."""
    net = Net(13)
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8, silent=(1, 2, 5, 6)))
    held = net.op("Reshape", net.conv(x, 8, 4, silent=(1,)), net.input("shape", ["rank"], TensorProto.INT64))
    held = net.conv(net.op("Relu", net.op("Unsqueeze", held, net.ints(0))), 2, 4, 1, silent=(1,))
    net.output(net.op("Squeeze", net.op("Sigmoid", held), net.ints(0)), shape=[None] * 3)
    path, result = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(net.model(), path)
    assert analyze_onnx(path).channels.pinned == 8
    assert prune_onnx(path, result, validate=False).removed_channels >= 3
    feeds = {"x": np.ones((1, 3, 6, 6), np.float32), "shape": np.array([2, 2, 36])}
    assert_same_outputs(path, result, feeds)


@pytest.mark.parametrize("kind", ["QLinearAdd", "QGemm"])
def test_shapes_of_integer_ops_follow_where_inference_stopped(kind: str) -> None:
    net = Net(13)
    x = net.conv(net.input("x", [2, 3, 6, 6]), 3, 8)
    half = net.op("Div", net.op("Shape", x), net.ints(2))
    first = net.op("Slice", x, net.ints(0), net.op("Slice", half, net.ints(1), net.ints(2)), net.ints(1))
    if kind == "QGemm":
        first = net.op("Reshape", net.op("GlobalAveragePool", first), net.ints(2, -1))
    unit = (net.const(np.float32(0.1)), net.const(np.int8(0)))
    a = net.op("QuantizeLinear", first, *unit)
    if kind == "QGemm":
        weight = net.const(np.ones((4, 5), np.int8))
        y = net.op(kind, a, *unit, weight, *unit, "", *unit, domain="com.microsoft")
    else:
        y = net.op(kind, a, *unit, a, *unit, *unit, domain="com.microsoft")
    net.output(net.op("DequantizeLinear", y, *unit), shape=[None] * (2 if kind == "QGemm" else 4))
    assert trace_onnx(net.model()).graph.shape(y) == ((2, 5) if kind == "QGemm" else (2, 4, 6, 6))


@pytest.mark.parametrize("kind", ["Gemm", "LSTM"])
def test_weights_behind_a_value_of_unknown_rank_stay_whole(kind: str, tmp_path: Path) -> None:
    net = Net(13)
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8, silent=(1, 2, 5, 6)))
    x = net.op("Reshape", net.conv(x, 8, 4), net.input("shape", ["rank"], TensorProto.INT64))
    if kind == "Gemm":
        y = net.op("Gemm", x, net.const(net.weight(36, 5)), net.const(net.weight(5)))
    else:
        weights = [net.const(net.weight(1, 8, size)) for size in (36, 2)]
        y = net.op("LSTM", x, *weights, net.const(net.weight(1, 16)), hidden_size=2)
    net.output(y, shape=[None] * (2 if kind == "Gemm" else 4))
    path, result = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(net.model(), path)
    assert prune_onnx(path, result, validate=False).removed_channels >= 3
    shape = [4, 36] if kind == "Gemm" else [4, 1, 36]
    assert_same_outputs(path, result, {"x": np.ones((1, 3, 6, 6), np.float32), "shape": np.array(shape)})


def test_layer_norm_that_onnx_runtime_writes_into_an_older_opset() -> None:
    """Its optimiser fuses to ops that the file's opset does not have."""
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
    for kind in ("LayerNormalization", "SimplifiedLayerNormalization"):
        vectors = [net.const(net.weight(6)) for _ in range(2 if kind.startswith("Layer") else 1)]
        x = net.op(kind, x, *vectors, axis=-1)
    net.output(net.op("Relu", x), shape=[None] * 4)
    graph = trace_onnx(net.model()).graph
    assert graph.shape(x) == (1, 8, 6, 6)
    assert not unknown_reasons(graph)


@pytest.mark.parametrize("declared", [[], [7, 7]])
def test_output_whose_declared_rank_is_wrong(declared: list[int], tmp_path: Path) -> None:
    """Paddle declares outputs without sizes; inference does not see what a computed shape gives."""
    net = Net(13)
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8, silent=(1, 2, 5, 6)))
    x = net.op(
        "Reshape", net.conv(x, 8, 4), net.op("Concat", net.op("Shape", net.input("like", [4, 9])), net.ints(4), axis=0)
    )
    net.output(net.op("Softmax", x, axis=2), shape=[None] * 3)
    model = net.model()
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for size in declared:
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    onnx.save(model, tmp_path / "before.onnx")
    assert prune_onnx(tmp_path / "before.onnx", tmp_path / "after.onnx", validate=False).removed_channels >= 3


@pytest.mark.parametrize("through", ["Identity", "Neg"])
def test_output_that_is_a_number_of_channels_stays_it(through: str, tmp_path: Path) -> None:
    net = Net(13)
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8, silent=(1, 2, 5, 6)))
    count = net.op("Gather", net.op("Shape", net.op(through, x)), net.const(1, np.int64))
    net.output(net.conv(x, 8, 4))
    net.output(net.op("Div", count, net.const(2, np.int64)), dtype=TensorProto.INT64, shape=[])
    _, plan, _ = assert_pruned_agrees(net.model(), tmp_path)
    assert plan.is_empty, "channels that went would change the number"


def test_axis_that_is_reduced_twice(tmp_path: Path) -> None:
    net = Net(13)
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8, silent=(1, 2, 5, 6)))
    net.output(net.conv(net.op("ReduceMean", x, axes=[2, -2, 3], keepdims=1), 8, 4, 1))
    _, _, pruned = assert_pruned_agrees(net.model(), tmp_path, check=False)
    assert list(pruned.graph.initializer[0].dims) == [4, 3, 3, 3]


@pytest.mark.parametrize("rows", [6, 4])
def test_a_product_of_constants_that_were_scaled_by_a_size_is_read(rows: int, tmp_path: Path) -> None:
    """A detector's learned queries attend to each other: they are divided by a size, then go through a matrix."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", [2, 3, 8, 8]), 3, 8, silent=(1, 5)))
    size = net.op("Slice", net.op("Shape", x), net.ints(1), net.ints(2))
    scale = net.op("Sqrt", net.op("Cast", size, to=TensorProto.FLOAT))
    queries = net.op("MatMul", net.op("Div", net.const(net.weight(rows, 4)), scale), net.const(net.weight(4, 4)))
    pooled = net.op("Conv", net.op("GlobalAveragePool", x), net.const(net.weight(4, 8, 1, 1)))
    net.output(net.op("MatMul", queries, net.op("Reshape", pooled, net.ints(4, 2))), shape=[rows, 2])
    _, made, _ = assert_pruned_agrees(net.model(), tmp_path)
    assert num_removed(made) > 0


def test_what_repeats_one_element_is_known_by_how_it_was_made() -> None:
    """Its number can be rewritten, as that of stored numbers that happen to be equal cannot."""
    net = Net(13)
    x = net.input("x", [1, 3, 6, 6])
    made = net.op("ConstantOfShape", net.ints(1, 6, 2, 6))
    cast = net.op("Cast", net.op("Transpose", made, perm=[0, 2, 1, 3]), to=TensorProto.FLOAT)
    spread = net.op("Expand", net.const(np.zeros((1, 1, 1, 1), np.float32)), net.ints(1, 4, 6, 6))
    stored = net.const(np.zeros((1, 5, 6, 6), np.float32))
    rows = net.op("Expand", net.const(np.zeros((1, 7, 1, 1), np.float32)), net.ints(1, 7, 6, 6))
    net.output(net.op("Concat", x, cast, spread, stored, rows, axis=1))
    traced = trace_onnx(net.model())
    assert {made, cast, spread} <= traced.repeated
    assert not {stored, rows} & traced.repeated
    full = {node.outputs[0]: node.attrs["shape"] for node in traced.graph.nodes if node.op == "full"}
    assert full == {cast: [1, 2, 6, 6], spread: [1, 4, 6, 6]}


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_convolution_of_something_unknown_has_the_rank_and_channels_of_its_weight(op: str) -> None:
    net = Net(17)
    net.domains["here"] = 1
    unknown = net.op("Mystery", net.input("x", [1, 3, 6, 6]), domain="here")
    y = net.op("Relu", net.op(op, unknown, net.const(net.weight(8, 4, 3, 3)), group=2))
    z = net.op("Transpose", y, perm=[0, 2, 3, 1])
    net.output(net.op("Transpose", net.op("Sigmoid", z), perm=[0, 3, 1, 2]))
    shapes = trace_onnx(net.model()).graph.shape
    assert (shapes(y) or ())[1:2] == (8,)
    assert (shapes(z) or ())[3:] == (8,)
