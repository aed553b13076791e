"""Select: what is known and what is wanted -> PrunePlan.

Owns the decision which channels go: the provably constant and dead ones always, more by score where a
budget asks for it. Legality is legal.py's, the constants that removal leaves behind absorb.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prunec.errors import BudgetNotMet
from prunec.ir.graph import Graph, Shape
from prunec.ir.labels import ChannelClasses, Kept, distinct
from prunec.ir.plan import AxisKeep, ConstantInput, Fold, GroupedKeep, InputSpec, PrunePlan
from prunec.passes.constants import Constants
from prunec.passes.cost import Cost, as_it_came, cost
from prunec.passes.groups import group_classes
from prunec.passes.liveness import Liveness
from prunec.passes.reads import Mask, Read, exactly_removable
from prunec.passes.selection.absorb import absorbing, absorptions, choose_carriers, clashes, folds, sharing
from prunec.passes.selection.legal import legalise, round_up
from prunec.passes.selection.needs import Needs, needs
from prunec.passes.selection.shapes import pruned_shapes

Floats = np.ndarray[Any, np.dtype[np.float64]]

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
    """

    keep: Mask
    exact: Mask
    carriers: Mask
    given_back: Mapping[str, Mask]
    clashed: Mapping[str, Mask]
    wanted: Needs
    border: str = EXACT

    @property
    def removed(self) -> Mask:
        return ~self.keep


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """What the analysis passes found about one graph; see each pass."""

    graph: Graph
    classes: ChannelClasses
    constants: Constants
    liveness: Liveness
    reads: tuple[Read, ...]


def select(
    facts: Facts, keep: Mask | None = None, *, border: str = EXACT, multiple_of: int = 1, priority: Floats | None = None
) -> Selection:
    """Turn a wish into a keep mask that can be carried out.

    Args:
        keep: bool[num_classes], the wish; None removes exactly what may leave without a change.
        border: "exact" gives carriers back, "bias" accepts an error where padding meets a constant.
        multiple_of: coupled groups keep a multiple of this many channels.
        priority: float64[num_classes]: which of several channels to give back first; none: the earliest.
    """
    demands = _demands(facts, border, multiple_of, priority)
    return _carried_out(demands, ~demands.exact if keep is None else keep)


@dataclass(frozen=True, slots=True, eq=False)
class _Demands:
    """What every selection from the same facts has to meet, whatever is wished for.

    Args:
        exact, border, multiple_of: see ``Selection`` and ``select``.
        order: float64[num_classes], the priority.
        absorbing, sharing: the reads that need a second look, see passes/selection/absorb.py.
        groups: the coupled groups, where their sizes are rounded.
    """

    facts: Facts
    exact: Mask
    border: str
    multiple_of: int
    order: Floats
    absorbing: tuple[Read, ...]
    sharing: tuple[tuple[Read, Read], ...]
    groups: tuple[tuple[int, ...], ...]


def _demands(facts: Facts, border: str, multiple_of: int, priority: Floats | None) -> _Demands:
    classes = facts.classes
    return _Demands(
        facts=facts,
        exact=exactly_removable(facts.graph, classes, facts.reads, facts.liveness),
        border=border,
        multiple_of=multiple_of,
        order=np.zeros(classes.num_classes) if priority is None else priority,
        absorbing=absorbing(facts.reads),
        sharing=sharing(facts.graph, facts.reads),
        groups=group_classes(classes) if multiple_of > 1 else (),
    )


def _carried_out(demands: _Demands, keep: Mask) -> Selection:
    """Return the smallest superset of a wish found that meets all demands."""
    facts, classes, exact = demands.facts, demands.facts.classes, demands.exact
    current = keep | classes.pinned
    carriers = np.zeros_like(current)
    clashed: dict[str, Mask] = {}
    given: dict[str, Mask] = {}
    while True:
        before = current.copy()
        for node, mask in clashes(classes, demands.sharing, current):
            clashed[node.name] = clashed.get(node.name, False) | (mask & ~current)
            current |= mask
        current, back, wanted = legalise(facts.graph, classes, facts.constants, current, demands.order)
        for name, mask in back.items():
            given[name] = given.get(name, False) | mask
        if demands.groups:
            current = round_up(demands.groups, current, demands.order, demands.multiple_of)
            wanted = needs(facts.graph, Kept(classes, current), facts.constants)
        chosen = _carriers(demands, wanted, current) & ~current
        carriers |= chosen
        current |= chosen
        if (current == before).all():
            return Selection(current, exact, carriers, given, clashed, wanted, demands.border)


def _carriers(demands: _Demands, wanted: Needs, keep: Mask) -> Mask:
    found: Sequence[Read] = demands.absorbing
    if demands.border != EXACT:
        found = [read for read in found if read.node.op == "conv_transpose"]
    return choose_carriers(demands.facts.classes, found, wanted, keep, demands.exact)


def plan(
    facts: Facts, selection: Selection, inputs: Sequence[InputSpec], *, border: str = EXACT, reason: str = ""
) -> PrunePlan:
    """Write a selection down as data."""
    graph, classes, keep = facts.graph, facts.classes, selection.keep
    lossy = bool((~keep & ~selection.exact).any())
    inexact = border == BIAS and any(a.border for a in absorptions(classes, facts.reads, selection.wanted, keep))
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
    for member in classes.members:
        kept = keep[classes.class_of[member.ids]]
        if not kept.all():
            result.append(AxisKeep(member.param, member.axis, int(kept.size), tuple(np.flatnonzero(kept).tolist())))
    return tuple(result)


def _grouped_keeps(graph: Graph, classes: ChannelClasses, keep: Mask) -> tuple[GroupedKeep, ...]:
    """The per-group axis of a grouped weight: inputs for a convolution, outputs for a transposed one."""
    result: dict[str, GroupedKeep] = {}
    for balance in classes.balances:
        shared = balance.in_ids if balance.node.op == "conv" else balance.out_ids
        kept = keep[classes.class_of[shared]]
        if not kept.all():
            slots = tuple(tuple(np.flatnonzero(row).tolist()) for row in kept)
            weight = graph.stored(balance.node.inputs[1]) or balance.node.inputs[1]
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


# --- by score, under a budget -------------------------------------------------------------------------


def select_budget(
    facts: Facts,
    scores: Floats,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    border: str = EXACT,
    multiple_of: int = 1,
) -> Selection:
    """Remove channels in order of score until a budget holds, after those that may leave exactly.

    Args:
        scores: float64[num_classes]; the lowest go first. Comparable across groups.
        target_macs, target_params: fraction of the network's own count that may stay, in (0, 1].

    Raises:
        BudgetNotMet: pinned channels, and one channel per layer, already cost more.
    """
    targets = (("macs", target_macs), ("params", target_params))
    whole = cost(as_it_came(facts.graph))

    demands = _demands(facts, border, multiple_of, scores)

    def fits(selection: Selection) -> bool:
        count = recount(facts, selection, demands.absorbing)
        return all(goal is None or getattr(count, name) <= goal * getattr(whole, name) for name, goal in targets)

    base = _carried_out(demands, ~demands.exact)
    if fits(base):
        return base
    free = np.flatnonzero(base.keep & ~facts.classes.pinned & facts.classes.is_channel)
    order = free[np.argsort(scores[free], kind="stable")]
    order = order[_not_last(facts, order)]

    def at(count: int) -> Selection:
        wish = base.keep.copy()
        wish[order[:count]] = False
        return _carried_out(demands, wish)

    return _smallest(at, fits, order.size, facts, whole, multiple_of)


def _smallest(
    at: Callable[[int], Selection],
    fits: Callable[[Selection], bool],
    most: int,
    facts: Facts,
    whole: Cost,
    multiple_of: int,
) -> Selection:
    """Bisect for the smallest number of removed channels that fits."""
    last = at(most)
    if not fits(last):
        left = recount(facts, last)
        as_few = "one channel" if multiple_of == 1 else f"a multiple of {multiple_of} channels"
        raise BudgetNotMet(
            "the budget cannot be met by removing channels",
            why=f"with {as_few} left per group {left.macs / max(1, whole.macs):.1%} of the MACs and "
            f"{left.params / max(1, whole.params):.1%} of the parameters remain",
            do="raise the target, or pin fewer channels" + (", or lower the multiple" if multiple_of > 1 else ""),
        )
    low, high, best = 0, most, last
    while low < high:
        middle = (low + high) // 2
        found = at(middle)
        if fits(found):
            high, best = middle, found
        else:
            low = middle + 1
    return best


def _not_last(facts: Facts, order: np.ndarray[Any, np.dtype[np.int64]]) -> Mask:
    """Return bool[order]: False for the highest-scored channel of each coupled group, which always stays.

    Expansions break a stream into many groups, by the branches that each channel is computed in. There it is the
    highest-scored of each parameter axis: a group may go as long as no layer is left without channels.
    """
    classes = facts.classes
    groups = [np.asarray(group, dtype=np.int64) for group in group_classes(classes)]
    alone = np.setdiff1d(order, np.concatenate([*groups, _NO_CHANNELS]))
    if as_it_came(facts.graph) is not facts.graph:
        groups = [distinct(classes.class_of[member.ids]) for member in classes.members]
    position = np.full(classes.num_classes, -1, dtype=np.int64)
    position[order] = np.arange(order.size)
    last = np.array([position[group].max(initial=-1) for group in groups], dtype=np.int64)
    mask = np.ones(order.size, dtype=bool)
    mask[last[last >= 0]] = False
    mask[position[alone]] = False
    return mask


_NO_CHANNELS = np.zeros(0, dtype=np.int64)


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
        folded = folds(facts.graph, facts.classes, at, wanted, keep, selection.border, exact)
    return replace(count, params=count.params + _new_biases(folded, rest, shape_of))


def _new_biases(folded: Sequence[Fold], rest: Graph, shape_of: Callable[[str], Shape | None]) -> int:
    """Count the elements of the biases that contractions without one get; shared weights share theirs."""
    made = {fold.node for fold in folded if fold.kind == "bias" and not fold.target}
    sizes: dict[str, int] = {}
    for node in rest.nodes:
        shape = shape_of(node.outputs[0]) if node.name in made else None
        size = shape[-1 if node.op == "matmul" else 1] if shape else None
        if isinstance(size, int):
            sizes[node.inputs[1]] = size
    return sum(sizes.values())
