"""How long the layers of a network take, measured one by one, and what one of their MACs takes by that.

Owns the rates behind the penalty ``latency``. A layer's model is layers_alone.py's; what the rates make of λ is
passes/sparsity/penalty.py's. Read those next.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunec.errors import PrunecError
from prunec.ir.graph import Graph
from prunec.passes.cost import Rates, cost
from prunec.timing import latency
from prunec.timing.layers_alone import Layer, Side, layers_alone, made, onnx_model, read, resized

_SWEEPS, _RUNS, _SECONDS = 3, 20, 0.15
"""Times that all layers are gone through, runs of a layer and its other widths in each, and seconds that these may
take."""
_LEAST, _MOST = 0.1, 2.0
"""Bounds of what a channel takes, as shares of the layer's time over its channels."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """What was measured; plain data, which goes into checkpoints and to other processes.

    Args:
        rates: nanoseconds per MAC, of each layer that can be measured; see passes/cost.py.
        said: the same for a person, one sentence.
    """

    rates: Rates
    said: str


@dataclass(frozen=True, slots=True)
class _Timing:
    """A layer's nanoseconds, and how much more than its average MAC one takes that goes with a channel."""

    whole: float
    made: float
    read: float


def measure(graph: Graph) -> LayerTimes:
    """Time each contraction of ``graph`` by itself, for one sample, in ONNX Runtime on this machine's CPU.

    Layers of equal sizes are timed once. What a channel takes is read off a second width, about half of the first:
    what a layer takes however narrow it is does not go with its channels, and counts for none of them. All layers are
    gone through several times, because a machine is not equally fast at all times.
    """
    layers, macs = layers_alone(graph), cost(graph).macs_of
    distinct = [layer for layer in dict.fromkeys(layers.values()) if layer is not None]
    sweeps = [{layer: _times(layer) for layer in distinct} for _ in range(_SWEEPS)]
    timings = {layer: _timing(layer, [sweep[layer] for sweep in sweeps]) for layer in distinct}
    rates: dict[str, tuple[float, float]] = {}
    for name, layer in layers.items():
        timing = timings[layer] if layer is not None and macs[name] else None
        if timing is not None:
            average = timing.whole / macs[name]
            rates[name] = (average * timing.made, average * timing.read)
    return LayerTimes(rates, _in_words(graph, rates, macs))


def _others(layer: Layer) -> dict[Side, Layer]:
    return {side: resized(layer, side) for side in (made(layer), read(layer)) if side is not None}


def _times(layer: Layer) -> list[float]:
    """Return the microseconds of a layer and of its other widths; [] where ONNX Runtime cannot run it."""
    try:
        return latency.kernel_times([onnx_model(each) for each in (layer, *_others(layer).values())], _RUNS, _SECONDS)
    except PrunecError:
        return []


def _timing(layer: Layer, sweeps: Sequence[Sequence[float]]) -> _Timing | None:
    """Return what was found; of several times the shortest counts, because other work on the machine only adds."""
    if not all(sweeps):
        return None
    whole, *times = map(min, zip(*sweeps, strict=True))
    shares = {
        side: marginal(whole, time, layer.volume, other.volume)
        for (side, other), time in zip(_others(layer).items(), times, strict=True)
    }
    by_side = (1.0 if side is None else shares[side] for side in (made(layer), read(layer)))
    return _Timing(1e3 * whole, *by_side)


def marginal(whole: float, other: float, volume: int, other_volume: int) -> float:
    """Return what share of its time a layer takes less, over what share of its MACs it has less, within bounds.

    Args:
        whole, other: the times of the layer and of another width of it.
        volume, other_volume: what their MACs are in proportion to.
    """
    share = (1 - other / whole) / (1 - other_volume / volume)
    return min(_MOST, max(_LEAST, share))


def _in_words(graph: Graph, rates: Rates, macs: Mapping[str, int]) -> str:
    called = {node.name: node.origin or node.name for node in graph.nodes}
    by_rate = sorted(rates, key=lambda name: -statistics.fmean(rates[name]))
    slowest = ", ".join(f"{called[name]} {statistics.fmean(rates[name]):.2g} ns" for name in by_rate[:_NAMED])
    usual = statistics.median(map(statistics.fmean, rates.values())) if rates else 0.0
    said = (
        f"penalty: {len(rates)} of {len(macs)} layers were timed by themselves in ONNX Runtime on this machine's CPU; "
        + (f"per MAC that goes with a channel, {usual:.2g} ns in the middle, at the most {slowest}" if rates else "")
    )
    missing = [called[name] for name in macs if name not in rates]
    if not missing:
        return said
    named = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
    return f"{said}; the middle is taken for those that cannot be: {named}"
