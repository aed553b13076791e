"""Carriers: which channels stay so that the constants of removed ones have somewhere to go.

Owns the choice of carriers (channels that stay so that zero-padded borders remain exact) and the list
of folds. Which channels are removed is select.py's decision, carrying the folds out is bias_folds.py's.

At a contraction that loses channels k with constants c_k, the paper adds Σ_k c_k · Σ_taps W[:, k] to
the bias (or takes it from the running mean that follows). With zero padding the constant is missing
in the padded ring, so that is not exact. A carrier r, one constant channel that stays, makes it so:
W[:, r] += Σ_k (c_k / c_r) · W[:, k] is linear in the padded map itself. So it is for channels that were
padded, or averaged with padded zeros, before, and for those that vary with the input, but are multiples of one map
(passes/profiles.py); these need a carrier everywhere. Ye et al., ICLR 2018, sec. 4.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prunec.errors import InternalError
from prunec.ir.arrays import Floats, Ids, Mask
from prunec.ir.contractions import bias_of, conv_groups, is_spatial
from prunec.ir.graph import Graph, Node, reads_alike, summed_axis
from prunec.ir.labels import ChannelClasses
from prunec.ir.plan import Fold
from prunec.passes.columns import columns
from prunec.passes.integers import is_integer
from prunec.passes.reads import Read
from prunec.passes.selection.needs import Needs

WEAKEST_CARRIER = 1e-3
"""A carrier's constant is at least this fraction of the largest constant it stands for: smaller ones
would make weights so large that float32 loses digits."""


@dataclass(frozen=True, slots=True, eq=False)
class Absorption:
    """One convolution group of one contraction that loses constants other than zero.

    Channels that are a constant times a map of their own (``Read.profile``, ``Read.shared``) are apart: only one of
    them can stand for the others. ``positions`` are indices on the contracted axis, int64; ``classes`` and
    ``constants`` belong to all positions of the group; ``removed`` and ``constant`` (bool) mark those that
    go, and those that are constant everywhere and not zero. ``varies``: their map depends on the input.
    """

    read: Read
    positions: np.ndarray[Any, np.dtype[np.int64]]
    classes: np.ndarray[Any, np.dtype[np.int64]]
    constants: np.ndarray[Any, np.dtype[np.float64]]
    removed: Mask
    constant: Mask
    profile: int = 0
    varies: bool = False

    @property
    def border(self) -> bool:
        """True where a bias alone is not exact."""
        return self.read.border or self.profile != 0

    def carried(self, exact: Mask, border: str) -> Mask:
        """Return bool[positions]: what a carrier takes over.

        Where a channel left by request, constants go into a bias. What varies has no other place than a carrier, and
        goes without one where all that could take it over has left, and something by request.

        Args:
            exact, border: see ``folds``.
        """
        lost: Mask = self.removed & self.constant
        if self.varies:
            wished = (lost & ~exact[self.classes]).any() and not (self.carriers() & ~self.removed).any()
            return np.zeros_like(lost) if wished else lost
        if not self.border or (border != "exact" and self.read.node.op != "conv_transpose"):
            return np.zeros_like(lost)
        of_constants: Mask = lost & exact[self.classes]
        return of_constants

    def carriers(self) -> Mask:
        """Return bool[positions]: constants large enough to stand for those that are removed."""
        largest = np.abs(self.constants[self.removed & self.constant]).max()
        able: Mask = self.constant & (np.abs(self.constants) >= WEAKEST_CARRIER * largest)
        return able


def absorbing(found: Sequence[Read]) -> tuple[Read, ...]:
    """Return the reads that have a constant to fold: all that ``absorptions`` ever looks at, and few of a network's."""
    return tuple(read for read in found if read.absorbs and _foldable(read).any())


def _foldable(read: Read) -> Mask:
    """Return bool[channels]: constants other than zero and factors of shared maps, and not dead."""
    constants = _values(read)
    foldable: Mask = ~np.isnan(constants) & (constants != 0) & ~read.dead.ravel()
    return foldable


def _values(read: Read) -> Floats:
    """Return float64[channels]: constants, and factors of shared maps."""
    values: Floats = np.where(read.shared != 0, read.factor, read.constant).ravel()
    return values


def _maps(read: Read) -> Ids:
    """Return int64[channels]: 0 for constants, else the map that a value is a factor of; negative where that varies."""
    maps: Ids = np.where(read.shared != 0, -read.shared, read.profile).ravel()
    return maps


def shared(classes: ChannelClasses, found: Sequence[Read]) -> Mask:
    """Return bool[num_classes]: some read shares a map that varies between the class and others."""
    mask = np.zeros(classes.num_classes, dtype=bool)
    for read in found:
        if read.shared.any():
            mask[classes.class_of[read.ids[read.shared != 0]]] = True
    return mask


def absorptions(classes: ChannelClasses, found: Sequence[Read], wanted: Needs, keep: Mask) -> Iterator[Absorption]:
    """Yield every convolution group of a running contraction that loses constants other than zero.

    Args:
        found: the reads, or the ``absorbing`` ones among them.
    """
    for losses in _losses(classes, found, wanted, keep):
        for number in np.flatnonzero(losses.any(losses.lost)).tolist():
            yield losses.absorption(number)


@dataclass(frozen=True, slots=True, eq=False)
class _Losses:
    """What a read loses, all of its absorptions at once: a depthwise convolution has one per channel.

    Args:
        positions: int64, on the contracted axis, sorted by convolution group and map.
        starts: int64[absorptions], where each begins among them.
        of: int64[positions], the absorption of each.
        owners, constants, constant, maps: of each position; see ``Absorption``.
        gone, lost: bool[positions]: what goes, and what of it is constant.
    """

    read: Read
    positions: Ids
    starts: Ids
    of: Ids
    owners: Ids
    constants: Floats
    constant: Mask
    maps: Ids
    gone: Mask
    lost: Mask

    def any(self, mask: Mask) -> Mask:
        """Return bool[absorptions]: some position of it is in a mask of positions."""
        found: Mask = np.logical_or.reduceat(mask, self.starts)
        return found

    def absorption(self, number: int) -> Absorption:
        """Return one of them."""
        end = self.starts[number + 1] if number + 1 < self.starts.size else self.positions.size
        here = slice(self.starts[number], end)
        key = int(self.maps[here.start])
        return Absorption(
            self.read, self.positions[here], self.owners[here], self.constants[here], self.gone[here],
            self.constant[here], key, varies=key < 0,
        )  # fmt: skip

    def waiting(self, exact: Mask, border: str) -> Ids:
        """Return the numbers of those of which something is carried, and nothing that could carry it stays."""
        stays = self._stays()
        return np.flatnonzero(self.any(self._carried(stays, exact, border)) & ~stays)

    def needs_bias(self, exact: Mask, border: str) -> bool:
        """Tell whether a constant goes into a bias, see ``folds``."""
        return bool((self.lost & (self.maps >= 0) & ~self._carried(self._stays(), exact, border)).any())

    def _stays(self) -> Mask:
        """Return bool[absorptions]: something that could stand for the others stays; as ``Absorption.carriers``."""
        sizes = np.where(self.constant, np.abs(self.constants), 0.0)
        largest = np.maximum.reduceat(np.where(self.lost, sizes, 0.0), self.starts)
        able = self.constant & (sizes >= WEAKEST_CARRIER * largest[self.of])
        return self.any(able & ~self.gone)

    def _carried(self, stays: Mask, exact: Mask, border: str) -> Mask:
        """Return bool[positions]: what carriers take over; as ``Absorption.carried``."""
        wished = self.lost & ~exact[self.owners]
        alone = (self.any(wished) & ~stays)[self.of]
        bordered = (self.maps > 0) | ((self.maps == 0) & self.read.border)
        bordered &= border == "exact" or self.read.node.op == "conv_transpose"
        found: Mask = self.lost & np.where(self.maps < 0, ~alone, bordered & ~wished)
        return found


def _losses(classes: ChannelClasses, found: Sequence[Read], wanted: Needs, keep: Mask) -> Iterator[_Losses]:
    """Yield what each running contraction loses of constants other than zero; arguments as for ``absorptions``."""
    for read in found:
        if read.node.name not in wanted.nodes or not read.absorbs:
            continue
        owners, constant = classes.class_of[read.ids.ravel()], _foldable(read)
        gone = ~keep[owners]
        if not (constant & gone).any():
            continue
        maps, size = _maps(read), owners.size
        groups = np.arange(size) // (size // conv_groups(read.node))
        order = np.lexsort((maps, groups))
        first = np.diff(groups[order], prepend=-1) != 0
        first[1:] |= np.diff(maps[order]) != 0
        gone, constant = gone[order], constant[order]
        yield _Losses(
            read, order, np.flatnonzero(first), np.cumsum(first) - 1, owners[order], _values(read)[order], constant,
            maps[order], gone, constant & gone,
        )  # fmt: skip


def choose_carriers(
    classes: ChannelClasses, found: Sequence[Read], wanted: Needs, keep: Mask, exact: Mask, border: str = "exact"
) -> tuple[Mask, Mask]:
    """Return the channels to give back so that every border, and every channel that was taken over, is exact.

    Each absorption that meets a border needs one; the class that serves most of them is taken first
    (greedy set cover; ties go to the largest constant). Channels that stay anyway serve for nothing.

    Args:
        exact: bool[num_classes]; only channels that may leave exactly need a carrier.
        border: "exact" or "bias", see ``folds``.

    Returns:
        bool[num_classes] twice: all of them, and those among them that carry constants.
    """
    pending = [
        losses.absorption(number)
        for losses in _losses(classes, found, wanted, keep)
        for number in losses.waiting(exact, border).tolist()
    ]
    chosen, carrying = (np.zeros(classes.num_classes, dtype=bool) for _ in range(2))
    chosen[_greedy_cover([_shares(absorption) for absorption in pending])] = True
    for absorption in pending:
        if not absorption.varies:
            carrying[absorption.classes[absorption.carriers()]] = True
    return chosen, chosen & carrying


def _shares(absorption: Absorption) -> dict[int, float]:
    """Return how well each class would serve: 1, and at most a half for the relative size of its constant."""
    able = absorption.carriers()
    size = np.abs(absorption.constants[able])
    shares: dict[int, float] = {}
    for owner, share in zip(absorption.classes[able].tolist(), (1 + 0.5 * size / size.max()).tolist(), strict=True):
        shares[owner] = max(share, shares.get(owner, 0.0))
    return shares


def _greedy_cover(served: Sequence[Mapping[int, float]]) -> list[int]:
    """Return classes that between them serve all: each time the one with the largest sum of shares, then the lowest.

    Args:
        served: for each that needs one, how well each class would serve.
    """
    waiting: dict[int, dict[int, float]] = {}
    for number, shares in enumerate(served):
        for owner, share in shares.items():
            waiting.setdefault(owner, {})[number] = share
    totals = {owner: sum(shares.values()) for owner, shares in waiting.items()}
    queue = [(-total, owner) for owner, total in totals.items()]
    heapq.heapify(queue)
    chosen = []
    while queue:
        total, best = heapq.heappop(queue)
        if not waiting[best] or -total != totals[best]:
            continue  # an entry from before others were served
        chosen.append(best)
        done = set(waiting[best])
        for owner in dict.fromkeys(owner for number in done for owner in served[number]):
            waiting[owner] = {number: share for number, share in waiting[owner].items() if number not in done}
            totals[owner] = sum(waiting[owner].values())
            heapq.heappush(queue, (-totals[owner], owner))
    return chosen


def sharing(graph: Graph, found: Sequence[Read]) -> tuple[tuple[Read, Read], ...]:
    """Return pairs of reads of different nodes that share a weight: the first that reads it, and another.

    Those that read it along another axis take no fold that others see, see ``Graph.is_own_weight``; nor do biases that
    other layers read, see ``_bias_target`` and integers.py.
    """
    first_of: dict[tuple[str, Any], Read] = {}
    pairs = []
    for read in found:
        weight = graph.stored(read.node.inputs[1]) if len(read.node.inputs) > 1 else ""
        takes = read.border or bool(read.shared.any())
        behind = {column.param for column in columns(graph, read.node)} if takes else set()
        for name in sorted({weight, *behind} - {""}):
            first = first_of.setdefault((name, summed_axis(read.node)), read)
            if first.node is not read.node:
                pairs.append((first, read))
    return tuple(pairs)


def clashes(classes: ChannelClasses, pairs: Sequence[tuple[Read, Read]], keep: Mask) -> Iterator[tuple[Node, Mask]]:
    """Yield contractions that share a weight but lose different constants, with the classes concerned.

    One tensor cannot take two different folds: those channels have to stay.

    Args:
        pairs: see ``sharing``.
    """
    for first, read in pairs:
        owners = classes.class_of[read.ids.ravel()]
        values = [_folded(r, owners.size) for r in (first, read)]
        differ = values[0] != values[1]
        if first.border != read.border or (read.border and (values[0] != values[1]).any()):
            # One stands for the others at both, so all that is constant must be the same, whether it goes or not.
            differ = (values[0] != 0) | (values[1] != 0)
        differ &= ~keep[owners]
        if differ.any():
            mask = np.zeros(classes.num_classes, dtype=bool)
            mask[owners[differ]] = True
            yield read.node, mask


def _folded(read: Read, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return what a read folds per position: 0 where nothing, NaN where it cannot be compared."""
    if read.ids.size != size:
        return np.full(size, np.nan)
    values = _values(read)
    nothing = read.dead.ravel() | np.isnan(values)  # what varies alone goes by request, and leaves nothing behind
    return np.where(nothing, 0.0, np.where(_maps(read) == 0, values, np.nan))


def folds(
    graph: Graph, classes: ChannelClasses, found: Sequence[Read], wanted: Needs, keep: Mask, border: str, exact: Mask
) -> tuple[Fold, ...]:
    """List the folds of a final ``keep``.

    Args:
        border: "exact" folds into a carrier where zero padding meets a constant; "bias" never does,
            except in transposed convolutions, where a bias cannot even be right inside. The one that ``keep`` was
            selected with.
        exact: bool[num_classes]; channels that leave by request take the bias form.

    Raises:
        InternalError: no carrier stays for channels that need one.
    """
    result: list[Fold] = []
    for absorption in absorptions(classes, found, wanted, keep):
        read = absorption.read
        lost = absorption.removed & absorption.constant
        carried = absorption.carried(exact, border)
        if carried.any():
            staying = absorption.carriers() & ~absorption.removed
            if not staying.any():
                what = (
                    "channel stays to take over others at"
                    if absorption.varies
                    else "constant stays to carry the borders of"
                )
                raise InternalError("absorb", f"no {what} {read.node.origin}", "")
            at = int(np.where(staying, np.abs(absorption.constants), -1).argmax())
            carrier = (int(absorption.positions[at]), float(absorption.constants[at]))
            result.append(_fold(absorption, carried, "carrier", "", *carrier))
        rest = lost & ~carried
        if rest.any() and not absorption.varies:
            result.append(_fold(absorption, rest, *bias_target(graph, read.node)))
    return tuple(result)


def new_biases(
    graph: Graph, classes: ChannelClasses, found: Sequence[Read], wanted: Needs, keep: Mask, border: str, exact: Mask
) -> frozenset[str]:
    """Return the nodes that get a bias from the ``folds`` of a ``keep``, without making these."""
    return frozenset(
        losses.read.node.name
        for losses in _losses(classes, found, wanted, keep)
        if bias_target(graph, losses.read.node) == ("bias", "") and losses.needs_bias(exact, border)
    )


def taken_over(
    classes: ChannelClasses, found: Sequence[Read], wanted: Needs, keep: Mask, border: str, exact: Mask
) -> Mask:
    """Return bool[num_classes]: what leaves as a multiple of a channel that stays. Arguments as for ``folds``."""
    mask = np.zeros(classes.num_classes, dtype=bool)
    for absorption in absorptions(classes, [read for read in found if read.shared.any()], wanted, keep):
        if absorption.varies:
            mask[absorption.classes[absorption.carried(exact, border)]] = True
    return mask


def _fold(absorption: Absorption, which: Mask, kind: Any, target: str, carrier: int = -1, value: float = 0.0) -> Fold:
    positions = tuple(absorption.positions[which].tolist())
    return Fold(
        absorption.read.node.name, kind, positions, tuple(absorption.constants[which].tolist()), target, carrier, value
    )


def bias_target(graph: Graph, node: Node) -> tuple[Literal["bias", "running_mean"], str]:
    """Return (kind, target): the node's own bias if it has one, else a BatchNorm's running mean, else a new bias.

    A bias that other layers read, too (files in which equal tensors were merged), stays as it is.
    """
    if bias_of(node):
        bias = graph.stored(bias_of(node))
        alone = bias not in graph.outputs and all(reads_alike(node, user) for user in graph.consumers(bias))
        return "bias", bias if alone or is_integer(graph, node) else ""
    readers = graph.consumers(node.outputs[0])
    if len(readers) == 1 and node.outputs[0] not in graph.outputs:
        norm = readers[0]
        mean = norm.inputs[3] if norm.op == "batch_norm" and len(norm.inputs) > 3 else ""
        if (
            mean in graph.params
            and norm.inputs[0] == node.outputs[0]
            and not norm.attrs.get("training")
            and norm.attrs.get("axis", 1) == 1
            and is_spatial(node)
            and len(graph.consumers(mean)) == 1
        ):
            return "running_mean", mean
    return "bias", ""
