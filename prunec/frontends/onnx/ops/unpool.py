"""MaxPool with Indices, and the MaxUnpool that puts elements back where they came from.

ONNX numbers the elements of the whole tensor, channels included. Where nothing but MaxUnpool reads the numbers, and it
makes a map of the size that was pooled, they mean the same with fewer channels, as long as pool and map lose the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunec.frontends.onnx.loading.nodes import SourceNode
from prunec.frontends.onnx.ops.compute import window
from prunec.frontends.onnx.ops.draft import Draft, one, opaque
from prunec.frontends.onnx.sizes.view import FileFacts, View

_ACROSS = "its Indices output numbers positions across channels"
_OTHERWISE = "its indices number positions across channels, of a map that may have another size than this one"


def learn_unpooled(nodes: Sequence[SourceNode], outputs: Iterable[str], facts: FileFacts) -> None:
    """Record the indices that are only unpooled with, to the size that they were made at, or that nobody reads."""
    own = [node for node in nodes if not node.domain]
    made = {node.outputs[1]: node for node in own if node.op == "MaxPool" and len(node.outputs) > 1}
    if not made:
        return
    fitting = {
        node.inputs[1]
        for node in own
        if node.op == "MaxUnpool" and len(node.inputs) == 2 and node.inputs[1] in made
        if _same_size(facts.shape(made[node.inputs[1]].inputs[0]), facts.shape(node.outputs[0]))
    }
    used = {id(node): node.inputs for node in nodes}
    for node in own:
        if node.op == "MaxUnpool" and len(node.inputs) == 2 and node.inputs[1] in fitting:
            used[id(node)] = node.inputs[:1]
    elsewhere = {name for names in used.values() for name in names}.union(outputs, *(n.captured for n in nodes))
    column_major = {name for name, node in made.items() if node.attrs.get("storage_order", 0)}
    facts.unpooled = frozenset(made.keys() - elsewhere - column_major)


def _same_size(before: Sequence[object] | None, after: Sequence[object] | None) -> bool:
    return before is not None and after is not None and before[1:] == after[1:] and all(_is_int(s) for s in before[1:])


def _is_int(size: object) -> bool:
    return isinstance(size, int)


def max_pool(view: View) -> Sequence[Draft]:
    """MaxPool, perhaps with the positions of its maxima."""
    if len(view.outputs) > 1 and view.outputs[1] not in view.facts.unpooled:
        return opaque(view, _ACROSS)
    kernel = view.attrs["kernel_shape"]
    return one(view, "max_pool", **window(view, kernel), kernel=kernel, ceil=bool(view.attrs.get("ceil_mode", 0)))


def max_unpool(view: View) -> Sequence[Draft]:
    """MaxUnpool, of indices that are followed."""
    shape = view.out_shape()
    if len(view.inputs) < 2 or view.inputs[1] not in view.facts.unpooled or shape is None:
        return opaque(view, _OTHERWISE)
    return one(view, "max_unpool", (0, 1), spatial_axes=list(range(2, len(shape))))
