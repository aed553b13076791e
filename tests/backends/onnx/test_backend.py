"""The ONNX backend: which nodes and weights go, and that everything else stays as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models.chain import CHANNELS, SILENT, chain
from onnx_models.nets import Net, assert_pruned_agrees, num_removed, prune

from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import model_bytes, save_onnx
from prunec.backends.onnx.surgeon import Surgeon
from prunec.frontends.onnx.frontend import load_onnx, trace_onnx
from prunec.pipeline.options import Options
from prunec.pipeline.planning import plan_and_apply


def norm(net: Net, x: str, channels_: int, dead: int) -> str:
    """BatchNorm with random betas, of which ``dead`` gammas are zero, and ReLU."""
    gamma = net.rng.uniform(0.5, 1.5, channels_).astype(np.float32)
    gamma[net.rng.choice(channels_, dead, replace=False)] = 0
    beta = net.rng.standard_normal(channels_).astype(np.float32)
    mean, var = (net.rng.uniform(0.5, 1.5, channels_).astype(np.float32) for _ in range(2))
    return str(net.op("Relu", net.op("BatchNormalization", x, *map(net.const, (gamma, beta, mean, var)))))


def plain_conv(net: Net, x: str, c_in: int, c_out: int) -> str:
    return str(net.op("Conv", x, net.const(net.weight(c_out, c_in, 3, 3), stem="w"), pads=[1, 1, 1, 1]))


def test_half_of_a_convolution_goes(tmp_path: Path) -> None:
    net = Net(15)
    x = norm(net, plain_conv(net, net.input("x", [1, 3, 12, 12]), 3, 64), 64, 32)
    net.output(plain_conv(net, x, 64, 64))
    _, _, pruned = assert_pruned_agrees(net.model(), tmp_path)
    assert weight_shapes(pruned)[0][0] in (32, 33), "the live half, and at most one carrier"
    assert weight_shapes(pruned)[1][1] == weight_shapes(pruned)[0][0]


def test_half_of_a_residual_block_goes(tmp_path: Path) -> None:
    net = Net(15)
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 12, 12]), 3, 32))
    y = norm(net, plain_conv(net, x, 32, 64), 64, 32)
    net.output(net.conv(net.op("Add", plain_conv(net, y, 64, 32), x), 32, 4))
    _, _, pruned = assert_pruned_agrees(net.model(), tmp_path)
    assert weight_shapes(pruned)[1][0] in (32, 33)


def test_half_of_a_concat_of_two_branches_goes(tmp_path: Path) -> None:
    net = Net(15)
    x = net.input("x", [1, 3, 12, 12])
    branches = [norm(net, plain_conv(net, x, 3, 32), 32, 16) for _ in range(2)]
    net.output(plain_conv(net, net.op("Concat", *branches, axis=1), 64, 8))
    _, _, pruned = assert_pruned_agrees(net.model(), tmp_path)
    shapes = weight_shapes(pruned)
    assert shapes[0][0] + shapes[1][0] in (32, 33)
    assert shapes[2][1] == shapes[0][0] + shapes[1][0]


def weight_shapes(model: onnx.ModelProto) -> list[list[int]]:
    """Return the shapes of the convolutions' weights, in graph order."""
    dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    return [dims[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]


def test_branch_that_vanishes_leaves_no_nodes(tmp_path: Path) -> None:
    net = Net(15)
    x = net.op("Relu", net.conv(net.input("x", [1, 3, 8, 8]), 3, 8))
    dead = net.op("Relu", net.conv(x, 8, 8, silent=range(8)))
    y = net.op("Add", x, net.conv(dead, 8, 8, 1))
    zero = net.op("Mul", net.conv(x, 8, 8), net.const(np.zeros((8, 1, 1), np.float32)))
    net.output(net.conv(net.op("Concat", y, zero, axis=1), 16, 4))
    _, _, pruned = assert_pruned_agrees(net.model(), tmp_path)
    kinds = [node.op_type for node in pruned.graph.node]
    assert kinds.count("Conv") == 2
    assert "Concat" not in kinds
    assert "Mul" not in kinds


def test_pruning_twice_changes_nothing_more(tmp_path: Path) -> None:
    _, first, pruned = assert_pruned_agrees(chain(Net(13)), tmp_path)
    _, second, again = prune(pruned)
    assert num_removed(first) >= 2
    assert num_removed(second) == 0
    assert model_bytes(again) == pruned.SerializeToString()


def test_nothing_to_prune_writes_the_same_bytes(tmp_path: Path) -> None:
    net = Net(13)
    net.output(net.conv(net.input("x", [1, 3, 6, 6]), 3, 4))
    before = tmp_path / "before.onnx"
    onnx.save(net.model(), before)
    _, made, pruned = prune(load_onnx(before))
    save_onnx(pruned, tmp_path / "after.onnx")
    assert made.is_empty
    assert (tmp_path / "after.onnx").read_bytes() == before.read_bytes()


def test_everything_but_the_channels_is_kept(tmp_path: Path) -> None:
    model = chain(Net(13), ("batch", 3, 6, "width"))
    model.producer_version, model.doc_string, model.domain, model.model_version = "3.1", "about", "org.example", 7
    model.graph.doc_string = "the graph"
    helper.set_model_props(model, {"author": "someone", "labels": "a,b"})
    model.opset_import.append(helper.make_opsetid("com.example", 4))
    for number, node in enumerate(model.graph.node):
        node.doc_string = f"node {number}"
    model.graph.input[0].doc_string = "images"
    before = model.SerializeToString()
    _, made, pruned = assert_pruned_agrees(model, tmp_path, ({"batch": 1, "width": 5}, {"batch": 3, "width": 8}))
    assert num_removed(made) >= 2
    assert model.SerializeToString() == before, "the model given was changed"
    for field in ("producer_name", "producer_version", "doc_string", "domain", "model_version", "ir_version"):
        assert getattr(pruned, field) == getattr(model, field)
    assert list(pruned.metadata_props) == list(model.metadata_props)
    assert list(pruned.opset_import) == list(model.opset_import)
    assert list(pruned.graph.input) == list(model.graph.input)
    assert list(pruned.graph.output) == list(model.graph.output)
    assert pruned.graph.doc_string == "the graph"
    assert [(n.name, n.doc_string) for n in pruned.graph.node] == [(n.name, n.doc_string) for n in model.graph.node]
    assert [t.name for t in pruned.graph.initializer] == [t.name for t in model.graph.initializer]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_precision_is_kept(dtype: Any, tmp_path: Path) -> None:
    """Matrix products: ONNX Runtime has them in float16 and double on the CPU."""
    net, kind = Net(15), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    first = net.weight(6, CHANNELS)
    first[:, list(SILENT)] = 0
    bias = net.rng.standard_normal(CHANNELS).astype(dtype)
    x = net.op("Add", net.op("MatMul", net.input("x", [3, 6], kind), net.const(first.astype(dtype))), net.const(bias))
    net.output(net.op("MatMul", net.op("Relu", x), net.const(net.weight(CHANNELS, 4).astype(dtype))), kind, [3, 4])
    model = net.model()
    if dtype is ml_dtypes.bfloat16:
        _, made, source = prune(model)
        pruned = onnx.load_from_string(model_bytes(source))
    else:
        _, made, pruned = assert_pruned_agrees(model, tmp_path, tolerance=1e-12 if dtype is np.float64 else 5e-3)
    assert num_removed(made) >= 4
    assert {tensor.data_type for tensor in pruned.graph.initializer} == {kind}


def test_old_files_list_initializers_as_inputs(tmp_path: Path) -> None:
    model = chain(Net(8, ir_version=3))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    traced, made, pruned = assert_pruned_agrees(model, tmp_path)
    assert traced.graph.inputs == ("x",)
    assert num_removed(made) >= 2
    dims = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in pruned.graph.input}
    assert dims.keys() == {value.name for value in model.graph.input}
    assert all(dims[tensor.name] == list(tensor.dims) for tensor in pruned.graph.initializer)


def test_new_tensors_of_old_files_are_no_inputs(tmp_path: Path) -> None:
    """Before IR version 4 each initializer is an input; a bias that pruning makes must not become one."""
    net = Net(8, ir_version=3)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, 1, silent=SILENT)
    net.output(net.op("Conv", net.op("Relu", x), net.const(net.weight(4, CHANNELS, 1, 1))))
    model = net.model()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    _, made, pruned = assert_pruned_agrees(model, tmp_path)
    assert [fold.kind for fold in made.folds] == ["bias"]
    assert [value.name for value in pruned.graph.input] == [value.name for value in model.graph.input]


def test_setting_shared_by_two_nodes_changes_for_one(tmp_path: Path) -> None:
    """One Reshape target serves a layer that shrinks and one that does not."""
    net = Net(13)
    x = net.input("x", [2, 3, 6, 6])
    target = net.ints(2, CHANNELS, 36)
    thin = net.op("Reshape", net.conv(x, 3, CHANNELS, silent=SILENT), target)
    full = net.op("Reshape", net.conv(x, 3, CHANNELS), target)
    net.output(net.op("Conv", thin, net.const(net.weight(4, CHANNELS, 1))))
    net.output(net.op("Conv", full, net.const(net.weight(4, CHANNELS, 1))))
    _, made, pruned = assert_pruned_agrees(net.model(), tmp_path)
    assert num_removed(made) >= 4
    targets = [list(numpy_helper.to_array(t)) for t in pruned.graph.initializer if t.data_type == TensorProto.INT64]
    assert sorted(targets) == [[2, CHANNELS - len(SILENT), 36], [2, CHANNELS, 36]]


def test_weight_shared_by_two_nodes_is_stored_once(tmp_path: Path) -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS)
    read_in_part = net.weight(4, CHANNELS, 3, 3)
    read_in_part[:, list(SILENT)] = 0
    weight = net.const(read_in_part, stem="shared")
    net.output(net.op("Conv", net.op("Relu", x), weight))
    net.output(net.op("Conv", net.op("Neg", x), weight))
    _, made, pruned = assert_pruned_agrees(net.model(), tmp_path)
    assert num_removed(made) >= 2
    assert sum(tensor.name.startswith("shared") for tensor in pruned.graph.initializer) == 1


def test_convolutions_that_share_a_weight_get_a_bias_each(tmp_path: Path) -> None:
    net = Net(13)
    x = net.op("Sigmoid", net.conv(net.input("x", [2, 3, 6, 6]), 3, 8, silent=(1, 2, 5, 6)))
    weight = net.const(net.weight(4, 8, 1, 1))
    first, second = net.op("Conv", x, weight), net.op("Relu", net.op("Conv", net.op("Identity", x), weight))
    net.output(net.op("Concat", first, second, axis=1))
    _, made, _ = assert_pruned_agrees(net.model(), tmp_path)
    assert {(keep.size, len(keep.keep)) for keep in made.keeps} == {(8, 4)}


def test_stale_shapes_are_written_anew(tmp_path: Path) -> None:
    model = onnx.shape_inference.infer_shapes(chain(Net(13)))
    _, made, pruned = assert_pruned_agrees(model, tmp_path)
    assert num_removed(made) >= 2
    noted = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in pruned.graph.value_info}
    assert noted.keys() == {value.name for value in model.graph.value_info}
    assert set(noted.values()) == {weight_shapes(pruned)[0][0]}


def test_wrong_notes_on_shapes_are_not_believed(tmp_path: Path) -> None:
    model = onnx.shape_inference.infer_shapes(chain(Net(13)))
    for value in model.graph.value_info:
        value.type.tensor_type.shape.dim[1].dim_value = 5
    assert trace_onnx(model).graph.shape(model.graph.node[0].output[0]) == (1, CHANNELS, 6, 6)


def test_weights_that_are_one_repeated_value_stay_small(tmp_path: Path) -> None:
    """A file of a few hundred bytes whose weights ConstantOfShape makes does not become one of megabytes."""
    net = Net(9, ir_version=3, constants="node")
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, CHANNELS, silent=SILENT)
    wide = net.op("ConstantOfShape", net.ints(2000, CHANNELS, 3, 3), value=helper.make_tensor("v", 1, [1], [0.01]))
    net.output(net.op("GlobalAveragePool", net.op("Conv", net.op("Relu", x), wide, pads=[1, 1, 1, 1])))
    model = net.model()
    _, made, source = prune(model)
    assert num_removed(made) >= 2
    if any(fold.kind == "carrier" for fold in made.folds):
        return  # the carrier's column differs from the others: the weight is no longer uniform
    assert len(model_bytes(source)) <= model.ByteSize()


def test_dead_uniform_weights_are_sliced_as_such(tmp_path: Path) -> None:
    net = Net(9, ir_version=3, constants="node")
    wide = net.op("ConstantOfShape", net.ints(500, 3, 3, 3), value=helper.make_tensor("v", 1, [1], [0.01]))
    x = net.op("Conv", net.input("x", [1, 3, 6, 6]), wide)
    weight = net.weight(4, 500, 1, 1)
    weight[:, 100:] = 0
    net.output(net.op("Conv", x, net.const(weight)))
    _, _, pruned = assert_pruned_agrees(net.model(), tmp_path)
    assert pruned.ByteSize() < net.model().ByteSize()
    assert [node.op_type for node in pruned.graph.node].count("ConstantOfShape") == 1
    assert next(iter(trace_onnx(pruned).graph.params.values())).shape[0] == 100


@pytest.mark.parametrize("equation", ["bchw,oc->bohw", "bchw,co->obhw", "oc,bchw->bhow", "...chw,oc->...ohw"])
def test_a_product_takes_a_constant_over_wherever_its_channels_end_up(equation: str, tmp_path: Path) -> None:
    net = Net(17)
    weight, bias = net.weight(8, 3, 3, 3), net.rng.standard_normal(8).astype(np.float32)
    weight[0], bias[0] = 0, 0.7
    maps = net.op("Relu", net.op("Conv", net.input("x", [2, 3, 8, 6]), net.const(weight), net.const(bias)))
    factor = net.const(net.weight(8, 5) if ",co" in equation else net.weight(5, 8))
    operands = (factor, maps) if equation.startswith("oc") else (maps, factor)
    net.output(net.op("Relu", net.op("Einsum", *operands, equation=equation)))
    _, _, pruned = assert_pruned_agrees(net.model(), tmp_path)
    assert [7, 3, 3, 3] in [list(tensor.dims) for tensor in pruned.graph.initializer]


def test_a_thousand_settings_made_of_one_get_names_in_order_without_trying_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks share a Reshape's sizes, and each gets its own when they change."""
    asked: list[object] = []

    class Names(set[str]):
        def __contains__(self, name: object) -> bool:
            asked.append(name)
            return super().__contains__(name)

    monkeypatch.setattr("prunec.backends.onnx.surgeon._all_names", lambda _: Names({"sizes", "sizes_pruned3"}))
    surgeon = Surgeon(trace_onnx(chain(Net(17))))
    names = [surgeon.store(np.zeros(2), "sizes") for _ in range(1000)]
    assert names[:3] == ["sizes_pruned", "sizes_pruned2", "sizes_pruned4"]
    assert names[-1] == "sizes_pruned1001"
    assert len(asked) == 1001


def searches(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call returns, and how often Python looks for garbage."""
    seen: list[str] = []
    before = gc.get_threshold()

    def note(phase: str, _: dict[str, int]) -> None:
        seen.append(phase)

    gc.callbacks.append(note)
    gc.set_threshold(20)
    try:
        return call(), seen.count("start")
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(note)


def test_no_garbage_is_looked_for_while_a_file_is_read_or_its_pruned_one_made() -> None:
    net = Net(17)
    x = net.input("x", [1, 3, 6, 6])
    for width in (3, *[8] * 19):
        x = net.op("Relu", net.conv(x, width, 8, silent=SILENT))
    net.output(net.conv(x, 8, 4))
    model = net.model()
    traced, reading = searches(lambda: trace_onnx(model))
    made: list[Any] = []
    plan_and_apply(traced.graph, (), Options(), None, lambda _, edits: made.append(edits))
    pruned, writing = searches(lambda: apply_onnx(traced, made[0]))
    assert pruned is not traced.source
    assert max(reading, writing) <= 2, "before it begins and when it ends"
