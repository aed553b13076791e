"""ρ over time, when ISTA ends, what the curves say, and what is chosen when nobody says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from modules.training import Chain

from prunec.frontends.fx.frontend import trace
from prunec.passes.channels import channels
from prunec.training.settings.tuning import (
    GammaSummary,
    choose_alpha,
    choose_mu,
    choose_rho,
    choose_rho_in_time,
    gamma_summary,
)
from prunec.training.sparsity.controller import Controller, planned_excess
from prunec.training.sparsity.sparsify import gamma_values, plan_sparsity
from prunec.training.sparsity.symptoms import SPARSITY, WINDOW, Reading

CHANCE = math.log(10)


def feed(controller: Controller, readings: Iterable[Reading]) -> str:
    reason = ""
    for reading in readings:
        controller.observe(reading)
        reason = reason or controller.is_done()
    return reason


def course(count: int, **values: object) -> list[Reading]:
    """Readings over a phase; a value may be a function of the share done."""
    rows = []
    for index in range(count):
        share = (index + 1) / count
        given = {name: float(value(share)) if callable(value) else float(str(value)) for name, value in values.items()}
        rows.append(Reading(share, **{"loss": 0.1, "sparsity": 0.3, "lasso": 1.0, **given}))
    return rows


def test_rho_rises_linearly_and_then_follows_the_continuation() -> None:
    controller = Controller(0.002, factors=(1.0, 5.0), warmup=0.25)
    assert [controller.rho_at(at) for at in (0, 0.125, 0.25, 0.49, 0.5, 0.99)] == pytest.approx(
        [0, 0.001, 0.002, 0.002, 0.01, 0.01]
    )


def test_the_phase_ends_when_all_three_quantities_have_settled() -> None:
    assert "settled" in feed(Controller(0.1), course(3 * WINDOW))


@pytest.mark.parametrize(
    "moving",
    [
        {"loss": lambda share: 1 - share},
        {"lasso": lambda share: 2 - share},
        {"sparsity": lambda share: 0.3 + 0.3 * share},
        {"sparsity": 0},
    ],
    ids=["loss", "lasso", "sparsity", "no-sparsity-yet"],
)
def test_the_phase_goes_on_while_one_quantity_moves(moving: dict[str, object]) -> None:
    assert feed(Controller(0.1), course(3 * WINDOW, **moving)) == ""


def test_a_plateau_before_the_last_stage_of_the_continuation_does_not_end_the_phase() -> None:
    controller = Controller(0.1, factors=(1.0, 5.0))
    assert feed(controller, course(4 * WINDOW)[: 3 * WINDOW]) == ""


SYMPTOMS: dict[str, list[Reading]] = {
    "lasso": course(30, sparsity=0, lasso=lambda share: 10 - 5 * share),
    "sparsity": course(WINDOW, sparsity=0.99),
    "loss": course(WINDOW, loss=lambda share: 0.3 + 2 * share),
}


@pytest.mark.parametrize("name", SYMPTOMS)
def test_each_symptom_is_told_once(name: str) -> None:
    controller = Controller(0.1, chance_loss=CHANCE)
    feed(controller, SYMPTOMS[name])
    assert [symptom.name for symptom in controller.symptoms()] == [name]
    assert controller.symptoms() == []
    assert controller.rho_at(0.5) == 0.1, "a warning changes nothing"


def test_a_lasso_that_will_reach_zero_within_the_phase_is_no_symptom() -> None:
    controller = Controller(0.1, chance_loss=CHANCE)
    feed(controller, course(30, sparsity=0, lasso=lambda share: 10.1 - 10.2 * share)[:20])
    assert controller.symptoms() == []


def test_the_lasso_is_not_judged_while_rho_still_rises() -> None:
    controller = Controller(0.1, warmup=0.9, chance_loss=CHANCE)
    feed(controller, SYMPTOMS["lasso"])
    assert controller.symptoms() == []


def test_a_healthy_run_shows_no_symptom() -> None:
    controller = Controller(0.1, chance_loss=CHANCE)
    feed(controller, course(30, sparsity=lambda share: 0.5 * share, lasso=lambda share: 1 / (1 + share)))
    assert controller.symptoms() == []


def test_a_layer_without_channels_is_a_symptom_at_once() -> None:
    controller = Controller(0.1, chance_loss=CHANCE)
    feed(controller, course(1))
    assert controller.symptoms(emptied=True) == [SPARSITY]


def test_under_a_budget_rho_follows_the_planned_course() -> None:
    late, early = Controller(0.1, budgeted=True), Controller(0.1, budgeted=True)
    feed(late, [Reading(0.5, 0.1, 0, 1, 1.0)])
    feed(early, [Reading(0.2, 0.1, 0.4, 1, 0.6)])
    assert late.rho_at(0.5) > 0.1 > early.rho_at(0.5)
    assert "budget" in feed(late, [Reading(0.6, 0.1, 0.5, 1, -0.001)])


def test_on_its_course_rho_stays_and_falls_where_the_loss_suffers_even_behind_it() -> None:
    on_course, suffering = Controller(0.1, budgeted=True), Controller(0.1, budgeted=True, chance_loss=CHANCE)
    feed(on_course, [Reading(0.4, 0.1, 0.2, 1, planned_excess(0.4) + 0.01)])
    assert on_course.rho_at(0.4) == 0.1
    feed(suffering, [Reading(0.4, 0.1, 0, 1, 1.0)])
    raised = suffering.rho_at(0.4)
    feed(suffering, [Reading(0.5, 0.5, 0, 1, 1.0)])
    assert suffering.rho_at(0.5) < raised


def test_a_loss_that_began_at_that_of_guessing_has_not_risen_to_it() -> None:
    controller = Controller(0.1, chance_loss=CHANCE)
    feed(controller, course(15, loss=CHANCE))
    assert controller.symptoms() == []


def test_a_simulated_network_is_brought_to_its_budget() -> None:
    controller, size = Controller(0.001, budgeted=True, warmup=0.05), 1.0
    for step in range(100):
        size = max(0.0, size - 0.2 * controller.rho_at(step / 100))
        if feed(controller, [Reading(step / 100, 0.1, 1 - size, 1, (size - 0.5) / 0.5)]):
            break
    assert 0.45 < size <= 0.5


def test_the_planned_course_ends_at_the_budget_before_the_phase_does() -> None:
    assert planned_excess(0.0) == 1
    assert planned_excess(0.85) == pytest.approx(0)


def test_where_the_channels_are_chosen_rho_only_rises() -> None:
    early = Controller(0.1, budgeted=True, chance_loss=CHANCE, committed=True)
    feed(early, course(20, loss=lambda share: 0.1 + share, excess=0.0001))
    assert early.rho_at(0.5) == 0.1, "the loss has risen and the budget is nearly met: they have to go all the same"
    late = Controller(0.1, budgeted=True, chance_loss=CHANCE, committed=True)
    feed(late, course(20, loss=lambda share: 0.1 + share, excess=1))
    assert late.rho_at(0.5) > 0.2


def test_the_controller_remembers_across_a_checkpoint() -> None:
    first = Controller(0.1, budgeted=True, chance_loss=CHANCE)
    feed(first, course(15, sparsity=0.99, excess=0.9))
    first.symptoms()
    second = Controller(0.1, budgeted=True, chance_loss=CHANCE)
    second.load_state_dict(first.state_dict())
    assert second.rho_at(0.7) == first.rho_at(0.7)
    assert second.symptoms() == []
    assert second.readings == first.readings


def test_rho_is_chosen_so_that_the_penalty_is_comparable_to_the_loss() -> None:
    facts = GammaSummary(weighted=4019.0, mean=1.0, mean_penalty=4.65, reach=0.23)
    rho = choose_rho(facts, alpha=1.0, chance_loss=CHANCE).value
    assert rho == pytest.approx(0.0002, rel=0.25), "the paper's ConvNet starts at 0.0002"
    assert rho * facts.weighted == pytest.approx(0.3 * CHANCE, rel=0.05)


def test_alpha_is_chosen_so_that_gammas_reach_zero_within_a_hundred_steps_or_so() -> None:
    facts = GammaSummary(weighted=200.0, mean=0.5, mean_penalty=1.0, reach=0.5)

    def alpha(mu: float, rho: float) -> float:
        return choose_alpha(facts, mu, mu, rho, CHANCE).value

    assert alpha(mu=0.01, rho=0.02) == pytest.approx(0.1)
    assert alpha(mu=0.01, rho=0.2) == pytest.approx(1.0)
    assert alpha(mu=2e-5, rho=0.5) == pytest.approx(0.01)  # the paper's for segmentation: 0.002 of 0.5
    assert alpha(mu=1e-6, rho=0.5) == pytest.approx(0.001)


def test_no_alpha_is_chosen_with_which_gammas_or_betas_would_learn_too_fast() -> None:
    facts = GammaSummary(weighted=700.0, mean=1.0, mean_penalty=1.0, reach=0.6)
    slow = choose_alpha(facts, mu=1e-5, lr=1e-6, rho=0.001, chance_loss=CHANCE)
    assert slow.value == 0.01, "0.001 would multiply μ by a million"
    assert choose_alpha(facts, mu=1e-5, lr=0.01, rho=0.001, chance_loss=CHANCE).value == 0.1
    assert choose_alpha(facts, mu=0.05, lr=0.01, rho=0.001, chance_loss=CHANCE).value == 1.0
    assert "would learn as with a rate above 1" in slow.reason


def test_without_a_penalty_alpha_is_one() -> None:
    facts = GammaSummary(weighted=700.0, mean=1.0, mean_penalty=1.0, reach=0.6)
    assert choose_alpha(facts, mu=1e-6, lr=1e-6, rho=0.0, chance_loss=CHANCE).value == 1.0


def test_a_short_run_gets_a_larger_rho_within_bounds() -> None:
    facts = GammaSummary(weighted=110.0, mean=1.0, mean_penalty=0.7, reach=1.4)
    paper = choose_rho(facts, 1.0, CHANCE).value

    def rho(steps: int) -> float:
        return choose_rho_in_time(facts, 1.0, CHANCE, mu=0.2, steps=steps).value

    assert rho(30_000) == paper
    assert rho(500) == pytest.approx(1.4 / (0.2 * 500 / 3), rel=0.03)
    assert rho(5) == pytest.approx(10 * paper, rel=0.05)


def test_what_rho_does_in_time_is_said_as_it_is() -> None:
    facts = GammaSummary(weighted=110.0, mean=1.0, mean_penalty=0.7, reach=1.4)
    enough = choose_rho_in_time(facts, 1.0, CHANCE, mu=0.2, steps=500).reason
    assert re.fullmatch(r"a gamma without use then reaches zero within about 16\d of the 500 steps of ISTA", enough)
    short = choose_rho_in_time(facts, 1.0, CHANCE, mu=0.2, steps=5).reason
    assert re.fullmatch(
        r"a gamma without use would take about \d\d+ steps to zero, and ISTA has 5: train longer", short
    )


def test_a_trained_networks_gammas_step_so_that_they_reach_zero_in_time() -> None:
    facts = GammaSummary(weighted=700.0, mean=1.0, mean_penalty=1.0, reach=0.6)

    def mu(steps: int) -> float:
        return choose_mu(facts, rho=0.001, lr=0.01, steps=steps).value

    assert mu(3000) == pytest.approx(0.6 / (0.001 * 1000))
    assert mu(30) == 1.0
    assert mu(10**7) == 0.01
    assert choose_mu(facts, rho=0.0, lr=0.01, steps=100).value == 0.01


def test_gamma_summary_are_those_of_the_penalised_gammas() -> None:
    module = Chain()
    with torch.no_grad():
        module.first[1].weight.copy_(torch.tensor([1.0, -2.0, 0.0, 1.0]))
    graph = trace(module, (torch.zeros(2, 3, 8, 8),)).graph
    plan = plan_sparsity(graph, channels(graph), module)
    facts = gamma_summary(plan, gamma_values(plan, module))
    first, second = plan.penalty[plan.gammas[0].classes[0]], plan.penalty[plan.gammas[1].classes[0]]
    assert facts.weighted == pytest.approx(4 * first + 6 * second)
    assert facts.mean == pytest.approx(1.0)
    ratios = [1 / first, 2 / first, 0.0, 1 / first] + [1 / second] * 6
    assert facts.reach == pytest.approx(np.median(ratios))
    assert facts.mean_penalty == pytest.approx(np.mean([first] * 4 + [second] * 6))
