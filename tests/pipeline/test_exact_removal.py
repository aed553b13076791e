"""Whole networks with gammas zeroed at random and betas left alone: what exact removal promises on each of them."""

from __future__ import annotations

import pytest
from assertions import assert_same_on_inputs, contraction_macs, parameter_elements
from modules.networks import CONSTANT_CHANNEL_NETWORKS, NETWORKS, make
from modules.pruned import NOTHING_TO_REMOVE, prune

from prunec.api import prune_module


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
