"""prunec as a pass of others: torch.fx, torch.export, onnx_ir with onnxscript's optimiser, Olive."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from modules import networks
from onnx_models.dead_channels import WIDTH, Module, as_kind, as_proto, dims, message
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager
from torch.fx.passes.shape_prop import ShapeProp

import prunec
from prunec.errors import BadInput
from prunec.toolchain.fx_pass import PruneChannels as FxPass
from prunec.toolchain.ir_pass import PruneChannels as IrPass

X = torch.randn(2, 3, 8, 8)


def relu_to_relu6(module: fx.GraphModule) -> PassResult:
    """Another pass of the pipeline: it finds modules through nn_module_stack."""
    stacks = [node.meta.get("nn_module_stack") for node in module.graph.nodes if node.op == "call_module"]
    assert all(stacks)
    return PassResult(module, False)


def test_the_fx_pass_runs_in_a_pass_manager_and_keeps_meta() -> None:
    module = Module().eval()
    traced = fx.symbolic_trace(module)
    ShapeProp(traced).propagate(X)
    for node in traced.graph.nodes:
        node.meta["ours"] = node.name
    step = FxPass((X,))
    result = PassManager(passes=[step, relu_to_relu6], steps=1)(traced)
    smaller = result.graph_module
    assert result.modified
    torch.testing.assert_close(smaller(X), module(X))
    assert [node.name for node in smaller.graph.nodes] == [node.name for node in traced.graph.nodes]
    assert [node.meta["ours"] for node in smaller.graph.nodes] == [node.name for node in traced.graph.nodes]
    shapes = {node.name: tuple(node.meta["tensor_meta"].shape) for node in smaller.graph.nodes if node.op != "output"}
    assert shapes["stem_0"] == (2, 8, 8, 8)
    assert traced.get_submodule("stem.0").weight.shape[0] == 16
    assert step.report is not None
    assert step.report.removed_channels == 8


def test_the_fx_pass_takes_fake_values_anew() -> None:
    traced = fx.symbolic_trace(Module().eval())
    FakeTensorProp(traced, mode=FakeTensorMode(allow_non_fake_inputs=True)).propagate(X)
    smaller = FxPass((X,))(traced).graph_module
    assert {n.name: tuple(n.meta["val"].shape) for n in smaller.graph.nodes if n.op != "output"}["stem_2"][1] == 8


def test_the_fx_pass_says_when_it_changed_nothing() -> None:
    traced = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval())
    result = FxPass((X,))(traced)
    assert (result.graph_module, result.modified) == (traced, False)


def test_the_fx_pass_takes_options() -> None:
    traced = fx.symbolic_trace(Module(32).eval())
    step = FxPass((X,), criterion="l1", target_macs=0.25, multiple_of=4)
    assert step(traced).graph_module.get_submodule("stem.0").weight.shape[0] % 4 == 0


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # torch's, to itself
@pytest.mark.parametrize("decomposed", [False, True])
def test_an_exported_program_comes_back_as_one(decomposed: bool) -> None:
    module = Module().eval()
    open_sizes = ({0: Dim("batch", min=1, max=32), 2: Dim.AUTO},)
    program = torch.export.export(module, (X,), dynamic_shapes=open_sizes)
    if decomposed:
        program = program.run_decompositions()
    before = str(program.graph_module.code)
    found = prunec.prune_model(program)
    assert isinstance(found.model, torch.export.ExportedProgram)
    assert found.report.removed_channels == 8
    assert str(program.graph_module.code) == before
    for size in ((2, 3, 8, 8), (5, 3, 12, 8)):
        x = torch.randn(size)
        torch.testing.assert_close(found.model.module()(x), module(x))
    assert any(value.size(0) == 8 for value in found.model.state_dict.values() if value.ndim == 4)
    again = prunec.apply_plan(program, found.plan)
    torch.testing.assert_close(again.module()(X), module(X))
    assert prunec.analyze_model(program).to_json_dict()


def test_an_exported_program_that_is_saved_can_be_loaded(tmp_path: Path) -> None:
    program = torch.export.export(Module().eval(), (X,))
    torch.export.save(prunec.prune_model(program).model, tmp_path / "p.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "p.pt2").module()(X), program.module()(X))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's, to itself
@pytest.mark.parametrize(
    "name", ["densenet", "googlenet", "mobilenetv2", "shufflenetv2", "unet", "resnext", "pixel_shuffle", "conv1d"]
)
def test_programs_lose_as_many_channels_as_modules(name: str) -> None:
    module, inputs = networks.make(name), networks.NETWORKS[name].inputs()
    program = torch.export.export(module, inputs, dynamic_shapes=({0: Dim("batch", min=1, max=16)},))
    found = prunec.prune_model(program)
    expected = prunec.prune_module(module, inputs, validate=False).report
    assert found.report.removed_channels == expected.removed_channels > 0
    other = networks.NETWORKS[name].inputs(batch=3, seed=5)
    torch.testing.assert_close(found.model.module()(*other), module(*other), rtol=1e-4, atol=1e-4)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Module()

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.net(x)
        return {"scaled": y * scale, "plain": y}


def test_several_inputs_and_named_outputs_stay() -> None:
    module, scale = TwoInputs().eval(), torch.full((4,), 2.0)
    program = torch.export.export(module, (X, scale))
    found = prunec.prune_model(program).model.module()(X, scale)
    torch.testing.assert_close(found, module(X, scale))


def test_nested_inputs_are_told() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Module()

        def forward(self, pair: list[torch.Tensor]) -> torch.Tensor:
            return self.net(pair[0] + pair[1])

    program = torch.export.export(Pair().eval(), ([X, X],))
    with pytest.raises(BadInput, match="lists, tuples or dicts"):
        prunec.prune_model(program)


def test_keyword_inputs_are_told() -> None:
    program = torch.export.export(Module().eval(), (), {"x": X})
    with pytest.raises(BadInput, match="by keyword: x"):
        prunec.prune_model(program)


def test_the_onnx_ir_pass_runs_in_a_pipeline_with_the_optimiser() -> None:
    from onnxscript import optimizer

    model = as_kind("ir", message())
    step = IrPass()
    result = ir.passes.Sequential(step, ir.passes.common.RemoveUnusedNodesPass())(model)
    assert result.modified
    assert step.report is not None
    assert step.report.removed_channels == WIDTH // 2
    optimizer.optimize_ir(result.model)
    assert dims(as_proto(result.model))["w1"][0] == WIDTH // 2
    assert model.graph.initializers["w1"].shape == (WIDTH, 3, 3, 3)
    onnx.checker.check_model(as_proto(result.model))


def test_the_onnx_ir_pass_in_a_pass_manager_stops_when_nothing_is_left() -> None:
    manager = ir.passes.PassManager([IrPass()], steps=3, early_stop=True)
    assert dims(as_proto(manager(as_kind("ir", message())).model))["w1"][0] == WIDTH // 2


@pytest.mark.skipif(importlib.util.find_spec("olive") is None, reason="olive-ai is not installed")
def test_the_olive_surgeon_prunes_in_a_workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLIVE_DISABLE_TELEMETRY", "1")
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.graph_surgeries import GraphSurgeries

    import prunec.toolchain.olive_surgeon  # noqa: F401  # Olive finds the surgeon among the loaded ones

    onnx.save(message(), tmp_path / "m.onnx")
    step = create_pass_from_dict(GraphSurgeries, {"surgeries": [{"surgeon": "PruneChannels"}]}, disable_search=True)
    out = step.run(ONNXModelHandler(str(tmp_path / "m.onnx")), str(tmp_path / "out"))
    assert dims(onnx.load(out.model_path))["w1"][0] == WIDTH // 2


def test_torch_compile_and_export_take_a_pruned_module() -> None:
    module = Module().eval()
    pruned = prunec.prune_module(module, (X,)).module
    compiled = torch.compile(pruned, backend="eager")
    torch.testing.assert_close(compiled(X), module(X))
    exported = torch.export.export(pruned, (X,))
    np.testing.assert_allclose(exported.module()(X).detach(), module(X).detach(), rtol=1e-4, atol=1e-5)
