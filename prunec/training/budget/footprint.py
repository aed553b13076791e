"""The size of the network if its zero gammas were pruned now.

Owns the estimate shown while training, and the refusal to empty the network. The estimate counts only the
zero classes; the removal itself (prunec/api.py) may keep a carrier channel, or find more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunec.errors import EmptyNetwork
from prunec.ir.arrays import Mask
from prunec.ir.graph import Graph, Node, Shape
from prunec.ir.labels import ChannelClasses
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.cost import cost
from prunec.training.sparsity.sparsify import Sparsity


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters, and MACs for one sample."""

    params: int
    macs: int


def keep_mask(plan: Sparsity, zero: Mapping[str, Mask]) -> Mask:
    """Return bool[num_classes], False for penalised classes whose deciding gammas are all zero.

    Args:
        zero: per gamma parameter, bool[C]: exactly zero.
    """
    keep = ~plan.penalised
    for gamma in plan.gammas:
        alive = gamma.decides & ~zero[gamma.param]
        keep[gamma.classes[alive]] = True
    return keep


def size_under(graph: Graph, classes: ChannelClasses, keep: Mask) -> Size:
    """Count the network without the classes that ``keep`` leaves out."""

    def shape_of(name: str) -> Shape | None:
        shape = graph.shape(name)
        if shape is None or not classes.labels[name].fields:
            return shape
        masks = [classes.keep_along(name, axis, keep) for axis in range(len(shape))]
        return tuple(size if mask is None else int(mask.sum()) for size, mask in zip(shape, masks, strict=True))

    counted = cost(graph, shape_of)
    return Size(counted.params, counted.macs)


def check_alive(graph: Graph, classes: ChannelClasses, keep: Mask, rho: float) -> None:
    """Refuse a pruning after which some output would no longer depend on the input.

    A layer may lose all its channels if a shortcut bypasses it.

    Raises:
        EmptyNetwork: naming the first such layer that no shortcut bypasses.
    """
    depends = dict.fromkeys(graph.inputs, True)
    first_cut: dict[str, Node] = {}
    for node in graph.nodes:
        sources = [name for name in node.inputs if depends.get(name)]
        open_sources = [name for name in sources if node.op not in CONTRACTIONS or _has_channels(classes, name, keep)]
        cut = next((first_cut[name] for name in node.inputs if name in first_cut), None)
        if sources and not open_sources:
            cut = node
        for out in filter(None, node.outputs):
            depends[out] = bool(open_sources)
            if cut is not None and not open_sources:
                first_cut[out] = cut
    for name in graph.outputs:
        if not depends.get(name, False) and name in first_cut:
            raise _empty(first_cut[name], rho)


def _has_channels(classes: ChannelClasses, name: str, keep: Mask) -> bool:
    """Tell whether a value still carries something that varies; an unlabelled one does."""
    return all(bool(keep[classes.class_of[field]].any()) for field in classes.labels[name].fields)


def _empty(node: Node, rho: float) -> EmptyNetwork:
    return EmptyNetwork(
        f"no channel would be left in front of {node.origin or node.name}",
        why=f"with rho = {rho:g} every gamma that feeds this layer has reached zero, and no shortcut bypasses it",
        do=f"lower rho, for example --rho {rho / 4:g}; or keep the layer with --keep",
    )


def zero_gammas(plan: Sparsity, values: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Mask]:
    """Return, per gamma parameter, bool[C]: exactly zero."""
    return {gamma.param: values[gamma.param] == 0 for gamma in plan.gammas}
