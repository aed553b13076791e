"""Refits: the fitted weights of a plan, put in the place of what slicing and folding left.

Owns the way of a fitted tensor into a plan and back, and the check that it fits the graph. How it was fitted is
prunec/fitting/refit.py's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunec.errors import BadPlan
from prunec.ir.arrays import Array
from prunec.ir.graph import Graph, Shape
from prunec.ir.plan import PrunePlan, Tensor


def stored(array: Array) -> Tensor:
    """Return an array of floats as data."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return Tensor(tuple(plain.shape), array.dtype.name, plain.tobytes())


def loaded(tensor: Tensor) -> Array:
    """Return the array that ``stored`` made data of."""
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    return np.frombuffer(tensor.data, dtype=dtype).reshape(tensor.shape).astype(tensor.dtype)


def refit(
    graph: Graph,
    plan: PrunePlan,
    shape_of: Callable[[str], Shape | None],
    params: dict[str, Array],
    new_biases: dict[str, Array],
) -> None:
    """Put a plan's fitted tensors into the new contents (changed in place).

    Args:
        shape_of: the sizes that are left of each parameter.
        params: parameter name -> new content.
        new_biases: contraction -> the bias that it gets.

    Raises:
        BadPlan: the plan names tensors that the graph does not have, or of other sizes.
    """
    for item in plan.refits:
        if item.content is not None:
            _put(graph, item.weight, loaded(item.content), shape_of, params)
        if item.vector is not None and item.target:
            _put(graph, item.target, loaded(item.vector), shape_of, params)
        elif item.vector is not None:
            if item.node not in {node.name for node in graph.nodes}:
                raise _unfit(f"the plan gives {item.node} a bias, and the model has no such node")
            new_biases[item.node] = loaded(item.vector)


def _put(
    graph: Graph, name: str, array: Array, shape_of: Callable[[str], Shape | None], params: dict[str, Array]
) -> None:
    if name not in graph.params:
        raise _unfit(f"the plan has new weights for {name}, which the model does not have")
    if tuple(array.shape) != shape_of(name):
        raise _unfit(f"the plan's weights for {name} are {array.shape}, the model's would be {shape_of(name)}")
    params[name] = array.astype(graph.params[name].array.dtype)


def _unfit(what: str) -> BadPlan:
    return BadPlan(what, do="apply the plan to the architecture that it was made for")
