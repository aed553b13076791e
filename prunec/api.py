"""The steps in order: analyze and prune, for modules and for files.

Owns nothing but the order: read, look at the data, plan and apply (facts, choice, lowering and backend:
pipeline/planning.py), report, check. Torch, and what few calls need, is imported where it is needed, so that work on
ONNX files does not load it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

import numpy as np

from prunec.check.blame import judged
from prunec.check.clock import CHECK_TIME, Tell
from prunec.files import write_text
from prunec.ir.edits import Edits
from prunec.ir.graph import Graph
from prunec.ir.plan import InputSpec, PrunePlan
from prunec.ir.taught import NO_RULES, OpRules
from prunec.passes.selection.criteria import check_has_data
from prunec.passes.selection.select import select
from prunec.passes.selection.widths import AUTO, MultipleOf
from prunec.pipeline.options import Border, Criterion, Gates, Options, Residual
from prunec.pipeline.planning import Job, Result, gather_facts, plan_and_apply
from prunec.pipeline.reading import input_specs, open_specs, read_module, read_onnx
from prunec.pipeline.reporting import no_larger, report_of
from prunec.report.analysis import analysis
from prunec.report.findings import Analysis, PruneReport

if TYPE_CHECKING:
    from torch import fx, nn

    from prunec.data.calibration import Calibration
    from prunec.frontends.fx.running.arguments import Example
    from prunec.passes.selection.budget import Target
    from prunec.pipeline.evidence import Evidence


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """The result of pruning a module.

    Args:
        module: the pruned network as a torch.fx GraphModule.
        plan: what was done, as data.
        report: what was done, in numbers.
    """

    module: fx.GraphModule
    plan: PrunePlan
    report: PruneReport


def analyze_graph(graph: Graph, name: str, keep: Sequence[str] = ()) -> Analysis:
    """Analyse a graph of either frontend."""
    facts = gather_facts(graph, keep)
    return analysis(facts, select(facts), name)


def analyze_module(
    module: nn.Module,
    example_inputs: Example,
    *,
    name: str = "",
    keep: Sequence[str] = (),
    rules: OpRules = NO_RULES,
) -> Analysis:
    """Return what of a module could be removed, and why the rest has to stay.

    Args:
        module: left as it is.
        example_inputs: inputs of the shape to analyse: a sequence by position, a dict by name, or the only one. Tensors
            may be in dicts, tuples and lists.
        name: shown as the model's name.
        keep: shell patterns of parameters and nodes to leave alone.
        rules: what ops of yours are like, by name ("mylib::swish"), see docs/extending.md.

    Raises:
        UntraceableModel, BadInput: see ``prunec.frontends.fx.frontend.trace``.
    """
    traced = read_module(module, example_inputs, rules=rules)
    found = analyze_graph(traced.graph, name or type(module).__name__, keep)
    return replace(found, notes=(*found.notes, *traced.notes))


def prune_module(
    module: nn.Module,
    example_inputs: Example,
    *,
    name: str = "",
    validate: bool = True,
    tolerance: float = 1e-4,
    saliency: Mapping[str, np.ndarray[Any, Any]] | None = None,
    calibration: Any = None,
    inputs: str | Path | None = None,
    check_time: float = CHECK_TIME,
    progress: Tell | None = None,
    rules: OpRules = NO_RULES,
    border: Border = "exact",
    residual: Residual = "tie",
    gates: Gates = "tie",
    keep: str | Sequence[str] = (),
    criterion: Criterion | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    compensate: bool = True,
    multiple_of: MultipleOf = AUTO,
    seed: int = 0,
    **unknown: Never,
) -> Pruned:
    """Return a smaller network that computes the same function (or, with a criterion, approximates it).

    Args:
        module: left as it is; frozen parameters, train or eval mode make no difference.
        example_inputs: inputs by position in a sequence, by name in a dict, or the only one; tensors may be in
            dicts, tuples and lists. Also used for the comparison with the original.
        validate: compare the outputs of an exact removal with the original's.
        tolerance: largest relative error that the comparison allows.
        saliency: see ``choose``; the ``taylor`` criterion takes it from the calibration data if it is not given.
        calibration: data: a folder, an array or tensor of inputs, a list of batches, a data loader; or ``Calibration``
            with these and more settings. Channels that are constant on them are removed too. With a target the data
            choose the channels (criterion "reconstruct", the default then), and the rest is fitted to make up for them.
        inputs: a folder of inputs to compare on, instead of random ones.
        check_time: seconds that the comparison may take; the report says what was left out.
        progress: called with a sentence about what is being done, in steps that take time.
        rules: what ops of yours are like, by name ("mylib::swish"), see docs/extending.md.
        border: with zero padding, "exact" keeps one constant channel so that borders stay right; "bias" folds all
            constants into the bias, which is wrong in the border.
        residual: "expand" takes channels that are constant in one branch of a sum out of that branch (docs/pruning.md).
        gates: "fold" takes channels that are constant in front of a squeeze-excite gate out of the product.
        keep: shell patterns of parameters and nodes to leave alone.
        criterion: chooses the channels that a budget needs beyond the constant ones: "l1", "gamma", "taylor",
            "random", "reconstruct", or a function of yours (docs/extending.md).
        target_macs, target_params: the fraction of them that may stay, above 0 and at most 1.
        target_latency: the fraction of the time, measured in ONNX Runtime on this machine's CPU.
        compensate: make up for what a criterion removes: by a fit to the data, or by the means that BatchNorms imply.
        multiple_of: with a criterion, widths are multiples of it: a number, or "auto" for what suits each layer.
        seed: of random scores and inputs.
        unknown: options that do not exist; they are refused, and similar ones are suggested.

    Raises:
        BudgetNotMet: the budget is below what pinned channels cost.
        ValidationFailed: an exact removal changed the outputs by more than the tolerance.
    """
    from prunec.backends.fx.backend import apply_edits
    from prunec.frontends.fx.faithful import refuse_another
    from prunec.frontends.fx.running.arguments import by_position, ordered, structure
    from prunec.pipeline import evidence
    from prunec.pipeline.apply import held_beside_state

    calibration = _calibration(calibration)
    chosen = Options.of(
        with_data=calibration is not None,
        border=border,
        residual=residual,
        gates=gates,
        keep=keep,
        criterion=criterion,
        target_macs=target_macs,
        target_params=target_params,
        target_latency=target_latency,
        compensate=compensate,
        multiple_of=multiple_of,
        seed=seed,
        **unknown,
    )
    example_inputs = ordered(module, example_inputs)
    taken = structure(example_inputs)
    module, example_inputs = by_position(module, example_inputs)
    traced = read_module(module, example_inputs, rules=rules)
    if validate:
        refuse_another(module, traced, example_inputs)
    shown = evidence.module_evidence(traced, chosen, calibration, inputs, saliency, progress)
    specs = input_specs(traced.graph, example_inputs)
    make = partial(_planned, traced.graph, specs, chosen, shown, _backend_for(apply_edits, traced))
    if chosen.target_latency is None:
        job, took = make(None), None
    else:
        from prunec.pipeline import time_budget

        with time_budget.module_timer(module, example_inputs) as time:
            job, took = time_budget.pruned_to(chosen, traced.graph, make, time, progress or _silent)
    report = replace(report_of(job, name or type(module).__name__, calibration, shown.observed), latency=took)
    report = replace(report, notes=(*report.notes, *traced.notes))
    if shown.fit is not None:
        from prunec.pipeline import data_report

        report = data_report.with_agreement(report, job, shown.fit, evidence.module_runs(traced, job.result))
    if validate:
        from prunec.pipeline import checking

        allowed = checking.allowed_error(job, tolerance, calibration)
        feeds = shown.given or (shown.samples if job.by_data else None)
        report = checking.checked_module(
            module, job.result, example_inputs, job, report, allowed, feeds, (check_time, progress)
        )
    held = held_beside_state(module, traced)
    return Pruned(job.result, replace(job.plan, example=taken, held=held), report)


@judged
def analyze_onnx(
    path: str | Path,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    keep: Sequence[str] = (),
    rules: OpRules = NO_RULES,
) -> Analysis:
    """Return what of an ONNX file could be removed, and why the rest has to stay.

    Args:
        input_shapes: sizes for inputs that the file leaves open; "" stands for the only input.
        keep, rules: as for ``analyze_module``; an op of a custom domain is called "my.domain::Swish".

    Raises:
        BadInput, UnsupportedModel: see ``prunec.frontends.onnx.frontend``.
    """
    return analyze_graph(read_onnx(path, input_shapes, rules).graph, str(path), keep)


@judged
def prune_onnx(
    path: str | Path,
    output: str | Path,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    validate: bool = True,
    tolerance: float = 1e-4,
    calibration: Any = None,
    inputs: str | Path | None = None,
    plan_file: str | Path | None = None,
    check_time: float = CHECK_TIME,
    progress: Tell | None = None,
    rules: OpRules = NO_RULES,
    border: Border = "exact",
    residual: Residual = "tie",
    gates: Gates = "tie",
    keep: str | Sequence[str] = (),
    criterion: Criterion | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    compensate: bool = True,
    multiple_of: MultipleOf = AUTO,
    seed: int = 0,
    **unknown: Never,
) -> PruneReport:
    """Write a smaller ONNX file that computes the same function (or, with a criterion, approximates it).

    The file is written only when the check against the original has passed; names, dynamic axes,
    opsets and metadata stay as they were.

    Args:
        input_shapes: sizes for inputs that the file leaves open; "" stands for the only input.
        validate: run both files in ONNX Runtime on the same inputs before the result takes its place.
        tolerance: largest relative error that the check of an exact removal allows.
        calibration, inputs, check_time, progress, rules, and border to seed: as for ``prune_module``.
        plan_file: where to write the plan too (JSON); ``prunec.apply_plan_onnx`` applies it to this file again, or
            to one with the same graph and other weights.

    Raises:
        ValidationFailed, BudgetNotMet, BadInput, UnsupportedModel: see there.
    """
    from prunec.backends.onnx.backend import apply_onnx
    from prunec.backends.onnx.save import staged_onnx
    from prunec.pipeline import evidence

    calibration = _calibration(calibration)
    chosen = Options.of(
        with_data=calibration is not None,
        border=border,
        residual=residual,
        gates=gates,
        keep=keep,
        criterion=criterion,
        target_macs=target_macs,
        target_params=target_params,
        target_latency=target_latency,
        compensate=compensate,
        multiple_of=multiple_of,
        seed=seed,
        **unknown,
    )
    check_has_data(chosen.criterion, data=calibration is not None)
    traced = read_onnx(path, input_shapes, rules)
    shown = evidence.onnx_evidence(path, traced, chosen, calibration, inputs, input_shapes, progress)
    specs = open_specs(traced.graph)
    make = partial(_planned, traced.graph, specs, chosen, shown, _backend_for(apply_onnx, traced))
    if chosen.target_latency is None:
        job, took = make(None), None
    else:
        from prunec.pipeline import time_budget

        with time_budget.file_timer(path, input_shapes, chosen.seed) as time:
            job, took = time_budget.pruned_to(chosen, traced.graph, make, time, progress or _silent)
    report = replace(report_of(job, str(path), calibration, shown.observed), latency=took)
    with staged_onnx(job.result, output) as staged:
        nothing: Any = None
        job = replace(job, result=nothing)  # it is in the file now: the check needs the memory
        traced.source.files.let_go()
        if shown.fit is not None:
            from prunec.pipeline import data_report

            report = data_report.with_agreement(report, job, shown.fit, evidence.onnx_runs(path, staged))
        if job.plan.exact:
            report = no_larger(traced.source, staged, report)
        if validate:
            from prunec.pipeline import checking

            allowed = checking.allowed_error(job, tolerance, calibration)
            feeds, budget = shown.given or (shown.samples if job.by_data else None), (check_time, progress)
            report = checking.checked_files(
                path, staged, input_shapes, job, report, allowed, feeds, chosen.seed, budget
            )
        if plan_file is not None:
            written = job.plan if report.removed_channels else PrunePlan(specs, reason=report.message)
            write_text(Path(plan_file), written.to_json() + "\n")
    return report


def _calibration(given: Any) -> Calibration | None:
    if given is None:
        return None
    from prunec.data.calibration import Calibration

    return Calibration.of(given)


def _planned(
    graph: Graph,
    specs: tuple[InputSpec, ...],
    options: Options,
    shown: Evidence,
    apply: Callable[[Graph, Edits], Result],
    target: Target | None,
    *,
    fit: bool = True,
) -> Job[Result]:
    """Plan and apply, given what the data showed, for the options' target or another one."""
    return plan_and_apply(graph, specs, options, shown.saliency, apply, shown.observed, shown.fit, target, fit=fit)


def _backend_for(apply: Callable[[Any, Edits], Result], traced: Any) -> Callable[[Graph, Edits], Result]:
    """Return a function that carries edits out on a traced model, given its rewritten graph."""
    return lambda graph, edits: apply(replace(traced, graph=graph), edits)


def _silent(_: str) -> None:
    """Tell nothing."""
