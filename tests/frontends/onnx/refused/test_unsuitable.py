"""Files of other kinds: old opsets, training graphs, files compiled for one machine."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_models.refused import refused, saved, small_net

from prunec.errors import UnsupportedModel


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
