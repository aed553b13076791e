"""Budget: scores and how much may stay -> a Selection.

Owns the search for the fewest channels that have to go: the lowest scores first, in the steps that widths.py asks for,
until every goal holds. What a selection has to meet besides is select.py's; where scores come from does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prunec.errors import BudgetNotMet
from prunec.ir.arrays import Floats, Ids, Mask
from prunec.ir.labels import distinct
from prunec.passes.cost import as_it_came, class_cost, cost
from prunec.passes.groups import group_classes
from prunec.passes.selection.carriers import shared
from prunec.passes.selection.recounts import Recounts
from prunec.passes.selection.select import EXACT, Demands, Facts, Selection, carried_out, demands_of
from prunec.passes.selection.shares import Shares, shares, sides
from prunec.passes.selection.staircase import in_blocks, stepped
from prunec.passes.selection.widths import AUTO, MultipleOf, divisors, in_step, in_words, widths

Clock = Callable[[Shares], float]
"""What is left of each contraction -> the time that all take, as a share of the unpruned network's."""


@dataclass(frozen=True, slots=True)
class Target:
    """How much may stay, as shares of the network's own, in (0, 1]; None: of that, any amount.

    Args:
        macs, params: counted.
        time: of the contractions, by ``clock``.
        or_least: where the time cannot be met, as little as possible stays; without it that is an error.
    """

    macs: float | None = None
    params: float | None = None
    time: float | None = None
    clock: Clock | None = None
    or_least: bool = False


@dataclass(frozen=True, slots=True)
class _Left:
    """What a selection leaves, as shares of the whole."""

    macs: float
    params: float
    time: float

    def fits(self, target: Target) -> bool:
        goals = ((self.macs, target.macs), (self.params, target.params), (self.time, target.time))
        return all(goal is None or share <= goal for share, goal in goals)

    def used(self, target: Target) -> float:
        """Return the part of the tightest goal that is used, 1 where it is met exactly."""
        goals = ((self.macs, target.macs), (self.params, target.params), (self.time, target.time))
        return max((share / goal for share, goal in goals if goal is not None), default=1.0)


_SLACK, _TRIED_BACK, _SPARED = 0.02, 40, 4
"""Part of a budget that may be left unused; for that, how many steps are tried to be given back, and to be spared."""


def select_budget(
    facts: Facts, scores: Floats, target: Target, *, border: str = EXACT, multiple_of: MultipleOf = 1
) -> Selection:
    """Remove channels in order of score until a budget holds, after those that may leave exactly.

    Args:
        scores: float64[num_classes]; the lowest go first. Comparable across groups.
        multiple_of: as for ``select``; the steps of "auto" are made finer where the budget cannot be met otherwise.

    Raises:
        BudgetNotMet: pinned channels, and one channel per layer, already cost more.
    """
    least: list[tuple[float, Selection]] = []
    for divisor in divisors(multiple_of)[: None if target.clock is None else _TIMED_DIVISORS]:
        found = widths(facts.classes, multiple_of, divisor)
        ranked = in_step(facts.classes, found, scores) if multiple_of == AUTO else scores
        search = _Search(_stepped(demands_of(facts, border, found, ranked), target.clock), target)
        chosen = search.smallest()
        if chosen is not None:
            return chosen
        smallest = search.at_least()
        left = search.left(smallest)
        if target.or_least and left.fits(replace(target, time=None)):
            least.append((left.time, replace(smallest, fits=False)))
    if least:
        return min(least, key=lambda each: each[0])[1]
    raise _not_met(search, multiple_of, divisor)


_TIMED_DIVISORS = 2
"""So often are the steps of a budget of time made finer, less one: widths below the kernels' blocks take longer."""


def _stepped(demands: Demands, clock: Clock | None) -> Demands:
    """Let channels go in the steps in which widths change, or in which the time falls, where there is a clock."""
    facts = demands.facts
    order = demands.order.copy()
    found = sides(facts.graph, facts.classes) if clock is not None else {}

    def saved(gone: Ids) -> float:
        keep = np.ones_like(demands.exact)
        keep[gone] = False
        return 0.0 if clock is None else 1.0 - clock(shares(found, keep, found))

    for step in demands.widths.steps:
        free = step.classes[~facts.classes.pinned[step.classes]]
        if step.free is not step.classes or not free.size:
            continue
        given = demands.order
        order[free] = in_blocks(given, free, step.size) if clock is None else stepped(given, free, step.size, saved)
    return replace(demands, order=order)


class _Search:
    """The selections of one order of channels, from the one that changes nothing to the one that leaves least."""

    def __init__(self, demands: Demands, target: Target) -> None:
        self._demands, self._target = demands, target
        scores = demands.order
        graph = demands.facts.graph
        self._whole = cost(as_it_came(graph))
        self._base = carried_out(demands, ~demands.exact)
        classes = demands.facts.classes
        # A channel that stayed because others are multiples of it can only leave by request.
        held = self._base.keep & shared(classes, demands.facts.reads)
        self._demands = replace(demands, exact=demands.exact & ~held)
        self._sides = sides(graph, classes)
        free = np.flatnonzero(self._base.keep & ~classes.pinned & classes.is_channel)
        order = free[np.argsort(scores[free], kind="stable")]
        self._order = order[_not_last(demands.facts, order)]
        self._recounts = Recounts(demands)
        self._known: dict[bytes, _Left] = {}

    def left(self, selection: Selection) -> _Left:
        """Return what a selection of this search leaves; what it keeps says all, so each is counted once."""
        key = selection.keep.tobytes()
        if key not in self._known:
            self._known[key] = self._counted(selection)
        return self._known[key]

    def _counted(self, selection: Selection) -> _Left:
        clock = self._target.clock
        macs, params = self._recounts.count(selection)
        time = 1.0 if clock is None else clock(shares(self._sides, selection.keep, selection.wanted.nodes))
        return _Left(macs / max(1, self._whole.macs), params / max(1, self._whole.params), time)

    def at(self, count: int) -> Selection:
        """Return what is left when the first channels of the order have gone."""
        wish = self._base.keep.copy()
        wish[self._order[:count]] = False
        return carried_out(self._demands, wish)

    @property
    def facts(self) -> Facts:
        return self._demands.facts

    @property
    def timed(self) -> bool:
        return self._target.clock is not None

    def at_least(self) -> Selection:
        return self.at(self._order.size)

    def smallest(self) -> Selection | None:
        """Return a selection that fits and uses what it may, with the lowest scores gone; None where none fits.

        The step that meets the budget may save far more than was missing (that of a residual stream changes many
        layers): then it goes last, and others instead, where that uses more of the budget.
        """
        if self.left(self._base).fits(self._target):
            return self._base
        found = self._fewest()
        if found is None:
            return None
        best = self._filled(found[1])
        for _ in range(_SPARED):
            count, chosen = found
            if self.left(best).used(self._target) > 1 - _SLACK or not count:
                break
            spared = (self.at(count - 1).keep & ~chosen.keep)[self._order]
            self._order = np.concatenate([self._order[~spared], self._order[spared]])
            found = self._fewest()
            if found is None:
                break
            other = self._filled(found[1])
            best = max(best, other, key=lambda each: self.left(each).used(self._target))
        return best

    def _fewest(self) -> tuple[int, Selection] | None:
        """Bisect for the smallest number of removed channels that fits."""
        low, high = 0, self._order.size
        best = self.at_least()
        if not self.left(best).fits(self._target):
            return None
        while low < high:
            middle = (low + high) // 2
            found = self.at(middle)
            if self.left(found).fits(self._target):
                high, best = middle, found
            else:
                low = middle + 1
        return high, best

    def _filled(self, chosen: Selection) -> Selection:
        """Give steps back that went before the one that met the budget, the highest scores first, while it holds."""
        scores, free = self._demands.order, np.zeros_like(chosen.keep)
        free[self._order] = True
        steps = [step.free[free[step.free]] for step in self._demands.widths.steps]
        sizes = [step.size for step in self._demands.widths.steps]
        left = set(range(len(steps)))
        for _ in range(_TRIED_BACK):
            if not left or self.left(chosen).used(self._target) > 1 - _SLACK:
                break
            gone = {n: found for n in left if (found := steps[n][~chosen.keep[steps[n]]]).size}
            back = {n: found[np.argsort(-scores[found], kind="stable")[: sizes[n]]] for n, found in gone.items()}
            if not back:
                break
            number = max(back, key=lambda n: float(scores[back[n]].mean()))
            wish = chosen.keep.copy()
            wish[back[number]] = True
            fuller = carried_out(self._demands, wish)
            if self.left(fuller).fits(self._target):
                chosen = fuller
            else:
                left.remove(number)
        return chosen


def _not_met(search: _Search, multiple_of: MultipleOf, divisor: int) -> BudgetNotMet:
    left = search.left(search.at_least())
    given = multiple_of not in (1, AUTO)
    time = f", and by the times of its layers {left.time:.1%} of the latency" if search.timed else ""
    return BudgetNotMet(
        "the budget cannot be met by removing channels",
        why=f"with {in_words(multiple_of, divisor)} left per group {left.macs:.1%} of the MACs and "
        f"{left.params:.1%} of the parameters remain{time}{_pinning_most(search.facts)}",
        do="raise the target, or pin fewer channels"
        + (", or lower the multiple" if given else "")
        + " (prunec analyze lists what is pinned)",
    )


def _pinning_most(facts: Facts) -> str:
    """Name the node that pins the channels with most of the MACs; each counts where it is pinned first."""
    classes = facts.classes
    macs = np.where(classes.is_channel, class_cost(facts.graph, classes).macs, 0)
    held: dict[tuple[str, str], float] = {}
    there: dict[tuple[str, str], list[Ids]] = {}
    for pin in classes.pins:
        owners, key = distinct(classes.class_of[pin.ids]), (pin.where, pin.reason)
        held[key] = held.get(key, 0.0) + float(macs[owners].sum())
        there.setdefault(key, []).append(owners[macs[owners] > 0])
        macs[owners] = 0
    where, reason = key = max(held, key=lambda each: held[each], default=("", ""))
    if key not in there:
        return ""
    # A class counts for the layers that make it and for those that read it: here each layer counts once.
    counted, found = cost(facts.graph).macs_of, sides(facts.graph, classes)
    keep = np.ones_like(classes.pinned)
    keep[np.concatenate(there[key])] = False
    left = shares(found, keep, found)
    most = sum(counted.get(name, 0) * (1 - made * read) for name, (made, read) in left.items())
    share = most / max(1, sum(counted.values()))
    return f"; {where} holds most, the channels of {share:.0%} of the MACs: {reason}" if share >= 0.01 else ""


def _not_last(facts: Facts, order: np.ndarray[Any, np.dtype[np.int64]]) -> Mask:
    """Return bool[order]: False for the highest-scored channel of each coupled group, which always stays.

    Expansions break a stream into many groups, by the branches that each channel is computed in. There it is the
    highest-scored of each parameter axis: a group may go as long as no layer is left without channels.
    """
    classes = facts.classes
    groups = [np.asarray(group, dtype=np.int64) for group in group_classes(classes)]
    alone = np.setdiff1d(order, np.concatenate([*groups, np.zeros(0, dtype=np.int64)]))
    if as_it_came(facts.graph) is not facts.graph:
        groups = [distinct(classes.class_of[member.ids]) for member in classes.members]
    position = np.full(classes.num_classes, -1, dtype=np.int64)
    position[order] = np.arange(order.size)
    last = np.array([position[group].max(initial=-1) for group in groups], dtype=np.int64)
    mask = np.ones(order.size, dtype=bool)
    mask[last[last >= 0]] = False
    mask[position[alone]] = False
    return mask
