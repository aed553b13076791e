"""Weights that a file stores sparse: read as what they stand for, pruned, and written sparse where that is smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunec.api import analyze_onnx, prune_onnx
from prunec.errors import BadInput

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def flat(name: str, array: Array) -> onnx.SparseTensorProto:
    """Store the places of what is not zero in the flat array."""
    places = np.flatnonzero(array)
    values = numpy_helper.from_array(array.ravel()[places], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places), array.shape)


def by_axis(name: str, array: Array) -> onnx.SparseTensorProto:
    """Store one index per axis."""
    places = np.argwhere(array)
    values = numpy_helper.from_array(array[tuple(places.T)], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places), array.shape)


Form = Callable[[str, Array], onnx.SparseTensorProto]
FORMS: dict[str, tuple[str, Form]] = {
    "initializer": ("initializer", flat),
    "initializer, by axis": ("initializer", by_axis),
    "Constant": ("Constant", flat),
    "Constant, by axis": ("Constant", by_axis),
}


def weights() -> dict[str, Array]:
    draw = np.random.default_rng(0)
    found = {
        "first": draw.standard_normal((16, 3, 3, 3)),
        "second": draw.standard_normal((8, 16, 3, 3)),
        "last": draw.standard_normal((8, 5)),
    }
    for array in found.values():
        array[np.abs(array) < 1.6] = 0  # about a tenth is left
    found["first"][:4] = 0
    return {name: array.astype(np.float32) for name, array in found.items()}


def model(kind: str) -> onnx.ModelProto:
    holder, form = FORMS.get(kind, ("dense", flat))
    bias = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "first", "bias"], ["a"], "first_conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], "second_conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "last"], ["y"]),
    ]
    stored = {name: form(name if holder == "initializer" else "", array) for name, array in weights().items()}
    dense = weights() if holder == "dense" else {}
    if holder == "Constant":
        nodes = [*(helper.make_node("Constant", [], [name], sparse_value=t) for name, t in stored.items()), *nodes]
    graph = helper.make_graph(
        nodes,
        "sparse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(array, name) for name, array in {"bias": bias, **dense}.items()],
        sparse_initializer=list(stored.values()) if holder == "initializer" else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def outputs(path: Path) -> Array:
    x = np.random.default_rng(2).standard_normal((2, 3, 8, 8)).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize("kind", FORMS)
def test_sparse_weights_give_up_channels_and_stay_sparse(kind: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(model(kind), before)
    report = prune_onnx(before, after)
    onnx.save(model("dense"), tmp_path / "dense.onnx")
    assert report.removed_channels == prune_onnx(tmp_path / "dense.onnx", tmp_path / "b.onnx").removed_channels >= 3
    np.testing.assert_allclose(outputs(after), outputs(before), atol=1e-5)
    assert after.stat().st_size <= before.stat().st_size
    found = onnx.load(after)
    by_hand = [node for node in found.graph.node if any(a.name == "sparse_value" for a in node.attribute)]
    assert len(found.graph.sparse_initializer) + len(by_hand) >= 2


@pytest.mark.parametrize("kind", FORMS)
def test_sparse_weights_are_counted_and_pruned_by_score(kind: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(model(kind), before)
    assert analyze_onnx(before).params == 16 * 27 + 16 + 8 * 144 + 40
    report = prune_onnx(before, after, criterion="l1", target_macs=0.5)
    assert report.after.macs <= 0.5 * report.before.macs
    assert outputs(after).shape == (2, 5)


@pytest.mark.parametrize("damage", ["outside", "negative", "too few", "huge"])
def test_indices_that_do_not_fit_are_told(damage: str, tmp_path: Path) -> None:
    broken = model("initializer")
    tensor = broken.graph.sparse_initializer[0]
    places = numpy_helper.to_array(tensor.indices).copy()
    places[-1] = {"outside": 10**6, "negative": -1}.get(damage, places[-1])
    tensor.indices.CopyFrom(numpy_helper.from_array(places[1:] if damage == "too few" else places))
    if damage == "huge":
        del tensor.dims[:]
        tensor.dims.extend([2**20, 2**20, 3, 3])
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(BadInput, match="cannot read the tensor 'first'"):
        analyze_onnx(tmp_path / "broken.onnx")
