"""Choosing channels so that the pruned network meets its budget and is not smaller than necessary.

Owns the last correction of a run under a budget. ISTA brings gammas to zero in bursts, so the network misses
its budget by more or less. If it is too small, channels come back (those that were zero last); if it is too large at
the end of the phase, further channels go (the smallest filters, whose gammas the penalty has shrunk most). goals.py
counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from prunec.errors import BudgetNotMet, EmptyNetwork
from prunec.ir.arrays import Floats, Ids, Mask
from prunec.passes.cost import class_cost
from prunec.passes.groups import group_classes
from prunec.passes.selection.criteria import score
from prunec.training.budget.footprint import Size, check_alive, keep_mask, zero_gammas
from prunec.training.budget.goals import Arrays, Goal, Sizer, excess, in_words, slack, with_zeros
from prunec.training.sparsity.sparsify import Sparsity, named_parameters

CLOSE_ENOUGH = 0.005
"""Unused share of a budget at which no further channel is given back."""
_TOO_FAR = 0.015
"""Unused share at which the fit is repeated without the channel that made the last step so large."""
_ATTEMPTS = 6
_MOST_TRIALS = 80


class GammaHistory:
    """Remembers the values of gammas before they became zero, and in which order they did.

    Mutable: it sees every reading of a run, and is saved in the checkpoint.

    Args:
        plan: which gammas decide over which classes.
    """

    def __init__(self, plan: Sparsity) -> None:
        self._plan = plan
        self.values: dict[str, np.ndarray[Any, Any]] = {}
        self.start: dict[str, np.ndarray[Any, Any]] = {}
        self.zero_since = np.zeros(plan.classes.num_classes, dtype=np.int64)
        self._readings = 0

    def observe(self, arrays: Arrays) -> None:
        """Take in the present gammas, float[C] per parameter."""
        self._readings += 1
        alive = keep_mask(self._plan, zero_gammas(self._plan, arrays))
        self.zero_since = np.where(alive, 0, np.where(self.zero_since > 0, self.zero_since, self._readings))
        for gamma in self._plan.gammas:
            now = arrays[gamma.param]
            before = self.values.get(gamma.param, now)
            self.values[gamma.param] = np.where(alive[gamma.classes], now, before)
            self.start.setdefault(gamma.param, self.values[gamma.param])

    def norms(self) -> Floats:
        """Return ‖γ‖₂ of each class as it was when the class was last alive, float64[num_classes]."""
        return self._norms_of(self.values)

    def _norms_of(self, arrays: Arrays) -> Floats:
        squares = np.zeros(self._plan.classes.num_classes)
        for gamma in self._plan.gammas:
            mask = self._plan.channels_of(gamma)
            np.add.at(squares, gamma.classes[mask], arrays[gamma.param][mask].astype(np.float64) ** 2)
        return np.sqrt(squares)

    def order(self, scores: Floats) -> Ids:
        """Return the penalised classes in the order in which they should go.

        Zero classes come first, starting with those that have been zero longest. Then come those with the lowest
        product of their score and the share of ‖γ‖ that the penalty has left, relative to the class's group. In a
        trained network the original size of gammas says little, and it cannot be compared across groups, because a
        BatchNorm normalises the scale of its input.

        Args:
            scores: float64[num_classes], the lowest matters least; see passes/selection/criteria.py.
        """
        zero_for = np.where(self.zero_since > 0, self.zero_since, self._readings + 1)
        candidates = np.flatnonzero(self._plan.penalised)
        # A class without a score (infinite) goes last, unless its gammas are zero already.
        left = np.minimum(scores, 1e30)[candidates] * self._left_beside_group()[candidates]
        return candidates[np.lexsort((left, zero_for[candidates]))]

    def _left_beside_group(self) -> Floats:
        """Return ‖γ‖₂ of each class relative to its start, and relative to the mean of that in its group."""
        left = self.norms() / np.maximum(self._norms_of(self.start), 1e-30)
        for group in group_classes(self._plan.classes):
            members = np.asarray(group)
            members = members[self._plan.penalised[members]]
            if members.size:
                left[members] /= max(1e-30, float(left[members].mean()))
        return left

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as tensors and numbers."""
        return {
            "values": _tensors(self.values),
            "start": _tensors(self.start),
            "zero_since": torch.from_numpy(self.zero_since.copy()),
            "readings": self._readings,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.values = {name: value.numpy() for name, value in state["values"].items()}
        self.start = {name: value.numpy() for name, value in state["start"].items()}
        self.zero_since, self._readings = state["zero_since"].numpy(), state["readings"]


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The classes to remove for a budget.

    Args:
        gone: bool[num_classes].
        size: what is left.
        forced: classes that go although their gammas had not reached zero.
        revived: classes that had reached zero and stay.
    """

    gone: Mask
    size: Size
    forced: int
    revived: int


def fit(history: GammaHistory, sizer: Sizer, goals: Sequence[Goal], full: Size) -> Fit:
    """Choose which classes go, so that every goal holds and as little as possible of it is unused.

    Raises:
        BudgetNotMet: channels that have to stay cost more than the budget.
    """
    plan = sizer.plan
    zero = history.zero_since > 0
    facts, _ = sizer.selection(history.values)
    order = expendable(plan, history.order(score(facts, "l1")), zero)

    def measured(gone: Mask) -> Size:
        return sizer.size(with_zeros(plan, history.values, gone))

    def first(count: int) -> Mask:  # of the present ``order``
        gone = np.zeros(plan.classes.num_classes, dtype=bool)
        gone[order[:count]] = True
        return gone

    best: Mask | None = None
    for _ in range(_ATTEMPTS):
        count = _fewest(order.size, lambda n: excess(goals, measured(first(n)), full) <= 0)
        if count is None:
            break
        gone = _filled(first(count), order[:count], plan, goals, full, measured)
        if best is None or slack(goals, measured(gone), full) < slack(goals, measured(best), full):
            best = gone
        if count == 0 or slack(goals, measured(best), full) <= _TOO_FAR:
            break
        order = np.delete(order, count - 1)  # too large a step: it stays, and smaller ones go instead
    if best is None:
        raise not_met(goals, measured(first(order.size)), full)
    return Fit(best, measured(best), int((best & ~zero).sum()), int((zero & ~best & plan.penalised).sum()))


def not_met(goals: Sequence[Goal], smallest: Size, full: Size) -> BudgetNotMet:
    """Return the error for a budget below what has to stay."""
    return BudgetNotMet(
        f"at the least {in_words(goals, smallest, full)} must stay",
        why="the rest is in channels that cannot be trained away: pinned or kept ones, and the last of each layer",
        do="raise the target, pin fewer channels with --keep, or prune residual streams too (--residual group); "
        "`prunec analyze` names what pins a channel",
    )


def smallest(sizer: Sizer, arrays: Arrays) -> Size:
    """Return the size with every class gone that may go: no budget below it can be met."""
    plan = sizer.plan
    gone = np.zeros_like(plan.penalised)
    gone[expendable(plan, np.flatnonzero(plan.penalised), gone)] = True
    return sizer.size(with_zeros(plan, arrays, gone))


def expendable(plan: Sparsity, order: Ids, zero: Mask) -> Ids:
    """Return ``order`` without the last of each coupled group, unless it is ``zero`` and not needed."""
    return order[~_protected(plan, order, zero)[order]]


def set_gammas(plan: Sparsity, module: nn.Module, arrays: Arrays, gone: Mask) -> None:
    """Set the module's gammas: zero where the class is ``gone``, else as in ``arrays``.

    The betas that follow them become zero there too.
    """
    parameters = named_parameters(module)
    with torch.no_grad():
        for name, array in with_zeros(plan, arrays, gone).items():
            parameters[name].copy_(torch.from_numpy(array))
        for gamma in plan.gammas:
            follows = plan.channels_of(gamma) & (gone & plan.driven)[gamma.classes]
            if gamma.beta in parameters and follows.any():
                parameters[gamma.beta][torch.from_numpy(follows)] = 0.0


def _protected(plan: Sparsity, order: Ids, zero: Mask) -> Mask:
    """Return bool[num_classes]: the last of each coupled group, unless it is zero and not needed."""
    protected = np.zeros(plan.classes.num_classes, dtype=bool)
    rank = np.full(plan.classes.num_classes, -1, dtype=np.int64)
    rank[order] = np.arange(order.size)
    for group in group_classes(plan.classes):
        members = np.asarray(group)
        if plan.penalised[members].all():
            protected[members[np.argmax(rank[members])]] = True
    try:
        check_alive(plan.graph, plan.classes, ~(zero & plan.penalised), 0.0)
    except EmptyNetwork:
        return protected
    return protected & ~zero


def _fewest(most: int, holds: Any) -> int | None:
    """Bisect for the smallest count for which ``holds``; None if it does not for ``most``."""
    if not holds(most):
        return None
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _filled(
    gone: Mask,
    order: Ids,
    plan: Sparsity,
    goals: Sequence[Goal],
    full: Size,
    measured: Any,
) -> Mask:
    """Give back single channels that still fit, the last to go first."""
    costs = class_cost(plan.graph, plan.classes)
    by_name = {"macs": costs.macs, "params": costs.params}
    left = slack(goals, measured(gone), full)
    trials = 0
    for channel in order[::-1].tolist():
        if left <= CLOSE_ENOUGH or trials == _MOST_TRIALS:
            break
        # First-order costs are those in the full network; in a pruned one a channel costs about that share less.
        likely = all(
            by_name[g.quantity][channel] * g.share <= 1.5 * left * g.share * getattr(full, g.quantity)
            for g in goals
            if g.quantity in by_name
        )
        if not likely:
            continue
        trials += 1
        candidate = gone.copy()
        candidate[channel] = False
        now = slack(goals, measured(candidate), full)
        if 0 <= now < left:
            gone, left = candidate, now
    return gone
