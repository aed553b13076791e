"""Select: what is known and what is wanted -> PrunePlan.

Owns how a wish becomes a mask that can be carried out; without one, what is provably constant or dead goes. A wish
that follows scores until a budget holds is budget.py's. Legality is legal.py's, the constants that removal leaves
behind carriers.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunec.ir.arrays import Floats, Mask
from prunec.ir.contractions import channel_axis
from prunec.ir.graph import Graph, Shape
from prunec.ir.labels import ChannelClasses
from prunec.ir.plan import AxisKeep, ConstantInput, Fold, GroupedKeep, InputSpec, PrunePlan
from prunec.passes.columns import grouped_weights
from prunec.passes.constants import Constants
from prunec.passes.cost import Cost, cost
from prunec.passes.liveness import Liveness
from prunec.passes.reads import Read, exactly_removable
from prunec.passes.selection.carriers import (
    absorbing,
    absorptions,
    choose_carriers,
    clashes,
    folds,
    new_biases,
    sharing,
    taken_over,
)
from prunec.passes.selection.legal import legalise
from prunec.passes.selection.needs import Needs, Sweep
from prunec.passes.selection.shapes import pruned_shapes
from prunec.passes.selection.widths import MultipleOf, Widths, round_up, widths

EXACT = "exact"
BIAS = "bias"


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """A keep mask that can be carried out, and why channels that could have gone are still there.

    Args:
        keep: bool[num_classes]; True stays.
        exact: bool[num_classes]; classes that may leave without changing the function.
        carriers: bool[num_classes]; given back so that borders are exact.
        given_back: node name -> bool[num_classes]; given back at that node (balance, an empty layer).
        clashed: node name -> bool[num_classes]; kept because weights are shared.
        wanted: what still runs.
        border: "exact" or "bias", as it was asked for.
        fits: it meets the budget that it was chosen for.
    """

    keep: Mask
    exact: Mask
    carriers: Mask
    given_back: Mapping[str, Mask]
    clashed: Mapping[str, Mask]
    wanted: Needs
    border: str = EXACT
    fits: bool = True

    @property
    def removed(self) -> Mask:
        return ~self.keep

    def multiples(self, facts: Facts) -> Mask:
        """Return bool[num_classes]: what is removed because a channel that stays is a multiple of it."""
        return taken_over(facts.classes, facts.reads, self.wanted, self.keep, self.border, self.exact)


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """What the analysis passes found about one graph; see each pass."""

    graph: Graph
    classes: ChannelClasses
    constants: Constants
    liveness: Liveness
    reads: tuple[Read, ...]


def select(
    facts: Facts,
    keep: Mask | None = None,
    *,
    border: str = EXACT,
    multiple_of: MultipleOf = 1,
    priority: Floats | None = None,
) -> Selection:
    """Turn a wish into a keep mask that can be carried out.

    Args:
        keep: bool[num_classes], the wish; None removes exactly what may leave without a change.
        border: "exact" gives carriers back, "bias" accepts an error where padding meets a constant.
        multiple_of: coupled groups keep a multiple of this many channels; "auto" follows their width (widths.py).
        priority: float64[num_classes]: which of several channels to give back first; none: the earliest.
    """
    demands = demands_of(facts, border, widths(facts.classes, multiple_of), priority)
    return carried_out(demands, ~demands.exact if keep is None else keep)


@dataclass(frozen=True, slots=True, eq=False)
class Demands:
    """What every selection from the same facts has to meet, whatever is wished for.

    Args:
        exact, border: see ``Selection``.
        widths: in which steps widths change.
        order: float64[num_classes], the priority.
        absorbing, sharing: the reads that need a second look, see passes/selection/carriers.py.
        sweep: tells what still runs.
    """

    facts: Facts
    exact: Mask
    border: str
    widths: Widths
    order: Floats
    absorbing: tuple[Read, ...]
    sharing: tuple[tuple[Read, Read], ...]
    sweep: Sweep


def demands_of(facts: Facts, border: str, found: Widths, priority: Floats | None) -> Demands:
    """Gather what a selection has to meet, with widths in the steps ``found``."""
    classes = facts.classes
    return Demands(
        facts=facts,
        exact=exactly_removable(facts.graph, classes, facts.reads, facts.liveness),
        border=border,
        widths=found,
        order=np.zeros(classes.num_classes) if priority is None else priority,
        absorbing=absorbing(facts.reads),
        sharing=sharing(facts.graph, facts.reads),
        sweep=Sweep(facts.graph, classes, facts.constants),
    )


def carried_out(demands: Demands, keep: Mask) -> Selection:
    """Return the smallest superset of a wish found that meets all demands."""
    classes, exact = demands.facts.classes, demands.exact
    current = keep | classes.pinned
    carriers = np.zeros_like(current)
    clashed: dict[str, Mask] = {}
    given: dict[str, Mask] = {}
    while True:
        before = current.copy()
        for node, mask in clashes(classes, demands.sharing, current):
            clashed[node.name] = clashed.get(node.name, False) | (mask & ~current)
            current |= mask
        current, back, wanted = legalise(demands.sweep, current, demands.order, demands.widths)
        for name, mask in back.items():
            given[name] = given.get(name, False) | mask
        if demands.widths.steps:
            current = round_up(demands.widths.steps, current, demands.order)
            wanted = demands.sweep(demands.sweep.kept(current))
        chosen, carrying = choose_carriers(classes, demands.absorbing, wanted, current, exact, demands.border)
        carriers |= carrying & ~current
        current |= chosen
        if (current == before).all():
            return Selection(current, exact, carriers, given, clashed, wanted, demands.border)


def plan(facts: Facts, selection: Selection, inputs: Sequence[InputSpec], *, reason: str = "") -> PrunePlan:
    """Write a selection down as data."""
    graph, classes, keep = facts.graph, facts.classes, selection.keep
    lossy = bool((~keep & ~selection.exact).any())
    border = selection.border
    inexact = border == BIAS and any(
        a.border and not a.varies for a in absorptions(classes, facts.reads, selection.wanted, keep)
    )
    return PrunePlan(
        inputs=tuple(inputs),
        keeps=_axis_keeps(classes, keep),
        grouped=_grouped_keeps(graph, classes, keep),
        folds=folds(graph, classes, facts.reads, selection.wanted, keep, border, selection.exact),
        constant_inputs=_constant_inputs(facts, selection),
        exact=not lossy and not inexact,
        reason=reason,
    )


def _axis_keeps(classes: ChannelClasses, keep: Mask) -> tuple[AxisKeep, ...]:
    result = []
    known: dict[bytes, tuple[int, ...]] = {}  # the axes of a group keep the same
    for member in classes.members:
        kept = keep[classes.class_of[member.ids]]
        if not kept.all():
            key = kept.tobytes()
            if key not in known:
                known[key] = tuple(np.flatnonzero(kept).tolist())
            result.append(AxisKeep(member.param, member.axis, int(kept.size), known[key]))
    return tuple(result)


def _grouped_keeps(graph: Graph, classes: ChannelClasses, keep: Mask) -> tuple[GroupedKeep, ...]:
    """The per-group axis of a grouped weight: inputs for a convolution, outputs for a transposed one."""
    result: dict[str, GroupedKeep] = {}
    for balance in classes.balances:
        kept = keep[classes.class_of[balance.slots]]
        if not kept.all():
            slots = tuple(tuple(np.flatnonzero(row).tolist()) for row in kept)
            for weight in grouped_weights(graph, balance.node):
                result[weight] = GroupedKeep(weight, 1, slots)
    return tuple(result.values())


def _constant_inputs(facts: Facts, selection: Selection) -> tuple[ConstantInput, ...]:
    result = []
    for (node, index), known in selection.wanted.cuts.items():
        name = next(n for n in facts.graph.nodes if n.name == node).inputs[index]
        for axis in range(known.ndim):
            mask = facts.classes.keep_along(name, axis, selection.keep) if known.shape[axis] != 1 else None
            if mask is not None:
                known = known.compress(mask, axis=axis)
        result.append(ConstantInput(node, index, tuple(known.shape), tuple(known.ravel().tolist())))
    return tuple(result)


# --- what is left -----------------------------------------------------------------------------------------


def recount(
    facts: Facts, selection: Selection, found: Sequence[Read] | None = None, folded: Sequence[Fold] | None = None
) -> Cost:
    """Count what the pruned network holds and computes, from the shapes that are left and the biases that are new.

    Args:
        found: the reads that have a constant to fold, where they are known; None looks at all.
        folded: the folds, where there is a plan already.
    """
    rest, shape_of = pruned_shapes(facts.graph, facts.classes, selection.keep, selection.wanted)
    count = cost(rest, shape_of)
    if folded is None:
        wanted, keep, exact = selection.wanted, selection.keep, selection.exact
        at = facts.reads if found is None else found
        made = new_biases(facts.graph, facts.classes, at, wanted, keep, selection.border, exact)
    else:
        made = frozenset(fold.node for fold in folded if fold.kind == "bias" and not fold.target)
    return replace(count, params=count.params + size_of_biases(made, rest, shape_of))


def size_of_biases(made: Collection[str], rest: Graph, shape_of: Callable[[str], Shape | None]) -> int:
    """Count the elements of the biases that contractions (by name) get; shared weights share theirs."""
    sizes: dict[str, int] = {}
    for node in rest.nodes if made else ():
        shape = shape_of(node.outputs[0]) if node.name in made else None
        size = shape[channel_axis(node, len(shape))] if shape else None
        if isinstance(size, int):
            sizes[node.inputs[1]] = size
    return sum(sizes.values())
