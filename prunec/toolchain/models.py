"""prune_model, analyze_model, apply_plan: a model in memory in, one of the same kind out.

Owns the choice by kind, not the pruning: ONNX models are handled as files (kinds.py writes them to a temporary
folder), modules and exported programs as modules.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from prunec import api
from prunec.check.clock import CHECK_TIME, Tell
from prunec.errors import BadInput, PrunecError
from prunec.ir.graph import Graph
from prunec.ir.plan import PrunePlan
from prunec.ir.taught import NO_RULES, OpRules
from prunec.passes.selection.widths import AUTO, MultipleOf
from prunec.pipeline.apply_onnx import apply_plan_onnx
from prunec.pipeline.options import Border, Criterion, Gates, Residual
from prunec.pipeline.reading import read_module, read_onnx
from prunec.report.findings import Analysis, PruneReport
from prunec.toolchain.kinds import KINDS, Kind, kind_of, of_torch

if TYPE_CHECKING:
    import networkx as nx
    from torch import fx, nn

    from prunec.frontends.fx.running.arguments import Example

Model = TypeVar("Model")
_PROGRAM = "export.ExportedProgram"


@dataclass(frozen=True, slots=True, eq=False)
class PrunedModel(Generic[Model]):
    """The result of pruning a model.

    Args:
        model: the pruned network, of the kind that came in (a torch.fx GraphModule for an nn.Module).
        plan: what was done, as data.
        report: what was done, in numbers.
    """

    model: Model
    plan: PrunePlan
    report: PruneReport


def prune_model(
    model: Model,
    *,
    example_inputs: Example | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    name: str = "",
    validate: bool = True,
    tolerance: float = 1e-4,
    calibration: Any = None,
    inputs: str | Path | None = None,
    border: Border = "exact",
    residual: Residual = "tie",
    gates: Gates = "tie",
    keep: str | Sequence[str] = (),
    criterion: Criterion | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    multiple_of: MultipleOf = AUTO,
    seed: int = 0,
    compensate: bool = True,
    check_time: float = CHECK_TIME,
    progress: Tell | None = None,
    rules: OpRules = NO_RULES,
) -> PrunedModel[Any]:
    """Return a smaller network of the same kind and function (or, with a criterion, close to the function).

    Args:
        model: onnx.ModelProto, onnx_ir.Model, onnx_graphsurgeon.Graph, torch.export.ExportedProgram or nn.Module;
            left as it is. For a file there is ``prune_onnx``.
        example_inputs: for an nn.Module: its inputs by position, or the only one.
        input_shapes: sizes for inputs that an ONNX model leaves open; "" stands for the only input.
        name: shown as the model's name.
        validate: run both networks on the same inputs and compare before the result is returned.
        tolerance: largest relative error that the check of an exact removal allows.
        calibration: data, see ``prune_module``.
        inputs: a folder of inputs to compare on, instead of random ones.
        border, residual, gates, keep, criterion, target_macs, target_params, target_latency: see ``prune_module``.
        multiple_of, seed, compensate, check_time, progress: see ``prune_module``.
        rules: what your own ops are like, by name ("mylib::swish", "my.domain::Swish"), see docs/extending.md.

    Raises:
        BadInput: a model of another kind, or one that is damaged; options that contradict each other.
        ValidationFailed, BudgetNotMet, UnsupportedModel: see ``prune_module`` and ``prune_onnx``.
    """
    how: dict[str, Any] = {
        "border": border,
        "residual": residual,
        "gates": gates,
        "keep": keep,
        "criterion": criterion,
        "target_macs": target_macs,
        "target_params": target_params,
        "target_latency": target_latency,
        "compensate": compensate,
        "multiple_of": multiple_of,
        "seed": seed,
    }
    checks: dict[str, Any] = {
        "validate": validate,
        "tolerance": tolerance,
        "calibration": calibration,
        "inputs": inputs,
        "check_time": check_time,
        "progress": progress,
        "rules": rules,
    }
    if of_torch(model, _PROGRAM):
        from prunec.toolchain.exported import prune_program

        return PrunedModel(*prune_program(model, name=name, **checks, **how))  # type: ignore[arg-type]  # just looked at
    if of_torch(model):
        given = _required(example_inputs)
        found = api.prune_module(model, given, name=name, **checks, **how)  # type: ignore[arg-type]  # likewise
        return PrunedModel(found.module, found.plan, found.report)
    kind = _kind(model)
    with _as_file(model, kind, name) as path:
        out, plan = path.with_name("pruned.onnx"), path.with_name("plan.json")
        report = api.prune_onnx(path, out, input_shapes=input_shapes, plan_file=plan, **checks, **how)
        made = PrunePlan.from_json(plan.read_text(encoding="utf-8"))
        return PrunedModel(kind.read(out, model), made, replace(report, model=_name_of(model, kind, name)))


def analyze_model(
    model: object,
    *,
    example_inputs: Example | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    name: str = "",
    keep: Sequence[str] = (),
    rules: OpRules = NO_RULES,
) -> Analysis:
    """Return what of a model in memory could be removed, and why the rest has to stay.

    Args:
        model, example_inputs, input_shapes, name: see ``prune_model``.
        keep: shell patterns of parameters and nodes to leave alone.
        rules: see ``prune_model``.

    Raises:
        BadInput, UnsupportedModel, UntraceableModel: see ``prune_model``.
    """
    if of_torch(model, _PROGRAM):
        from prunec.toolchain.exported import program_module

        module, arguments = program_module(model)  # type: ignore[arg-type]  # just looked at
        return api.analyze_module(module, arguments, name=name or "exported program", keep=keep, rules=rules)
    if of_torch(model):
        given = _required(example_inputs)
        return api.analyze_module(model, given, name=name, keep=keep, rules=rules)  # type: ignore[arg-type]  # likewise
    kind = _kind(model)
    with _as_file(model, kind, name) as path:
        return replace(api.analyze_onnx(path, input_shapes, keep=keep, rules=rules), model=_name_of(model, kind, name))


@overload
def apply_plan(
    model: nn.Module,
    plan: PrunePlan,
    example_inputs: Example | None = None,
    *,
    keep_class: Literal[False] = False,
    rules: OpRules = NO_RULES,
) -> fx.GraphModule: ...


@overload
def apply_plan(
    model: nn.Module,
    plan: PrunePlan,
    example_inputs: Example | None = None,
    *,
    keep_class: bool,
    rules: OpRules = NO_RULES,
) -> nn.Module: ...


@overload
def apply_plan(model: Model, plan: PrunePlan, *, rules: OpRules = NO_RULES) -> Model: ...


def apply_plan(
    model: Any,
    plan: PrunePlan,
    example_inputs: Example | None = None,
    *,
    keep_class: bool = False,
    rules: OpRules = NO_RULES,
) -> Any:
    """Apply a plan to a model and return the result; this restores a pruned network from plan.json.

    Args:
        model: any kind that ``prune_model`` takes, of the architecture that the plan was made for, with any weights;
            left as it is. For files there is ``apply_plan_onnx``.
        plan: what to do.
        example_inputs: for an nn.Module that takes objects which a plan cannot hold: its arguments, of the
            shapes that the plan was made with. (It holds tensors, numbers, text and None, in dicts, tuples and lists.)
        keep_class: for an nn.Module, return a pruned copy of the user's own class instead of a GraphModule. That is
            possible if the plan does not change the forward.
        rules: those that the plan was made with.

    Raises:
        BadPlan: the plan does not fit the model.
        UnsupportedModel: with ``keep_class``, the plan changes the forward itself (a block that vanished, a
            written-out size); the message names the place.
    """
    if of_torch(model, _PROGRAM):
        from prunec.toolchain.exported import apply_to_program

        return apply_to_program(model, plan, rules)
    if of_torch(model):
        from torch import fx

        from prunec.pipeline import apply

        copies = keep_class and not isinstance(model, fx.GraphModule)
        made = apply.pruned_copy if copies else apply.apply_plan
        return made(model, plan, example_inputs, rules=rules)
    kind = _kind(model)
    with _as_file(model, kind, "") as path:
        out = path.with_name("pruned.onnx")
        apply_plan_onnx(path, plan, out, rules=rules)
        return kind.read(out, model)


def dependency_graph(
    model: object,
    *,
    example_inputs: Example | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep: Sequence[str] = (),
    rules: OpRules = NO_RULES,
) -> nx.DiGraph:
    """Return which layers depend on each other: ops as nodes, and on the edges the channel classes between them.

    Args:
        model: any that ``prune_model`` takes, or the path of an ONNX file.
        example_inputs, input_shapes: see ``prune_model``.
        keep: shell patterns of parameters and nodes to leave alone.
        rules: see ``prune_model``.

    Returns:
        A networkx.DiGraph; ``prunec.passes.groups.dependency_graph`` explains its nodes and edges.

    Raises:
        BadInput, UnsupportedModel, UntraceableModel: see ``prune_model``.
    """
    from prunec.passes.channels import channels
    from prunec.passes.groups import dependency_graph as of_classes

    graph = _graph(model, example_inputs, input_shapes, rules)
    return of_classes(graph, channels(graph, tuple(keep)))


def _graph(
    model: Any,
    example_inputs: Example | None,
    input_shapes: Mapping[str, Sequence[int]] | None,
    rules: OpRules,
) -> Graph:
    if isinstance(model, str | Path):
        return read_onnx(model, input_shapes, rules).graph
    if of_torch(model, _PROGRAM):
        from prunec.toolchain.exported import program_module

        return read_module(*program_module(model), rules=rules).graph
    if of_torch(model):
        return read_module(model, _required(example_inputs), rules=rules).graph
    with _as_file(model, _kind(model), "") as path:
        return read_onnx(path, input_shapes, rules).graph


def _kind(model: object) -> Kind:
    kind = kind_of(model)
    if kind is not None:
        return kind
    if isinstance(model, str | Path):
        raise BadInput(
            f"{model!r} is a path, not a model", do="use prune_onnx, analyze_onnx or apply_plan_onnx for files"
        )
    known = ", ".join(map(str, KINDS))
    raise BadInput(
        f"a {type(model).__module__}.{type(model).__qualname__} is not a model that prunec knows",
        do=f"give one of {known}, torch.export.ExportedProgram or torch.nn.Module",
    )


def _required(example_inputs: Example | None) -> Example:
    if example_inputs is None:
        raise BadInput("a module needs inputs to be traced with", do="give example_inputs=(tensor, …)")
    return example_inputs


@contextlib.contextmanager
def _as_file(model: object, kind: Kind, name: str) -> Iterator[Path]:
    """Write a model to a folder of its own; messages use its name, not that file's."""
    with tempfile.TemporaryDirectory(prefix="prunec-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        try:
            kind.write(model, path)
            yield path
        except PrunecError as error:
            called = _name_of(model, kind, name) or "the model"
            error.what, error.why, error.do = (
                text.replace(str(path), called) for text in (error.what, error.why, error.do)
            )
            raise


def _name_of(model: Any, kind: Kind, name: str) -> str:
    graph = model.graph if kind.name in ("ModelProto", "Model") else model
    return name or graph.name or "the model"
