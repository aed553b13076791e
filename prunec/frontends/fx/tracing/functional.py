"""FX graphs without writes into views or circular padding: the same function from operators that prunec follows.

Owns the rewrites of a symbolic trace: ``z[:, :k] = y`` into a slice_scatter and ``z[z < 1] = 0`` into a masked_fill,
where nothing else can see z's memory, and circular padding, alone or inside a convolution, into a concatenation of
slices. What it does not recognise it leaves as it is; frontends/fx/frontend.py then pins what is written. Read next:
frontends/fx/frontend.py.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.nn import functional as F

from prunec.frontends.fx.running.unwritten import unwritten

# Their results share no memory with anything else.
_FRESH_FUNCTIONS = frozenset(
    {
        torch.zeros,
        torch.ones,
        torch.full,
        torch.zeros_like,
        torch.ones_like,
        torch.full_like,
        torch.empty,
        torch.empty_like,
        torch.clone,
        torch.slice_scatter,
        torch.select_scatter,
        torch.masked_fill,
    }
)
_FRESH_METHODS = frozenset({"clone", "new_zeros", "new_ones", "new_full", "new_empty"})
_LIKE = frozenset({torch.zeros_like, torch.ones_like, torch.full_like, torch.clone, "clone"})
_COMPARED = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "less", "greater", "less_equal", "greater_equal"})
_COMPUTED = frozenset(
    {"add", "sub", "mul", "truediv", "div", "abs", "exp", "sigmoid", "grid_sample", "avg_pool2d", "conv2d"}
)
"""Operators, functions and methods whose results share no memory with anything else, either."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CIRCULAR_PADS = (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)


def functional(module: fx.GraphModule) -> fx.GraphModule | None:
    """Return a copy of ``module`` with the rewrites done; None where there is nothing to rewrite.

    Parameters are shared with ``module``, which is left as it is.
    """
    layers = dict(module.named_modules(remove_duplicate=False))
    if not any(_concerns(layers, node) for node in module.graph.nodes):
        return None
    graph = copy.deepcopy(module.graph)
    made = unwritten(module, graph, module.__class__.__name__)
    changed = [_rewrite(made, node) for node in list(graph.nodes)]
    if not any(changed):
        return None
    made.meta.update(module.meta)
    graph.lint()
    return made


def _concerns(layers: Mapping[str, nn.Module], node: fx.Node) -> bool:
    """Tell whether a rewrite may change a node: most networks have none, and their graph need not be copied."""
    if node.op == "call_function":
        circular = "circular" in (*node.args[2:3], node.kwargs.get("mode"))
        return node.target is operator.setitem or node.target in _PLAIN or (node.target is F.pad and circular)
    layer = layers[str(node.target)] if node.op == "call_module" else None
    return isinstance(layer, _CIRCULAR_PADS) or (isinstance(layer, _CONVOLUTIONS) and layer.padding_mode == "circular")


def has_writes(module: fx.GraphModule) -> bool:
    """Tell whether assignments to slices are left: nothing reads such a node, so rewrites of the graph may lose it."""
    return any(node.target is operator.setitem for node in module.graph.nodes)


def _rewrite(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is operator.setitem:
        return _scatter(node)
    if node.op == "call_function" and node.target in _PLAIN:
        return _not_in_place(module, node)
    if node.op == "call_function" and node.target is F.pad:
        return _pad_call(node)
    if node.op == "call_module":
        return _pad_module(module, node)
    return False


def _scatter(node: fx.Node) -> bool:
    """``base[index] = source`` becomes ``slice_scatter(base, source)``, which later readers of ``base`` read.

    With several slices the outer part is taken out, written into and put back.
    """
    base, index, source = node.args
    if isinstance(base, fx.Node) and isinstance(index, fx.Node) and isinstance(source, int | float):
        return _masked_fill(node, base, index, source)
    steps = _steps(index)
    if not steps or not isinstance(base, fx.Node) or not _is_unseen(base, node):
        return False
    written = _written(node, base, index)
    if written is None:
        return False
    before = list(base.users)
    with node.graph.inserting_before(node):
        after = _put(node.graph, _filled(node.graph, base), steps, written)
    _redirect(base, after, before, node)
    node.graph.erase_node(node)
    return True


def _filled(graph: fx.Graph, base: fx.Node) -> fx.Node:
    """Return memory that holds nothing yet as a copy of the tensor that it is like: any content will do."""
    like = base.args[0] if base.target is torch.empty_like and len(base.args) == 1 and not base.kwargs else None
    return graph.call_method("clone", (like,)) if isinstance(like, fx.Node) else base


def _redirect(base: fx.Node, after: fx.Node, before: Sequence[fx.Node], write: fx.Node) -> None:
    """Let those that read ``base`` after a write read what was written; ``before`` are its readers so far."""
    later = {user for user in before if write < user}
    base.replace_all_uses_with(after, delete_user_cb=lambda user: user in later)


def _put(graph: fx.Graph, base: fx.Node, steps: Sequence[tuple[int, slice | int]], source: fx.Node) -> fx.Node:
    """Write nodes for ``base`` with ``source`` in a part of it; axes are counted as in ``base``."""
    (axis, where), *rest = steps
    if rest:
        index: Any = (*(slice(None),) * axis, where) if axis >= 0 else (Ellipsis, where, *(slice(None),) * (-1 - axis))
        part = graph.call_function(operator.getitem, (base, index))
        gone = isinstance(where, int)
        inner = [(at - (gone and at >= 0), what) for at, what in rest]
        source = _put(graph, part, inner, source)
    if isinstance(where, int):
        return graph.call_function(torch.select_scatter, (base, source), {"dim": axis, "index": where})
    step = {} if where.step in (None, 1) else {"step": where.step}
    return graph.call_function(
        torch.slice_scatter, (base, source), {"dim": axis, "start": where.start, "end": where.stop, **step}
    )


def _written(node: fx.Node, base: fx.Node, index: Any) -> fx.Node | None:
    """Return what a write puts in place; None where it cannot be told.

    ``base[index] *= 2`` is a view, a product in place and a write of what lies there already.
    """
    source = node.args[2]
    if not isinstance(source, fx.Node):
        if not isinstance(source, int | float):
            return None
        with node.graph.inserting_before(node):
            part = node.graph.call_function(operator.getitem, (base, index))
            return node.graph.call_function(torch.full_like, (part, source))
    plain = _PLAIN.get(source.target) if source.op == "call_function" else None
    view = source.args[0] if plain is not None else None
    if isinstance(view, fx.Node) and (view.target, view.args) == (operator.getitem, (base, index)):
        if set(view.users) != {source} or set(source.users) != {node}:
            return None
        source.target = plain  # type: ignore[assignment]  # a function for a function
    return source


def _not_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    """``y += x`` becomes ``y = y + x`` where nothing else shows y's memory."""
    base = node.args[0]
    if not isinstance(base, fx.Node) or not (_is_unseen(base, node) or _is_of_a_layer(module, base, node)):
        return False
    before = list(base.users)
    node.target = _PLAIN[node.target]
    _redirect(base, node, before, node)
    return True


def _is_of_a_layer(module: fx.GraphModule, base: fx.Node, write: fx.Node) -> bool:
    """Tell whether ``base`` is what a layer has just computed, and nothing but the write has read it."""
    if base.op != "call_module" or any(user < write for user in base.users):
        return False
    layer = module.get_submodule(str(base.target))
    if getattr(layer, "inplace", False):
        source = base.args[0] if base.args else None
        return isinstance(source, fx.Node) and set(source.users) == {base} and _is_of_a_layer(module, source, base)
    return isinstance(layer, _LAYERS)


_LAYERS = (
    *(nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.ReLU),
    *(nn.ReLU6, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Hardswish, nn.LeakyReLU, nn.PReLU),
)
"""Modules whose results share no memory with anything else."""
_PLAIN = {getattr(operator, f"i{name}"): getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow")}
"""Operators that write in place -> those that do not."""


def _masked_fill(node: fx.Node, base: fx.Node, mask: fx.Node, value: float) -> bool:
    """``base[base < 1] = value`` becomes a masked_fill; the mask is a comparison of a tensor of base's shape."""
    compared = mask.args[0] if _name(mask) in _COMPARED else None
    same = compared is base or (base.target in _LIKE and bool(base.args) and base.args[0] is compared)
    seen = [user for user in base.users if user < node]
    if not same or not (_is_fresh(base) or _name(base) in _COMPUTED):
        return False
    if not all(_name(user) in _COMPARED | _COMPUTED for user in seen):
        return False
    with node.graph.inserting_before(node):
        after = node.graph.call_function(torch.masked_fill, (base, mask, value))
    base.replace_all_uses_with(after, delete_user_cb=lambda user: user not in (after, node, *seen))
    node.graph.erase_node(node)
    return True


def _name(node: fx.Node) -> str:
    """Return what a function or method is called; "" for everything else."""
    if node.op == "call_method":
        return str(node.target)
    return str(getattr(node.target, "__name__", "")) if node.op == "call_function" else ""


def _steps(index: Any) -> list[tuple[int, slice | int]]:
    """Return the axes that an index of slices and numbers selects on, and what of each; empty for any other index."""
    items = list(index) if isinstance(index, tuple) else [index]
    if items.count(Ellipsis) > 1 or not all(_is_step(item) for item in items):
        return []
    cut = items.index(Ellipsis) if Ellipsis in items else len(items)
    front = list(enumerate(items[:cut]))
    back = [(at - len(items), item) for at, item in enumerate(items) if at > cut]
    if any(isinstance(item, int) for _, item in back) and len([1 for _, item in back if item != slice(None)]) > 1:
        return []  # how many axes are left to count from the end would change in between
    return [(axis, item) for axis, item in (*front, *back) if item != slice(None)]


def _is_step(item: Any) -> bool:
    if isinstance(item, slice):
        return all(bound is None or isinstance(bound, int) for bound in (item.start, item.stop, item.step))
    return item is Ellipsis or (isinstance(item, int) and not isinstance(item, bool))


def _is_unseen(base: fx.Node, write: fx.Node) -> bool:
    """Tell whether ``base`` is memory of its own, and nothing that showed it before the write is read after it."""
    if "out" in base.kwargs or not (_is_fresh(base) or _name(base) in _COMPUTED):
        return False
    shown = [user for user in base.users if user < write]
    while shown:
        user = shown.pop()
        if _name(user) == "setitem":
            return False
        if _name(user) in _COMPARED | _COMPUTED:
            continue
        if any(write < reader for reader in user.users):
            return False
        shown.extend(reader for reader in user.users if reader < write)
    return True


def _is_fresh(node: fx.Node) -> bool:
    made = _FRESH_FUNCTIONS if node.op == "call_function" else _FRESH_METHODS if node.op == "call_method" else ()
    return node.target in made


def _pad_call(node: fx.Node) -> bool:
    bound = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | dict(node.kwargs)
    image, pads = bound.get("input"), bound.get("pad")
    if bound.get("mode") != "circular" or not isinstance(image, fx.Node) or not _are_sizes(pads):
        return False
    node.replace_all_uses_with(_wrapped(image, pads, node))
    node.graph.erase_node(node)
    return True


def _pad_module(module: fx.GraphModule, node: fx.Node) -> bool:
    layer = module.get_submodule(str(node.target))
    if not isinstance(layer, (*_CONVOLUTIONS, *_CIRCULAR_PADS)) or len(node.args) != 1:
        return False
    (image,) = node.args
    if not isinstance(image, fx.Node):
        return False
    if isinstance(layer, _CIRCULAR_PADS):
        node.replace_all_uses_with(_wrapped(image, layer.padding, node))
        node.graph.erase_node(node)
        return True
    if layer.padding_mode != "circular":
        return False
    calls = [other for other in node.graph.nodes if other.op == "call_module" and other.target == node.target]
    if not all(len(call.args) == 1 and isinstance(call.args[0], fx.Node) for call in calls):
        return False
    for call in calls:
        call.args = (_wrapped(call.args[0], layer._reversed_padding_repeated_twice, call),)
    module.set_submodule(str(node.target), _without_padding(layer))
    return True


def _without_padding(layer: nn.Module) -> nn.Module:
    """Return a convolution of the same parameters that does not pad."""
    bare = copy.copy(layer)
    bare._parameters = dict(layer._parameters)
    bare.padding_mode, bare.padding = "zeros", (0,) * len(layer.kernel_size)  # type: ignore[assignment,arg-type]  # a convolution
    return bare


def _wrapped(image: fx.Node, pads: Sequence[int], before: fx.Node) -> fx.Node:
    """Return ``image`` padded circularly; ``pads`` as torch.nn.functional.pad takes them, the last axis first."""
    graph = before.graph
    with graph.inserting_before(before):
        for number in range(len(pads) // 2):
            low, high = pads[2 * number], pads[2 * number + 1]
            rest: tuple[Any, ...] = (slice(None),) * number
            last: tuple[Any, ...] = (Ellipsis, slice(-low, None), *rest)
            first: tuple[Any, ...] = (Ellipsis, slice(None, high), *rest)
            parts = [image]
            if low:
                parts.insert(0, graph.call_function(operator.getitem, (image, last)))
            if high:
                parts.append(graph.call_function(operator.getitem, (image, first)))
            if len(parts) > 1:
                image = graph.call_function(torch.cat, (parts,), {"dim": -1 - number})
    return image


def _are_sizes(pads: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(pads, list | tuple) and all(isinstance(size, int) and size >= 0 for size in pads)
