"""No rule of any table relies on a rank or a size: each is run with every one of them unknown.

The same node is analysed with its shapes known, and again with one value's rank, or some of its sizes, unknown. That
must end without an error, and may never free what was pinned before: not to know is never to remove more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from graphs.tiny import Tiny

from prunec.ir.graph import Graph, Shape
from prunec.ir.ops import BINARY, OPS, UNARY
from prunec.passes.cost import cost
from prunec.passes.lowering.lower import lower
from prunec.passes.rules.channels.table import CHANNEL_RULES
from prunec.passes.rules.constants.table import CONSTANT_RULES
from prunec.passes.rules.cost import COST_RULES
from prunec.passes.rules.liveness import LIVENESS_RULES
from prunec.passes.rules.moves import MOVES
from prunec.passes.rules.scaling import SCALING_RULES
from prunec.passes.selection.select import plan, select
from prunec.passes.sparsity.scaling import scalable
from prunec.pipeline.planning import gather_facts

C, S = 8, 4
MAP = (2, C, S, S)
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Sample:
    """A node that reads a map of 8 channels, 4 x 4, first.

    Args:
        outs: the shapes of its outputs.
        attrs: as in prunec/ir/ops.py.
        rest: its other inputs: the shape of a parameter, "map" for another map, "" for an absent one.
    """

    outs: Sequence[Shape] = (MAP,)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    rest: Sequence[Any] = ()


WINDOW = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "conv_groups": 1}
VECTOR = (C,)
SAMPLES: Mapping[str, Sequence[Sample]] = {
    "conv": [
        Sample(((2, 6, S, S),), WINDOW, ((6, C, 3, 3), (6,))),
        Sample(((2, 6, S, S),), {**WINDOW, "conv_groups": 2}, ((6, C // 2, 3, 3), (6,))),
        Sample((MAP,), {**WINDOW, "conv_groups": C}, ((C, 1, 3, 3),)),
        Sample(((2, 2, 3, 3),), WINDOW, ("map",)),
    ],
    "conv_transpose": [
        Sample(((2, 6, S, S),), {**WINDOW, "output_padding": [0, 0]}, ((C, 6, 3, 3), (6,))),
        Sample(((2, 6, S, S),), {**WINDOW, "conv_groups": 2, "output_padding": [0, 0]}, ((C, 3, 3, 3), (6,))),
    ],
    "matmul": [
        Sample(((2, C, S, 5),), {}, ((S, 5),)),
        Sample(((2, C, S, S),), {"transpose_a": True}, ("map",)),
        Sample(((2, C, S),), {}, ((S,),)),
    ],
    "attention": [Sample((MAP,), {}, ("map", "map")), Sample((MAP,), {}, ("map", "map", (S, S)))],
    "rnn": [Sample(((2, C, S, 5),), {}, ((1, 20, S), (1, 20, 5)))],
    "batch_norm": [
        Sample((MAP,), {"axis": 1, "eps": 1e-5, "training": False}, (VECTOR,) * 4),
        Sample((MAP,), {"axis": 1, "eps": 1e-5, "training": True}, (VECTOR,) * 4),
        Sample((MAP,), {"axis": 1, "eps": 1e-5}, ("", "")),
    ],
    "instance_norm": [Sample((MAP,), {"axis": 1, "eps": 1e-5}, (VECTOR, VECTOR))],
    "group_norm": [Sample((MAP,), {"axis": 1, "num_groups": 2, "eps": 1e-5}, (VECTOR, VECTOR))],
    "layer_norm": [
        Sample((MAP,), {"axes": [3], "eps": 1e-5}, ((S,), (S,))),
        Sample((MAP,), {"axes": [1, 2, 3], "eps": 1e-5}),
    ],
    "lrn": [Sample((MAP,), {"axis": 1})],
    **{op: [Sample()] for op in UNARY},
    "clip": [Sample(), Sample((MAP,), {}, ((), ())), Sample((MAP,), {}, ("", ()))],
    **{op: [Sample((MAP,), {}, ("map",)), Sample((MAP,), {}, ((C, 1, 1),))] for op in BINARY},
    "prelu": [Sample((MAP,), {"axis": 1}, (VECTOR,)), Sample((MAP,), {}, ((C, 1, 1),))],
    "where": [Sample((MAP,), {}, ("map", "map")), Sample((MAP,), {}, ((C, 1, 1), "map"))],
    "reshape": [
        Sample(((2, 2, 4, S, S),), {"shape": [2, 2, 4, S, S]}),
        Sample(((2, C * S * S),), {"shape": [2, C * S * S]}),
        Sample((MAP,), {"shape": None, "allow_open": True}),
    ],
    "max_unpool": [Sample(((2, C, 2 * S, 2 * S),), {"spatial_axes": [2, 3]}, ("map",))],
    "linear": [Sample((MAP,), {"passes": ((0, 0), (1, 1))})],
    "transpose": [Sample(((2, S, C, S),), {"perm": [0, 2, 1, 3]})],
    "slice": [
        Sample(((2, 3, S, S),), {"axes": [1], "starts": [1], "ends": [7], "steps": [2]}),
        Sample(((2, C, 2, S),), {"axes": [2], "starts": [1], "ends": [3], "steps": [1]}),
    ],
    "split": [Sample(((2, 3, S, S), (2, 5, S, S)), {"axis": 1, "sizes": [3, 5]})],
    "concat": [
        Sample(((2, 2 * C, S, S),), {"axis": 1}, ("map",)),
        Sample(((2, C, 2 * S, S),), {"axis": 2}, ("map",)),
    ],
    "gather": [
        Sample(((2, 3, S, S),), {"axis": 1, "indices": np.array([1, 0, 5])}),
        Sample(((2, S, S),), {"axis": 1, "indices": np.array(3)}),
        Sample(((2, C, S, S),), {"axis": 1}, ((C,),)),
    ],
    "expand": [
        Sample(((2, C, S, S),), {"shape": [2, C, S, S]}),
        Sample(((3, 2, C, S, S),), {"shape": [3, 2, C, S, S]}),
    ],
    "tile": [Sample(((2, 2 * C, S, S),), {"repeats": [1, 2, 1, 1]})],
    "pad": [
        Sample(((2, C + 3, S, S),), {"pads": [0, 1, 0, 0, 0, 2, 0, 0], "mode": "constant", "value": 0.5}),
        Sample(((2, C, S + 2, S - 1),), {"pads": [0, 0, 1, 0, 0, 0, 1, -1], "mode": "constant", "value": 0.0}),
        Sample(((2, C, S + 2, S),), {"pads": [0, 0, 1, 0, 0, 0, 1, 0], "mode": "reflect"}),
    ],
    "depth_to_space": [Sample(((2, 2, 2 * S, 2 * S),), {"block": 2, "mode": mode}) for mode in ("DCR", "CRD")],
    "space_to_depth": [Sample(((2, 4 * C, S // 2, S // 2),), {"block": 2, "mode": mode}) for mode in ("DCR", "CRD")],
    "im2col": [Sample(((2, 4 * C, 9),), {"kernel": 4})],
    "scatter_slice": [Sample((MAP,), {"axis": 1, "start": 0, "end": C, "step": 1}, ("map",))],
    "full": [Sample((MAP,), {"shape": list(MAP), "value": 0.5})],
    "max_pool": [Sample((MAP,), {"pads": [1, 1, 1, 1], "ceil": False})],
    "avg_pool": [Sample((MAP,), {"pads": [1, 1, 1, 1], "counts_padding": True})],
    "resize": [Sample(((2, C, 2 * S, 2 * S),), {}), Sample(((2, C, 2 * S, 2 * S),), {"keeps_constants": False})],
    "sample": [Sample((MAP,), {}, ((2, S, S, 2),))],
    "quantize": [Sample((MAP,), {"axis": 1}, (VECTOR, VECTOR)), Sample((MAP,), {"axis": 1}, ((),))],
    "dequantize": [Sample((MAP,), {"axis": 1}, (VECTOR, VECTOR)), Sample((MAP,), {"axis": 1}, ((),))],
    "dynamic_quantize": [Sample((MAP, (), ()))],
    "reduce": [
        Sample(((2, C),), {"kind": "mean", "axes": [2, 3], "keepdims": False}),
        Sample(((2, 1, S, S),), {"kind": "max", "axes": [1], "keepdims": True}),
    ],
    "along": [Sample((MAP,), {"kind": "softmax", "axes": [1]}), Sample((MAP,), {"kind": "cumsum", "axes": [3]})],
    "arg_reduce": [Sample(((2, C, S),), {"kind": "argmax", "axes": [3], "keepdims": False})],
    "shape_of": [Sample(((4,),))],
    "opaque": [Sample((MAP,)), Sample((MAP, MAP), {"reason": "nobody knows"}, ("map",))],
}


@pytest.mark.parametrize("table", [CHANNEL_RULES, CONSTANT_RULES, LIVENESS_RULES, SCALING_RULES, COST_RULES])
def test_every_rule_has_a_sample(table: Mapping[str, Any]) -> None:
    assert set(table) == set(OPS) == set(SAMPLES)
    assert set(MOVES) <= set(SAMPLES)


@pytest.mark.parametrize(("op", "number"), [(op, number) for op in OPS for number in range(len(SAMPLES[op]))])
def test_rules_take_unknown_ranks_and_sizes(op: str, number: int) -> None:
    graph, named = network(op, SAMPLES[op][number])
    before = pinned(graph)
    for values in opened(graph, named):
        after = pinned(replace(graph, values=values))
        for axis, held in before.items():
            shapes = {name: values[name].shape for name in named}
            assert after[axis][held].all(), f"{axis} is freed where it is not known that {shapes}"


def network(op: str, sample: Sample) -> tuple[Graph, list[str]]:
    """Return convolution -> node -> activation -> convolution or output, and the names of the values between them."""
    t = Tiny()
    x = t.input("N", 3, S, S)
    maps = [_map(t, x)]
    inputs = [maps[0]] if op != "full" else []
    for item in sample.rest:
        if item == "map":
            maps.append(_map(t, x))
        inputs.append(maps[-1] if item == "map" else t.param(_numbers(item, op)) if item != "" else "")
    outs = t.split(op, inputs, list(sample.outs), **dict(sample.attrs))
    ends = [t.node("relu", [out], shape) for out, shape in zip(outs, sample.outs, strict=True)]
    read = [_read(t, end, shape) for end, shape in zip(ends, sample.outs, strict=True)]
    return t.graph(*read), [*maps, *outs]


def _map(t: Tiny, x: str) -> str:
    """Add a map of which half of the channels are constants, some of them zero."""
    weight = RNG.normal(size=(C, 3, 1, 1))
    weight[::2] = 0
    return t.conv(x, weight, MAP, bias=np.where(np.arange(C) % 4 == 0, 0.0, RNG.normal(size=C)))


def _numbers(shape: Shape, op: str) -> np.ndarray[Any, Any]:
    numbers = RNG.uniform(0.5, 1.5, [size for size in shape if isinstance(size, int)]).astype(np.float32)
    return np.zeros(numbers.shape, np.int64) if op == "gather" else numbers


def _read(t: Tiny, value: str, shape: Shape) -> str:
    """Read a value's second axis by a convolution where it has one, and its last axis else."""
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) >= 3:
        weight = RNG.normal(size=(5, sizes[1], *[1] * (len(sizes) - 2)))
        return t.conv(value, weight, (sizes[0], 5, *sizes[2:]))
    if len(sizes) == 2:
        return t.node("matmul", [value, t.param(RNG.normal(size=(sizes[1], 5)))], (sizes[0], 5))
    return value


def opened(graph: Graph, named: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the graph's values with ranks and sizes of some of the named ones unknown."""
    for name in named:
        shape = graph.values[name].shape
        assert shape is not None
        ways: list[Shape | None] = [None, (None,) * len(shape), tuple(f"s{axis}" for axis in range(len(shape)))]
        for axis in range(len(shape)):
            ways.extend(tuple(open_ if i == axis else s for i, s in enumerate(shape)) for open_ in (None, "s"))
        for way in ways:
            yield {**graph.values, name: replace(graph.values[name], shape=way)}
    for nothing in (None, "open"):
        yield {
            **graph.values,
            **{
                name: replace(value, shape=None if nothing is None else (None,) * len(value.shape or ()))
                for name, value in graph.values.items()
                if name in named
            },
        }


def pinned(graph: Graph) -> dict[tuple[str, int], np.ndarray[Any, Any]]:
    """Run all passes; return bool per parameter axis: what may not go, or does not go exactly."""
    facts = gather_facts(graph)
    chosen = select(facts)
    made = plan(facts, chosen, ())
    lower(graph, facts.classes, made, facts.constants)
    scalable(graph, facts.classes)
    assert cost(graph).macs >= 0
    held = chosen.keep & ~chosen.carriers
    return {(m.param, m.axis): facts.classes.pinned[facts.classes.class_of[m.ids]] for m in facts.classes.members} | {
        (m.param, m.axis + 10): held[facts.classes.class_of[m.ids]] for m in facts.classes.members
    }
