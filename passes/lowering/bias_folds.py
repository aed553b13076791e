"""The constants of removed channels go where they were read: into biases, running means, and carriers' columns.

Owns the numbers of each fold; which folds there are was chosen in passes/selection/carriers.py and stands in the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunec.errors import BadPlan
from prunec.ir.arrays import Array
from prunec.ir.graph import Graph, Node
from prunec.ir.plan import Fold, PrunePlan
from prunec.passes.columns import Column, columns
from prunec.passes.constants import Constants
from prunec.passes.integers import bias_step, is_integer


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's dtype of that name; bfloat16, which numpy lacks, is kept as float32."""
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(np.float32)


def fold_all(
    graph: Graph, plan: PrunePlan, known: Constants, keeps: Mapping[str, Mapping[int, Array]]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, list[Carried]]]:
    """Return (new biases by node, sliced; folded vectors by name, not yet sliced; what weights take in, by name)."""
    nodes = {node.name: node for node in graph.nodes}
    new_biases: dict[str, Array] = {}
    folded: dict[str, Array] = {}
    carried: dict[str, list[Carried]] = {}
    done: set[tuple[str, str]] = set()
    for fold in plan.folds:
        node = nodes.get(fold.node)
        if node is None:
            raise BadPlan(f"the plan folds constants into {fold.node}, which the model does not have")
        weight_name = graph.stored(node.inputs[1]) or next((column.param for column in columns(graph, node)), "")
        key = (weight_name, f"{fold.kind}:{fold.target or weight_name}:{fold.positions[:1]}")
        stored = fold.kind == "carrier" or (fold.kind == "bias" and fold.target)
        if stored and weight_name and key in done:
            continue  # a module that is called twice: its tensors take the fold once
        done.add(key)
        if fold.kind == "carrier":
            for column in columns(graph, node):
                carried.setdefault(column.param, []).append(Carried(node, fold, _scales(graph, column), column.mask))
                if column.mask:
                    carried.setdefault(column.mask, []).append(Carried(node, fold, is_mask=True))
            continue
        total = _total(known, node, fold)
        if is_integer(graph, node) and (step := bias_step(graph, node, known)) is not None:
            total = np.rint(total / step)
        if fold.target:
            base = folded.get(fold.target, graph.params[fold.target].array.astype(np.float64))
            folded[fold.target] = base - total if fold.kind == "running_mean" else base + total
        else:
            new_biases[node.name] = new_biases.get(node.name, 0.0) + total
    sliced = {}
    for name, bias in new_biases.items():
        out = nodes[name].outputs[0]
        axis = len(graph.shape(out) or ()) - 1 if nodes[name].op == "matmul" else 1
        index = keeps.get(out, {}).get(axis)
        kept = bias if index is None else bias[index]
        sliced[name] = kept.astype(_dtype_of(graph, nodes[name]))
    return sliced, folded, carried


def _dtype_of(graph: Graph, node: Node) -> np.dtype[Any]:
    if is_integer(graph, node):
        return np.dtype(np.int32)
    param = graph.params.get(node.inputs[1])
    return param.array.dtype if param is not None else numpy_dtype(graph.values[node.outputs[0]].dtype)


def _total(known: Constants, node: Node, fold: Fold) -> Array:
    """Return float64[C_out]: Σ_k constants[k] · Σ_taps W[:, positions[k]]."""
    weight = known.weights.get(node.name)
    if weight is None:
        raise BadPlan(f"the plan folds constants into {node.name}, whose weight is not fixed in this model")
    vector = np.zeros(weight.num_inputs)
    vector[list(fold.positions)] = fold.constants
    return weight.total(np.ones(weight.num_outputs, dtype=bool), vector)


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """A fold into a carrier's column of a parameter.

    Args:
        scales: float64[columns], what each column is multiplied by later; None where that is 1.
        mask: the parameter that it is masked by, if any.
        is_mask: it is that mask, and the column's becomes one.
    """

    node: Node
    fold: Fold
    scales: Array | None = None
    mask: str = ""
    is_mask: bool = False


def _scales(graph: Graph, column: Column) -> Array | None:
    """Return float64[columns]: gain / norm of each column; None where columns have none of their own."""
    if column.norm is None:
        return None
    v, g = (graph.params[name].array for name in (column.norm.v, column.norm.g))
    norms = column.norm.norms(v, np.broadcast_to(column.norm.groups, v.shape))
    gains = np.zeros_like(norms)
    gains[column.norm.groups_of_g] = g
    scales: Array = np.divide(gains, norms, out=np.zeros_like(norms), where=norms > 0)[column.norm.groups.ravel()]
    return scales


def carry(weight: Array, carried: Carried) -> None:
    """Add Σ_k (c_k / c_r) · W[:, k] to W[:, r], within their convolution group (weight changed in place).

    The sums are float64; what is added to is the weight in its own precision, which may be most of a big file.
    """
    node, fold = carried.node, carried.fold
    groups = node.attrs.get("conv_groups", 1)
    ratios = np.asarray(fold.constants, dtype=np.float64) / fold.carrier_constant
    positions = np.asarray(fold.positions)
    if carried.scales is not None:
        width = carried.scales.size
        ratios = ratios * carried.scales[positions % width] / carried.scales[fold.carrier % width]
    if node.op == "conv_transpose" or (node.op == "matmul" and not node.attrs.get("transpose_b")):
        added = np.tensordot(ratios, weight[positions], axes=(0, 0))
        weight[fold.carrier] = 1 if carried.is_mask else weight[fold.carrier].astype(np.float64) + added
        return
    per_group = weight.shape[1]
    rows_per_group = weight.shape[0] // groups
    group, column = fold.carrier // per_group, fold.carrier % per_group
    rows = weight[group * rows_per_group : (group + 1) * rows_per_group]
    added = np.tensordot(rows[:, positions % per_group], ratios, axes=(1, 0))
    rows[:, column] = 1 if carried.is_mask else rows[:, column].astype(np.float64) + added
