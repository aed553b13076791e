"""Pruning on the fly: channels whose gammas have stayed zero leave the network while ISTA goes on.

Owns when that pays, and how all that moves with the network is carried over to the smaller one: λ, what the gammas
were, the optimiser's memory, the average. The removal is that of the end of a run (removal.py), made earlier: the
channels' constants are folded into what reads them, and their gammas can no longer come back.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from prunec.ir.plan import PrunePlan
from prunec.passes.channels import channels
from prunec.passes.lowering.lower import sliced
from prunec.passes.sparsity.gammas import Mask
from prunec.passes.sparsity.scaling import scalable
from prunec.pipeline.apply import apply_plan
from prunec.pipeline.reading import read_module
from prunec.report.findings import PruneReport, plain
from prunec.training.budget.footprint import size_under
from prunec.training.budget.goals import with_zeros
from prunec.training.budget.landing import GammaHistory, Ids
from prunec.training.learning.ema import Ema
from prunec.training.settings.removal import base_optimizer, remove_constant
from prunec.training.settings.setup import Setup
from prunec.training.sparsity.ista import Ista
from prunec.training.sparsity.sparsify import Sparsity, build, named_parameters, plan_sparsity

WORTHWHILE = 0.05
"""Share of the MACs that must be saved: reading and rebuilding a network takes seconds."""


def due(setup: Setup, history: GammaHistory, log_every: int) -> Mask | None:
    """Return what should leave the network, bool[num_classes], once it has been zero for long enough and is worth it.

    Args:
        history: has seen the present gammas; it is shown them every ``log_every`` steps.
    """
    plan = setup.sparsity
    gone = history.zero_for(1 + math.ceil(setup.config.shrink_after / log_every)) & ~_betas_left(plan, setup.module)
    if not gone.any():
        return None
    now = size_under(plan.graph, plan.classes, np.ones_like(gone)).macs
    left = setup.sizer.size(with_zeros(plan, history.values, gone)).macs
    return gone if left <= (1 - WORTHWHILE) * now else None


def _betas_left(plan: Sparsity, module: nn.Module) -> Mask:
    """Return bool[num_classes]: classes whose betas are on their way to zero, and not there yet."""
    parameters = named_parameters(module)
    left = np.zeros_like(plan.driven)
    for gamma in plan.gammas:
        if gamma.beta in parameters:
            beta = parameters[gamma.beta].detach().cpu().numpy()
            left[gamma.classes[plan.channels_of(gamma) & (beta != 0)]] = True
    return left & plan.driven


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """What a run changes while it trains towards sparsity; the network is ``setup.module``."""

    setup: Setup
    ista: Ista
    ema: Ema
    history: GammaHistory


def shrink(live: Live, gone: Mask, step: int) -> tuple[Live, Mapping[str, Any] | None, str]:
    """Let the classes go that are ``gone``: bool[num_classes].

    Returns:
        What goes on, what the run has to remember of it (plain data; None where nothing could go), and a sentence.
    """
    setup, names = live.setup, {id(value): name for name, value in named_parameters(live.setup.module).items()}
    rank_0 = setup.ranks.on_main(lambda: _planned(live, gone))
    plan = PrunePlan.from_json(rank_0["plan"])
    if plan.is_empty:
        return live, None, ""
    averaged = live.ema.copied_to(copy.deepcopy(setup.module).to("cpu"))
    smaller = shrunk(setup, plan)
    ista = _same_optimizer(live.ista, names, setup, smaller, plan)
    ema = Ema(smaller.module, setup.config.ema_decay)
    ema.go_on(live.ema.num_updates, apply_plan(averaged, plan))
    history = live.history.of_smaller(smaller.sparsity, kept_gammas(plan))
    report = rank_0["report"]
    left = report["after"]["macs"] / setup.full.macs
    said = (
        f"step {step}: {report['removed_channels']} channels that had been constant for {setup.config.shrink_after} "
        f"steps have left; the network that is trained has {left:.1%} of the MACs"
    )
    return Live(smaller, ista, ema, history), {"step": step, **rank_0}, said


def _planned(live: Live, gone: Mask) -> dict[str, Any]:
    """Plan the removal of the classes that are ``gone``, as plain data; zeros that are younger stay."""
    setup, plan = live.setup, live.setup.sparsity
    module = copy.deepcopy(setup.module).to("cpu")
    parameters = named_parameters(module)
    with torch.no_grad():
        for name, values in with_zeros(plan, live.history.values, gone).items():
            parameters[name].copy_(torch.from_numpy(values))
    pruned = remove_constant(module, setup.example_inputs, setup.config, setup.phases[-1].steps)
    return {"plan": pruned.plan.to_json(), "report": summary_of(pruned.report)}


def summary_of(report: PruneReport) -> dict[str, Any]:
    """Return what ``combined`` needs of a report, as plain data."""
    return {key: plain(getattr(report, key)) for key in ("before", "after", "removed_channels", "layers")}


def combined(earlier: Iterable[Mapping[str, Any]], report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report in which several removals, one after the other, are one."""
    reports = [*earlier, report]
    left = {layer["node"]: layer["after"] for layer in report["layers"]}
    layers = [{**layer, "after": left.get(layer["node"], 0)} for layer in reports[0]["layers"]]
    removed = sum(each["removed_channels"] for each in reports)
    return {**report, "before": reports[0]["before"], "layers": layers, "removed_channels": removed}


def kept_gammas(plan: PrunePlan) -> dict[str, Ids]:
    """Return the indices that stay of each vector that a plan slices."""
    return {keep.param: np.asarray(keep.keep, dtype=np.int64) for keep in plan.keeps if keep.axis == 0}


def shrunk(setup: Setup, plan: PrunePlan) -> Setup:
    """Return the setup with the network that ``plan`` leaves of its own, on the device.

    A run that is resumed repeats this for each plan. ``setup.full`` and ``setup.original`` stay those of the network
    as it was given; which classes are penalised, and their λ, are those of the channels that stayed.
    """
    config = setup.config
    module = apply_plan(setup.module.to("cpu"), plan).train()
    graph = read_module(module, setup.example_inputs, config.model_spec).graph
    found = plan_sparsity(
        graph, channels(graph, config.keep), module, residual=config.residual, drive_all=config.drive_beta
    )
    sparsity = inherited(setup.sparsity, found, kept_gammas(plan))
    return replace(
        setup,
        module=setup.execution.place(module),
        sparsity=sparsity,
        scaling=scalable(graph, sparsity.classes, sparsity.gammas, sparsity.penalised),
        sizer=replace(setup.sizer, graph=graph, plan=sparsity),
    )


def inherited(before: Sparsity, after: Sparsity, kept: Mapping[str, Ids]) -> Sparsity:
    """Return ``after`` with the penalised classes, the λ and the focus of ``before``.

    λ measured anew would fall with what the neighbours lost, and the run would no longer minimise what it began with.

    Args:
        kept: gamma parameter -> indices of the channels that stayed, where some went.
    """
    classes_before = {gamma.param: gamma.classes for gamma in before.gammas}
    penalised, penalty = np.zeros_like(after.penalised), np.zeros_like(after.penalty)
    focus = np.zeros_like(after.penalised)
    for gamma in after.gammas:
        was = classes_before[gamma.param]
        was = was[kept.get(gamma.param, np.arange(was.size))]
        penalised[gamma.classes] |= before.penalised[was]
        penalty[gamma.classes] = before.penalty[was]
        if before.focus is not None:
            focus[gamma.classes] = before.focus[was]
    penalised &= after.penalised
    driven = after.driven & penalised
    kept_focus = focus if before.focus is not None else None
    return replace(after, penalised=penalised, penalty=penalty, driven=driven, focus=kept_focus)


def _same_optimizer(ista: Ista, names: Mapping[int, str], before: Setup, after: Setup, plan: PrunePlan) -> Ista:
    """Return the optimiser of the smaller network, with what the other one remembers of the channels that stayed.

    Args:
        names: of the parameters that ``ista`` holds, by id.
    """
    base = base_optimizer(after.module, after.config, after.config.lr)
    smaller = build(after.sparsity, after.module, base, rho=ista.rho)
    parameters = named_parameters(after.module)
    remembered: dict[str, dict[str, Any]] = {}
    for parameter, state in ista.state.items():
        for key, value in state.items():
            remembered.setdefault(key, {})[names[id(parameter)]] = value
    for key, by_name in remembered.items():
        for name, value in _cut(by_name, before.sparsity, plan).items():
            if name in parameters and _fits(value, parameters[name]):
                smaller.state[parameters[name]][key] = _beside(value, parameters[name])
    return smaller


def _cut(by_name: Mapping[str, Any], sparsity: Sparsity, plan: PrunePlan) -> dict[str, Any]:
    """Slice what goes with whole parameters; counters stay as they are."""
    params = sparsity.graph.params
    arrays = {
        name: value.detach().cpu().numpy()
        for name, value in by_name.items()
        if isinstance(value, torch.Tensor) and name in params and tuple(value.shape) == params[name].shape
    }
    return {**by_name, **sliced(sparsity.graph, sparsity.classes, plan, arrays)}


def _fits(value: Any, parameter: nn.Parameter) -> bool:
    """Tell whether a value is one for the whole parameter, or of its shape."""
    return np.ndim(value) == 0 or tuple(value.shape) == tuple(parameter.shape)


def _beside(value: Any, parameter: nn.Parameter) -> Any:
    """Return a copy of an optimiser's value beside a parameter: arrays become tensors of its device and layout."""
    if not isinstance(value, np.ndarray):
        return copy.deepcopy(value)
    return torch.empty_like(parameter).copy_(torch.from_numpy(value))
