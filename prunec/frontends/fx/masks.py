"""Indices by masks that stand on the module (``x[:, self.mask]``) as indices by the numbers of what they pick.

Shapes alone do not tell how many places a mask picks, its content does. Owns which nodes of a traced graph can be
computed from buffers and constants, and how indices by them are written. A mask of parameters or of the input stays as
it is, and is refused. Read next: frontend.py.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from prunec.frontends.fx.running.unwritten import unwritten
from prunec.frontends.fx.tracing.remembered import writes

_PURE = frozenset(
    {"getitem", "invert", "not_", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "add", "sub", "mul", "neg"}
    | {"bitwise_not", "logical_not", "logical_and", "logical_or", "logical_xor", "isin", "cat", "unbind", "clone"}
    | {"nonzero", "where", "argwhere", "squeeze", "unsqueeze", "view", "reshape", "flatten", "t", "transpose"}
    | {"bool", "long", "int", "float", "detach", "contiguous", "sort", "argsort", "cumsum"}
)
"""Functions and methods, by their plain names, that may compute a mask or numbers from another one."""
_FINDING = frozenset({"nonzero", "where", "argwhere"})
_MOST = 1_000_000
"""So many elements are looked at."""


def by_numbers(module: fx.GraphModule) -> fx.GraphModule:
    """Return a traced network whose indices by constant masks are indices by numbers; itself where it has none."""
    known = _known(module)
    picking = [n not in known and _picks(n, known) for n in module.graph.nodes]
    written = (n for n in module.graph.nodes if writes(n) and n.args)
    if not any(picking) or any(n.args[0] in known for n in written):
        return module
    graph = copy.deepcopy(module.graph)
    known = {copied: known[n] for n, copied in zip(module.graph.nodes, graph.nodes, strict=True) if n in known}
    holder = nn.Module()
    vars(holder).update(vars(module))
    for n, picks in zip(list(graph.nodes), picking, strict=True):
        if picks:
            _rewrite(holder, n, known)
    for n in reversed(list(graph.nodes)):
        if n in known and not n.users:
            graph.erase_node(n)
    made = unwritten(holder, graph, type(module).__name__)
    made.meta.update(module.meta)
    return made


def _picks(n: fx.Node, known: Mapping[fx.Node, Any]) -> bool:
    """Tell whether a node reads a constant mask as an index, or what was found in one."""
    masks = n.target is operator.getitem and any(_mask(item, known) is not None for item in _items(n.args[1]))
    return masks or any(_is_read(each, known) for each in n.all_input_nodes)


def _is_read(n: fx.Node, known: Mapping[fx.Node, Any]) -> bool:
    return isinstance(known.get(n), Tensor) and _is_found(n)


def _items(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _rewrite(holder: nn.Module, n: fx.Node, known: Mapping[fx.Node, Any]) -> None:
    """Let a node read numbers: for a mask in an index, those along each of its axes."""
    if n.target is operator.getitem:
        new: list[Any] = []
        for item in _items(n.args[1]):
            mask = _mask(item, known)
            new += [item] if mask is None else [_stored(holder, n, each) for each in mask.nonzero(as_tuple=True)]
        n.args = (n.args[0], tuple(new) if isinstance(n.args[1], tuple) or len(new) > 1 else new[0])
    for each in n.all_input_nodes:
        if _is_read(each, known):
            n.replace_input_with(each, _stored(holder, n, known[each]))


def _mask(item: Any, known: Mapping[fx.Node, Any]) -> Tensor | None:
    """Return the content of one item of an index; None where that is no constant mask."""
    if isinstance(item, list) and item and all(type(each) is bool for each in item):
        return torch.tensor(item)
    found = known.get(item) if isinstance(item, fx.Node) else None
    return found if isinstance(found, Tensor) and found.dtype in (torch.bool, torch.uint8) and found.dim() else None


def _name(n: fx.Node) -> str:
    return str(n.target if n.op == "call_method" else getattr(n.target, "__name__", ""))


def _known(module: fx.GraphModule) -> dict[fx.Node, Any]:
    """Return the nodes that can be computed from buffers and constants alone, with what comes of it."""
    known: dict[fx.Node, Any] = {}
    for n in module.graph.nodes:
        if n.op == "get_attr":
            held = operator.attrgetter(str(n.target))(module)
            if type(held) is Tensor and held.device.type != "meta" and held.numel() <= _MOST:
                known[n] = held.detach()
        elif n.all_input_nodes and _name(n) in _PURE and known.keys() >= set(n.all_input_nodes):
            args, kwargs = (map_arg(each, known.__getitem__) for each in (n.args, n.kwargs))
            if _name(n) == "where" and len(args) > 1:
                continue  # a choice, and no search
            with contextlib.suppress(Exception), torch.no_grad():  # what does not run is told where the network does
                call = (
                    getattr(args[0], str(n.target)) if n.op == "call_method" else functools.partial(n.target, args[0])
                )
                known[n] = call(*args[1:], **kwargs)
    return known


def _is_found(n: fx.Node) -> bool:
    """Tell whether a known node was computed from the places of what is not zero."""
    pending, seen = [n], {n}
    while pending:
        at = pending.pop()
        if _name(at) in _FINDING:
            return True
        new = set(at.all_input_nodes) - seen
        seen |= new
        pending.extend(new)
    return False


def _stored(holder: nn.Module, before: fx.Node, value: Tensor) -> fx.Node:
    """Return a node that reads a tensor which the network holds from now on."""
    name = next(name for name in map("_tensor_constant{}".format, itertools.count()) if not hasattr(holder, name))
    setattr(holder, name, value)
    with before.graph.inserting_before(before):
        return before.graph.get_attr(name)
