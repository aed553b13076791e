"""How large the pruned network may be, and how large it would be now, counted in the same way as by the removal.

Owns the goals of a run and the distance to them. landing.py chooses channels so that they hold;
controller.py adjusts ρ to reach them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

from prunec.ir.arrays import Mask
from prunec.ir.graph import Graph
from prunec.passes.constants import constants
from prunec.passes.liveness import liveness
from prunec.passes.reads import reads
from prunec.passes.selection.select import Facts, Selection, recount, select
from prunec.training.budget.footprint import Size
from prunec.training.sparsity.sparsify import Sparsity

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A share of the network's cost: ``quantity`` is a field of Size, ``share`` in (0, 1) may stay.

    ``start`` is the share at which the way to the goal begins: 1, or the previous goal.
    """

    quantity: str
    share: float
    start: float = 1.0

    def left(self, size: Size, full: Size) -> float:
        """Return the share of the quantity that ``size`` has of ``full``."""
        return float(getattr(size, self.quantity)) / max(1e-30, float(getattr(full, self.quantity)))


def excess(goals: Sequence[Goal], size: Size, full: Size) -> float:
    """Return the remaining part of the way to the goals: 1 at their start, 0 or less if all hold."""
    return max((goal.left(size, full) - goal.share) / (goal.start - goal.share) for goal in goals)


def slack(goals: Sequence[Goal], size: Size, full: Size) -> float:
    """Return the part of the tightest goal that is not used, in [0, 1): 0.01 means 1% below it."""
    return 1 - max(goal.left(size, full) / goal.share for goal in goals)


def in_words(goals: Sequence[Goal], size: Size, full: Size, wanted: str = "were asked for") -> str:
    """Describe the size: "49.8% of the MACs (50.0% were asked for)"."""
    names = {"macs": "MACs", "params": "parameters"}
    return " and ".join(
        f"{goal.left(size, full):.1%} of the {names[goal.quantity]} ({goal.share:.1%} {wanted})" for goal in goals
    )


@dataclass(frozen=True, slots=True, eq=False)
class Sizer:
    """Counts what would be left if the channels of some classes had gammas of zero.

    Runs the passes of the removal on the graph with those gammas, so the count includes carriers, rounding and
    new biases.

    Args:
        graph: with the present weights, which decide what is constant; its gammas are replaced.
        plan: of a graph of the same structure.
        border, multiple_of: as removal will have them.
    """

    graph: Graph
    plan: Sparsity
    border: str
    multiple_of: int = 1

    def selection(self, arrays: Arrays) -> tuple[Facts, Selection]:
        """Return what removal would keep with these arrays in place of the graph's own."""
        arrays = {**arrays, **self._betas(arrays)}
        params = {name: replace(self.graph.params[name], array=array) for name, array in arrays.items()}
        graph = replace(self.graph, params=MappingProxyType({**self.graph.params, **params}))
        classes = self.plan.classes
        known = constants(graph)
        live = liveness(graph, known)
        facts = Facts(graph, classes, known, live, reads(graph, classes, known, live))
        return facts, select(facts, border=self.border, multiple_of=self.multiple_of)

    def _betas(self, arrays: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Return the betas that follow their gammas, zero where these are zero, as the removal will have them."""
        found = {}
        for gamma in self.plan.gammas:
            follows = self.plan.channels_of(gamma) & self.plan.driven[gamma.classes]
            if gamma.beta in self.graph.params and gamma.param in arrays and follows.any():
                beta = arrays.get(gamma.beta, self.graph.params[gamma.beta].array)
                found[gamma.beta] = np.where(follows & (arrays[gamma.param] == 0), 0, beta).astype(beta.dtype)
        return found

    def size(self, arrays: Arrays) -> Size:
        """Count the network that removal would leave with these arrays in place of the graph's own."""
        facts, selection = self.selection(arrays)
        count = recount(facts, selection)
        return Size(count.params, count.macs)


def refreshed(graph: Graph, module: nn.Module) -> Graph:
    """Return ``graph`` with the module's present parameters and buffers in it, copied to the CPU."""
    state = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    params = {
        name: replace(param, array=state[name].detach().cpu().numpy().copy())
        for name, param in graph.params.items()
        if name in state and tuple(state[name].shape) == param.shape
    }
    return replace(graph, params=MappingProxyType({**graph.params, **params}))


def with_zeros(plan: Sparsity, arrays: Arrays, gone: Mask) -> dict[str, np.ndarray[Any, Any]]:
    """Return each gamma of ``plan``, zero exactly where its class is ``gone``: bool[num_classes]."""
    return {
        gamma.param: np.where(gone[gamma.classes] & plan.channels_of(gamma), 0.0, arrays[gamma.param]).astype(
            arrays[gamma.param].dtype
        )
        for gamma in plan.gammas
    }
