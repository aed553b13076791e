"""Weight norms: weights g · v / ‖v‖ whose directions v can give up elements, because their gains g can make up for it.

Owns what a gain becomes; rewrites/weight_norms.py has the recognition. A norm over a weight's inputs changes when
inputs go, so such inputs would have to stay. Where the quotient is multiplied by a parameter g, an exact way out is
g' = g · ‖v'‖ / ‖v‖: what is left of the weight is what it was. Recognised by where elements of v and g come to, not
by a pattern, so torch's two spellings, any of its dims, and hand-written ones are found (Salimans and Kingma,
arXiv:1602.07868). A norm that is recognised carries a ``WeightNorm`` as its attribute ``rescaled``;
passes/lowering/lower.py rescales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Graph


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WeightNorm:
    """A weight that is a gain times a direction: w = g · v / max(‖v‖, eps), a norm for each group of elements of v.

    Args:
        v, g: names of the parameters.
        groups: int64 that broadcasts against v: the group of each element; of full size on the axes that keep their
            size in the norm, size 1 elsewhere.
        groups_of_g: int64, shape of g: the group that each gain belongs to.
        eps: the least divisor; 0 where there is none.
        roots: the values that are w.
        nodes: names of the nodes that compute it.
    """

    v: str
    g: str
    groups: Array
    groups_of_g: Array
    eps: float
    roots: frozenset[str]
    nodes: frozenset[str]

    def __repr__(self) -> str:
        return f"by {self.g}"

    def norms(self, v: Array, groups: Array) -> Array:
        """Return float64[groups]: the divisor of each group of ``v``, an array of the shape of ``groups``."""
        squares = np.square(v.astype(np.float64)).ravel()
        norms = np.sqrt(np.bincount(groups.ravel(), squares, minlength=int(self.groups.max(initial=0)) + 1))
        return np.maximum(norms, self.eps)


def weight_norms(graph: Graph) -> Iterator[WeightNorm]:
    """Yield the norms that ``free_weight_norms`` has marked."""
    seen: set[int] = set()
    for node in graph.nodes:
        found = node.attrs.get("rescaled")
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            yield found


def rescaled(
    graph: Graph, new: Mapping[str, Array], cut: Callable[[Mapping[str, Array]], Mapping[str, Array]]
) -> dict[str, Array]:
    """Return the gains, and the directions of which nothing is left, that go with new directions.

    Args:
        new: the parameters that change, as they will be.
        cut: returns what the plan leaves of arrays of the shape of parameters, by name.
    """
    result: dict[str, Array] = {}
    for norm in weight_norms(graph):
        if norm.v not in new and norm.g not in new:
            continue
        v, g = graph.params[norm.v].array, graph.params[norm.g].array
        full = np.array(np.broadcast_to(norm.groups, v.shape))
        left = cut({norm.v: full, norm.g: norm.groups_of_g})
        direction, groups = new.get(norm.v, v), left[norm.v]
        before, after = norm.norms(v, full), norm.norms(direction, groups)
        ratios = np.divide(after, before, out=np.zeros_like(after), where=before > 0)
        result[norm.g] = (new.get(norm.g, g) * ratios[left[norm.g]]).astype(g.dtype)
        if (after[groups] == 0).any():  # 0 / 0 would be no number: any direction will do, its gain is 0
            result[norm.v] = np.where(after[groups] == 0, 1, direction).astype(v.dtype)
    return result
