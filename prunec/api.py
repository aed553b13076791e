"""The passes in order: analyze and prune, for modules and for files.

Owns nothing but the order and the checks around it; the only core module that sees frontends, passes
and backends together. Torch is imported inside the functions that need it, so that work on ONNX files
does not load it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prunec.analysis import analysis, prune_report
from prunec.errors import BadInput
from prunec.graph import Graph
from prunec.passes.channels import channels
from prunec.passes.constants import constants
from prunec.passes.liveness import liveness
from prunec.passes.lower import lower
from prunec.passes.reads import reads
from prunec.passes.scores import score
from prunec.passes.select import Facts, Selection, plan, select, select_budget
from prunec.plan import InputSpec, PrunePlan
from prunec.report import Analysis, PruneReport

if TYPE_CHECKING:
    from torch import fx, nn

Border = Literal["exact", "bias"]
Criterion = Literal["l1", "gamma", "taylor", "random"]

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
            raise BadInput("a budget without a criterion cannot be met", do="give a criterion: l1, gamma, taylor or random")


def gather_facts(graph: Graph, keep: Sequence[str] = (), frozen: Mapping[str, str] | None = None) -> Facts:
    """Run the analysis passes over a graph."""
    classes = channels(graph, keep, frozen)
    known = constants(graph)
    live = liveness(graph, known)
    return Facts(graph, classes, known, live, reads(graph, classes, known, live))


def choose(facts: Facts, options: Options, saliency: Mapping[str, np.ndarray[Any, Any]] | None = None) -> tuple[Selection, str]:
    """Return what to keep, and in one sentence how that was chosen.

    Args:
        saliency: for the ``taylor`` criterion: parameter name -> importance of each of its elements.
    """
    if options.criterion is None:
        chosen = select(facts, border=options.border, multiple_of=options.multiple_of)
        return chosen, "removed what is provably constant or dead"
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
    return chosen, f"removed the channels that score lowest by {options.criterion} until {' and '.join(goals)} were left"


def analyze_graph(graph: Graph, name: str, keep: Sequence[str] = ()) -> Analysis:
    """Analyse a graph of either frontend."""
    facts = gather_facts(graph, keep)
    return analysis(facts, select(facts), name)


def analyze_module(module: nn.Module, example_inputs: Sequence[Any], *, name: str = "", keep: Sequence[str] = ()) -> Analysis:
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
    from prunec.backends.fx_rewrite import CannotRewrite
    from prunec.reading import read_module

    chosen_options = Options(**{**options, "keep": tuple(options.get("keep", ()))})
    traced = read_module(module, example_inputs)
    frozen: dict[str, str] = {}
    for _ in range(MAX_REWRITES):
        facts = gather_facts(traced.graph, chosen_options.keep, frozen)
        selection, reason = choose(facts, chosen_options, saliency)
        made = plan(facts, selection, input_specs(traced.graph, example_inputs), border=chosen_options.border, reason=reason)
        try:
            pruned = apply_edits(traced, lower(traced.graph, facts.classes, made, facts.constants))
            break
        except CannotRewrite as error:
            if error.origin in frozen:
                raise
            frozen[error.origin] = error.reason
    report = prune_report(facts, selection, made, name or type(module).__name__)
    if validate:
        report = _checked(module, pruned, example_inputs, made, report, tolerance)
    return Pruned(pruned, made, report)


def input_specs(graph: Graph, example_inputs: Sequence[Any]) -> tuple[InputSpec, ...]:
    """Return the tensors among the example inputs, as data."""
    tensors = [i for i in example_inputs if hasattr(i, "shape")]
    return tuple(
        InputSpec(name, tuple(int(size) for size in tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(graph.inputs, tensors, strict=False)
    )


def _checked(
    module: nn.Module, pruned: fx.GraphModule, example_inputs: Sequence[Any], made: PrunePlan, report: PruneReport, tolerance: float
) -> PruneReport:
    """Compare the outputs with the original's; an exact plan must agree."""
    from dataclasses import replace

    from prunec.errors import ValidationFailed
    from prunec.validate import validate_modules

    result = validate_modules(module, pruned, tuple(example_inputs), tolerance=tolerance)
    if made.exact and not result.passed:
        raise ValidationFailed(
            f"the pruned network's outputs differ by {result.max_rel_error:.2e} (relative), allowed is {tolerance:.0e}",
            do="please report this with the model; --no-validate gives the result all the same",
        )
    border_error = None if made.exact else result.max_rel_error
    return replace(report, validation=result, border_error=border_error if report.reason and not made.exact else None)
