"""Damaged, hostile and unsuitable ONNX files: one clear message each, in bounded time and memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models.nets import Net

from prunec.api import analyze_onnx, prune_onnx
from prunec.check.blame import judged
from prunec.errors import BadInput, InternalError, PrunecError, UnsupportedModel
from prunec.frontends.onnx.frontend import load_onnx, trace_onnx


def small_net(constants: str = "initializer") -> onnx.ModelProto:
    net = Net(13, constants=constants)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
    net.output(net.conv(net.op("Relu", x), 8, 4))
    return net.model()


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """No file may cost more than seconds, or memory out of proportion."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert time.process_time() - start < 20, "took too long"  # other work on the machine does not count
    assert grown < 500e6, f"took {grown / 1e6:.0f} MB"


def refused(path: Path, kind: type[PrunecError] = BadInput) -> str:
    """Return the message with which a file is refused; it must say what is wrong."""
    with pytest.raises(kind) as caught:
        trace_onnx(load_onnx(path))
    text = str(caught.value)
    assert text.startswith(f"error[{kind.code}]: ")
    assert len(text) < 2000
    return text


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"hello, world\n" * 40,
        b"\x08\x07",
        bytes(range(256)) * 8,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    ],
)
def test_file_that_is_not_onnx(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    text = refused(path)
    assert "is empty" in text if not content else ("not an ONNX model" in text or "graph" in text)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "absent.onnx")
    assert "is not a file" in refused(tmp_path)


def test_truncated_at_every_length(tmp_path: Path) -> None:
    """Whatever part of a file arrives: a message, never a crash and never a model with garbage for weights."""
    whole = small_net().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in [*range(1, 60), *range(60, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(PrunecError):
            trace_onnx(load_onnx(path))


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    whole = bytearray(small_net().SerializeToString())
    path, rng = tmp_path / "model.onnx", np.random.default_rng(0)
    told = []
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        with contextlib.suppress(PrunecError):
            trace_onnx(load_onnx(path))
            continue
        told.append(len(data))
    assert 0 < len(told) < 400, "some bytes are weights, some are structure"


def test_cycle(tmp_path: Path) -> None:
    model = small_net()
    model.graph.node[0].input[0] = model.graph.node[1].output[0]
    assert "cycle" in refused(saved(model, tmp_path))


def test_nodes_in_the_wrong_order_are_no_cycle(tmp_path: Path) -> None:
    model = small_net()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert len(trace_onnx(load_onnx(saved(model, tmp_path))).graph.nodes) == 3


def test_missing_initializer(tmp_path: Path) -> None:
    model = small_net()
    name = model.graph.initializer[0].name
    del model.graph.initializer[0]
    text = refused(saved(model, tmp_path))
    assert repr(name) in text
    assert "nothing defines" in text


def test_missing_output(tmp_path: Path) -> None:
    model = small_net()
    model.graph.output[0].name = "nowhere"
    assert "nothing computes the output 'nowhere'" in refused(saved(model, tmp_path))


def test_empty_graph(tmp_path: Path) -> None:
    model = small_net()
    del model.graph.node[:]
    assert "empty" in refused(saved(model, tmp_path))


def duplicate_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])


def duplicate_value(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def duplicate_input(model: onnx.ModelProto) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])


@pytest.mark.parametrize("spoil", [duplicate_initializer, duplicate_value, duplicate_input])
def test_names_defined_twice(spoil: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = small_net()
    spoil(model)
    assert "twice" in refused(saved(model, tmp_path))


def weight_for_other_input(model: onnx.ModelProto) -> None:
    replace(model, 0, np.zeros((8, 5, 3, 3), np.float32))


def bias_of_other_size(model: onnx.ModelProto) -> None:
    replace(model, 1, np.zeros(7, np.float32))


def weight_without_kernel(model: onnx.ModelProto) -> None:
    replace(model, 0, np.zeros((8, 3, 3), np.float32))


def groups_that_do_not_divide(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("group", 5))


def replace(model: onnx.ModelProto, index: int, array: np.ndarray) -> None:  # type: ignore[type-arg]  # any dtype
    name = model.graph.initializer[index].name
    model.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, name))


@pytest.mark.parametrize(
    "spoil", [weight_for_other_input, bias_of_other_size, weight_without_kernel, groups_that_do_not_divide]
)
def test_wrong_shapes(spoil: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = small_net()
    spoil(model)
    text = refused(saved(model, tmp_path))
    assert "node_conv" in text


def test_wrong_shapes_of_other_ops(tmp_path: Path) -> None:
    for kind, other in (("Add", (7, 1, 1)), ("Mul", (1, 5, 6, 6)), ("Concat", (1, 8, 5, 6)), ("MatMul", (7, 3))):
        net = Net(13)
        x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
        attrs = {"axis": 1} if kind == "Concat" else {}
        net.output(net.op(kind, x, net.const(np.zeros(other, np.float32)), **attrs), shape=[1, 8, 6, 6])
        assert kind.lower() in refused(saved(net.model(), tmp_path))


def test_axis_of_a_single_scale_means_nothing(tmp_path: Path) -> None:
    net = Net(13)
    unit = (net.const(np.float32(0.1)), net.const(np.int8(0)))
    one = net.op("DequantizeLinear", net.op("QuantizeLinear", net.input("eps", []), *unit, axis=0), *unit, axis=3)
    net.output(net.op("Add", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8), one))
    assert trace_onnx(load_onnx(saved(net.model(), tmp_path))).graph.nodes


def test_dims_that_overflow(tmp_path: Path) -> None:
    for dims in ([2**40, 2**40], [2**62, 8], [-1, 8], [2**31]):
        model = small_net()
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        assert "dims" in refused(saved(model, tmp_path))


def test_input_that_overflows(tmp_path: Path) -> None:
    model = small_net()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**60
    assert "no tensor can be that large" in refused(saved(model, tmp_path))


def test_data_shorter_than_its_dims(tmp_path: Path) -> None:
    model = small_net()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    assert "bytes" in refused(saved(model, tmp_path))
    del model.graph.initializer[:]
    tensor = TensorProto(name="w1", data_type=TensorProto.FLOAT, dims=[8, 3, 3, 3], float_data=[1.0, 2.0])
    model.graph.initializer.extend([tensor, numpy_helper.from_array(np.zeros(8, np.float32), "b2")])
    refused(saved(model, tmp_path))


@pytest.mark.parametrize("op", ["ConstantOfShape", "Tile", "Expand", "Range", "Pad", "Resize"])
def test_small_file_that_asks_for_a_huge_tensor(op: str, tmp_path: Path) -> None:
    """Some 100 bytes that stand for terabytes are not built."""
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
    one, huge = net.const(np.ones((1, 1, 1, 1), np.float32)), 2**30
    made = {
        "ConstantOfShape": lambda: net.op("ConstantOfShape", net.ints(1, huge, huge, 1)),
        "Tile": lambda: net.op("Tile", one, net.ints(1, huge, huge, 1)),
        "Expand": lambda: net.op("Expand", one, net.ints(1, huge, huge, 1)),
        "Range": lambda: net.op(
            "Range", net.const(0.0, np.float32), net.const(1e18, np.float32), net.const(1.0, np.float32)
        ),
        "Pad": lambda: net.op("Pad", one, net.ints(0, huge, huge, 0, 0, 0, 0, 0)),
        "Resize": lambda: net.op("Resize", one, "", net.const([1, 1e9, 1e9, 1], np.float32)),
    }[op]()
    pooled = net.op("ReduceMax", made, keepdims=1)
    net.output(net.op("Add", x, net.op("Reshape", pooled, net.ints(1, 1, 1, -1))), shape=[1, 8, 6, 6])
    path = saved(net.model(), tmp_path)
    try:
        graph = trace_onnx(load_onnx(path)).graph
    except PrunecError:
        return
    assert sum(param.array.nbytes for param in graph.params.values() if any(param.array.strides)) < 1e6


def test_functions_that_multiply_without_end(tmp_path: Path) -> None:
    model = small_net()
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("f", 1)]
    model.opset_import.append(helper.make_opsetid("f", 1))
    for level in range(40):
        below = f"F{level - 1}" if level else "Relu"
        domain = "f" if level else ""
        body = [
            helper.make_node(below, ["a"], ["b"], domain=domain),
            helper.make_node(below, ["b"], ["c"], domain=domain),
        ]
        model.functions.append(helper.make_function("f", f"F{level}", ["a"], ["c"], body, opsets))
    model.graph.node[1].op_type, model.graph.node[1].domain = "F39", "f"
    assert "functions expand" in refused(saved(model, tmp_path))


def test_function_that_calls_itself(tmp_path: Path) -> None:
    model = small_net()
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("f", 1)]
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.functions.append(
        helper.make_function("f", "F", ["a"], ["b"], [helper.make_node("F", ["a"], ["b"], domain="f")], opsets)
    )
    model.graph.node[1].op_type, model.graph.node[1].domain = "F", "f"
    assert "calls itself" in refused(saved(model, tmp_path))


@pytest.mark.parametrize("opset", [1, 3, 6])
def test_opsets_before_7(opset: int, tmp_path: Path) -> None:
    model = small_net()
    model.opset_import[0].version = opset
    text = refused(saved(model, tmp_path), UnsupportedModel)
    assert f"opset {opset}" in text
    assert "version_converter" in text


def test_no_opset_at_all(tmp_path: Path) -> None:
    model = small_net()
    del model.opset_import[:]
    assert "opset 1" in refused(saved(model, tmp_path), UnsupportedModel)


def test_training_graphs(tmp_path: Path) -> None:
    model = small_net()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Gradient", "ai.onnx.preview.training"
    assert "training graph (Gradient)" in refused(saved(model, tmp_path), UnsupportedModel)
    model = small_net()
    model.training_info.add()
    assert "training" in refused(saved(model, tmp_path), UnsupportedModel)


@pytest.mark.parametrize(("domain", "op"), [("com.microsoft.nchwc", "Conv"), ("com.microsoft", "EPContext")])
def test_files_compiled_for_a_machine(domain: str, op: str, tmp_path: Path) -> None:
    model = small_net()
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.domain, node.op_type, node.name = domain, op, "blocked"
    model.opset_import.append(helper.make_opsetid(domain, 1))
    text = refused(saved(model, tmp_path), UnsupportedModel)
    assert "the model was compiled for one kind of machine: 1 of its" in text
    assert f"'blocked' ({domain}.{op})" in text
    assert "ORT_ENABLE_EXTENDED" in text


def test_what_the_runtime_saves_at_its_last_level_says_what_it_is(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    path = saved(small_net(), tmp_path)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if not any(node.domain.endswith("nchwc") for node in onnx.load(tmp_path / "optimised.onnx").graph.node):
        pytest.skip("this machine has no kernels on blocks of channels")
    assert "nchwc.Conv" in refused(tmp_path / "optimised.onnx", UnsupportedModel)


def test_attribute_of_the_wrong_kind(tmp_path: Path) -> None:
    model = small_net()
    model.graph.node[0].attribute.append(helper.make_attribute("strides", "two"))
    assert "node_conv" in refused(saved(model, tmp_path))
    model = small_net()
    pads = next(a for a in model.graph.node[0].attribute if a.name == "pads")
    pads.ints.append(3)
    assert "must be one" in refused(saved(model, tmp_path))


def test_missing_required_attribute(tmp_path: Path) -> None:
    net = Net(13)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
    net.output(net.op("DepthToSpace", x), shape=[1, 2, 12, 12])
    assert "not well formed" in refused(saved(net.model(), tmp_path))


# --- external data ------------------------------------------------------------------------------------


def external(folder: Path, location: str, **entries: str) -> Path:
    model = small_net()
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (folder / "weights.bin").write_bytes(data)
    return saved(model, folder)


def test_external_data_is_read(tmp_path: Path) -> None:
    graph = trace_onnx(load_onnx(external(tmp_path, "weights.bin"))).graph
    assert np.abs(graph.params["w1"].array).sum() > 0


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "", "link.bin"])
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 1000)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    assert "outside the model's folder" in refused(external(folder, location))


@pytest.mark.parametrize(
    ("location", "entries", "what"),
    [
        ("absent.bin", {}, "there is no file"),
        ("weights.bin", {"offset": "500"}, "bytes"),
        ("weights.bin", {"length": "99999999"}, "should lie at bytes"),
        ("weights.bin", {"offset": "-8"}, "should lie at bytes"),
        ("weights.bin", {"offset": "0x10"}, "offset '0x10'"),
        ("weights.bin", {"length": "8"}, "need 864 bytes"),
    ],
)
def test_external_data_that_does_not_fit(location: str, entries: dict[str, str], what: str, tmp_path: Path) -> None:
    assert what in refused(external(tmp_path, location, **entries))


def test_external_data_of_a_model_from_memory(tmp_path: Path) -> None:
    model = onnx.load(external(tmp_path, "weights.bin"), load_external_data=False)
    with pytest.raises(BadInput, match=r"path of the \.onnx file"):
        trace_onnx(model)


@pytest.mark.parametrize("command", ["analyze", "prune"])
@pytest.mark.parametrize("damage", ["no-input", "long-permutation", "wrong-axis"])
def test_node_that_breaks_the_specification_is_the_files_fault(damage: str, command: str, tmp_path: Path) -> None:
    """The message names the node, its op and what is wrong with it, and no file is written."""
    net = Net(13)
    x = net.op("Transpose", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8), perm=[0, 2, 3, 1])
    net.output(net.conv(net.op("Transpose", net.op("Relu", x), perm=[0, 3, 1, 2]), 8, 4))
    model = net.model()
    if damage == "no-input":
        next(node for node in model.graph.node if node.op_type == "Relu").input[0] = ""
    else:
        extra = 7 if damage == "long-permutation" else -3
        model.graph.node[1].attribute[0].ints.append(extra)
    path, result = tmp_path / "broken.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    broken = "Relu" if damage == "no-input" else "Transpose"
    name = next(node.name for node in model.graph.node if node.op_type == broken)
    with pytest.raises(BadInput, match=rf"node '{name}' \({broken}, opset 13\) is not well formed"):
        analyze_onnx(path) if command == "analyze" else prune_onnx(path, result)
    assert [file.name for file in tmp_path.iterdir()] == ["broken.onnx"]


@pytest.mark.parametrize(
    ("op", "attributes", "opset"),
    [
        ("Softmax", {"axis": 4}, 13),
        ("Concat", {"axis": -5}, 13),
        ("Squeeze", {"axes": [7]}, 11),
        ("ReduceMean", {"axes": [1, -6]}, 13),
        ("Split", {"axis": 9}, 11),
        ("ArgMax", {"axis": 4}, 13),
        ("Flatten", {"axis": 5}, 13),
        ("Transpose", {"perm": [0, 1, 1, 2]}, 13),
        ("DepthToSpace", {"blocksize": 0}, 13),
    ],
)
def test_axis_that_there_is_not(op: str, attributes: dict[str, Any], opset: int, tmp_path: Path) -> None:
    net = Net(opset)
    x = net.conv(net.input("x", [1, 3, 6, 6]), 3, 8)
    net.output(net.op(op, *([x, x] if op == "Concat" else [x]), **attributes), shape=None)
    text = refused(saved(net.model(), tmp_path))
    assert f"({op}, opset {opset}) is not well formed" in text
    assert "why:" in text


def test_file_that_loads_and_does_not_run_is_at_fault(tmp_path: Path) -> None:
    """The checker looks into no shapes of recurrent weights, and ONNX Runtime looks when it runs."""
    net = Net(13)
    x = net.op("Reshape", net.conv(net.input("x", [1, 3, 6, 6]), 3, 8), net.ints(8, 1, 36))
    weights = [net.const(net.weight(1, 8, size)) for size in (7, 2)]
    net.output(net.op("LSTM", x, *weights, hidden_size=2), shape=[8, 1, 1, 2])
    path = tmp_path / "broken.onnx"
    onnx.save(net.model(), path)
    with pytest.raises(BadInput, match="not a valid ONNX model"):
        analyze_onnx(path)


def test_crash_on_a_valid_file_stays_a_fault_of_prunec(tmp_path: Path) -> None:
    net = Net(13)
    net.output(net.conv(net.input("x", [1, 3, 6, 6]), 3, 8))
    onnx.save(net.model(), tmp_path / "fine.onnx")
    with pytest.raises(IndexError):
        stumble(tmp_path / "fine.onnx")


@pytest.mark.parametrize("holds", ["sizes", "open sizes", "an index"])
def test_file_that_refuses_random_inputs_is_not_at_fault_for_a_crash(holds: str, tmp_path: Path) -> None:
    """Random numbers are no sizes, and 224 no size that a network of nine rows takes."""
    net = Net(13)
    if holds == "sizes":
        net.output(
            net.op("Reshape", net.input("x", [1, 3, 6, 6]), net.input("shape", [3], TensorProto.INT64)), shape="abc"
        )
    elif holds == "open sizes":
        net.output(net.op("Add", net.input("x", [1, "h"]), net.const(np.ones((1, 9), np.float32))), shape=[1, 9])
    else:
        index = net.input("i", [1], TensorProto.INT32)
        net.output(net.op("Gather", net.input("x", [0, 3]), index), shape="ab")
    onnx.save(net.model(), tmp_path / "fine.onnx")
    with pytest.raises(IndexError):
        stumble(tmp_path / "fine.onnx")


@judged
def stumble(path: str | Path) -> None:
    raise IndexError(path)


@pytest.mark.parametrize(
    "error", [KeyError("axis"), TypeError("'NoneType' object is not iterable"), AttributeError("x")]
)
def test_row_that_fails_on_a_good_node_is_a_fault_of_prunec(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(view: object) -> None:
        raise error

    monkeypatch.setattr("prunec.frontends.onnx.frontend.translate", row)
    path = saved(small_net(), tmp_path)
    with pytest.raises(InternalError, match=r"the row for Conv failed at node 'node_conv.*' \(Conv, opset 13\)"):
        analyze_onnx(path)
