"""The passes in order: analyze and prune, for modules and for files.

Owns nothing but the order and the checks around it; the only core module that sees frontends, passes
and backends together. Torch is imported inside the functions that need it, so that work on ONNX files
does not load it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from prunec.analysis import analysis, prune_report
from prunec.edits import CannotRewrite, Edits
from prunec.errors import BadInput, InternalError, ValidationFailed
from prunec.graph import Graph
from prunec.passes.channels import channels
from prunec.passes.constants import constants
from prunec.passes.liveness import liveness
from prunec.passes.lower import lower
from prunec.passes.reads import reads
from prunec.passes.scores import score
from prunec.passes.select import Facts, Selection, plan, select, select_budget
from prunec.plan import InputSpec, PrunePlan
from prunec.report import Analysis, PruneReport, Validation

if TYPE_CHECKING:
    from torch import fx, nn

Result = TypeVar("Result")
Border = Literal["exact", "bias"]
Criterion = Literal["l1", "gamma", "taylor", "random"]

PROVABLE = "removed what is provably constant or dead"

MAX_REWRITES = 50
"""Calls found unrewritable, one after another, before prunec gives up on a network."""


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


@dataclass(frozen=True, slots=True)
class Options:
    """How to prune; see ``prune_module``."""

    border: Border = "exact"
    keep: tuple[str, ...] = ()
    criterion: Criterion | None = None
    target_macs: float | None = None
    target_params: float | None = None
    multiple_of: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.border not in ("exact", "bias"):
            raise BadInput(f"border is {self.border!r}", do="use exact or bias")
        if self.multiple_of < 1:
            raise BadInput(f"multiple_of is {self.multiple_of}", do="give a positive number of channels")
        for name in ("target_macs", "target_params"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise BadInput(f"{name} is {value}", do="give the fraction that may stay, above 0 and at most 1")
        budget = self.target_macs is not None or self.target_params is not None
        if self.criterion is not None and not budget:
            raise BadInput("a criterion without a budget removes nothing", do="give target_macs or target_params")
        if budget and self.criterion is None:
            raise BadInput(
                "a budget without a criterion cannot be met", do="give a criterion: l1, gamma, taylor or random"
            )


def gather_facts(graph: Graph, keep: Sequence[str] = (), frozen: Mapping[str, str] | None = None) -> Facts:
    """Run the analysis passes over a graph."""
    classes = channels(graph, keep, frozen)
    known = constants(graph)
    live = liveness(graph, known)
    return Facts(graph, classes, known, live, reads(graph, classes, known, live))


def choose(
    facts: Facts, options: Options, saliency: Mapping[str, np.ndarray[Any, Any]] | None = None
) -> tuple[Selection, str]:
    """Return what to keep, and in one sentence how that was chosen.

    Args:
        saliency: for the ``taylor`` criterion: parameter name -> importance of each of its elements.
    """
    if options.criterion is None:
        chosen = select(facts, border=options.border, multiple_of=options.multiple_of)
        return chosen, PROVABLE
    scores = score(facts, options.criterion, seed=options.seed, saliency=saliency)
    chosen = select_budget(
        facts,
        scores,
        target_macs=options.target_macs,
        target_params=options.target_params,
        border=options.border,
        multiple_of=options.multiple_of,
    )
    goals = [
        f"{value:.0%} of the {what}"
        for what, value in (("MACs", options.target_macs), ("parameters", options.target_params))
        if value is not None
    ]
    return (
        chosen,
        f"removed the channels that score lowest by {options.criterion} until {' and '.join(goals)} were left",
    )


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
        UntraceableModel, BadInput: see ``prunec.frontends.fx.trace``.
    """
    from prunec.reading import read_module

    return analyze_graph(read_module(module, example_inputs).graph, name or type(module).__name__, keep)


def prune_module(
    module: nn.Module,
    example_inputs: Sequence[Any],
    *,
    name: str = "",
    validate: bool = True,
    tolerance: float = 1e-4,
    saliency: Mapping[str, np.ndarray[Any, Any]] | None = None,
    **options: Any,
) -> Pruned:
    """Return a smaller network that computes the same function (or, with a criterion, less of it).

    Args:
        module: left as it is; frozen parameters, train or eval mode make no difference.
        example_inputs: positional inputs; also used for the comparison with the original.
        validate: compare the outputs of an exact removal with the original's.
        tolerance: largest relative error that the comparison allows.
        saliency: see ``choose``.
        options: border ("exact", "bias"), keep (shell patterns), criterion ("l1", "gamma", "taylor",
            "random") with target_macs or target_params (fractions that stay), multiple_of, seed.

    Raises:
        BudgetNotMet: the budget is below what pinned channels cost.
        ValidationFailed: an exact removal changed the outputs by more than the tolerance.
    """
    from prunec.backends.fx import apply_edits
    from prunec.reading import read_module

    chosen = Options(**{**options, "keep": tuple(options.get("keep", ()))})
    traced = read_module(module, example_inputs)
    specs = input_specs(traced.graph, example_inputs)
    facts, selection, made, pruned = _plan_and_apply(
        traced.graph, specs, chosen, saliency, partial(apply_edits, traced)
    )
    report = prune_report(facts, selection, made, name or type(module).__name__)
    if validate:
        report = _checked(module, pruned, example_inputs, made, report, tolerance)
    return Pruned(pruned, made, report)


def _plan_and_apply(
    graph: Graph,
    inputs: tuple[InputSpec, ...],
    options: Options,
    saliency: Mapping[str, np.ndarray[Any, Any]] | None,
    apply: Callable[[Edits], Result],
) -> tuple[Facts, Selection, PrunePlan, Result]:
    """Plan and apply; where a backend cannot rewrite a node, pin what it touches and plan again."""
    frozen: dict[str, str] = {}
    while True:
        facts = gather_facts(graph, options.keep, frozen)
        selection, reason = choose(facts, options, saliency)
        made = plan(facts, selection, inputs, border=options.border, reason=reason)
        try:
            return facts, selection, made, apply(lower(graph, facts.classes, made, facts.constants))
        except CannotRewrite as error:
            if error.origin in frozen or len(frozen) == MAX_REWRITES:
                raise InternalError(
                    "backend", f"{error.origin}: {error.reason}, although its channels are pinned"
                ) from error
            frozen[error.origin] = error.reason


def analyze_onnx(
    path: str | Path, input_shapes: Mapping[str, Sequence[int]] | None = None, *, keep: Sequence[str] = ()
) -> Analysis:
    """Tell what of an ONNX file could be removed, and what holds the rest.

    Args:
        input_shapes: sizes for inputs that the file leaves open; "" stands for the only input.

    Raises:
        BadInput, UnsupportedModel: see ``prunec.frontends.onnx``.
    """
    from prunec.reading import read_onnx

    return analyze_graph(read_onnx(path, input_shapes).graph, str(path), keep)


def prune_onnx(
    path: str | Path,
    output: str | Path,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    validate: bool = True,
    tolerance: float = 1e-4,
    **options: Any,
) -> PruneReport:
    """Write a smaller ONNX file that computes the same function (or, with a criterion, less of it).

    The file is written only when the check against the original has passed; names, dynamic axes,
    opsets and metadata stay as they were.

    Args:
        input_shapes: sizes for inputs that the file leaves open; "" stands for the only input.
        validate: run both files in ONNX Runtime on the same inputs before the result takes its place.
        tolerance: largest relative error that the check of an exact removal allows.
        options: as for ``prune_module``.

    Raises:
        ValidationFailed, BudgetNotMet, BadInput, UnsupportedModel: see there.
    """
    from prunec.backends.onnx import apply_onnx
    from prunec.backends.onnx_save import staged_onnx
    from prunec.reading import read_onnx

    chosen = Options(**{**options, "keep": tuple(options.get("keep", ()))})
    traced = read_onnx(path, input_shapes)
    specs = open_specs(traced.graph)
    facts, selection, made, pruned = _plan_and_apply(traced.graph, specs, chosen, None, partial(apply_onnx, traced))
    report = prune_report(facts, selection, made, str(path))
    with staged_onnx(pruned, output) as staged:
        if validate:
            report = _checked_files(Path(path), staged, input_shapes, made, report, tolerance, chosen.seed)
    return report


def _checked_files(
    original: Path,
    pruned: Path,
    input_shapes: Mapping[str, Sequence[int]] | None,
    made: PrunePlan,
    report: PruneReport,
    tolerance: float,
    seed: int,
) -> PruneReport:
    from prunec.validate import validate_onnx

    result = validate_onnx(original, pruned, provider="cpu", tolerance=tolerance, input_shapes=input_shapes, seed=seed)
    _refuse_difference(made, result, tolerance)
    return replace(report, validation=result, border_error=_border_error(made, report, result))


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
    made: PrunePlan,
    report: PruneReport,
    tolerance: float,
) -> PruneReport:
    """Compare the outputs with the original's; an exact plan must agree."""
    from prunec.validate import validate_modules

    result = validate_modules(module, pruned, tuple(example_inputs), tolerance=tolerance)
    _refuse_difference(made, result, tolerance)
    return replace(report, validation=result, border_error=_border_error(made, report, result))


def _border_error(made: PrunePlan, report: PruneReport, result: Validation) -> float | None:
    """Return the measured error where accepting it at borders is all that a plan gives up."""
    return None if made.exact or report.reason != PROVABLE else result.max_rel_error


def _refuse_difference(made: PrunePlan, result: Validation, tolerance: float) -> None:
    if made.exact and not result.passed:
        raise ValidationFailed(
            f"the pruned network's outputs differ by {result.max_rel_error:.2e} (relative), allowed is {tolerance:.0e}",
            do="please report this with the model; --no-validate gives the result all the same",
        )
