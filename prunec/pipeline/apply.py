"""Apply a stored plan to a fresh module: plan.json + architecture + weights = the pruned model again.

Owns the two forms of the result: a GraphModule (always), or a copy of the user's own class (if its
forward has no written-out sizes). passes/lowering/lower.py knows what a plan does to a graph.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace

import torch
from torch import fx, nn

from prunec.backends.fx.backend import apply_edits
from prunec.backends.fx.check import check_shapes
from prunec.backends.fx.parameters import parameter_like, refresh_modules, set_parameters
from prunec.errors import BadInput, BadPlan, UnsupportedModel
from prunec.frontends.fx.running.arguments import Example, by_position, example_of, zeros
from prunec.frontends.fx.running.untouched import eval_mode, untouched
from prunec.frontends.fx.traced import Traced
from prunec.ir.edits import CannotRewrite, Edits
from prunec.ir.plan import PrunePlan
from prunec.ir.taught import NO_RULES, OpRules
from prunec.passes.channels import channels
from prunec.passes.lowering.lower import lower
from prunec.passes.rewrites.rewrite import rewritten
from prunec.pipeline.reading import read_module


def example_inputs_of(plan: PrunePlan) -> Example:
    """Return arguments like those that the plan was made with, with tensors of zeros.

    Raises:
        BadPlan: it was made with a value that a plan cannot hold.
    """
    return example_of(plan.example, [zeros(spec.shape, spec.dtype) for spec in plan.inputs])


def apply_plan(
    module: nn.Module, plan: PrunePlan, example_inputs: Example | None = None, *, rules: OpRules = NO_RULES
) -> fx.GraphModule:
    """Return the pruned form of a module, as a GraphModule; see ``prunec.apply_plan``."""
    for earlier in plan.earlier:
        module = apply_plan(module, earlier, example_inputs, rules=rules)
    traced, edits = _lowered(module, plan, example_inputs, rules)
    try:
        return apply_edits(traced, edits)
    except CannotRewrite as error:
        raise BadPlan(f"the plan does not fit the model: {error.origin}", why=error.reason) from error


def pruned_copy(
    module: nn.Module, plan: PrunePlan, example_inputs: Example | None = None, *, rules: OpRules = NO_RULES
) -> nn.Module:
    """Return a pruned copy of the user's own class, for forwards without hard-coded sizes; see ``prunec.apply_plan``.

    Raises:
        UnsupportedModel: the plan changes the forward itself.
    """
    for earlier in plan.earlier:
        module = pruned_copy(module, earlier, example_inputs, rules=rules)
    traced, edits = _lowered(module, plan, example_inputs, rules)
    _refuse_changed_forward(traced, edits)
    pruned = copy.deepcopy(module)
    set_parameters(pruned, edits.params)
    _apply_module_attributes(traced, edits, pruned)
    refresh_modules(pruned)
    try:
        check_shapes(traced, edits, _read(pruned, plan, example_inputs, rules).module)
    except (CannotRewrite, BadInput) as error:
        where, why = (error.origin, error.reason) if isinstance(error, CannotRewrite) else ("forward", error.why)
        raise _changed(where, why) from error
    return pruned


def _lowered(
    module: nn.Module, plan: PrunePlan, example_inputs: Example | None, rules: OpRules
) -> tuple[Traced, Edits]:
    """Return a module, its graph with the plan's rewrites, and the plan's edits."""
    traced = _read(module, plan, example_inputs, rules)
    traced = replace(traced, graph=rewritten(traced.graph, plan))
    return traced, lower(traced.graph, channels(traced.graph), plan)


def _read(module: nn.Module, plan: PrunePlan, example_inputs: Example | None, rules: OpRules) -> Traced:
    """Read a module as the plan's was: a plan of a network that had run, its caches filled, needs them filled."""
    given = example_inputs_of(plan) if example_inputs is None else example_inputs
    traced = read_module(module, given, rules=rules)
    if not plan.held or held_beside_state(module, traced) == plan.held:
        return traced
    module, inputs = by_position(module, given)
    with untouched(module, inputs), eval_mode(module), torch.no_grad(), suppress(Exception):
        module(*inputs)
        warm = read_module(module, inputs, rules=rules)
        if held_beside_state(module, warm) == plan.held:
            return warm
    return traced


def held_beside_state(module: nn.Module, traced: Traced) -> tuple[str, ...]:
    """Return the names of the tensors that a traced network reads and that are not in its state."""
    traced_state, state = (each.state_dict(keep_vars=True) for each in (traced.module, module))
    return tuple(sorted(traced_state.keys() - state.keys()))


def _changed(where: str, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the plan changes the network's forward at {where}, so the pruned network is no instance of its own class",
        why=why,
        do="use prunec.apply_plan(module, plan), which gives a torch.fx GraphModule",
    )


def _refuse_changed_forward(traced: Traced, edits: Edits) -> None:
    by_name = {node.name: node for node in traced.graph.nodes}
    for node in traced.graph.nodes:
        if node.attrs.get("inserted"):
            raise _changed(node.origin, "it adds an op that the forward does not have")
    for name in sorted(edits.removed) + [name for name, _ in edits.constant_inputs] + list(edits.dropped_inputs):
        raise _changed(by_name[name].origin, "a branch of it vanished")
    modules = {n.name for n in traced.module.graph.nodes if n.op == "call_module"}
    for name in edits.new_biases:
        if by_name[name].origin not in modules:
            raise _changed(by_name[name].origin, "it needs a bias, and is not a module")
    for name in edits.attrs:
        if by_name[name].op == "gather":
            raise _changed(by_name[name].origin, "channels are picked by constant indices")
        if by_name[name].op == "reduce":
            raise _changed(by_name[name].origin, "it takes the mean over channels of which some were removed")


def _apply_module_attributes(traced: Traced, edits: Edits, pruned: nn.Module) -> None:
    targets = {n.name: str(n.target) for n in traced.module.graph.nodes if n.op == "call_module"}
    by_name = {node.name: node for node in traced.graph.nodes}
    for name, attrs in edits.attrs.items():
        target = targets.get(by_name[name].origin)
        if target is not None and "conv_groups" in attrs:
            pruned.get_submodule(target).groups = attrs["conv_groups"]
        if target is not None and "num_groups" in attrs:
            pruned.get_submodule(target).num_groups = attrs["num_groups"]
    for name, bias in edits.new_biases.items():
        owner = pruned.get_submodule(targets[by_name[name].origin])
        owner.bias = parameter_like(next(owner.parameters()), torch.from_numpy(bias))
