"""Widths: how many channels it is worth keeping, by what kernels work on at once.

Owns the steps in which the widths of layers change, and the scores that let channels go in such steps. Half of the
multiply-accumulates is half of the time only where the kernels' blocks stay full: ONNX Runtime's CPU convolutions work
on 8 channels at once (AVX2) or 16 (AVX-512), leave that layout altogether where a convolution reads no multiple of 4,
and want whole blocks in each group of a grouped one; cuDNN's wish for multiples of 8. Legality is legal.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunec.ir.arrays import Floats, Ids, Mask
from prunec.ir.labels import Balance, ChannelClasses, distinct
from prunec.passes.groups import group_classes

MultipleOf = int | Literal["auto"]
"""So many channels at once, or what suits the layer."""
AUTO: Literal["auto"] = "auto"

_STEPS = ((32, 16), (16, 8), (8, 4))
"""From so many channels on, the step: of 16 channels 8 may stay, of 64 16, 32 or 48."""
_NARROW_STEP = 4
_IN_GROUP_STEPS = ((64, 16), (16, 8))
"""The same for the channels of one group of a grouped convolution; narrower groups go or stay as a whole."""
FINEST = 1
COARSEST = max(step for _, step in _STEPS)


def step_for(count: int, multiple_of: MultipleOf, divisor: int = 1) -> int:
    """Return the step in which an axis of ``count`` channels changes its width.

    Args:
        divisor: of the steps of ``auto``, where those do not meet a budget.
    """
    if multiple_of != AUTO:
        return multiple_of
    found = next((step for least, step in _STEPS if count >= least), _NARROW_STEP)
    return max(FINEST, found // divisor)


def step_in_group(count: int, multiple_of: MultipleOf, divisor: int = 1) -> int:
    """Return the step in which each group of a grouped convolution changes its width; 1 for a given number."""
    if multiple_of != AUTO or divisor >= COARSEST:
        return 1
    found = next((step for least, step in _IN_GROUP_STEPS if count >= least), count)
    return max(1, found // divisor)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Classes of which a multiple of ``size`` stays, or all, or none: int64[n], each once per channel of the axis.

    ``free`` are those that may be given back for that; int64[m].
    """

    classes: Ids
    free: Ids
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Widths:
    """The steps of a network's widths.

    Args:
        steps: coupled groups; then the axes of parameters that narrow groups lie on, side by side.
        in_groups: IR node name of a grouped convolution -> the steps of a group's inputs and outputs.
    """

    steps: tuple[Step, ...] = ()
    in_groups: tuple[tuple[str, tuple[int, int]], ...] = ()

    def within(self, node: str) -> tuple[int, int]:
        """Return the steps within the groups of a convolution: of what it reads, of what it makes."""
        return dict(self.in_groups).get(node, (1, 1))


ANY = Widths()


def widths(classes: ChannelClasses, multiple_of: MultipleOf, divisor: int = 1) -> Widths:
    """Return the steps of all widths.

    Args:
        multiple_of: ``auto`` takes 16 where a layer has 32 channels or more, 8 from 16 on, and 4 below.
        divisor: finer steps by so much, down to single channels; ``auto`` only.
    """
    if multiple_of == 1 or (multiple_of == AUTO and divisor >= COARSEST):
        return ANY
    groups = [np.asarray(group, dtype=np.int64) for group in group_classes(classes)]
    narrow = np.zeros(classes.num_classes, dtype=bool)
    steps = []
    for group in groups:
        step = step_for(group.size, multiple_of, divisor)
        if group.size < (2 * step if multiple_of == AUTO else step):
            narrow[group] = True
        elif step > 1:
            steps.append(Step(group, group, step))
    steps += _axes(classes, narrow, multiple_of, divisor)
    return Widths(tuple(steps), tuple(_in_groups(classes, multiple_of, divisor)))


def _axes(classes: ChannelClasses, narrow: Mask, multiple_of: MultipleOf, divisor: int) -> Iterator[Step]:
    """Yield the axes that narrow groups share: together they are as wide as any other."""
    seen = set()
    for member in classes.members:
        owners = classes.class_of[member.ids].ravel()
        free = distinct(owners[narrow[owners]])
        key = owners.tobytes()
        if free.size and key not in seen:
            seen.add(key)
            step = step_for(owners.size, multiple_of, divisor)
            if step > 1:
                yield Step(owners, free, step)


def _in_groups(classes: ChannelClasses, multiple_of: MultipleOf, divisor: int) -> Iterator[tuple[str, tuple[int, int]]]:
    for balance in classes.balances:
        reads, makes = (step_in_group(ids.shape[1], multiple_of, divisor) for ids in _sides(balance))
        if max(reads, makes) > 1:
            yield balance.node.name, (reads, makes)


def _sides(balance: Balance) -> tuple[Ids, Ids]:
    return balance.in_ids, balance.out_ids


def round_up(steps: Iterable[Step], keep: Mask, priority: Floats) -> Mask:
    """Return ``keep`` with channels given back until every step holds, or all its channels stay.

    Args:
        priority: float64[num_classes]; the highest come back first.
    """
    keep = keep.copy()
    for step in steps:
        kept = np.count_nonzero(keep[step.classes])
        missing = -kept % step.size
        if kept and missing:
            gone = step.free[~keep[step.free]]
            keep[gone[np.argsort(-priority[gone], kind="stable")[:missing]]] = True
    return keep


def in_step(classes: ChannelClasses, found: Widths, scores: Floats) -> Floats:
    """Return scores by which channels go in the steps of the groups of grouped convolutions, as these have to.

    What a group gives up, all have to give up, or the whole group goes. Where groups change their width, the channels
    of equal rank in each get the mean of their scores; where they go or stay, all channels of one do.

    Args:
        scores: float64[num_classes]; infinite ones stay so.
    """
    result = scores.copy()
    for balance in classes.balances:
        steps = found.within(balance.node.name)
        rows = [classes.class_of[ids] for ids in _sides(balance)]
        if all(step >= side.shape[1] > 1 for step, side in zip(steps, rows, strict=True)):
            for channels in np.concatenate(rows, axis=1):
                result[channels] = result[channels].mean()
            continue
        for side in rows:
            order = np.argsort(result[side], axis=1, kind="stable")
            ranked = np.take_along_axis(side, order, axis=1)
            result[ranked] = np.broadcast_to(result[ranked].mean(axis=0), ranked.shape)
    return result


def in_words(multiple_of: MultipleOf, divisor: int = 1) -> str:
    """Say what stays at the least: "a multiple of 16 channels"."""
    if multiple_of != AUTO:
        return "one channel" if multiple_of == 1 else f"a multiple of {multiple_of} channels"
    return "one channel" if divisor >= COARSEST else "a block of channels"


def divisors(multiple_of: MultipleOf) -> Sequence[int]:
    """Return by how much finer steps are tried, one after the other, where a budget cannot be met."""
    return (1, 2, 4, COARSEST) if multiple_of == AUTO else (1,)
