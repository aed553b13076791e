"""The passes in order: analyze and prune, for modules and for files.

Owns nothing but the order and the checks around it; the only core module that sees frontends, passes
and backends together. Torch is imported inside the functions that need it, so that work on ONNX files
does not load it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.check.blame import judged
from prunec.data.calibration import Calibration, Observed
from prunec.data.samples import Samples
from prunec.errors import BadInput, ValidationFailed
from prunec.files import write_text
from prunec.fit_data import fit_data
from prunec.ir.edits import Edits
from prunec.ir.graph import Graph
from prunec.ir.plan import InputSpec, PrunePlan
from prunec.passes.channels import channels
from prunec.passes.selection.select import EXACT, select
from prunec.pipeline.planning import PROVABLE, SHOWN, Border, Job, Options, Result, choose, gather_facts, plan_and_apply
from prunec.reconstruct import Reconstruction
from prunec.report.analysis import analysis, prune_report
from prunec.report.findings import Analysis, CalibrationReport, PruneReport, Validation
from prunec.runtime.probes import Feed
from prunec.told import labelled, with_agreement

if TYPE_CHECKING:
    from torch import fx, nn

    from prunec.frontends.fx.frontend import Traced
    from prunec.frontends.onnx.frontend import OnnxSource, TracedOnnx

__all__ = [
    "Border",
    "Calibration",
    "Options",
    "Pruned",
    "analyze_graph",
    "analyze_module",
    "analyze_onnx",
    "choose",
    "gather_facts",
    "input_specs",
    "onnx_samples",
    "open_specs",
    "prune_module",
    "prune_onnx",
]


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


def _silent(_: str) -> None:
    """Tell nothing."""


def analyze_graph(graph: Graph, name: str, keep: Sequence[str] = ()) -> Analysis:
    """Analyse a graph of either frontend."""
    facts = gather_facts(graph, keep)
    return analysis(facts, select(facts), name)


def analyze_module(
    module: nn.Module, example_inputs: Sequence[Any], *, name: str = "", keep: Sequence[str] = ()
) -> Analysis:
    """Tell what of a module could be removed, and what holds the rest.

    Args:
        module: left as it is.
        example_inputs: positional inputs of the shape to analyse.
        name: shown as the model's name.
        keep: shell patterns of parameters and nodes to leave alone.

    Raises:
        UntraceableModel, BadInput: see ``prunec.frontends.fx.frontend.trace``.
    """
    from prunec.pipeline.reading import read_module

    return analyze_graph(read_module(module, example_inputs).graph, name or type(module).__name__, keep)


def prune_module(
    module: nn.Module,
    example_inputs: Sequence[Any],
    *,
    name: str = "",
    validate: bool = True,
    tolerance: float = 1e-4,
    saliency: Mapping[str, np.ndarray[Any, Any]] | None = None,
    calibration: Calibration | None = None,
    inputs: str | Path | None = None,
    progress: Callable[[str], None] = _silent,
    **options: Any,
) -> Pruned:
    """Return a smaller network that computes the same function (or, with a criterion, less of it).

    Args:
        module: left as it is; frozen parameters, train or eval mode make no difference.
        example_inputs: positional inputs; also used for the comparison with the original.
        validate: compare the outputs of an exact removal with the original's.
        tolerance: largest relative error that the comparison allows.
        saliency: see ``choose``; the ``taylor`` criterion takes it from the calibration data where it is not given.
        calibration: data on which channels that are constant there are removed too. With a target they choose what
            goes (criterion "reconstruct", the default then), and what stays is fitted to make up for it.
        inputs: a folder of inputs to compare on, instead of random ones.
        progress: told what is being done, where data take their time.
        options: border ("exact", "bias"), keep (shell patterns), criterion ("l1", "gamma", "taylor", "random",
            "reconstruct") with target_macs or target_params (fractions that stay), compensate (True: what goes is
            made up for), multiple_of, seed, residual
            ("tie"; "expand" takes constant channels out of one branch of a sum, docs/pruning.md).

    Raises:
        BudgetNotMet: the budget is below what pinned channels cost.
        ValidationFailed: an exact removal changed the outputs by more than the tolerance.
    """
    from prunec.backends.fx.backend import apply_edits
    from prunec.data.observing import module_slots, observe_module
    from prunec.data.sample_files import read_samples
    from prunec.pipeline.reading import read_module

    chosen = _options(options, calibration)
    traced = read_module(module, example_inputs)
    specs = input_specs(traced.graph, example_inputs)
    given = read_samples(inputs, module_slots(traced)) if inputs is not None else None
    samples, observed, data = None, None, None
    if calibration is not None:
        samples = read_samples(calibration.data, module_slots(traced), normalise=calibration.normalise)
        if chosen.criterion != "reconstruct":
            observed = observe_module(traced, channels(traced.graph, chosen.keep), samples, calibration.tolerance)
        data = _module_data(traced, samples, calibration, chosen, progress)
    if chosen.criterion == "taylor" and saliency is None:
        saliency = _module_saliency(traced, samples)
    apply = partial(_on_graph, apply_edits, traced)
    job = plan_and_apply(traced.graph, specs, chosen, saliency, apply, observed, data)
    report = _report(job, name or type(module).__name__, calibration, observed)
    if data is not None:
        from prunec.stages_module import runner

        runs = runner(traced, traced.module), runner(traced, job.result)
        report = with_agreement(report, job.facts, data, runs, ())
    if validate:
        feeds = given or (samples if job.by_data else None)
        report = _checked(module, job.result, example_inputs, job, report, _allowed(job, tolerance, calibration), feeds)
    return Pruned(job.result, job.plan, report)


def _options(given: Mapping[str, Any], calibration: Calibration | None) -> Options:
    """Return the options; with data and a target the criterion is ``reconstruct`` where none is given."""
    chosen = {**given, "keep": tuple(given.get("keep", ()))}
    budget = any(chosen.get(name) is not None for name in ("target_macs", "target_params"))
    if calibration is not None and budget and chosen.get("criterion") is None:
        chosen["criterion"] = "reconstruct"
    return Options(**chosen)


def _module_data(
    traced: Traced, samples: Samples, calibration: Calibration, chosen: Options, progress: Callable[[str], None]
) -> Reconstruction | None:
    """Return what fits a module to data; None where nothing is to be fitted."""
    if chosen.criterion is None:
        return None
    from prunec.stages_module import OpenedModule, runner

    split = fit_data(samples, runner(traced, traced.module), labelled(calibration))
    return Reconstruction(OpenedModule(traced, split.fitted), split, calibration.memory, progress)


def _on_graph(apply: Callable[[Any, Edits], Result], traced: Any, graph: Graph, edits: Edits) -> Result:
    """Carry edits out on a traced model whose graph was rewritten."""
    return apply(replace(traced, graph=graph), edits)


def _module_saliency(traced: Traced, samples: Samples | None) -> Mapping[str, np.ndarray[Any, Any]]:
    if samples is None:
        raise _no_gradients()
    from prunec.data.saliency import module_saliency

    return module_saliency(traced, samples)


def _no_gradients() -> BadInput:
    return BadInput(
        "the taylor criterion needs gradients, and these need data",
        do="give inputs of the network (--calibrate FOLDER), or use l1, gamma or random",
    )


def _report(job: Job[Any], name: str, calibration: Calibration | None, observed: Observed | None) -> PruneReport:
    report = prune_report(job.facts, job.selection, job.plan, name)
    if calibration is None or observed is None:
        return report
    before = report
    if job.proven is not None:
        before = prune_report(job.proven.facts, job.proven.selection, job.proven.plan, name)
    return replace(
        report,
        exact_on_data=job.plan.exact or _holds_on_data(job),
        calibration=CalibrationReport(
            data=str(calibration.data),
            tolerance=calibration.tolerance,
            samples=observed.samples,
            held_out=observed.held_out,
            constant_channels=observed.constant,
            contradicted_channels=observed.contradicted,
            removed_channels=report.removed_channels - before.removed_channels,
        ),
    )


def _allowed(job: Job[Any], tolerance: float, calibration: Calibration | None) -> float:
    """Return the largest relative error that passes: what the user allowed activations, outputs may have too."""
    return max(tolerance, calibration.tolerance) if calibration is not None and job.by_data else tolerance


@judged
def analyze_onnx(
    path: str | Path, input_shapes: Mapping[str, Sequence[int]] | None = None, *, keep: Sequence[str] = ()
) -> Analysis:
    """Tell what of an ONNX file could be removed, and what holds the rest.

    Args:
        input_shapes: sizes for inputs that the file leaves open; "" stands for the only input.

    Raises:
        BadInput, UnsupportedModel: see ``prunec.frontends.onnx.frontend``.
    """
    from prunec.pipeline.reading import read_onnx

    return analyze_graph(read_onnx(path, input_shapes).graph, str(path), keep)


@judged
def prune_onnx(
    path: str | Path,
    output: str | Path,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    validate: bool = True,
    tolerance: float = 1e-4,
    calibration: Calibration | None = None,
    inputs: str | Path | None = None,
    plan_file: str | Path | None = None,
    progress: Callable[[str], None] = _silent,
    **options: Any,
) -> PruneReport:
    """Write a smaller ONNX file that computes the same function (or, with a criterion, less of it).

    The file is written only when the check against the original has passed; names, dynamic axes,
    opsets and metadata stay as they were.

    Args:
        input_shapes: sizes for inputs that the file leaves open; "" stands for the only input.
        validate: run both files in ONNX Runtime on the same inputs before the result takes its place.
        tolerance: largest relative error that the check of an exact removal allows.
        calibration, inputs, progress, options: as for ``prune_module``.
        plan_file: where to write the plan too (JSON): ``PrunePlan.load(plan_file).apply_onnx(path, output)`` makes
            the same of this file, and the like of one with the same graph and other weights.

    Raises:
        ValidationFailed, BudgetNotMet, BadInput, UnsupportedModel: see there.
    """
    from prunec.backends.onnx.backend import apply_onnx
    from prunec.backends.onnx.save import staged_onnx
    from prunec.data.observing import observe_onnx
    from prunec.pipeline.reading import read_onnx

    chosen = _options(options, calibration)
    if chosen.criterion == "taylor" and calibration is None:
        raise _no_gradients()
    traced = read_onnx(path, input_shapes)
    given = onnx_samples(path, inputs, input_shapes) if inputs is not None else None
    samples, observed, saliency, data = None, None, None, None
    if calibration is not None:
        samples = onnx_samples(path, calibration.data, input_shapes, calibration.normalise)
        if chosen.criterion != "reconstruct":
            observed = observe_onnx(traced, channels(traced.graph, chosen.keep), samples, calibration.tolerance)
        if chosen.criterion is not None:
            data = _onnx_data(traced, path, samples, calibration, progress)
        if chosen.criterion == "taylor":
            from prunec.data.saliency import onnx_saliency

            saliency = onnx_saliency(traced, samples)
    specs = open_specs(traced.graph)
    apply = partial(_on_graph, apply_onnx, traced)
    job = plan_and_apply(traced.graph, specs, chosen, saliency, apply, observed, data)
    report = _report(job, str(path), calibration, observed)
    with staged_onnx(job.result, output) as staged:
        if data is not None:
            from prunec.runtime import sessions

            runs = tuple(sessions.open_runner(file, str(file), "cpu", optimise=False) for file in (path, staged))
            report = with_agreement(report, job.facts, data, runs, runs[0].outputs)
        if job.plan.exact:
            report = _no_larger(traced.source, staged, report)
        if validate:
            feeds = given or (samples if job.by_data else None)
            allowed = _allowed(job, tolerance, calibration)
            report = _checked_files(Path(path), staged, input_shapes, job, report, allowed, feeds, chosen.seed)
        if plan_file is not None:
            written = job.plan if report.removed_channels else PrunePlan(specs, reason=report.message)
            write_text(Path(plan_file), written.to_json() + "\n")
    return report


def _onnx_data(
    traced: TracedOnnx, path: str | Path, samples: Samples, calibration: Calibration, progress: Callable[[str], None]
) -> Reconstruction:
    """Return what fits a file to data."""
    from prunec.opened import OpenedOnnx
    from prunec.runtime import sessions

    split = fit_data(samples, sessions.open_runner(path, str(path), "cpu", optimise=False), labelled(calibration))
    return Reconstruction(
        OpenedOnnx(traced, split.fitted, calibration.memory // 2), split, calibration.memory, progress
    )


def _no_larger(source: OnnxSource, staged: Path, report: PruneReport) -> PruneReport:
    """Put the original in the place of a result that takes more bytes: what is new can be more than what went."""
    from prunec.backends.onnx.save import stored_bytes, write_onnx

    sizes = stored_bytes(source), sum(file.stat().st_size for file in staged.parent.iterdir())
    if sizes[1] <= sizes[0]:
        return report
    write_onnx(source, staged)
    return replace(
        report,
        after=report.before,
        removed_channels=0,
        layers=tuple(replace(layer, after=layer.before) for layer in report.layers),
        carriers=0,
        expanded=(),
        gates=(),
        message=f"nothing was removed: without {report.removed_channels} channels the file would be larger "
        f"({sizes[1]:,} bytes instead of {sizes[0]:,}), by what takes their place; it is written as it was",
    )


def onnx_samples(
    path: str | Path, data: str | Path, input_shapes: Mapping[str, Sequence[int]] | None, normalise: str | None = None
) -> Samples:
    """List the samples of a folder for an ONNX file, in batches that it takes."""
    from prunec.data.sample_files import read_samples
    from prunec.runtime import sessions

    runner = sessions.open_runner(path, str(path), "cpu", optimise=False)
    samples = read_samples(data, sessions.slots(runner, input_shapes), normalise=normalise)
    return samples.that_run(runner, str(path))


def _checked_files(
    original: Path,
    pruned: Path,
    input_shapes: Mapping[str, Sequence[int]] | None,
    job: Job[Any],
    report: PruneReport,
    tolerance: float,
    feeds: Iterable[Feed] | None,
    seed: int,
) -> PruneReport:
    from prunec.check.validate import RUNS, validate_onnx

    result = validate_onnx(
        original,
        pruned,
        provider="cpu",
        tolerance=tolerance,
        runs=RUNS if report.removed_channels else 0,  # the same network is as fast
        input_shapes=input_shapes,
        inputs=feeds,
        seed=seed,
    )
    _refuse_difference(job, result, tolerance)
    return replace(report, validation=result, border_error=_border_error(job, report, result))


def open_specs(graph: Graph) -> tuple[InputSpec, ...]:
    """Return a graph's inputs as data; an open size is 0."""
    return tuple(
        InputSpec(name, tuple(size if isinstance(size, int) else 0 for size in value.shape or ()), value.dtype)
        for name, value in ((name, graph.values[name]) for name in graph.inputs)
    )


def input_specs(graph: Graph, example_inputs: Sequence[Any]) -> tuple[InputSpec, ...]:
    """Return the tensors among the example inputs, as data."""
    tensors = [i for i in example_inputs if hasattr(i, "shape")]
    return tuple(
        InputSpec(name, tuple(int(size) for size in tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(graph.inputs, tensors, strict=False)
    )


def _checked(
    module: nn.Module,
    pruned: fx.GraphModule,
    example_inputs: Sequence[Any],
    job: Job[Any],
    report: PruneReport,
    tolerance: float,
    samples: Samples | None,
) -> PruneReport:
    """Compare the outputs with the original's; a plan that keeps the function must agree."""
    from prunec.check.validate import validate_modules

    places = [str(index) for index, value in enumerate(example_inputs) if hasattr(value, "shape")]
    feeds = None
    if samples is not None:
        feeds = _Renamed(samples, dict(zip((slot.name for slot in samples.slots), places, strict=True)))
    result = validate_modules(module, pruned, tuple(example_inputs), tolerance=tolerance, inputs=feeds)
    _refuse_difference(job, result, tolerance)
    return replace(report, validation=result, border_error=_border_error(job, report, result))


@dataclass(frozen=True, slots=True, eq=False)
class _Renamed:
    """Samples under other input names; read anew each time it is iterated."""

    samples: Samples
    names: Mapping[str, str]

    def __iter__(self) -> Iterator[Feed]:
        return ({self.names[key]: value for key, value in feed.items()} for feed in self.samples)


def _border_error(job: Job[Any], report: PruneReport, result: Validation) -> float | None:
    """Return the measured error where accepting it at borders is all that a plan gives up."""
    return None if job.plan.exact or report.reason != PROVABLE else result.max_rel_error


def _holds_on_data(job: Job[Any]) -> bool:
    """Tell whether a plan promises the same function on the data: nothing went by score, no border was given up."""
    return job.by_data and job.plan.reason == SHOWN and job.selection.border == EXACT


def _refuse_difference(job: Job[Any], result: Validation, tolerance: float) -> None:
    if result.passed:
        return
    if job.plan.exact:
        raise ValidationFailed(
            f"the pruned network's outputs differ by {result.max_rel_error:.2e} (relative), allowed is {tolerance:.0e}",
            do="please report this with the model; --no-validate gives the result all the same",
        )
    if _holds_on_data(job):
        raise ValidationFailed(
            f"on the data the pruned network's outputs differ by {result.max_rel_error:.2e} (relative), "
            f"allowed is {tolerance:.0e}",
            why="channels that are nearly constant add up",
            do="lower --tolerance; --no-validate gives the result all the same",
        )
