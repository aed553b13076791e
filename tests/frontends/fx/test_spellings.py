"""Less common spellings of networks: what a plan, a mask, a recount and a fresh module say of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from assertions import assert_same_function, parameter_elements, relative_error
from masking import Masked
from modules.computed_weights import ByHand, with_layer
from modules.networks import silence
from modules.spellings import SPELLINGS
from torch import nn
from torch.nn import functional as F

from prunec.api import analyze_module, prune_module
from prunec.backends.fx.backend import apply_edits
from prunec.errors import BadInput, UnsupportedModel
from prunec.frontends.fx.running.containers import tensors_in
from prunec.frontends.fx.running.meta import fake_tensors
from prunec.ir.plan import PrunePlan
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.budget import Target, select_budget
from prunec.passes.selection.criteria import score
from prunec.passes.selection.select import plan
from prunec.pipeline.apply import apply_plan
from prunec.pipeline.export import export_checked
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import input_specs, read_module

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

KEEPS_ALL = {"spectral", "tied"}
"""Spellings in which nothing is provably constant where it is read."""

WITHIN_A_MODULE = {"spectral_norm_hooks", "spectral_norm_parametrized"}
"""Spellings that contract weights where a mask on arguments does not reach."""


def make(name: str, zeros: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return silence(SPELLINGS[name].make(), zeros)


@pytest.mark.parametrize("name", SPELLINGS)
def test_exact_removal_computes_the_same(name: str) -> None:
    net, case = make(name), SPELLINGS[name]
    result = prune_module(net, case.inputs(), validate=False)
    assert result.plan.exact
    for grow in (0, 6):
        inputs = case.inputs(grow=grow)
        assert relative_error(_outputs(net, *inputs), _outputs(result.module, *inputs)) <= 1e-5


def _outputs(net: nn.Module, *inputs: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return tensors_in(net(*inputs))


@pytest.mark.parametrize("name", sorted(set(SPELLINGS) - WITHIN_A_MODULE))
def test_a_budget_computes_what_the_masked_network_does(name: str) -> None:
    net, inputs = make(name, 0.0).double(), tuple(i.double() for i in SPELLINGS[name].inputs())
    traced = read_module(net, inputs)
    facts = gather_facts(traced.graph)
    selection = select_budget(facts, score(facts, "l1"), Target(params=0.75))
    made = plan(facts, selection, input_specs(traced.graph, inputs))
    pruned = apply_edits(traced, lower(traced.graph, facts.classes, made, facts.constants))
    assert (~selection.keep).any()
    with torch.no_grad():
        expected = tensors_in(Masked(traced, facts, selection.keep).run(*inputs))
    assert relative_error(expected, _outputs(pruned, *inputs)) <= 1e-9


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_users_module_keeps_its_attributes(name: str) -> None:
    net = make(name)
    before = {path: set(vars(sub)) for path, sub in net.named_modules()}
    prune_module(net, SPELLINGS[name].inputs(), validate=False)
    assert {path: set(vars(sub)) for path, sub in net.named_modules()} == before


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_plan_applies_to_a_fresh_network_after_others_were_traced(name: str) -> None:
    net, inputs = make(name), SPELLINGS[name].inputs()
    analyze_module(net, inputs)  # a trace that came before must not change what tensors are called
    result = prune_module(net, inputs, validate=False)
    rebuilt = apply_plan(make(name), PrunePlan.from_json(result.plan.to_json()))
    rebuilt.load_state_dict(result.module.state_dict())
    assert relative_error(_outputs(result.module, *inputs), _outputs(rebuilt, *inputs)) == 0.0


@pytest.mark.parametrize("name", SPELLINGS)
def test_parameters_are_what_torch_calls_parameters(name: str) -> None:
    net = make(name)
    report = prune_module(net, SPELLINGS[name].inputs(), validate=False).report
    assert report.before.params == parameter_elements(net)
    assert report.after.params == parameter_elements(prune_module(net, SPELLINGS[name].inputs()).module)
    assert (report.removed_channels == 0) == (name in KEEPS_ALL)


def test_a_forward_that_keeps_tensors_is_left_without_what_tracing_made() -> None:
    net, inputs = make("caching"), SPELLINGS["caching"].inputs()
    analyze_module(net, inputs)
    assert net.cache == {}
    assert net.seen == []
    assert not hasattr(net, "last")
    expected = _outputs(net, *inputs)
    cached = net.cache["bias"]
    assert relative_error(expected, _outputs(prune_module(net, inputs, validate=False).module, *inputs)) <= 1e-5
    assert net.cache["bias"] is cached


def test_a_lazy_network_that_never_ran_is_refused_with_what_to_do() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    with pytest.raises(BadInput, match="run the network once"):
        analyze_module(net, (torch.zeros(1, 3, 8, 8),))
    net(torch.zeros(1, 3, 8, 8))
    assert analyze_module(net, (torch.zeros(1, 3, 8, 8),)).channels.total == 4


def test_the_inputs_of_a_weight_that_is_standardised_over_them_stay() -> None:
    result = prune_module(make("standardised_by_norm"), SPELLINGS["standardised_by_norm"].inputs(), validate=False)
    assert all(k.axis == 0 for k in result.plan.keeps if k.param == "weight")
    assert any("its statistics are those of its input" in pin.reason for pin in result.report.pins)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_recurrent_layer_gives_up_inputs_and_takes_their_constants(name: str) -> None:
    result = prune_module(make(name), SPELLINGS[name].inputs(), validate=False)
    layer = result.module.get_submodule("layer")
    assert isinstance(layer, nn.RNNBase)
    assert layer.input_size == layer.weight_ih_l0.shape[1] < 12
    assert layer.weight_hh_l0.shape[1] == layer.hidden_size == 7
    assert any(fold.target == "layer.bias_ih_l0" for fold in result.plan.folds)
    assert any("a recurrent state feeds itself" in pin.reason for pin in result.report.pins)


def test_buffers_keep_their_names() -> None:
    result = prune_module(make("frozen"), SPELLINGS["frozen"].inputs(), validate=False)
    names = set(result.module.state_dict())
    assert {"mask", "norm.weight", "norm.running_var"} <= names
    assert not any("constant" in name for name in names)


def test_a_dataclass_is_checked_and_exported(tmp_path: Path) -> None:
    net, inputs = make("dataclass"), SPELLINGS["dataclass"].inputs()
    result = prune_module(net, inputs)
    assert result.report.validation is not None
    assert result.report.validation.max_rel_error > 0
    assert_same_function_of_fields(net, result.module)
    check = export_checked(result.module, inputs, tmp_path / "net.onnx", original=net)
    assert check.passed


def assert_same_function_of_fields(net: nn.Module, pruned: nn.Module) -> None:
    inputs = SPELLINGS["dataclass"].inputs(grow=4)
    with torch.no_grad():
        expected, found = net(*inputs), pruned(*inputs)
    assert type(found) is type(expected)
    assert relative_error([expected.scores], [found.scores]) <= 1e-5
    assert relative_error([expected.extra["mask"]], [found.extra["mask"]]) <= 1e-5


def test_outputs_beyond_the_names_given_are_exported_under_their_own(tmp_path: Path) -> None:
    net, inputs = make("dataclass"), SPELLINGS["dataclass"].inputs()
    assert export_checked(net, inputs, tmp_path / "net.onnx", output_names=("first",)).passed


def test_a_forward_that_asks_whether_it_has_a_tensor_takes_the_branch_that_it_takes_when_it_runs() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return y if isinstance(y, torch.Tensor) else y * 2

    net, x = Asking(), torch.randn(2, 3, 8, 8)
    traced = read_module(net, (x,))
    assert not traced.exported
    assert_same_function(net, traced.module, x)


def test_a_network_that_returns_no_tensor_is_refused() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> int:
            self.conv(x)
            return 3

    with pytest.raises(UnsupportedModel, match="returns no tensor"):
        analyze_module(Silent(), (torch.zeros(1, 3, 8, 8),))


def test_an_op_that_fails_under_fake_tensors_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Torch logs it with its traceback; here a failure only means a pin."""
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), fake_tensors():
        torch.dot(torch.ones(3), torch.ones(4))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


FREED = [name for name in SPELLINGS if name.startswith(("weight_norm", "masked", "reparametrised"))]
"""Spellings whose weights are computed, and whose inputs can go all the same."""


@pytest.mark.parametrize("name", FREED)
def test_a_computed_weight_gives_up_as_many_channels_as_a_stored_one(name: str) -> None:
    result = prune_module(make(name), SPELLINGS[name].inputs(), validate=False)
    plain = prune_module(_stored(make(name)), SPELLINGS[name].inputs(), validate=False)
    assert result.report.removed_channels == plain.report.removed_channels > 0


def _stored(net: nn.Module) -> nn.Module:
    """Return the network with the weights that its layers compute stored, where PyTorch has a call for it."""
    for part in net.modules():
        if nn.utils.parametrize.is_parametrized(part):
            nn.utils.parametrize.remove_parametrizations(part, "weight")
        elif hasattr(part, "weight_g"):
            torch.nn.utils.remove_weight_norm(part)
        elif hasattr(part, "weight_mask"):
            torch.nn.utils.prune.remove(part, "weight")
    return net


def test_a_weight_of_which_no_input_is_left_is_zero_and_not_nan() -> None:
    net = make("weight_norm_hooks").double()
    with torch.no_grad():
        net[0][1].weight[4:] = 0
        net[0][1].bias[4:] = 0
        net[1].weight_v[3, :4] = 0
    result = prune_module(net, (torch.randn(2, 3, 16, 16, dtype=torch.float64),), validate=False)
    assert result.report.removed_channels > 4
    assert_same_function(net, result.module, torch.randn(2, 3, 16, 16, dtype=torch.float64))


def test_a_norm_that_something_else_reads_keeps_what_it_runs_over() -> None:
    class Penalised(ByHand):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.v.abs().sum()

    torch.manual_seed(0)
    net = silence(with_layer(Penalised)())
    result = prune_module(net, SPELLINGS["masked"].inputs(), validate=False)
    assert result.module.get_parameter("1.v").shape[1] == 8


def test_the_rank_of_a_computed_weight_goes_only_where_both_factors_are_zero() -> None:
    net, inputs = make("low_rank"), SPELLINGS["low_rank"].inputs()
    assert all(k.axis == 0 for k in prune_module(net, inputs).plan.keeps if k.param == "up")
    with torch.no_grad():
        net.up[:, 2], net.down[2] = 0, 0
    result = prune_module(net, inputs, validate=False)
    assert {k.param: k.keep for k in result.plan.keeps if k.axis == 1}["up"] == (0, 1, 3)
    assert_same_function(net, result.module, *inputs)


EXPORTED = ["temporal_shift", "half_written", "low_rank", "frozen", "weight_norm_hooks", "weight_norm_transposed"]


@pytest.mark.parametrize("name", [*EXPORTED, "weight_norm_twice", "masked_grouped", "reparametrised"])
def test_the_pruned_network_is_exported_as_it_computes(name: str, tmp_path: Path) -> None:
    net, inputs = make(name), SPELLINGS[name].inputs()
    result = prune_module(net, inputs, validate=False)
    assert export_checked(result.module, inputs, tmp_path / "net.onnx", original=net).passed


@pytest.mark.parametrize("name", ["spectral_norm_hooks", "spectral_norm_parametrized"])
def test_what_a_spectral_norm_keeps_is_told_with_what_helps(name: str) -> None:
    result = prune_module(make(name), SPELLINGS[name].inputs(), validate=False)
    assert any("store the weight first" in held.reason for held in result.report.blocked)


def test_a_weight_that_is_divided_by_its_norm_keeps_inputs_and_says_what_helps() -> None:
    class Cosine(ByHand):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, F.normalize(self.v.flatten(1)).view_as(self.v), padding=1)

    torch.manual_seed(0)
    net = silence(with_layer(Cosine)())
    result = prune_module(net, SPELLINGS["masked"].inputs(), validate=False)
    assert result.module.get_parameter("1.v").shape[1] == 8
    assert any("store the weight first" in pin.reason for pin in result.report.pins)
