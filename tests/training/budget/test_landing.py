"""Which channels go under a budget: those that reached zero, then the smallest beside their group."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modules.training import Chain, ResidualConcat
from torch import nn

from prunec.passes.channels import channels
from prunec.pipeline.reading import read_module
from prunec.training.budget.footprint import size_under
from prunec.training.budget.goals import Goal, Sizer
from prunec.training.budget.landing import GammaHistory, expendable, fit, set_gammas
from prunec.training.sparsity.sparsify import Sparsity, gamma_values, plan_sparsity


def planned(module: nn.Module) -> Sparsity:
    graph = read_module(module, (torch.zeros(2, 3, 8, 8),)).graph
    return plan_sparsity(graph, channels(graph), module)


def with_gammas(first: list[float], second: list[float]) -> Chain:
    module = Chain()
    with torch.no_grad():
        module.first[1].weight.copy_(torch.tensor(first))
        module.second[1].weight.copy_(torch.tensor(second))
    return module


def watched(plan: Sparsity, module: nn.Module) -> GammaHistory:
    """Return the history of gammas that were all 1 at the start."""
    history = GammaHistory(plan)
    now = gamma_values(plan, module)
    history.observe({name: np.ones_like(value) for name, value in now.items()})
    history.observe(now)
    return history


def order_of(module: Chain) -> list[tuple[str, int]]:
    """Return (gamma, channel) of the classes, the first to go first."""
    plan = planned(module)
    history = watched(plan, module)
    places = {
        int(number): (gamma.param.partition(".")[0], index)
        for gamma in plan.gammas
        for index, number in enumerate(gamma.classes)
    }
    return [places[number] for number in history.order(np.ones(plan.classes.num_classes)).tolist()]


@pytest.mark.parametrize("scale", [1.0, 0.01, 50.0])
def test_the_scale_of_a_layer_does_not_decide_which_channels_go(scale: float) -> None:
    """The BatchNorm behind takes it out: a layer whose gammas are all small is as much in use as any other."""
    first = [scale * value for value in (1.0, 0.2, 1.4, 1.4)]
    found = order_of(with_gammas(first, [0.3, 1.0, 1.2, 1.3, 1.1, 1.1]))
    assert found[:2] == [("first", 1), ("second", 0)]


def test_what_gammas_were_before_the_penalty_does_not_count() -> None:
    module = with_gammas([1.0, 0.2, 1.0, 1.0], [1.0] * 6)
    plan = planned(module)
    history = GammaHistory(plan)
    history.observe(gamma_values(plan, module))
    gamma = plan.gammas[0]
    scores = np.ones(plan.classes.num_classes)
    scores[gamma.classes] = [0.9, 1.0, 0.5, 0.8]
    assert history.order(scores).tolist()[:3] == gamma.classes[[2, 3, 0]].tolist()


def test_what_is_zero_goes_first() -> None:
    assert order_of(with_gammas([1.0, 0.01, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]))[:2] == [
        ("second", 1),
        ("first", 1),
    ]


def test_a_budget_takes_the_smallest_of_every_layer() -> None:
    module = with_gammas([0.001, 0.003, 0.002, 0.004], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    plan = planned(module)
    history = watched(plan, module)
    full = size_under(plan.graph, plan.classes, np.ones_like(plan.penalised))
    found = fit(history, Sizer(plan.graph, plan, "exact"), (Goal("macs", 0.55),), full)
    gone = {gamma.param.partition(".")[0]: int(found.gone[gamma.classes].sum()) for gamma in plan.gammas}
    assert gone["first"] >= 1
    assert gone["second"] >= 1
    assert found.size.macs <= 0.55 * full.macs


def test_the_last_channel_of_a_layer_goes_only_where_it_is_zero_and_a_shortcut_leads_around() -> None:
    plan = planned(ResidualConcat())
    inner = next(gamma.classes for gamma in plan.gammas if gamma.param.startswith("inner"))
    zero = np.zeros_like(plan.penalised)
    assert len(expendable(plan, inner, zero)) == len(inner) - 1
    zero[inner] = True
    assert expendable(plan, inner, zero).tolist() == inner.tolist()


def test_betas_that_follow_their_gammas_are_set_to_zero_with_them() -> None:
    module = Chain()
    graph = read_module(module, (torch.zeros(2, 3, 8, 8),)).graph
    plan = plan_sparsity(graph, channels(graph), module, drive_all=True)
    with torch.no_grad():
        module.first[1].bias.fill_(0.5)
    gone = np.zeros_like(plan.penalised)
    gone[plan.gammas[0].classes[1]] = True
    set_gammas(plan, module, gamma_values(plan, module), gone)
    assert module.first[1].weight.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert module.first[1].bias.tolist() == [0.5, 0.0, 0.5, 0.5]
