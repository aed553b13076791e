"""Write the nodes that passes/rewrites/rewrite.py inserts into a traced module: one small function per IR op.

Owns calls that the user's forward never had. Each is written in full, with what is left of its sizes after
pruning; one that would change nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from prunec.backends.fx.rewrite import add_buffer
from prunec.ir.edits import Edits
from prunec.ir.graph import Graph, Node


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a node goes: in front of a call, reading ``source``; ``attrs`` and ``stored`` are its own, pruned."""

    module: fx.GraphModule
    before: fx.Node
    source: fx.Node
    attrs: Mapping[str, Any]
    stored: np.ndarray[Any, Any] | None
    sizes: tuple[int | str | None, ...]
    dtype: torch.dtype
    like: torch.Tensor

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        with self.module.graph.inserting_before(self.before):
            return self.module.graph.call_function(function, (self.source, *args))

    def buffer(self, name: str, content: np.ndarray[Any, Any]) -> fx.Node:
        owned = f"{self.before.name}_{name}"
        while hasattr(self.module, owned):
            owned = f"{owned}_"
        target = add_buffer(self.module, owned, torch.from_numpy(np.array(content)))
        with self.module.graph.inserting_before(self.before):
            return self.module.graph.get_attr(target)


def insert(module: fx.GraphModule, before: fx.Node, node: Node, source: fx.Node, graph: Graph, edits: Edits) -> fx.Node:
    """Write one inserted IR node in front of a call; return what stands for its result."""
    attrs = {**node.attrs, **edits.attrs.get(node.name, {})}
    stored = None
    if len(node.inputs) > 1:
        stored = edits.params.get(node.inputs[1], graph.params[node.inputs[1]].array)
    sizes = edits.shapes.get(node.inputs[0], graph.shape(node.inputs[0])) or ()
    dtype = getattr(torch, graph.values[node.inputs[0]].dtype)
    like = weight_of(module, graph, node)
    return _INSERTS[node.op](_Place(module, before, source, attrs, stored, sizes, dtype, like))


def weight_of(module: fx.GraphModule, graph: Graph, node: Node) -> torch.Tensor:
    """Return the nearest parameter that a node, or what feeds it, reads: what is made for it lives where that does.

    Its dtype must be that of the layer, not that of a parameter which happens to be the module's first.
    """
    held = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    pending, seen = [*node.inputs], set[str]()
    while pending:
        name = pending.pop(0)
        tensor = held.get(name)
        if tensor is not None and tensor.is_floating_point():
            return tensor
        maker = graph.producer(name) if name not in seen else None
        seen.add(name)
        pending.extend(maker.inputs if maker is not None else ())
    return next((t for t in held.values() if t.is_floating_point()), torch.empty(0))


def _pad(at: _Place) -> fx.Node:
    pads, rank = at.attrs["pads"], len(at.sizes)
    if not any(pads):
        return at.source
    widths = [int(pads[axis + side * rank]) for axis in reversed(range(rank)) for side in (0, 1)]
    while widths[-2:] == [0, 0]:
        del widths[-2:]
    return at.call(F.pad, widths)


def _gather(at: _Place) -> fx.Node:
    indices, axis = np.asarray(at.attrs["indices"], dtype=np.int64), at.attrs["axis"]
    if np.array_equal(indices, np.arange(at.sizes[axis])):
        return at.source
    return at.call(torch.index_select, axis, at.buffer("places", indices))


def _add(at: _Place) -> fx.Node:
    assert at.stored is not None, "an inserted Add reads a stored vector"
    return at.call(torch.add, at.buffer("constants", at.stored)) if at.stored.any() else at.source


def _conv(at: _Place) -> fx.Node:
    """A 1x1 convolution is a layer of its own, so that its weight trains and counts like any other."""
    assert at.stored is not None, "an inserted convolution reads a stored weight"
    weight = torch.from_numpy(np.array(at.stored))
    kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[weight.dim()]
    layer = kind(weight.shape[1], weight.shape[0], 1, bias=False)
    like = at.like
    layer.weight = nn.Parameter(weight.to(device=like.device, dtype=at.dtype), requires_grad=like.requires_grad)
    name = f"{at.before.name}_from_gate"
    while hasattr(at.module, name):
        name = f"{name}_"
    at.module.add_submodule(name, layer.train(at.module.training))
    with at.module.graph.inserting_before(at.before):
        return at.module.graph.call_module(name, (at.source,))


_INSERTS: Mapping[str, Callable[[_Place], fx.Node]] = MappingProxyType(
    {"pad": _pad, "gather": _gather, "conv": _conv, "add": _add}
)
