"""Keep lists, criteria, budgets and round counts of whole networks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from assertions import assert_same_on_inputs, contraction_macs, outputs_of, parameter_elements
from modules.networks import NETWORKS, make
from torch import nn

from prunec.api import prune_module
from prunec.errors import BadInput, BudgetNotMet


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
    told = re.search(r"; \*conv\* holds most, the channels of (\d+)% of the MACs: is kept by request", error.value.why)
    assert told is not None
    assert 50 < int(told[1]) <= 100, "a layer counts once, though its channels are made by one and read by another"
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


def test_a_budget_that_is_met_already_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    result = prune_module(net, torch.zeros(1, 3, 8, 8), criterion="l1", target_macs=1.0)
    assert result.report.removed_channels == 0
    assert result.report.message == "nothing was removed: the network is within the budget as it is"


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
