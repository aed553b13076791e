"""A plan made of an ONNX file, applied to it again, and to a file with the same graph and other weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from onnx_models.nets import random_feeds, run

import prunec
from prunec.cli.main import main
from prunec.errors import BadPlan
from prunec.ir.plan import PrunePlan
from prunec.models import build
from prunec.pipeline.apply_onnx import apply_plan_onnx


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "resnet20.onnx"
    torch.manual_seed(0)
    prunec.export_onnx(build("resnet20").eval(), (torch.zeros(1, 3, 32, 32),), path)
    return path


def test_a_files_plan_does_the_same_again(network: Path, tmp_path: Path) -> None:
    pruned, plan_file = tmp_path / "half.onnx", tmp_path / "plan.json"
    report = prunec.prune_onnx(network, pruned, criterion="l1", target_macs=0.5, plan_file=plan_file)
    assert report.removed_channels
    apply_plan_onnx(network, PrunePlan.load(plan_file), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == pruned.read_bytes()


def test_a_plan_fits_other_weights(network: Path, tmp_path: Path) -> None:
    plan_file = tmp_path / "plan.json"
    prunec.prune_onnx(network, tmp_path / "half.onnx", criterion="l1", target_macs=0.5, plan_file=plan_file)
    model = onnx.load(network)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array * np.float32(0.5), tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    apply_plan_onnx(tmp_path / "other.onnx", PrunePlan.load(plan_file), tmp_path / "other-half.onnx")
    feeds = random_feeds(model)
    (wanted,), (found,) = run(tmp_path / "half.onnx", feeds), run(tmp_path / "other-half.onnx", feeds)
    assert found.shape == wanted.shape
    assert not np.allclose(found, wanted)
    sizes = [
        sum(np.prod(t.dims) for t in onnx.load(tmp_path / f"{n}.onnx").graph.initializer)
        for n in ("half", "other-half")
    ]
    assert sizes[0] == sizes[1]


def test_a_plan_of_another_network_is_refused(network: Path, tmp_path: Path) -> None:
    plan_file = tmp_path / "plan.json"
    prunec.prune_onnx(network, tmp_path / "half.onnx", criterion="l1", target_macs=0.5, plan_file=plan_file)
    other = tmp_path / "resnet32.onnx"
    prunec.export_onnx(build("convnet").eval(), (torch.zeros(1, 3, 32, 32),), other)
    with pytest.raises(BadPlan):
        apply_plan_onnx(other, PrunePlan.load(plan_file), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("change", ["name", "size"])
def test_a_plan_for_another_input_is_refused_as_a_plan(network: Path, tmp_path: Path, change: str) -> None:
    fixed, plan_file = tmp_path / "fixed.onnx", tmp_path / "plan.json"
    other = onnx.load(network)
    for dimension, size in zip(other.graph.input[0].type.tensor_type.shape.dim, (1, 3, 32, 32), strict=True):
        dimension.dim_value = size
    onnx.save(other, fixed)
    prunec.prune_onnx(fixed, tmp_path / "half.onnx", criterion="l1", target_macs=0.5, plan_file=plan_file)
    if change == "name":
        old, other.graph.input[0].name = other.graph.input[0].name, "picture"
        for node in other.graph.node:
            node.input[:] = ["picture" if name == old else name for name in node.input]
    else:
        for axis in (2, 3):
            other.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 64
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(BadPlan, match=r"the plan does not fit the file: .* input"):
        apply_plan_onnx(tmp_path / "other.onnx", PrunePlan.load(plan_file), tmp_path / "out.onnx")


def test_a_plan_of_several_prunings_is_for_modules(network: Path, tmp_path: Path) -> None:
    nothing = PrunePlan(())
    with pytest.raises(BadPlan, match="several prunings"):
        apply_plan_onnx(network, nothing.after(nothing), tmp_path / "out.onnx")


@pytest.mark.parametrize("kind", ["file", "module"])
def test_the_command_writes_the_plan(network: Path, tmp_path: Path, kind: str) -> None:
    model, out, plan_file = str(network) if kind == "file" else "digits", tmp_path / "o.onnx", tmp_path / "p.json"
    arguments = ["prune", model, "-o", str(out), "--criterion", "l1", "--target-macs", "0.5", "--plan", str(plan_file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert not PrunePlan.load(plan_file).is_empty
    refused = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "p.onnx")])
    assert refused.exit_code != 0
    assert not (tmp_path / "p.onnx").exists()


def test_the_plan_of_a_file_that_loses_nothing_is_empty(network: Path, tmp_path: Path) -> None:
    prunec.prune_onnx(network, tmp_path / "same.onnx", plan_file=tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json").is_empty
