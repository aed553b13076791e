"""The time of each layer at several widths, measured, and from that the time of any selection of channels.

Owns the table of times, and how to read it. Time falls in steps (kernels work on blocks of channels), so a layer
is timed at whole blocks, and a width in between takes as long as the next block. If a layer loses both outputs and
inputs, its time is multiplied by the factors of both sides, because measuring all pairs would take minutes. HALP (Shen
et al., NeurIPS 2022) uses such a table too. Selection by it: passes/selection/staircase.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from prunec.errors import PrunecError
from prunec.ir.graph import Graph
from prunec.passes.cost import cost
from prunec.passes.selection.shares import Shares
from prunec.timing import latency
from prunec.timing.layers_alone import Layer, Side, at, layers_alone, made, onnx_model, read
from prunec.timing.pairs import ONE

_RUNS, _SECONDS = 20, 0.3
"""Runs of each width of a layer, and the most seconds for all of them."""
_BLOCK = 8
"""The smallest block of channels that ONNX Runtime's CPU kernels work on."""
_WIDTHS = (0.25, 0.5, 0.75)
"""Shares of a side's channels at which a layer is timed besides its own width, rounded to blocks."""

Stairs = tuple[tuple[float, float], ...]
"""(share of a side's channels, share of the layer's time), both rising, up to (1, 1); empty: the time is the same."""


@dataclass(frozen=True, slots=True)
class LayerStairs:
    """A layer's time: microseconds at its full width, and its shares with fewer output or input channels."""

    microseconds: float
    made: Stairs
    read: Stairs

    def at(self, made_share: float, read_share: float) -> float:
        """Return the microseconds with such shares of the channels."""
        return self.microseconds * time_of(self.made, made_share) * time_of(self.read, read_share)


LINE: Stairs = ((0.5, 0.5), (1.0, 1.0))
"""In proportion to the channels."""


def time_of(stairs: Stairs, share: float) -> float:
    """Return the share of the time at a share of the channels, interpolated between the measured widths.

    Below the narrowest, the time falls to half of that width's, because the least time of a layer is not known.
    """
    if share >= 1 or not stairs:
        return 1.0
    widths = [0.0, *(width for width, _ in stairs)]
    times = [0.0 if stairs is LINE else 0.5 * stairs[0][1], *(time for _, time in stairs)]
    return float(np.interp(share, widths, times)) if share > 0 else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Staircases:
    """The times of a network's layers; call it with the shares of channels left to get the time.

    Args:
        layers: the contractions of the network as it was, by IR node name.
        untimed: those of them that cannot be timed; their time per MAC is taken to be the median of the others.
    """

    layers: Mapping[str, LayerStairs]
    untimed: tuple[str, ...] = ()

    def __call__(self, left: Shares) -> float:
        """Return the time of the remaining channels as a share of the whole network's."""
        return self.microseconds(left) / self.whole

    def microseconds(self, left: Shares) -> float:
        """Return the time of the remaining channels."""
        return sum(self.layers[name].at(*share) for name, share in left.items() if name in self.layers)

    @property
    def whole(self) -> float:
        """Microseconds of all layers at full width."""
        return sum(layer.microseconds for layer in self.layers.values())


def _joined(layer: Layer) -> bool:
    """Tell whether a layer's inputs and outputs can only change together (the groups of a convolution)."""
    side = made(layer)
    return side is not None and side.grouped


def measured(graph: Graph, progress: Callable[[str], None] = lambda _: None) -> Staircases:
    """Time each contraction of ``graph`` by itself at several widths, for one sample, in ONNX Runtime on the CPU.

    Layers of equal sizes are timed once. Other work on the machine can only add time, so the faster half counts.
    """
    layers = layers_alone(graph)
    distinct = [layer for layer in dict.fromkeys(layers.values()) if layer is not None]
    found: dict[Layer, LayerStairs] = {}
    for number, layer in enumerate(distinct):
        progress(f"timing layers: {number + 1} of {len(distinct)}")
        stairs = _measured(layer)
        if stairs is not None:
            found[layer] = stairs
    macs = cost(graph).macs_of
    timed = {name: found[layer] for name, layer in layers.items() if layer is not None and layer in found}
    rates = [stairs.microseconds / macs[name] for name, stairs in timed.items() if macs[name]]
    rate = statistics.median(rates) if rates else 1e-3
    others = {name: LayerStairs(rate * macs[name], LINE, LINE) for name in layers if name not in timed}
    return Staircases(MappingProxyType({**timed, **others}), tuple(others))


def _measured(layer: Layer) -> LayerStairs | None:
    """Return a layer's stairs; None if ONNX Runtime cannot run it."""
    sides = [made(layer), None if _joined(layer) else read(layer)]
    units = [_units(side) for side in sides]
    models = [layer] + [at(layer, side, n) for side, ns in zip(sides, units, strict=True) if side for n in ns]
    try:
        whole, *times = latency.kernel_times([onnx_model(model) for model in models], _RUNS, _SECONDS, threads=ONE)
    except PrunecError:
        return None
    parts = times[: len(units[0])], times[len(units[0]) :]
    shares = [_stairs(side, ns, part, whole) for side, ns, part in zip(sides, units, parts, strict=True)]
    return LayerStairs(whole, shares[0], shares[1])


def _units(side: Side | None) -> list[int]:
    """Return the widths to time, in units of a side: whole blocks if it has any."""
    if side is None:
        return []
    block = max(1, _BLOCK // side.channels)
    found = {max(1, round(share * side.units / block)) * block for share in _WIDTHS}
    return sorted(units for units in found if units < side.units)


def _stairs(side: Side | None, units: Sequence[int], times: Sequence[float], whole: float) -> Stairs:
    """Return measured times as shares that rise with the width; a narrower layer that took longer did so by chance."""
    if side is None:
        return ()
    rising = np.maximum.accumulate(np.minimum([*(time / whole for time in times), 1.0], 1.0)).tolist()
    return tuple(zip([*(n / side.units for n in units), 1.0], rising, strict=True))
