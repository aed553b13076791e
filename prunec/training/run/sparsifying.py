"""Warm-up and ISTA until the gammas of superfluous channels are zero, and the last correction towards the budget.

Owns their order. loop.py makes the steps, tasks.py watches them, and run.py removes channels at the end.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from prunec.training.budget.goals import Sizer, excess, in_words, refreshed, with_zeros
from prunec.training.budget.landing import fit, set_gammas
from prunec.training.data.batches import sampled_batches
from prunec.training.learning.distill import default_weight
from prunec.training.learning.ema import Ema
from prunec.training.run import checkpoint as checkpoints
from prunec.training.run import time_budget
from prunec.training.run.checkpoint import Checkpoint
from prunec.training.run.context import Context
from prunec.training.run.record import LatencyBudget
from prunec.training.run.tasks import Sparsify
from prunec.training.settings.focus import focused
from prunec.training.settings.removal import base_optimizer, criterion_of
from prunec.training.settings.setup import FINETUNE, ISTA, WARMUP
from prunec.training.settings.tuning import Chosen, choose
from prunec.training.sparsity.controller import Controller
from prunec.training.sparsity.ista import Ista
from prunec.training.sparsity.rescale import Rescaling
from prunec.training.sparsity.sparsify import build, gamma_values

_LESSONS = 4
"""Batches for finding out whether a network knows the data."""


_AT_ONCE = {
    "l1": "without steps of ISTA the channels with the smallest filters go at once, and the rest is fine-tuned; "
    "--shares 0,0.3,0.7 lets them fade first",
    "reconstruct": "without steps of ISTA the channels that the others make up for best go at once, and the rest is "
    "fine-tuned; --shares 0,0.3,0.7 lets them fade first",
}


def train_sparse(context: Context, resumed: Checkpoint | None) -> None:
    """Train ``context.module`` until the gammas of the channels to remove are zero.

    Args:
        resumed: where to continue; None starts from the beginning.
    """
    if resumed is None:
        _begin(context)
    elif context.state.phase_step == 0 and len(context.state.record.focus) <= context.state.milestone:
        context.module.load_state_dict(resumed["module"])
        context.history.load_state_dict(resumed["history"])
        _focus(context)
    _make_trainers(context, resumed)
    if context.state.phase_step == 0:
        # Shows before the first step that a checkpoint can be written, despite quotas.
        context.save()
    context.ready_forward()
    while context.state.phase < FINETUNE:
        _run_phase(context)
    # Gammas are equal on all ranks, running statistics are not.
    context.ranks.copy_state(context.module)
    if context.state.milestone + 1 < len(context.config.milestones):
        context.state.record.rho_reached = _ista(context).rho
        context.save(milestone=True)
    _meet_budget(context)
    Rescaling.of(context.module, context.setup.scaling, context.state.record.alpha).undo()


def _begin(context: Context) -> None:
    """Score a network that comes with weights, fix ρ and α, and rescale."""
    setup, record = context.setup, context.state.record
    if context.config.pretrained:
        context.score("before")
        _keep_teacher(context)
    if setup.phases[ISTA].steps:
        _focus(context)
        setup = context.setup
        chosen = choose(setup, gamma_values(setup.sparsity, context.module))
        record.alpha, record.rho = chosen.alpha.value, chosen.rho.value
        record.mu = chosen.mu.value if chosen.mu is not None else None
        reasons = _reasons(context, chosen)
    else:
        record.alpha, record.rho = 1.0, 0.0
        reasons = [_AT_ONCE[criterion_of(context.config, setup.phases[FINETUNE].steps)]]
    for sentence in (*setup.notes, *reasons):
        context.tell(sentence)
    if record.alpha != 1.0:
        Rescaling.of(context.module, setup.scaling, record.alpha).apply(context.module, _example_inputs(context))
    values = gamma_values(setup.sparsity, context.module)
    context.history.observe(values)
    record.top = max(float(abs(v).max()) for v in values.values()) * 1.25 or 1.0


def _focus(context: Context) -> None:
    """Put the penalty on the channels that the budget would remove, if this run does that."""
    record, setup = context.state.record, context.setup
    if not context.config.focuses or not setup.phases[ISTA].steps:
        return
    context.history.observe(gamma_values(setup.sparsity, context.module))
    sizer = replace(setup.sizer, graph=refreshed(setup.sparsity.graph, context.module))
    gone = context.ranks.on_main(lambda: fit(context.history, sizer, setup.goals, setup.full).gone)
    if not gone.any():
        return
    record.focus.append(np.flatnonzero(gone).tolist())
    context.setup = focused(setup, record.focus)
    context.tell(
        f"the penalty is on the {int(gone.sum())} of {int(setup.sparsity.penalised.sum())} channel classes that would "
        "go if the network were pruned to its budget now; give --rho to have it on all of them"
    )


def _reasons(context: Context, chosen: Chosen) -> list[str]:
    latency, scaling = context.state.record.latency, context.setup.scaling
    reasons = [
        f"alpha {chosen.alpha.value:g}: {chosen.alpha.reason}",
        f"rho {chosen.rho.value:g}: {chosen.rho.reason}",
    ]
    if chosen.mu is not None:
        reasons.append(f"mu {chosen.mu.value:g}: {chosen.mu.reason}")
    if latency is not None:
        reasons.append(time_budget.in_words(latency))
    if chosen.alpha.value != 1.0 and scaling.blocked:
        blocked = ", ".join(dict.fromkeys(b.node.origin or b.node.name for b in scaling.blocked[:5]))
        reasons.append(f"not rescaled, because a factor does not pass: the channels at {blocked}")
    return reasons


def _make_trainers(context: Context, resumed: Checkpoint | None) -> None:
    """Make the optimiser, the average and the controller, as they were when ``resumed`` was written."""
    setup, config = context.setup, context.config
    base = base_optimizer(context.module, config, config.lr)
    context.optimizer = build(setup.sparsity, context.module, base, rho=0.0)
    context.ema = Ema(context.module, config.ema_decay)
    first = context.state.milestone == 0
    context.controller = Controller(
        context.state.record.rho,
        config.rho_factors if first else (1.0,),
        config.rho_warmup if first else 0.0,
        bool(setup.goals),
        config.stop_on_plateau,
        setup.objective.chance_loss,
        setup.sparsity.focus is not None,
    )
    context.restore(resumed)


def _run_phase(context: Context) -> None:
    is_ista = context.state.phase == ISTA
    controller = context.controller if is_ista else None
    record = context.state.record
    context.run_phase(Sparsify(context.setup, context.module, _ista(context), controller, context.history, record))
    # From scratch, "before" is the network before the penalty or, without a warm-up,
    # the unpruned network after ISTA.
    trained = is_ista or context.setup.phases[WARMUP].steps > 0
    if trained and "before" not in context.state.record.scores:
        with context.ema.swapped_in():
            context.score("before")
            _keep_teacher(context)
    if context.state.phase < FINETUNE:
        context.save()


def _meet_budget(context: Context) -> None:
    """Bring the network to its budget: give channels back if it is too small, remove more if it is too large."""
    if not context.setup.goals:
        return
    record, plan = context.state.record, context.setup.sparsity
    context.history.observe(gamma_values(plan, context.module))
    sizer = replace(context.setup.sizer, graph=refreshed(plan.graph, context.module))
    if record.latency is not None:
        _correct_latency(context, sizer, record.latency)
    setup = context.setup
    criterion = criterion_of(context.config, setup.phases[FINETUNE].steps)
    record.by_data = criterion == "reconstruct" and _is_missing(context, sizer)
    if record.by_data:
        return
    chosen = fit(context.history, sizer, setup.goals, setup.full)
    set_gammas(plan, context.module, context.history.values, chosen.gone)
    wanted = "may be, for the latency" if record.latency is not None else "were asked for"
    left, gone = in_words(setup.goals, chosen.size, setup.full, wanted), int(chosen.gone.sum())
    if setup.phases[ISTA].steps:
        faded = f"{chosen.forced} had not reached zero, and {chosen.revived} that had stay"
        context.tell(f"budget: {left} are left; of {gone} channel classes that go, {faded}")
    else:
        context.tell(f"budget: {left} are left; {gone} of {int(plan.penalised.sum())} channel classes go")


def _is_missing(context: Context, sizer: Sizer) -> bool:
    """Tell whether too few gammas are zero for the budget; the removal then chooses the rest."""
    setup, history = context.setup, context.history
    zero = (history.zero_since > 0) & setup.sparsity.penalised
    left = sizer.size(with_zeros(setup.sparsity, history.values, zero))
    return excess(setup.goals, left, setup.full) > 0


def _correct_latency(context: Context, sizer: Sizer, before: LatencyBudget) -> None:
    """Correct the MACs budget so that the network takes the time asked for."""
    now, said = context.ranks.on_main(lambda: time_budget.correct(context.setup, context.history, sizer, before))
    context.state.record.latency = now
    context.setup = replace(context.setup, goals=time_budget.goals(now))
    context.tell(said)


def _keep_teacher(context: Context) -> None:
    """Save the network as it is now, if fine-tuning is to distil from it (by default, if it came with weights)."""
    config, setup = context.config, context.setup
    weight = config.distill or 0.0
    if config.distill is None and config.pretrained and setup.phases[FINETUNE].steps:
        batches = list(sampled_batches(setup.data.train, setup.pipeline, config.batch_size, _LESSONS, config.seed))
        found = context.ranks.on_main(lambda: default_weight(context.module, batches, setup.objective))
        weight, said = found
        context.tell(said)
    if weight:
        context.state.record.distill = weight
        state = context.module.state_dict()
        context.ranks.on_main(lambda: checkpoints.save_teacher(context.setup.folder, state))


def _ista(context: Context) -> Ista:
    assert isinstance(context.optimizer, Ista), "fine-tuning has an optimiser of its own"
    return context.optimizer


def _example_inputs(context: Context) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.to(context.setup.device) for tensor in context.setup.example_inputs)
