"""Apply a stored plan to an ONNX file: the file that it was made for, or one with the same graph and other weights.

Owns that, without torch; prunec/pipeline/apply.py does it for modules. passes/lowering/lower.py knows what a plan does
to a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import save_onnx
from prunec.check.blame import judged
from prunec.errors import BadInput, BadPlan
from prunec.frontends.onnx.frontend import load_onnx
from prunec.ir.edits import CannotRewrite
from prunec.ir.plan import PrunePlan
from prunec.ir.taught import NO_RULES, OpRules
from prunec.passes.channels import channels
from prunec.passes.lowering.lower import lower
from prunec.passes.rewrites.rewrite import rewritten
from prunec.pipeline.reading import read_loaded


@judged
def apply_plan_onnx(path: str | Path, plan: PrunePlan, output: str | Path, *, rules: OpRules = NO_RULES) -> None:
    """Apply ``plan`` to the file at ``path`` and write the result; names, open axes, opsets and metadata stay.

    Args:
        path: an ONNX file whose graph is that of the file that the plan was made for.
        output: replaced if it exists.
        rules: those that the plan was made with.

    Raises:
        BadPlan: the plan does not fit the file.
        BadInput, UnsupportedModel: see ``prunec.frontends.onnx.frontend``.
    """
    if plan.earlier:
        raise BadPlan(
            "the plan holds several prunings, one after the other",
            why="they are those of a module that was pruned while it was trained",
            do="apply it to the module with prunec.apply_plan, and export the result",
        )
    model = load_onnx(path)
    try:
        traced = read_loaded(model, _sizes(plan), rules)
    except BadInput as error:
        raise BadPlan(f"the plan does not fit the file: {error.what}", why=error.why, do=error.do) from error
    traced = replace(traced, graph=rewritten(traced.graph, plan))
    edits = lower(traced.graph, channels(traced.graph), plan)
    try:
        save_onnx(apply_onnx(traced, edits), output)
    except CannotRewrite as error:
        raise BadPlan(f"the plan does not fit the file: {error.origin}", why=error.reason) from error


def _sizes(plan: PrunePlan) -> Mapping[str, Sequence[int]]:
    """Return the sizes of the inputs when the plan was made, of those without open sizes."""
    return {spec.name: spec.shape for spec in plan.inputs if spec.shape and all(spec.shape)}
