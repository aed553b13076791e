"""Questions that the tests of channel rules ask: which classes lie on an axis, what is pinned, and why."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphs.tiny import Tiny
from prunec.ir.graph import Graph
from prunec.ir.labels import ChannelClasses

IMAGE = ("N", 3, 8, 8)


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype=np.float32)


def conv(t: Tiny, x: str, inp: int, out: int, kernel: int = 1, **options: Any) -> str:
    """Add a 1x1 convolution to ``out`` channels of 8x8; its weight is called after its order (w0, w1, …)."""
    groups = options.get("groups", 1)
    return t.conv(x, weight(out, inp // groups, kernel, kernel), ("N", out, 8, 8), **options)


def ended(t: Tiny, x: str, inp: int) -> Graph:
    """Close a graph with a convolution to two channels, so that ``x`` is not an output itself."""
    return t.graph(conv(t, x, inp, 2))


def param_of(graph: Graph, number: int) -> str:
    """Return the weight of the ``number``-th contraction."""
    found = [n for n in graph.nodes if n.op in ("conv", "conv_transpose", "matmul")]
    return found[number].inputs[1]


def classes_on(classes: ChannelClasses, param: str, axis: int) -> list[int]:
    member = next(m for m in classes.members if (m.param, m.axis) == (param, axis))
    return [int(c) for c in classes.class_of[member.ids]]


def pinned_on(classes: ChannelClasses, param: str, axis: int = 0) -> list[bool]:
    return [bool(p) for p in classes.pinned[classes_on(classes, param, axis)]]


def reasons(classes: ChannelClasses) -> set[tuple[str, str]]:
    """Return (node, reason) of the pins that hold channels."""
    return {(pin.where, pin.reason) for pin in classes.pins if classes.is_channel[classes.class_of[pin.ids]].any()} - {
        (pin.where, pin.reason) for pin in classes.pins if pin.reason == "is an output of the network"
    }


def chain() -> Graph:
    t = Tiny()
    a = t.norm(conv(t, t.input(*IMAGE), 3, 4), [1] * 4, [0] * 4)
    return ended(t, conv(t, a, 4, 5), 5)
