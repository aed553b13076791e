"""Graph, ChannelClasses -> λ: what each channel class costs, as the weight of its share of the penalty.

Owns the kinds of penalty. The counts come from passes/cost.py; prunec/training/sparsity/ista.py applies λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from prunec.errors import BadInput
from prunec.ir.arrays import Floats
from prunec.ir.graph import Graph
from prunec.ir.labels import ChannelClasses
from prunec.passes.cost import ClassCost, class_cost

PenaltyKind = Literal["memory", "macs", "uniform"]
PENALTIES: tuple[PenaltyKind, ...] = get_args(PenaltyKind)


Price = Callable[[ClassCost], np.ndarray[Any, Any]]
"""A penalty of the user's own: the counts of all classes -> what each costs, float[num_classes], 0 or more."""


def penalty(graph: Graph, classes: ChannelClasses, kind: PenaltyKind | Price = "memory") -> Floats:
    """Return λ of each class, float64[num_classes]; 0 for classes that cannot be removed.

    ``memory`` is the penalty of Ye, Lu, Lin, Wang, ICLR 2018, section 3.3, for any graph: the weights of
    contractions that the class holds and the elements of its output map, divided by the pixels of the
    network's input. On a chain it equals the paper's

        λ^l = [k_w^l·k_h^l·c^(l−1) + Σ_{l'∈T(l)} k_w^{l'}·k_h^{l'}·c^{l'} + I_w^l·I_h^l] / (I_w·I_h).

    ``macs`` follows the multiply-accumulates of the class, ``uniform`` is the same for all, and a function of yours
    (``Price``) says it itself. These are scaled to the mean of ``memory``, so that a ρ found for one is of the right
    size for the others.

    Raises:
        BadInput: no such kind; a function that raises, or does not return a number, 0 or more, per class.
    """
    if isinstance(kind, str) and kind not in _KINDS:
        raise BadInput(f"there is no penalty called {kind!r}", do=f"choose one of: {', '.join(PENALTIES)}")
    counts = class_cost(graph, classes)
    removable = ~classes.pinned & classes.is_channel
    memory = (counts.contraction_params + counts.activations) / _input_pixels(graph)
    wanted = np.where(removable, _KINDS[kind](counts) if isinstance(kind, str) else _asked(kind, counts), 0.0)
    memory = np.where(removable, memory, 0.0)
    return wanted * (memory.sum() / wanted.sum()) if wanted.sum() > 0 else wanted


def _asked(price: Price, counts: ClassCost) -> np.ndarray[Any, Any]:
    name = getattr(price, "__name__", type(price).__name__)
    try:
        found = np.asarray(price(counts), dtype=np.float64)
    except Exception as error:
        raise BadInput(f"the penalty {name} raised {type(error).__name__}: {error}", do="mend it") from error
    if found.shape != counts.params.shape or not np.isfinite(found).all() or (found < 0).any():
        raise BadInput(
            f"the penalty {name} returned an array of shape {list(found.shape)} that cannot be used",
            why=f"each of the {counts.params.size} channel classes needs one finite number, 0 or more",
            do="compute it from the counts that it is given, which are arrays of that size",
        )
    return found


_KINDS: Mapping[str, Price] = MappingProxyType(
    {
        "memory": lambda counts: counts.contraction_params + counts.activations,
        "macs": lambda counts: counts.macs,
        "uniform": lambda counts: np.ones(counts.params.shape),
    }
)


def _input_pixels(graph: Graph) -> int:
    """Return the positions of the largest input: the product of its sizes behind batch and channels."""
    sizes = [graph.values[name].shape or () for name in graph.inputs]
    return max((math.prod(s for s in shape[2:] if isinstance(s, int)) for shape in sizes), default=1)
