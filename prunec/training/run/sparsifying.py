"""From a network to one whose gammas are zero where it does without: warm-up, ISTA, and meeting the budget.

Owns the order of these. The steps are loop.py's, what they watch is tasks.py's, what leaves the network on the way is
shrinking.py's, and the removal at the end run.py's.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from prunec.training.budget.goals import Sizer, excess, in_words, refreshed, with_zeros
from prunec.training.budget.landing import fit, set_gammas
from prunec.training.data.batches import sampled_batches
from prunec.training.learning.distill import default_weight
from prunec.training.learning.ema import Ema
from prunec.training.run import checkpoint as checkpoints
from prunec.training.run import shrinking, time_budget
from prunec.training.run.checkpoint import Checkpoint
from prunec.training.run.context import Context
from prunec.training.run.tasks import Sparsify
from prunec.training.settings import focus
from prunec.training.settings.removal import base_optimizer
from prunec.training.settings.setup import FINETUNE, ISTA
from prunec.training.settings.tuning import Chosen, choose
from prunec.training.sparsity.controller import Controller
from prunec.training.sparsity.ista import Ista
from prunec.training.sparsity.rescale import Rescaling
from prunec.training.sparsity.sparsify import build, gamma_values

_LESSONS = 4
"""Batches on which a network shows whether it knows the data."""


_AT_ONCE = {
    "l1": "without steps of ISTA the channels with the smallest filters go at once, and the rest is fine-tuned; "
    "--shares 0,0.3,0.7 lets them fade first",
    "reconstruct": "without steps of ISTA the channels that the others make up for best go at once, and the rest is "
    "fine-tuned; --shares 0,0.3,0.7 lets them fade first",
}


def train_sparse(context: Context, resumed: Checkpoint | None) -> None:
    """Train ``context.module`` until its zero gammas are those that shall go.

    Args:
        resumed: where to go on; None begins.
    """
    if resumed is None:
        _begin(context)
    elif context.state.phase_step == 0 and len(context.state.facts.get("focus", ())) <= context.state.milestone:
        context.module.load_state_dict(resumed["module"])
        context.history.load_state_dict(resumed["history"])
        _focus(context)
    _make_trainers(context, resumed)
    if context.state.phase_step == 0:
        # Shows before the first step that a checkpoint can be written, whatever quotas there are.
        context.save()
    context.ready_forward()
    while context.state.phase < FINETUNE:
        _run_phase(context)
    # Gammas are equal on all ranks, running statistics are not.
    context.ranks.copy_state(context.module)
    if context.state.milestone + 1 < len(context.config.milestones):
        context.state.facts["rho_reached"] = _ista(context).rho
        context.save(milestone=True)
    _meet_budget(context)
    # Of the α that the run has ended with: adjusting may have lowered it.
    Rescaling.of(context.module, context.setup.scaling, context.state.facts["alpha"]).undo()


def _begin(context: Context) -> None:
    """Score what has weights already, fix ρ and α, and rescale."""
    setup, facts = context.setup, context.state.facts
    if context.config.pretrained:
        context.score("before")
        _keep_teacher(context)
    if setup.phases[ISTA].steps:
        _focus(context)
        setup = context.setup
        chosen = choose(setup, gamma_values(setup.sparsity, context.module))
        facts["alpha"], facts["rho"] = chosen.alpha.value, chosen.rho.value
        if chosen.mu is not None:
            facts["mu"] = chosen.mu.value
        reasons = _reasons(context, chosen)
    else:
        facts["alpha"], facts["rho"] = 1.0, 0.0
        reasons = [_AT_ONCE[context.config.criterion]]
    for sentence in (*setup.notes, *reasons):
        context.tell(sentence)
    if facts["alpha"] != 1.0:
        Rescaling.of(context.module, setup.scaling, facts["alpha"]).apply(context.module, _example_inputs(context))
    values = gamma_values(setup.sparsity, context.module)
    context.history.observe(values)
    facts["top"] = max(float(abs(v).max()) for v in values.values()) * 1.25 or 1.0


def _focus(context: Context) -> None:
    """Put the penalty on what the budget takes, if the run is of that kind."""
    facts, setup = context.state.facts, context.setup
    if not context.config.focuses or not setup.phases[ISTA].steps:
        return
    context.history.observe(gamma_values(setup.sparsity, context.module))
    sizer = replace(setup.sizer, graph=refreshed(setup.sparsity.graph, context.module))
    gone = context.ranks.on_main(lambda: fit(context.history, sizer, setup.goals, setup.full).gone)
    if not gone.any():
        return
    shrinkings = len(facts.get("shrinkings", ()))
    facts.setdefault("focus", []).append(focus.entry(gone, shrinkings))
    context.setup = focus.focused(setup, facts["focus"], shrinkings)
    context.tell(
        f"the penalty is on the {int(gone.sum())} of {int(setup.sparsity.penalised.sum())} channel classes that would "
        "go if the network were pruned to its budget now; give --rho to have it on all of them"
    )


def _reasons(context: Context, chosen: Chosen) -> list[str]:
    facts, scaling = context.state.facts, context.setup.scaling
    reasons = [
        f"alpha {chosen.alpha.value:g}: {chosen.alpha.reason}",
        f"rho {chosen.rho.value:g}: {chosen.rho.reason}",
    ]
    if chosen.mu is not None:
        reasons.append(f"mu {chosen.mu.value:g}: {chosen.mu.reason}")
    if "layers" in facts:
        reasons.append(facts["layers"]["said"])
    if "latency" in facts:
        reasons.append(time_budget.in_words(facts["latency"]))
    if chosen.alpha.value != 1.0 and scaling.blocked:
        blocked = ", ".join(dict.fromkeys(b.node.origin or b.node.name for b in scaling.blocked[:5]))
        reasons.append(f"not rescaled, because a factor does not pass: the channels at {blocked}")
    return reasons


def _make_trainers(context: Context, resumed: Checkpoint | None) -> None:
    """Make the optimiser, the average and the controller, as they were when ``resumed`` was written."""
    setup, config, facts = context.setup, context.config, context.state.facts
    base = base_optimizer(context.module, config, config.lr)
    context.optimizer = build(setup.sparsity, context.module, base, rho=0.0)
    context.ema = Ema(context.module, config.ema_decay)
    first = context.state.milestone == 0
    context.controller = Controller(
        facts["rho"],
        config.rho_factors if first else (1.0,),
        config.rho_warmup if first else 0.0,
        bool(setup.goals),
        config.stop_on_plateau,
        setup.objective.chance_loss,
        config.on_symptom,
        setup.sparsity.focus is not None,
    )
    context.restore(resumed)


def _run_phase(context: Context) -> None:
    is_ista = context.setup.phases[context.state.phase].name == "ista"
    while True:
        task = Sparsify(
            context.setup,
            context.module,
            _ista(context),
            context.controller if is_ista else None,
            context.history,
            lambda factor: _rescale(context, factor),
            context.state.facts,
        )
        if context.run_phase(task):
            break
        _shrink(context, task)
    # From scratch, the measure is the network as it was before the penalty or, for want of a warm-up,
    # the unpruned network after ISTA.
    trained = is_ista or context.setup.phases[0].steps > 0
    if trained and "before" not in context.state.facts.get("scores", {}):
        with context.ema.swapped_in():
            context.score("before")
            _keep_teacher(context)
    if context.state.phase < FINETUNE:
        context.save()


def _shrink(context: Context, task: Sparsify) -> None:
    """Let the channels go that the task found to be due, and everything that moves with the network with them."""
    assert task.due is not None, "a phase of ISTA pauses for nothing else"
    alpha = context.state.facts["alpha"]
    if alpha != 1.0:
        # What the passes see must be the function's own constants; the smaller network is scaled anew.
        _rescale_both(context, 1 / alpha)
    live = shrinking.Live(context.setup, _ista(context), context.ema, context.history)
    smaller, entry, said = shrinking.shrink(live, task.due, context.state.step)
    context.setup, context.module = smaller.setup, smaller.setup.module
    context.optimizer, context.ema, context.history = smaller.ista, smaller.ema, smaller.history
    if entry is not None:
        context.state.facts.setdefault("shrinkings", []).append(entry)
        context.tell(said)
    if alpha != 1.0:
        _rescale_both(context, alpha)
    if entry is not None:
        context.save()
        context.ready_forward()


def _rescale(context: Context, factor: float) -> None:
    """Multiply α while ISTA goes on. The optimiser's memory was of weights of another size: it starts anew."""
    _rescale_both(context, factor)
    context.optimizer.state.clear()
    context.state.facts["alpha"] *= factor


def _rescale_both(context: Context, factor: float) -> None:
    """Rescale the network and its average."""
    rescaling = Rescaling.of(context.module, context.setup.scaling, factor)
    inputs = _example_inputs(context)
    context.ema.change_both(lambda: rescaling.apply(context.module, inputs))


def _meet_budget(context: Context) -> None:
    """Bring the network to its budget: give back what went beyond it, take what is missing."""
    if not context.setup.goals:
        return
    facts, plan = context.state.facts, context.setup.sparsity
    context.history.observe(gamma_values(plan, context.module))
    sizer = replace(context.setup.sizer, graph=refreshed(plan.graph, context.module))
    if "latency" in facts:
        _correct_latency(context, sizer)
    setup = context.setup
    facts["by_data"] = context.config.criterion == "reconstruct" and _is_missing(context, sizer)
    if facts["by_data"]:
        return
    chosen = fit(context.history, sizer, setup.goals, setup.full)
    set_gammas(plan, context.module, context.history.values, chosen.gone)
    wanted = "may be, for the latency" if "latency" in facts else "were asked for"
    left, gone = in_words(setup.goals, chosen.size, setup.full, wanted), int(chosen.gone.sum())
    if setup.phases[ISTA].steps:
        faded = f"{chosen.forced} had not reached zero, and {chosen.revived} that had stay"
        context.tell(f"budget: {left} are left; of {gone} channel classes that go, {faded}")
    else:
        context.tell(f"budget: {left} are left; {gone} of {int(plan.penalised.sum())} channel classes go")


def _is_missing(context: Context, sizer: Sizer) -> bool:
    """Tell whether what has reached zero is too little for the budget; what is missing is then the removal's choice."""
    setup, history = context.setup, context.history
    zero = (history.zero_since > 0) & setup.sparsity.penalised
    left = sizer.size(with_zeros(setup.sparsity, history.values, zero))
    return excess(setup.goals, left, setup.full) > 0


def _correct_latency(context: Context, sizer: Sizer) -> None:
    """Move the MACs budget to where the network that fits it takes the time asked for."""
    before = context.state.facts["latency"]
    now, said = context.ranks.on_main(lambda: time_budget.correct(context.setup, context.history, sizer, before))
    context.state.facts["latency"] = now
    context.setup = replace(context.setup, goals=time_budget.goals(now))
    context.tell(said)


def _keep_teacher(context: Context) -> None:
    """Keep the network as it is now, if fine-tuning is to distil from it: by default, if it has weights."""
    config, facts, setup = context.config, context.state.facts, context.setup
    weight = config.distill or 0.0
    if config.distill is None and config.pretrained and setup.phases[FINETUNE].steps:
        batches = list(sampled_batches(setup.data.train, setup.pipeline, config.batch_size, _LESSONS, config.seed))
        found = context.ranks.on_main(lambda: default_weight(context.module, batches, setup.objective))
        weight, said = found
        context.tell(said)
    if weight:
        facts["distill"] = weight
        state = context.module.state_dict()
        context.ranks.on_main(lambda: checkpoints.save_teacher(context.setup.folder, state))


def _ista(context: Context) -> Ista:
    assert isinstance(context.optimizer, Ista), "fine-tuning has an optimiser of its own"
    return context.optimizer


def _example_inputs(context: Context) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.to(context.setup.device) for tensor in context.setup.example_inputs)
