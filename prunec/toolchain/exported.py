"""torch.export.ExportedProgram in, ExportedProgram out.

Owns the conversion between a program and a module, with open sizes; the program's own graph module is pruned.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from prunec import api
from prunec.errors import BadInput, UnsupportedModel
from prunec.ir.plan import PrunePlan
from prunec.ir.taught import NO_RULES, OpRules
from prunec.pipeline.apply import apply_plan
from prunec.report.findings import PruneReport

_quiet = partial(warnings.catch_warnings, action="ignore", category=FutureWarning)
"""Hides torch's internal warnings about the trees of inputs that a program's module holds."""


def program_module(program: ExportedProgram) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a program as a module, and inputs for it.

    Raises:
        BadInput: it has no example inputs, or takes inputs by keyword, or nested ones.
    """
    given = program.example_inputs
    if given is None:
        raise BadInput("the exported program has no example inputs", do="export it again with torch.export.export")
    arguments, by_keyword = given
    if by_keyword:
        names = ", ".join(by_keyword)
        raise BadInput(f"the exported program takes inputs by keyword: {names}", do="export it with inputs by position")
    if not all(isinstance(leaf, Tensor | int | float | bool | None) for leaf in arguments):
        raise BadInput("the exported program takes lists, tuples or dicts", do="export it with plain tensors as inputs")
    with _quiet():
        return program.module(check_guards=False), tuple(arguments)


def prune_program(
    program: ExportedProgram, *, name: str = "", **options: Any
) -> tuple[ExportedProgram, PrunePlan, PruneReport]:
    """Return a smaller program, the plan and the report; see ``prunec.prune_model``."""
    with _quiet():
        module, given = program_module(program)
        found = api.prune_module(module, given, name=name or "exported program", **options)
        return _export_again(program, found.module, given), found.plan, found.report


def apply_to_program(program: ExportedProgram, plan: PrunePlan, rules: OpRules = NO_RULES) -> ExportedProgram:
    """Return the pruned form of a program."""
    with _quiet():
        module, given = program_module(program)
        return _export_again(program, apply_plan(module, plan, rules=rules), given)


def _export_again(program: ExportedProgram, module: nn.Module, given: tuple[Any, ...]) -> ExportedProgram:
    """Export a pruned module with the same open sizes as before."""
    try:
        return torch.export.export(module, given, dynamic_shapes=_open_sizes(program, given))
    except Exception as error:  # of many types, and none of them ours
        raise UnsupportedModel(
            "torch.export cannot export the pruned network",
            why=" ".join(str(error).split())[:300],
            do="prune program.module() with prunec.prune_module, and use the GraphModule that it returns",
        ) from error


def _open_sizes(program: ExportedProgram, given: tuple[Any, ...]) -> Any:
    """Return torch.export's dynamic_shapes of a program's inputs, nested as they are."""
    shown: Mapping[str, Any] = {node.name: node.meta.get("val") for node in program.graph.nodes}
    values = iter([shown.get(name) for name in program.graph_signature.user_inputs if isinstance(name, str)])
    dims: dict[str, Any] = {}

    def sizes(leaf: Any) -> Any:
        value = next(values, None)
        if not isinstance(leaf, Tensor) or not isinstance(value, Tensor):
            return None
        return {axis: _dim(size, program, dims) for axis, size in enumerate(value.shape) if not isinstance(size, int)}

    return pytree.tree_map(sizes, given)


def _dim(size: Any, program: ExportedProgram, dims: dict[str, Any]) -> Any:
    """Return one Dim per symbol, with its range in the program; sizes computed from symbols are inferred again."""
    expression = size.node.expr
    bounds = program.range_constraints.get(expression)
    if bounds is None:
        return Dim.AUTO
    largest = int(bounds.upper) if bounds.upper < 2**31 else None
    return dims.setdefault(str(expression), Dim(str(expression), min=int(bounds.lower), max=largest))
