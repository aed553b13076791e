"""Whole networks with gammas zeroed at random and betas left alone: what exact removal promises on each of them."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from assertions import assert_same_function, contraction_macs, outputs_of, parameter_elements, relative_error
from modules.networks import CONSTANT_CHANNEL_NETWORKS, NETWORKS, Basic, Head, cbr, make, silence
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunec.api import Pruned, prune_module
from prunec.errors import BadInput, BadPlan, BudgetNotMet, UnsupportedModel
from prunec.ir.plan import PrunePlan
from prunec.pipeline.apply import apply_plan

NOTHING_TO_REMOVE = {"convnext", "attention", "shared_module", "in_place"}
"""Networks of the table in which no channel can go, each for a reason of its own."""


@functools.cache
def prune(name: str) -> tuple[nn.Module, Pruned]:
    """Prune a network of the table once; tests read the result and leave it as it is."""
    net = make(name)
    return net, prune_module(net, NETWORKS[name].inputs(), validate=False)


def assert_same_on_inputs(original: nn.Module, pruned: nn.Module, *inputs: Tensor, tolerance: float = 1e-5) -> None:
    expected = outputs_of(original, *[i.clone() for i in inputs])
    error = relative_error(expected, outputs_of(pruned, *[i.clone() for i in inputs]))
    assert error <= tolerance, f"outputs differ by {error:.2e} on {[tuple(i.shape) for i in inputs]}"


# --- exact removal ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_removal_computes_the_same_at_several_sizes(name: str) -> None:
    (net, result), case = prune(name), NETWORKS[name]
    assert result.plan.exact
    for grow in (0, 4, 16) if case.any_size else (0,):
        assert_same_on_inputs(net, result.module, *case.inputs(grow=grow))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_report_is_a_recount_of_the_result(name: str) -> None:
    net, result = prune(name)
    report, inputs = result.report, NETWORKS[name].inputs()
    assert report.before.params == parameter_elements(net)
    assert report.after.params == parameter_elements(result.module)
    if len(inputs) == 1 and name not in ("weight_norm", "export_only", "opaque_leaf", "attention", "in_place"):
        assert report.before.macs == contraction_macs(net, inputs[0])
        assert report.after.macs == contraction_macs(result.module, inputs[0])


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - NOTHING_TO_REMOVE))
def test_parameters_and_macs_fall(name: str) -> None:
    _, result = prune(name)
    report = result.report
    assert report.removed_channels > 0
    assert report.after.params < report.before.params
    assert report.after.macs < report.before.macs
    assert report.message == ""


@pytest.mark.parametrize("name", CONSTANT_CHANNEL_NETWORKS)
def test_most_of_a_convolutional_network_goes(name: str) -> None:
    """Half of the gammas are zero; residual streams and depthwise borders hold some of them."""
    _, result = prune(name)
    assert result.report.after.params < 0.65 * result.report.before.params


@pytest.mark.parametrize("name", sorted(NOTHING_TO_REMOVE))
def test_a_run_that_removes_nothing_says_so_and_why(name: str) -> None:
    net, result = prune(name)
    assert result.plan.is_empty
    assert result.report.removed_channels == 0
    assert result.report.message.startswith("nothing was removed: ")
    assert result.report.after == result.report.before
    assert_same_on_inputs(net, result.module, *NETWORKS[name].inputs())


REASONS = {
    "convnext": "no channel is provably constant or dead",
    "attention": "its other operand still varies",
    "in_place": "its other operand still varies",
    "shared_module": "",
}


@pytest.mark.parametrize("name", sorted(NOTHING_TO_REMOVE))
def test_the_message_of_a_run_that_removes_nothing_has_the_reason(name: str) -> None:
    _, result = prune(name)
    assert REASONS[name] in result.report.message
    if result.report.blocked:
        held = max(result.report.blocked, key=lambda item: item.channels)
        assert held.node in result.report.message


def test_what_survives_is_named_with_the_node_that_blocks_it() -> None:
    reasons = {
        "squeeze_excite": ("mul", "squeeze-excite"),
        "resnext": ("_1_body_1_0", "equally many channels per group"),
        "mobilenetv2": ("_1_body_1_0", "zero padding leaves the constant uneven"),
        "resnet18": ("add", "residual stream"),
        "two_inputs": ("head_fc_1", "its weights are shared by calls that read different constants"),
    }
    for name, (node, reason) in reasons.items():
        _, result = prune(name)
        found = [b for b in result.report.blocked if b.node == node and reason in b.reason and b.channels > 0]
        assert found, f"{name}: {result.report.blocked}"


def test_an_exact_plan_that_is_validated_reports_the_check() -> None:
    net = make("densenet")
    report = prune_module(net, NETWORKS["densenet"].inputs()).report
    assert report.validation is not None
    assert report.validation.passed
    assert report.validation.max_rel_error <= 1e-5
    assert not report.validation.vacuous
    assert report.border_error is None


# --- borders ------------------------------------------------------------------------------------------


def bordered() -> nn.Module:
    """Two padded convolutions; half of the channels between them are constant and not zero."""
    torch.manual_seed(0)
    return silence(nn.Sequential(cbr(3, 8), nn.Conv2d(8, 4, 3, padding=1)))


def test_bias_borders_agree_inside_and_differ_only_at_the_border() -> None:
    net, x = bordered(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    result = prune_module(net, (x,), border="bias")
    expected, found = outputs_of(net, x)[0], outputs_of(result.module, x)[0]
    difference = (expected - found).abs()
    scale = expected.abs().max()
    assert difference[..., 1:-1, 1:-1].max() <= 1e-5 * scale
    assert difference.max() > 1e-2 * scale
    assert not result.plan.exact
    report = result.report
    assert report.validation is not None
    assert report.border_error == report.validation.max_rel_error > 1e-2
    assert report.carriers == 0


def test_bias_borders_need_no_carrier_and_so_remove_more() -> None:
    net, x = bordered(), torch.randn(2, 3, 16, 16)
    exact, bias = prune_module(net, (x,)), prune_module(net, (x,), border="bias", validate=False)
    assert exact.report.carriers == 1
    assert bias.report.removed_channels == exact.report.removed_channels + 1
    assert_same_function(net, exact.module, x)


def test_bias_borders_are_exact_where_padding_meets_only_zeros() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), nn.Conv2d(8, 4, 3, padding=1)))
    net[0][1].bias.data.abs_().neg_()  # the constants are negative, so ReLU makes them zero
    x = torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,), border="bias")
    assert result.plan.exact
    assert result.report.border_error is None
    assert result.report.removed_channels > 0
    assert_same_function(net, result.module, x)
    assert prune_module(net, (x,)).report.carriers == 0


def test_bias_borders_are_exact_without_padding() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,), border="bias")
    assert result.plan.exact
    assert_same_function(net, result.module, x)


# --- whole branches -----------------------------------------------------------------------------------


def calls(module: nn.Module) -> set[str]:
    assert isinstance(module, torch.fx.GraphModule)
    return {str(n.target) for n in module.graph.nodes if n.op == "call_module"}


def test_a_residual_block_with_zero_initialised_last_gammas_vanishes() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), Basic(8, 8), Basic(8, 8), Head(8)), 0.0)
    nn.init.zeros_(net[1].bn2.weight)
    nn.init.zeros_(net[1].bn2.bias)
    x = torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,))
    assert not any(target.startswith("1.") for target in calls(result.module))
    assert any(target.startswith("2.") for target in calls(result.module))
    assert [n for n, _ in result.module.named_parameters() if n.startswith("1.")] == []
    layers = {layer.node: layer.after for layer in result.report.layers}
    assert layers["_1_conv1"] == layers["_1_conv2"] == 0
    assert_same_function(net, result.module, x, torch.randn(1, 3, 21, 21))


def test_a_constant_branch_with_other_betas_becomes_a_stored_vector() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), Basic(8, 8), Head(8)), 0.0)
    nn.init.zeros_(net[1].bn2.weight)
    x = torch.randn(2, 3, 16, 16)
    result = prune_module(net, (x,))
    assert not any(target.startswith("1.") for target in calls(result.module))
    assert parameter_elements(result.module) == parameter_elements(net[0]) + parameter_elements(net[2])
    assert_same_function(net, result.module, x, torch.randn(1, 3, 21, 21))


def test_an_inception_branch_that_is_constant_leaves_the_concat() -> None:
    net = make("googlenet", 0.0)
    for branch in (net[2].five, net[2].pool):
        nn.init.zeros_(branch[-1][1].weight)
        branch[-1][1].bias.data.abs_().neg_()  # dead after ReLU
    x = NETWORKS["googlenet"].inputs()[0]
    result = prune_module(net, (x,))
    assert not any(target.startswith(("2.five", "2.pool")) for target in calls(result.module))
    assert_same_function(net, result.module, x, torch.randn(1, 3, 22, 22))


def test_a_network_whose_every_gamma_is_zero_still_runs() -> None:
    net = make("resnet20", 1.0)
    x = NETWORKS["resnet20"].inputs()[0]
    result = prune_module(net, (x,))
    assert_same_function(net, result.module, x)
    assert result.report.after.params < 0.02 * result.report.before.params


# --- the user's module, modes and gradients ---------------------------------------------------------------


def test_the_users_module_is_left_as_it_was() -> None:
    net = make("shufflenetv2")
    net.train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    channels = [m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    code = [type(m).__name__ for m in net.modules()]
    result = prune_module(net, NETWORKS["shufflenetv2"].inputs())
    assert result.report.removed_channels > 0
    after = net.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())
    assert [m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == channels
    assert [type(m).__name__ for m in net.modules()] == code
    assert all(m.training for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_frozen_parameters_train_mode_and_no_grad_change_nothing() -> None:
    inputs = NETWORKS["resnet18"].inputs()
    plain = prune_module(make("resnet18"), inputs, validate=False)
    frozen = make("resnet18").requires_grad_(False)
    training = make("resnet18").train()
    with torch.no_grad():
        without = prune_module(make("resnet18"), inputs, validate=False)
    for other in (
        prune_module(frozen, inputs, validate=False),
        prune_module(training, inputs, validate=False),
        without,
    ):
        assert other.plan == plain.plan
        state = plain.module.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.module.state_dict().items())


def test_modes_and_requires_grad_are_those_of_the_original() -> None:
    net = make("googlenet")
    net.train()
    net[0].eval()
    net[2].requires_grad_(False)
    module = prune_module(net, NETWORKS["googlenet"].inputs()).module
    assert not module.get_submodule("0.1").training
    assert module.get_submodule("3.one.1").training
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    assert flags == {name: not name.startswith("2.") for name in flags}
    assert any(not flag for flag in flags.values())


def test_the_dtype_is_kept() -> None:
    net = make("resnet20").double()
    x = NETWORKS["resnet20"].inputs()[0].double()
    result = prune_module(net, (x,), validate=False)
    assert {p.dtype for p in result.module.parameters()} == {torch.float64}
    assert_same_function(net, result.module, x, tolerance=1e-11)


@pytest.mark.parametrize("name", ["resnet20", "shufflenetv2", "unet", "two_inputs"])
def test_the_result_copies_saves_and_trains(name: str, tmp_path: Path) -> None:
    _, result = prune(name)
    inputs = NETWORKS[name].inputs()
    twin = copy.deepcopy(result.module)
    assert_same_on_inputs(result.module, twin, *inputs, tolerance=0.0)
    torch.save(result.module.state_dict(), tmp_path / "weights.pt")
    nn.init.zeros_(next(twin.parameters()))
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert_same_on_inputs(result.module, twin, *inputs, tolerance=0.0)
    twin.train()
    optimiser = torch.optim.SGD(twin.parameters(), lr=0.1)
    before = [p.clone() for p in twin.parameters()]
    outputs = [leaf for leaf in torch.utils._pytree.tree_leaves(twin(*inputs)) if isinstance(leaf, Tensor)]
    torch.stack([(o - 1).square().mean() for o in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in twin.parameters())
    optimiser.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, twin.parameters(), strict=True))


def test_the_result_can_be_pruned_again_and_nothing_more_goes() -> None:
    for name in ("resnet18", "shufflenetv2", "googlenet", "unet", "slices"):
        _, once = prune(name)
        twice = prune_module(once.module, NETWORKS[name].inputs(), validate=False)
        assert twice.report.removed_channels == 0, name


def test_module_attributes_agree_with_their_tensors() -> None:
    for name in ("mobilenetv2", "resnext", "unet", "prelu", "flatten_head"):
        _, result = prune(name)
        for module in result.module.modules():
            if isinstance(module, nn.Conv2d):
                shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
                assert tuple(module.weight.shape) == shape, name
                assert module.in_channels % module.groups == 0
            elif isinstance(module, nn.ConvTranspose2d):
                assert tuple(module.weight.shape[:2]) == (module.in_channels, module.out_channels), name
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_mean.shape[0] == module.num_features == module.weight.shape[0], name
            elif isinstance(module, nn.Linear):
                assert tuple(module.weight.shape) == (module.out_features, module.in_features), name
            elif isinstance(module, nn.PReLU):
                assert module.weight.shape[0] == module.num_parameters, name


# --- plans --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - NOTHING_TO_REMOVE))
def test_plan_and_weights_rebuild_the_pruned_network(name: str, tmp_path: Path) -> None:
    """plan.json + a fresh architecture + safetensors: no pickle anywhere."""
    _, result = prune(name)
    (tmp_path / "plan.json").write_text(result.plan.to_json(), encoding="utf-8")
    save_file({k: v.contiguous() for k, v in result.module.state_dict().items()}, tmp_path / "weights.safetensors")
    torch.manual_seed(99)
    fresh = NETWORKS[name].make().eval()
    rebuilt = apply_plan(fresh, PrunePlan.load(tmp_path / "plan.json"))
    rebuilt.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert_same_on_inputs(result.module, rebuilt, *NETWORKS[name].inputs(), tolerance=0.0)


def test_a_plan_reads_back_as_it_was_written() -> None:
    for name in ("densenet", "resnext", "resnet20"):
        _, result = prune(name)
        assert PrunePlan.from_json(result.plan.to_json()) == result.plan
        assert json.loads(result.plan.to_json())["format"] == "prunec-plan"


@pytest.mark.parametrize("name", ["googlenet", "mobilenetv2", "prelu", "unet", "resnext", "conv1d", "layer_scale"])
def test_a_plan_applies_to_the_users_own_class(name: str) -> None:
    net, result = prune(name)
    own = apply_plan(net, result.plan, keep_class=True)
    assert type(own) is type(net)
    assert parameter_elements(own) == parameter_elements(result.module)
    assert_same_on_inputs(net, own, *NETWORKS[name].inputs())
    assert_same_on_inputs(net, own, *NETWORKS[name].inputs(grow=8))


def test_a_plan_that_changes_the_forward_is_refused_for_the_users_class() -> None:
    net, result = prune("slices")
    with pytest.raises(UnsupportedModel) as error:
        apply_plan(net, result.plan, keep_class=True)
    assert "prunec.apply_plan(module, plan)" in str(error.value)
    assert "GraphModule" in str(error.value)


def test_a_plan_for_another_network_is_refused_by_name() -> None:
    _, result = prune("googlenet")
    with pytest.raises(BadPlan) as error:
        apply_plan(make("mobilenetv2"), result.plan)
    assert "apply the plan to the architecture that it was made for" in str(error.value)


# --- keep lists, criteria and budgets ---------------------------------------------------------------------


def test_kept_layers_keep_all_their_channels() -> None:
    net, case = make("googlenet"), NETWORKS["googlenet"]
    result = prune_module(net, case.inputs(), keep=["2.one.0.weight", "_3_three*"])
    after = {layer.node: (layer.before, layer.after) for layer in result.report.layers}
    for node, (before, left) in after.items():
        if node == "_2_one_0" or node.startswith("_3_three"):
            assert left == before, node
    assert any(left < before for before, left in after.values())
    assert any("kept by request" in pin.reason for pin in result.report.pins)


def test_a_keep_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="the keep pattern 'layer9' matches no parameter and no node"):
        prune_module(make("resnet20"), NETWORKS["resnet20"].inputs(), keep=["layer9"])


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("densenet", "l1"),
        ("shufflenetv2", "gamma"),
        ("resnext", "random"),
        ("attention", "l1"),
        ("unet", "gamma"),
        ("resnet18", "random"),
    ],
)
def test_a_budget_is_reached_and_not_overshot(name: str, criterion: str) -> None:
    net, case = make(name, 0.0), NETWORKS[name]
    result = prune_module(net, case.inputs(), criterion=criterion, target_macs=0.5)
    report = result.report
    ratio = report.after.macs / report.before.macs
    assert 0.35 < ratio <= 0.5
    assert not result.plan.exact
    assert criterion in report.reason
    assert outputs_of(result.module, *case.inputs())[0].shape == outputs_of(net, *case.inputs())[0].shape
    if name != "attention":  # its products of activations are no layers
        assert report.after.macs == contraction_macs(result.module, case.inputs()[0])


def test_a_parameter_budget_counts_what_is_left() -> None:
    net, case = make("densenet", 0.3), NETWORKS["densenet"]
    result = prune_module(net, case.inputs(), criterion="l1", target_params=0.4)
    assert parameter_elements(result.module) <= 0.4 * parameter_elements(net)
    assert result.report.after.params == parameter_elements(result.module)


def test_low_scores_go_first() -> None:
    net = make("flatten_head", 0.0)
    with torch.no_grad():
        net[0][0].weight[[1, 5]] *= 1e-3
    result = prune_module(net, NETWORKS["flatten_head"].inputs(), criterion="l1", target_params=0.97, multiple_of=1)
    gone = {k.param: set(range(k.size)) - set(k.keep) for k in result.plan.keeps}
    assert gone["0.0.weight"] <= {1, 5}
    assert gone["0.0.weight"]


def test_a_budget_below_what_must_stay_is_refused_with_what_is_left() -> None:
    with pytest.raises(BudgetNotMet) as error:
        prune_module(make("resnet20", 0.0), NETWORKS["resnet20"].inputs(), criterion="l1", target_macs=1e-5)
    assert "of the MACs and" in str(error.value)
    assert "holds most" not in error.value.why, "nothing is pinned but the classes"
    assert "do:  raise the target" in str(error.value)


def test_what_holds_most_of_a_network_that_cannot_get_smaller_is_named() -> None:
    net, x = make("resnet20"), NETWORKS["resnet20"].inputs()
    with pytest.raises(BudgetNotMet) as error:
        prune_module(net, x, criterion="l1", target_macs=0.1, keep=["*conv*"])
    assert re.search(
        r"; \*conv\* holds most, the channels of \d\d\d?% of the MACs: is kept by request", error.value.why
    )
    assert error.value.do == "raise the target, or pin fewer channels (prunec analyze lists what is pinned)"


def test_a_multiple_that_a_budget_leaves_no_room_for_is_named() -> None:
    with pytest.raises(BudgetNotMet) as error:
        prune_module(make("resnet20"), NETWORKS["resnet20"].inputs(), criterion="l1", target_macs=0.5, multiple_of=64)
    assert "with a multiple of 64 channels left per group 100.0% of the MACs" in error.value.why
    assert error.value.do == (
        "raise the target, or pin fewer channels, or lower the multiple (prunec analyze lists what is pinned)"
    )


@pytest.mark.parametrize("name", ["googlenet", "mobilenetv2"])
def test_groups_keep_a_multiple_of_what_was_asked_for(name: str) -> None:
    net, case = make(name, 0.0), NETWORKS[name]
    result = prune_module(net, case.inputs(), criterion="random", target_macs=0.6, multiple_of=4)
    changed = [layer for layer in result.report.layers if layer.after != layer.before]
    assert changed
    assert all(layer.after % 4 == 0 for layer in changed)


def test_exact_removal_with_round_counts_is_still_exact() -> None:
    net, case = make("googlenet"), NETWORKS["googlenet"]
    result = prune_module(net, case.inputs(), multiple_of=2)
    changed = [layer for layer in result.report.layers if layer.after != layer.before]
    assert changed
    assert all(layer.after % 2 == 0 for layer in changed)
    assert_same_on_inputs(net, result.module, *case.inputs(grow=4))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"border": "fuzzy"}, "border is 'fuzzy'"),
        ({"multiple_of": 0}, "multiple_of is 0"),
        ({"criterion": "l1", "target_macs": 1.5}, "target_macs is 1.5"),
        ({"criterion": "l1"}, "a criterion without a budget removes nothing"),
        ({"target_params": 0.5}, "a budget without a criterion cannot be met"),
        ({"criterion": "magic", "target_macs": 0.5}, "there is no criterion 'magic'"),
        ({"criterion": "taylor", "target_macs": 0.5}, "the taylor criterion needs gradients"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput) as error:
        prune_module(make("prelu"), NETWORKS["prelu"].inputs(), **options)
    assert what in str(error.value)
    assert "do:  " in str(error.value)
