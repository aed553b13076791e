"""Rewrite the sizes that a traced forward has written in it: one small function per IR op.

Owns the FX side of changed attributes (view, expand, split, pad, groups …). Calls whose sizes adapt by
themselves (flatten, matmul, interpolate …) match no row and are left alone; backends/fx/backend.py runs the
result under fake tensors afterwards, so what was missed here is found and pinned, never shipped.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunec.backends.fx.origin import ORIGIN, origin_of
from prunec.frontends.fx.traced import Ref
from prunec.ir.edits import CannotRewrite
from prunec.ir.graph import Node, Shape


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One IR node with changed attributes, at the FX node that it came from.

    ``siblings`` are all IR nodes of the FX node, in order, with the changed attributes of each.
    ``new_shape`` tells the shape of an IR value after pruning, ``producers`` the FX node of one, ``results`` what the
    FX nodes gave.
    """

    module: fx.GraphModule
    fx_node: fx.Node
    node: Node
    attrs: Mapping[str, Any]
    siblings: Sequence[tuple[Node, Mapping[str, Any]]]
    new_shape: Callable[[str], Shape | None]
    old_shape: Callable[[str], Shape | None]
    producers: Callable[[str], fx.Node | None]
    results: Mapping[str, Any]

    @property
    def like(self) -> Shape | None:
        """The shape after pruning of the call's first argument; None where that is no tensor of the graph."""
        first = self.fx_node.args[0] if self.fx_node.args else self.fx_node.kwargs.get("input")
        found = self.results.get(origin_of(first)) if isinstance(first, fx.Node) else None
        return self.new_shape(found.name) if isinstance(found, Ref) else None

    @property
    def source(self) -> fx.Node:
        """The FX node that makes the IR node's first input."""
        found = self.producers(self.node.inputs[0])
        if found is None:
            raise self.refuse()
        return found

    @property
    def target(self) -> str:
        """The called function, method or module type, by its plain name."""
        n = self.fx_node
        if n.op == "call_module":
            return type(self.module.get_submodule(str(n.target))).__name__
        if n.op == "call_method":
            return str(n.target)
        if isinstance(n.target, torch._ops.OpOverload):
            return n.target._schema.name.partition("::")[2]
        return getattr(n.target, "__name__", str(n.target))

    def changed_axes(self) -> dict[int, int]:
        """Return {axis: new size} of the node's first output."""
        out = self.node.outputs[0]
        before, after = self.old_shape(out) or (), self.new_shape(out) or ()
        return {axis: size for axis, size in enumerate(after) if size != before[axis] and isinstance(size, int)}

    def refuse(self) -> CannotRewrite:
        return CannotRewrite(self.node.origin, f"prunec cannot rewrite the sizes in this call of {self.target}")


def call(fx_node: fx.Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Turn ``fx_node`` into a call of ``function``."""
    fx_node.op = "call_function"
    fx_node.target = function
    fx_node.args = args
    fx_node.kwargs = kwargs


def _sizes(site: Site, start: int, names: Sequence[str] = ("shape", "size", "sizes")) -> None:
    """Replace sizes in a size list, spread over the arguments from ``start`` on or given as one."""
    n = site.fx_node
    key = next((name for name in names if name in n.kwargs), None)
    given: Any = n.kwargs[key] if key is not None else (n.args[start] if len(n.args) == start + 1 else n.args[start:])
    if isinstance(given, (fx.Node, int)) and not (isinstance(given, int) and len(n.args) == start + 1):
        return  # the sizes are computed: they adapt, or the check run finds out
    sizes: list[Any] = [given] if isinstance(given, int) else list(given)
    rank = len(site.old_shape(site.node.outputs[0]) or ())
    for axis, size in site.changed_axes().items():
        at = axis - (rank - len(sizes))
        if at >= 0:
            sizes[at] = size
    if key is not None:
        n.kwargs = {**n.kwargs, key: sizes}
    elif len(n.args) == start + 1 and not isinstance(given, int):
        n.args = (*n.args[:start], sizes)
    else:
        n.args = (*n.args[:start], *sizes)


def _reshape(site: Site) -> None:
    n = site.fx_node
    if site.target in ("view", "reshape", "_unsafe_view"):
        _sizes(site, 1)
    elif site.target == "unflatten":
        dim = n.args[1] if len(n.args) > 1 else n.kwargs["dim"]
        assert isinstance(dim, int)
        given = n.args[2] if len(n.args) > 2 else n.kwargs["sizes"]
        n.args, n.kwargs = (n.args[0], dim, _unflattened(site, dim, given)), {}
    elif site.target == "Unflatten":
        module = site.module.get_submodule(str(n.target))
        assert isinstance(module, nn.Unflatten)
        assert isinstance(module.dim, int)
        module.unflattened_size = tuple(_unflattened(site, module.dim, module.unflattened_size))


def _unflattened(site: Site, dim: int, given: Any) -> list[Any]:
    sizes = list(given)
    rank = len(site.old_shape(site.node.outputs[0]) or ())
    first = dim if dim >= 0 else dim + rank - len(sizes) + 1
    for axis, size in site.changed_axes().items():
        if first <= axis < first + len(sizes):
            sizes[axis - first] = size
    return sizes


def _expand(site: Site) -> None:
    if site.target in ("expand", "broadcast_to"):
        _sizes(site, 1)


def _full(site: Site) -> None:
    if site.target in LIKE:
        _full_like(site)
    elif site.target in ("zeros", "ones", "empty"):
        _sizes(site, 0)
    elif site.target in ("new_zeros", "new_ones", "new_empty"):
        _sizes(site, 1)
    elif site.target in ("full", "new_full"):
        n, at = site.fx_node, 0 if site.target == "full" else 1
        if "size" in n.kwargs or isinstance(n.args[at], fx.Node):
            return _sizes(site, at) if "size" in n.kwargs else None
        sizes = list(n.args[at])  # type: ignore[arg-type]  # a literal list: checked not to be a Node
        for axis, size in site.changed_axes().items():
            sizes[axis] = size
        n.args = (*n.args[:at], sizes, *n.args[at + 1 :])


LIKE = MappingProxyType(
    {"zeros_like": "new_zeros", "ones_like": "new_ones", "full_like": "new_full", "empty_like": "new_empty"}
)
"""Functions that make a tensor of another's size, and the methods that make one of a size that is told."""


def _full_like(site: Site) -> None:
    """Tell the sizes in which a tensor no longer is like another: a state begins as zeros like what is added to it."""
    n, wanted = site.fx_node, site.new_shape(site.node.outputs[0])
    source = n.args[0] if n.args else n.kwargs["input"]
    like = site.like
    if wanted is None or like is None or like == wanted:
        return
    if not isinstance(source, fx.Node) or len(like) != len(wanted):
        raise site.refuse()
    with n.graph.inserting_before(n):
        sizes = [
            after if after != before else n.graph.call_method("size", (source, axis))
            for axis, (before, after) in enumerate(zip(like, wanted, strict=True))
        ]
    fill = [n.kwargs["fill_value"] if "fill_value" in n.kwargs else n.args[1]] if site.target == "full_like" else []
    kept: dict[str, Any] = {
        key: value for key, value in n.kwargs.items() if key in ("dtype", "device") and value is not None
    }
    target = LIKE[site.target]
    n.op, n.target, n.args, n.kwargs = "call_method", target, (source, sizes, *fill), kept


def _tile(site: Site) -> None:
    if site.target not in ("repeat", "tile"):
        return
    n = site.fx_node
    repeats = n.args[1] if len(n.args) == 2 and not isinstance(n.args[1], int) else n.args[1:]
    if isinstance(repeats, fx.Node):
        raise site.refuse()
    new = list(repeats)  # type: ignore[arg-type]  # a literal list: checked not to be a Node
    wanted = site.attrs["repeats"]
    for axis, (old, size) in enumerate(zip(site.node.attrs["repeats"], wanted, strict=True)):
        if old != size:
            new[axis] = size
    n.args = (n.args[0], new)


def _split(site: Site) -> None:
    if site.target in ("split", "chunk", "tensor_split", "split_with_sizes", "unsafe_split", "unsafe_chunk"):
        n = site.fx_node
        source = n.args[0] if n.args else next(n.kwargs[k] for k in ("input", "tensor", "self") if k in n.kwargs)
        call(n, torch.split, source, list(site.attrs["sizes"]), dim=site.node.attrs["axis"])


def _slice(site: Site) -> None:
    n = site.fx_node
    if "picks" in site.attrs and len(site.siblings) == 1 and site.target in ("getitem", "slice"):
        ((_, indices),) = site.attrs["picks"].items()
        if not isinstance(n.args[0], fx.Node):
            raise site.refuse()
        return _index_select(site, n.args[0], indices)
    if n.target is operator.getitem:
        n.args = (n.args[0], _new_index(site, n.args[1]))
        return None
    start = site.attrs.get("starts", site.node.attrs["starts"])[0]
    end = site.attrs.get("ends", site.node.attrs["ends"])[0]
    axis = site.node.attrs["axes"][0]
    if site.target == "narrow" or site.target == "slice":
        call(n, torch.narrow, n.args[0], axis, start, end - start)


def _new_index(site: Site, index: Any) -> Any:
    """Rewrite the slices and integers of an indexing expression, walking it as PyTorch does."""
    items = list(index) if isinstance(index, tuple) else [index]
    rank = len(site.old_shape(site.siblings[0][0].inputs[0]) or ())
    pending = list(site.siblings)
    axis, result = 0, []
    for position, item in enumerate(items):
        if item is Ellipsis:
            axis += (
                rank
                - sum(
                    1
                    for other in items[:position] + items[position + 1 :]
                    if other is not None and other is not Ellipsis
                )
                - (axis - sum(1 for other in items[:position] if other is None or isinstance(other, slice)))
            )
        elif item is None:
            axis += 1
        elif isinstance(item, slice):
            found = _take(pending, "slice", lambda node, at=axis: node.attrs["axes"] == [at])  # type: ignore[misc]  # at is bound now
            if found is not None and "picks" in found[1]:
                item = found[1]["picks"][axis].tolist()
            elif found is not None and found[1]:
                node, attrs = found
                item = slice(
                    attrs.get("starts", node.attrs["starts"])[0], attrs.get("ends", node.attrs["ends"])[0], item.step
                )
            axis += 1
        elif isinstance(item, int):
            found = _take(pending, "gather", lambda node, at=axis: node.attrs["axis"] == at)  # type: ignore[misc]  # at is bound now
            if found is not None and "indices" in found[1]:
                item = int(found[1]["indices"])
        result.append(item)
    return tuple(result) if isinstance(index, tuple) else result[0]


def _take(
    pending: list[tuple[Node, Mapping[str, Any]]], op: str, fits: Callable[[Node], bool]
) -> tuple[Node, Mapping[str, Any]] | None:
    for entry in pending:
        if entry[0].op == op and fits(entry[0]):
            pending.remove(entry)
            return entry
    return None


def _gather(site: Site) -> None:
    n = site.fx_node
    if n.target is operator.getitem and len(site.siblings) >= 1 and np.ndim(site.node.attrs["indices"]) == 0:
        n.args = (n.args[0], _new_index(site, n.args[1]))
        return None
    if site.target == "flip":
        return None  # what is left of a flip is a flip of what is left
    if len(site.siblings) != 1:
        raise site.refuse()
    indices = np.asarray(site.attrs["indices"])
    if site.node.attrs.get("fused"):
        return _index_select(site, site.source, indices)
    if indices.ndim == 0 and site.target == "select":
        call(n, torch.select, n.args[0], site.node.attrs["axis"], int(indices))
    elif indices.ndim == 1:
        source = n.args[0] if n.args else n.kwargs["input"]
        assert isinstance(source, fx.Node)
        _index_select(site, source, indices)
    else:
        raise site.refuse()


def _index_select(site: Site, source: fx.Node, indices: np.ndarray[Any, Any]) -> None:
    n = site.fx_node
    buffer = add_buffer(site.module, f"{n.name}_indices", torch.from_numpy(indices.copy()))
    with site.module.graph.inserting_before(n):
        index = site.module.graph.get_attr(buffer)
    axis = site.node.attrs["axis"] if site.node.op == "gather" else site.node.attrs["axes"][0]
    call(n, torch.index_select, source, axis, index)


def add_buffer(module: fx.GraphModule, name: str, tensor: torch.Tensor) -> str:
    """Register a buffer on the device of the module's parameters; return its name."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    module.register_buffer(name, tensor.to(device))
    return name


def _pad(site: Site) -> None:
    n = site.fx_node
    new, old = site.attrs["pads"], site.node.attrs["pads"]
    rank = len(old) // 2
    if n.op == "call_module":
        module = site.module.get_submodule(str(n.target))
        module.padding = tuple(_new_pad(list(module.padding), old, new, rank))  # type: ignore[arg-type, assignment]  # nn's pads keep a tuple
        return
    if site.target not in ("pad", "_pad", "constant_pad_nd"):
        return
    given = n.args[1] if len(n.args) > 1 else n.kwargs["pad"]
    if isinstance(given, fx.Node):
        raise site.refuse()
    pad = _new_pad(list(given), old, new, rank)  # type: ignore[arg-type]  # a literal list: checked not to be a Node
    if len(n.args) > 1:
        n.args = (n.args[0], pad, *n.args[2:])
    else:
        n.kwargs = {**n.kwargs, "pad": pad}


def _new_pad(pad: list[Any], old: Sequence[int], new: Sequence[int], rank: int) -> list[Any]:
    """Change the entries of a torch pad list (last axis first, begin and end) that differ."""
    for axis in range(rank):
        for side in (0, 1):
            at = 2 * (rank - 1 - axis) + side
            if old[axis + side * rank] != new[axis + side * rank]:
                pad[at] = new[axis + side * rank]
    return pad


_GROUPS_AT = MappingProxyType({"convolution": 8, "deform_conv2d": 11})
"""Position of ``groups`` where it is not 6, its place in conv1d … conv3d and conv_transpose1d … 3d."""


def _conv_groups(site: Site) -> None:
    n, groups = site.fx_node, site.attrs["conv_groups"]
    if n.op == "call_module":
        site.module.get_submodule(str(n.target)).groups = groups
    elif "groups" in n.kwargs:
        n.kwargs = {**n.kwargs, "groups": groups}
    else:
        at = _GROUPS_AT.get(site.target, 6)
        if len(n.args) <= at:
            raise site.refuse()
        n.args = (*n.args[:at], groups, *n.args[at + 1 :])


def _group_norm(site: Site) -> None:
    n, groups = site.fx_node, site.attrs["num_groups"]
    if n.op == "call_module":
        site.module.get_submodule(str(n.target)).num_groups = groups
    elif "num_groups" in n.kwargs:
        n.kwargs = {**n.kwargs, "num_groups": groups}
    else:
        n.args = (n.args[0], groups, *n.args[2:])


def _mean(site: Site) -> None:
    n = site.fx_node
    if len(site.siblings) != 1 or site.producers(site.node.outputs[0]) is not n:
        raise site.refuse()
    with n.graph.inserting_after(n):
        scaled = n.graph.call_function(operator.mul, (n, site.attrs["scale"]))
    n.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
    scaled.meta[ORIGIN] = ""


def _scatter_slice(site: Site) -> None:
    n = site.fx_node
    start, end = (site.attrs.get(key, site.node.attrs[key]) for key in ("start", "end"))
    base = n.args[0] if n.args else n.kwargs["input"]
    source = n.args[1] if len(n.args) > 1 else n.kwargs["src"]
    if site.target == "select_scatter":
        call(n, torch.select_scatter, base, source, dim=site.node.attrs["axis"], index=start)
    else:
        call(n, torch.slice_scatter, base, source, dim=site.node.attrs["axis"], start=start, end=end)


REWRITES: Mapping[str, Callable[[Site], None]] = MappingProxyType(
    {
        "reshape": _reshape,
        "expand": _expand,
        "full": _full,
        "tile": _tile,
        "split": _split,
        "slice": _slice,
        "gather": _gather,
        "pad": _pad,
        "conv": _conv_groups,
        "conv_transpose": _conv_groups,
        "group_norm": _group_norm,
        "scatter_slice": _scatter_slice,
        "reduce": _mean,
    }
)
