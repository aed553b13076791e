"""Models in memory: the same kind comes out, smaller, with all that it said of itself; the user's is left alone."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx_models.dead_channels import SIZE, WIDTH, Module, as_bytes, as_kind, as_proto, dims, message

import prunec
from prunec.errors import BadInput, BadPlan
from prunec.pipeline.options import Options

KINDS = ("proto", "ir", "gs")


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_kind_comes_out_smaller_and_computes_the_same(kind: str) -> None:
    original = message()
    given = as_kind(kind, original)
    before = as_bytes(given)
    found = prunec.prune_model(given)
    assert type(found.model) is type(given)
    assert as_bytes(given) == before
    smaller = as_proto(found.model)
    onnx.checker.check_model(smaller, full_check=True)
    assert dims(smaller) == {"w1": [WIDTH // 2, 3, 3, 3], "b1": [WIDTH // 2], "w2": [4, WIDTH // 2, 3, 3]}
    assert found.report.removed_channels == WIDTH // 2
    assert found.report.validation is not None
    assert found.report.validation.passed
    assert found.report.model == "edges"
    x = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    np.testing.assert_allclose(run(smaller, x), run(original, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["proto", "ir"])
def test_all_that_a_model_says_of_itself_stays(kind: str) -> None:
    original = message()
    smaller = as_proto(prunec.prune_model(as_kind(kind, original)).model)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(smaller, field) == getattr(original, field)
    assert {(o.domain, o.version) for o in smaller.opset_import} == {("", 17), ("mine", 2)}
    assert [f.name for f in smaller.functions] == ["Double"]
    assert [node.op_type for node in smaller.graph.node] == ["Conv", "Relu", "Conv", "Double"]
    assert [node.name for node in smaller.graph.node] == ["first", "act", "second", "end"]
    assert smaller.graph.doc_string == "about the graph"
    assert smaller.graph.node[0].doc_string == "finds edges"
    assert [d.dim_param for d in smaller.graph.input[0].type.tensor_type.shape.dim] == ["batch", "", "", ""]
    for holder in (smaller, smaller.graph, smaller.graph.node[0]):
        assert [(entry.key, entry.value) for entry in holder.metadata_props] == [("who", type(holder).__name__)]


def test_a_graph_of_graphsurgeon_keeps_what_such_a_graph_holds() -> None:
    given = as_kind("gs", message())
    given.doc_string = "mine"
    found = prunec.prune_model(given).model
    for said in ("name", "doc_string", "opset", "producer_name", "producer_version", "ir_version"):
        assert getattr(found, said) == getattr(given, said)
    assert [f.name for f in found.functions] == ["Double"]
    assert found.inputs[0].shape == ["batch", 3, SIZE, SIZE]
    assert [node.name for node in found.nodes] == ["first", "act", "second", "end"]


def test_a_graph_of_graphsurgeon_made_by_hand_is_pruned_and_left_alone() -> None:
    import onnx_graphsurgeon as gs

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 3, 3, 3)).astype(np.float32)
    weight[5:] = 0
    x = gs.Variable("x", np.float32, ("n", 3, 8, 8))
    middle, out = gs.Variable("m", np.float32), gs.Variable("y", np.float32, ("n", 2, 8, 8))
    nodes = [
        gs.Node("Conv", "one", {"pads": [1, 1, 1, 1]}, [x, gs.Constant("w", weight)], [middle]),
        gs.Node("Conv", "two", {}, [middle, gs.Constant("v", np.ones((2, 32, 1, 1), np.float32))], [out]),
    ]
    graph = gs.Graph(nodes, [x], [out], opset=13, import_domains=None)
    found = prunec.prune_model(graph)
    assert found.report.removed_channels == 27
    assert [t.values.shape for t in found.model.tensors().values() if isinstance(t, gs.Constant)] == [
        (5, 3, 3, 3),
        (2, 5, 1, 1),
    ]
    assert weight.shape == (32, 3, 3, 3)
    assert nodes[0].inputs[1].values is weight
    assert graph.import_domains is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_pruned_models_weights_are_its_own(kind: str) -> None:
    given = as_kind(kind, message(dead=0))
    found = prunec.prune_model(given).model  # nothing goes: every weight could be shared
    before = as_bytes(given)
    if kind == "gs":
        found.tensors()["w1"].values[...] = 0
    elif kind == "proto":
        found.graph.initializer[0].raw_data = bytes(len(found.graph.initializer[0].raw_data))
    else:
        found.graph.initializers["w1"].const_value = None
    assert as_bytes(given) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_which_nothing_can_go_comes_back_whole(kind: str) -> None:
    original = message(dead=0)
    given = as_kind(kind, original)
    found = prunec.prune_model(given)
    assert found.report.removed_channels == 0
    smaller = as_proto(found.model)
    for old, new in zip(as_proto(given).graph.initializer, smaller.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(new), numpy_helper.to_array(old))


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_applied_to_any_kind(kind: str) -> None:
    plan = prunec.prune_model(message()).plan
    given = as_kind(kind, message())
    before = as_bytes(given)
    smaller = prunec.apply_plan(given, plan)
    assert type(smaller) is type(given)
    assert as_bytes(given) == before
    assert dims(as_proto(smaller)) == dims(prunec.prune_model(message()).model)
    with pytest.raises(BadPlan):
        prunec.apply_plan(as_kind(kind, message(width=16)), plan)


@pytest.mark.parametrize("kind", KINDS)
def test_analysis_tells_the_same_of_every_kind(kind: str) -> None:
    given = as_kind(kind, message())
    before = as_bytes(given)
    found = prunec.analyze_model(given)
    told = found.to_json_dict()
    assert told == prunec.analyze_model(message()).to_json_dict()
    assert found.model == "edges"
    assert as_bytes(given) == before


@pytest.mark.parametrize("kind", KINDS)
def test_lossy_pruning_takes_the_same_options(kind: str) -> None:
    found = prunec.prune_model(
        as_kind(kind, message(dead=0)), criterion="l1", target_macs=0.5, multiple_of=8, keep=("second",), name="mine"
    )
    assert dims(as_proto(found.model))["w1"][0] % 8 == 0
    assert found.report.after.macs <= 0.5 * found.report.before.macs
    assert found.report.model == "mine"


def test_keep_may_be_one_pattern() -> None:
    found = prunec.prune_model(message(dead=0), criterion="l1", target_macs=0.5, keep="sec*d")
    assert found.report.after.macs <= 0.5 * found.report.before.macs


def test_every_option_is_spelled_out() -> None:
    asked = set(inspect.signature(prunec.prune_model).parameters)
    assert {field.name for field in fields(Options)} <= asked
    assert {"validate", "tolerance", "calibration", "inputs", "input_shapes"} <= asked
    assert all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(prunec.prune_model).parameters.values())


def test_modules_and_graph_modules_are_taken_with_inputs() -> None:
    module, x = Module().eval(), torch.randn(1, 3, 8, 8)
    for given in (module, torch.fx.symbolic_trace(module)):
        found = prunec.prune_model(given, example_inputs=(x,))
        assert isinstance(found.model, torch.fx.GraphModule)
        assert found.report.removed_channels == 8
        torch.testing.assert_close(found.model(x), module(x))
        assert prunec.analyze_model(given, example_inputs=(x,)).to_json_dict()
        torch.testing.assert_close(prunec.apply_plan(given, found.plan)(x), module(x))
    with pytest.raises(BadInput, match="example_inputs"):
        prunec.prune_model(module)


@pytest.mark.parametrize("given", ["model.onnx", Path("model.onnx"), 3, None, {"w": 1}, onnx.GraphProto()])
def test_what_is_no_model_is_told(given: object) -> None:
    with pytest.raises(BadInput, match=r"path|not a model that prunec knows"):
        prunec.prune_model(given)
    with pytest.raises(BadInput):
        prunec.analyze_model(given)


def test_weights_in_another_file_are_told(tmp_path: Path) -> None:
    onnx.save(message(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    shell = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(BadInput, match=r"onnx\.load") as told:
        prunec.prune_model(shell)
    assert str(tmp_path) not in str(told.value)


def test_an_onnx_ir_model_over_weights_on_disk_is_pruned(tmp_path: Path) -> None:
    import onnx_ir

    onnx.save(message(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    kept = (tmp_path / "w.bin").read_bytes()
    given = onnx_ir.load(tmp_path / "m.onnx")
    given.meta["ours"] = "note"
    given.graph[0].meta["ours"] = 1
    found = prunec.prune_model(given).model
    assert (tmp_path / "w.bin").read_bytes() == kept
    assert isinstance(given.graph.initializers["w1"].const_value, onnx_ir.ExternalTensor)
    (tmp_path / "w.bin").unlink()
    assert found.graph.initializers["w1"].const_value.numpy().shape[0] == WIDTH // 2
    assert (found.meta["ours"], found.graph[0].meta["ours"]) == ("note", 1)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_constant_nodes_come_back_whole(kind: str, on_disk: bool, tmp_path: Path) -> None:
    model = message()
    for tensor in model.graph.initializer:
        node = onnx.helper.make_node("Constant", [], [tensor.name], name=f"make_{tensor.name}", value=tensor)
        model.graph.node.insert(0, node)
    del model.graph.initializer[:]
    given = as_kind(kind, model)
    if on_disk and kind == "ir":
        import onnx_ir

        onnx.save(
            as_kind("proto", model),
            tmp_path / "m.onnx",
            save_as_external_data=True,
            location="w.bin",
            size_threshold=0,
            convert_attribute=True,
        )
        given = onnx_ir.load(tmp_path / "m.onnx")
    found = prunec.prune_model(given)
    x = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    assert found.report.removed_channels == WIDTH // 2
    np.testing.assert_allclose(run(as_proto(found.model), x), run(model, x), rtol=1e-4, atol=1e-4)


def test_metadata_of_weights_do_not_pile_up() -> None:
    given = as_kind("ir", message())
    for _ in range(3):
        given = prunec.prune_model(given).model
    (kept,) = (t for t in as_proto(given).graph.initializer if t.name == "w2")
    assert {entry.key for entry in kept.metadata_props} <= {"who"}


@pytest.mark.parametrize("damage", ["cycle", "undefined", "empty"])
def test_a_damaged_message_is_told_by_its_name(damage: str) -> None:
    model = message(function=False)
    if damage == "cycle":
        model.graph.node[0].input[0] = "c"
    elif damage == "undefined":
        model.graph.node[2].input[1] = "nowhere"
    else:
        del model.graph.node[:]
    with pytest.raises(BadInput) as told:
        prunec.prune_model(model)
    assert "model.onnx" not in str(told.value)


def test_a_graph_that_cannot_be_exported_is_told() -> None:
    graph = as_kind("gs", message())
    graph.inputs[0].dtype = None
    with pytest.raises(BadInput, match="cannot export"):
        prunec.prune_model(graph)


def test_nothing_stays_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prunec.prune_model(message())
    assert list(tmp_path.iterdir()) == []


def test_big_weights_are_held_once_more_at_most() -> None:
    """The pruned model's own weights: measured in a process of its own, on one where none can go."""
    code = (
        "import resource, sys\n"
        "import numpy as np, onnx, prunec\n"
        "from onnx import helper, numpy_helper, TensorProto\n"
        "f = TensorProto.FLOAT\n"
        "v = lambda n, s: helper.make_tensor_value_info(n, f, s)\n"
        "def model(n):\n"
        "    w = np.ones((n, n), np.float32)\n"
        "    nodes = [helper.make_node('MatMul', ['x', 'w'], ['y'])]\n"
        "    g = helper.make_graph(nodes, 'g', [v('x', ['b', n])], [v('y', ['b', n])],"
        " [numpy_helper.from_array(w, 'w')])\n"
        "    return helper.make_model(g, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)\n"
        "prunec.prune_model(model(8), validate=False)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "m = model(6000)\n"
        "del_me = m.graph.initializer[0].raw_data; size = len(del_me) / 2**20; del del_me\n"
        "before = peak()\n"
        "out = prunec.prune_model(m, validate=False)\n"
        "print(size, peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    size, grown = map(float, done.stdout.split())
    assert grown < 2.2 * size, (size, grown)
