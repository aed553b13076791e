"""Reconstruction: data alone -> which channels go, and what the rest computes with.

Owns the steps (Grams of the original, order, places to fit, fits) for either frontend; who runs a network in stages
is handed in. The arithmetic is in passes/elimination.py, passes/combinations.py and prunec/refit.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prunec.grams import Gram, View, spread_places
from prunec.ir.edits import Edits
from prunec.ir.plan import Fold, PrunePlan
from prunec.passes.elimination import Matrix, damped
from prunec.passes.operands import Operand, output_axis, weight_shape
from prunec.passes.selection.absorb import bias_target
from prunec.passes.selection.select import Facts
from prunec.passes.streams import stream
from prunec.refit import Place
from prunec.runtime.probes import Array
from prunec.stages import Stages

ORDER_RIDGE = 1e-4
"""Of the mean of H's diagonal, added to it where the order is made."""


def grams(facts: Facts, found: Sequence[Operand], stages: Stages, columns: int) -> dict[int, Gram]:
    """Return the Gram of each operand (by its place in ``found``) that makes up for anything."""
    result = {}
    for number, operand in enumerate(found):
        if operand.takes == "nothing" or operand.is_depthwise or not stages.has(operand.value):
            continue
        stages.advance([operand.value])
        shape = weight_shape(facts, operand.node)
        kernel = shape[2:] if operand.node.op in ("conv", "conv_transpose") else ()
        view = View(operand.node, kernel, operand.read.axis, operand.groups)
        gram = Gram(operand.groups, operand.width, ones=operand.biased)
        places = view.num_places(stages.value(operand.value, 0))
        samples = sum(stages.value(operand.value, batch).shape[0] for batch in range(stages.num_batches))
        wanted = max(1, -(-columns // samples))
        for batch in range(stages.num_batches):
            gram.add(view.inputs(stages.value(operand.value, batch), spread_places(places, wanted, batch)))
        stages.drop([operand.value])
        result[number] = gram
    return result


def matrices(
    facts: Facts, found: Sequence[Operand], by_number: Mapping[int, Gram], weighs: Mapping[str, float]
) -> list[Matrix]:
    """Return the matrices of the order.

    Args:
        weighs: node name -> what a squared error in its output counts, 1 where it has none.
    """
    result = []
    for number, gram in by_number.items():
        operand = found[number]
        weight = facts.constants.weights[operand.node.name].taps.astype(np.float64)
        weight = weight.reshape(*weight.shape[:2], -1)
        scale = np.abs(stream(facts.graph, operand.node, operand.rows.size).scale).reshape(operand.groups, -1, 1)
        weight = weight * scale * weighs.get(operand.node.name, 1.0) ** 0.5
        fixed = operand.takes != "weights"
        for group, moment in enumerate(gram.covariance()):
            columns = np.repeat(operand.columns[group], operand.taps)
            moment = moment if fixed else damped(moment, ORDER_RIDGE)
            result.append(Matrix(weight[group], moment, columns, operand.rows[group], fixed=fixed))
    return result


def with_places(facts: Facts, found: Sequence[Operand], plan: PrunePlan, edits: Edits) -> PrunePlan:
    """Return the plan with a fold of nothing wherever a fit needs a bias that is not there yet."""
    folded = {fold.node for fold in plan.folds if fold.kind != "carrier"}
    added = []
    for operand in found:
        if not operand.biased or operand.node.name in folded or operand.node.name in edits.removed:
            continue
        kind, target = bias_target(facts.graph, operand.node)
        if not target:
            added.append(Fold(operand.node.name, kind, (), (), target))
    return replace(plan, folds=(*plan.folds, *added))


def places(facts: Facts, found: Sequence[Operand], edits: Edits) -> tuple[Place, ...]:
    """Return where to fit: every contraction that still runs and whose weights can take something."""
    result = []
    for operand in found:
        if operand.takes != "weights" or operand.node.name in edits.removed or operand.is_depthwise:
            continue
        result.append(_place(facts, operand, edits))
    return tuple(result)


def _place(facts: Facts, operand: Operand, edits: Edits) -> Place:
    node = operand.node
    rank = len(facts.graph.shape(node.outputs[0]) or ())
    outputs = edits.keeps.get(node.outputs[0], {}).get(output_axis(node, rank))
    kind, target = bias_target(facts.graph, node) if operand.biased else ("none", "")
    vector = _content(facts, edits, target) if target else edits.new_biases.get(node.name)
    own = node.inputs[2] if len(node.inputs) > 2 and node.op != "rnn" else ""
    beside = _content(facts, edits, own) if own and own != target and kind == "bias" else None
    mean = facts.graph.params[target].array if kind == "running_mean" else None
    return Place(
        operand=operand,
        node=replace(node, attrs={**node.attrs, **edits.attrs.get(node.name, {})}),
        weight=_content(facts, edits, operand.weight),
        kind=kind,
        target=target,
        vector=vector,
        beside=beside,
        mean=mean if mean is None or outputs is None else mean[outputs],
        outputs=outputs,
    )


def _content(facts: Facts, edits: Edits, name: str) -> Array:
    """Return what a parameter holds in the pruned network."""
    found = edits.params.get(name)
    return facts.graph.params[name].array if found is None else found
