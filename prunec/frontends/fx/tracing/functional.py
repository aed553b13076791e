"""FX graphs without writes into views or circular padding: the same function from operators that prunec follows.

Owns the rewrites of a symbolic trace: ``z[:, :k] = y`` into a slice_scatter and ``z[z < 1] = 0`` into a masked_fill,
where nothing else can see z's memory, and circular padding, alone or inside a convolution, into a concatenation of
slices. What it does not recognise it leaves as it is; frontends/fx/frontend.py then pins what is written. Read next:
frontends/fx/frontend.py.
"""

from __future__ import annotations

import copy
import itertools
import operator
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.nn import functional as F

from prunec.frontends.fx.tracing.attention import FORWARDS
from prunec.frontends.fx.tracing.regions import Regions
from prunec.frontends.fx.tracing.sizes import Sizes
from prunec.frontends.fx.tracing.switches import write_with_finally

# Their results share no memory with anything else.
_FRESH_FUNCTIONS = frozenset(
    {
        torch.zeros,
        torch.ones,
        torch.full,
        torch.zeros_like,
        torch.ones_like,
        torch.full_like,
        torch.clone,
        torch.slice_scatter,
        torch.masked_fill,
    }
)
_FRESH_METHODS = frozenset({"clone", "new_zeros", "new_ones", "new_full"})
_LIKE = frozenset({torch.zeros_like, torch.ones_like, torch.full_like, torch.clone, "clone"})
_COMPARED = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "less", "greater", "less_equal", "greater_equal"})
_COMPUTED = frozenset(
    {"add", "sub", "mul", "truediv", "div", "abs", "exp", "sigmoid", "grid_sample", "avg_pool2d", "conv2d"}
)
"""Operators, functions and methods whose results share no memory with anything else, either."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CIRCULAR_PADS = (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)


class _Assignable(fx.Proxy):
    """A proxy that records ``z[index] = y``, which torch.fx's own refuses, and that passes for a tensor.

    A forward that asks ``isinstance(x, Tensor)`` takes the branch that it takes when it runs. Nobody else is told so:
    torch's own code would read the memory of a size among the arguments as if it were a tensor's.
    """

    _is_param = False
    _is_buffer = False

    @property  # type: ignore[misc]  # isinstance asks for it when the type itself does not answer
    def __class__(self) -> type:
        asks = sys._getframe(1)
        theirs = str(asks.f_globals.get("__name__", "")).partition(".")[0] != "torch"
        if theirs and "isinstance" in asks.f_code.co_names and not _is_number(self.node):
            return torch.Tensor
        return type(self)

    def __len__(self) -> int:
        count = _num_parts(self.node)
        return super().__len__() if count is None else count

    def __getattr__(self, k: str) -> Any:
        """Return the proxy of an attribute. ctypes would ask each proxy for another one, until the stack is full."""
        if k == "_as_parameter_":
            raise AttributeError(k)
        return super().__getattr__(k)

    @property
    def requires_grad(self) -> bool:
        """As in training, where gradients are on: memory-efficient networks ask whether to checkpoint."""
        return torch.is_grad_enabled()

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    @property
    def data(self) -> Any:
        """The tensor without its history: a call that the recorder follows, instead of an attribute."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        """``self.weight.data = value`` is a statement of the traced network, as it is one of the user's."""
        self.tracer.create_proxy("call_function", setattr, (self, "data", value), {})


@contextmanager
def tensors_pass() -> Iterator[None]:
    """Let ``torch.is_tensor`` tell of a proxy what ``isinstance`` does: it asks from inside of torch."""
    asked = torch.is_tensor
    torch.is_tensor = lambda value: isinstance(value, torch.Tensor)  # type: ignore[assignment]  # its guard is narrower
    try:
        yield
    finally:
        torch.is_tensor = asked


def _is_number(node: fx.Node) -> bool:
    """Tell whether a node is a size, or computed from sizes alone."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "ndimension", "numel", "item", "tolist", "__len__")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    if getattr(node.target, "__module__", "") in ("_operator", "math", "builtins"):
        return bool(node.all_input_nodes) and all(map(_is_number, node.all_input_nodes))
    return False


class _Held(_Assignable):
    """A parameter or buffer that is read in the forward: its sizes are numbers."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, held: torch.Tensor) -> None:
        super().__init__(node, tracer)
        self.held = held

    @property
    def shape(self) -> torch.Size:
        return self.held.shape

    @property
    def ndim(self) -> int:
        return self.held.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.held.size() if dim is None else self.held.size(dim)

    def dim(self) -> int:
        return self.held.dim()

    def numel(self) -> int:
        return self.held.numel()

    nelement = numel
    ndimension = dim


class _Sized(_Assignable):
    """A proxy that answers with a number where one is needed, see ``Sizes``."""

    def __len__(self) -> int:
        count = _num_parts(self.node)
        return self._sizes.length(self) if count is None else count

    def __int__(self) -> int:
        return int(self._sizes.number(self))

    def __index__(self) -> int:
        return operator.index(int(self._sizes.number(self)))

    def __float__(self) -> float:
        return float(self._sizes.number(self))

    @property
    def _sizes(self) -> Sizes:
        assert isinstance(self.tracer, Tracer)
        assert self.tracer.sizes is not None
        return self.tracer.sizes


class Tracer(fx.Tracer):
    """torch.fx's tracer, which also records assignments to slices. They are writes: see ``has_writes``.

    Args:
        sizes: answers where the forward decides by sizes; None refuses it.
        buffers: a buffer that the forward reads is a node, as a parameter is; else it is read at once, and what is
            computed from it is a constant without a name.
        regions: what keeps no_grad, inference_mode and autocast.
    """

    def __init__(self, *, buffers: bool = True, regions: Regions | None = None, sizes: Sizes | None = None) -> None:
        super().__init__(param_shapes_constant=True)
        self.trace_asserts = True
        self.buffers = buffers
        self.regions = Regions() if regions is None else regions
        self.sizes = sizes
        self._names: dict[int, tuple[str, torch.Tensor]] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a module; its tensors are listed once, before its forward can put others in their place."""
        held = (*root.named_parameters(), *root.named_buffers())
        self._names = {id(tensor): (name, tensor) for name, tensor in reversed(held)}
        with self.regions.watched(), tensors_pass():  # also where a saved GraphModule is traced again
            graph = super().trace(root, concrete_args)
        if self.regions.seen:
            write_with_finally(graph)
        return graph

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node in the modes (no_grad, autocast) that are on."""
        self.regions.catch_up(self.graph)
        if (kind, target) == ("call_method", "__setitem__"):  # into a tensor that is none of the trace's
            kind, target = "call_function", operator.setitem
        return super().create_node(kind, target, *args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Assignable(node, self) if self.sizes is None else _Sized(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide by sizes as the example's decide; a decision by values is refused."""
        try:
            return super().to_bool(obj)
        except fx.proxy.TraceError:
            if self.sizes is None:
                raise
            return bool(self.sizes.number(obj))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_transparent(m) and super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace torch.nn's transformers through forwards that can be traced."""
        if self.sizes is not None and self.sizes.asking:
            return forward(*args, **kwargs)
        return super().call_module(m, partial(FORWARDS[type(m)], m) if _is_transparent(m) else forward, args, kwargs)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Go over the parts of a tensor that was split: how many there are stands in the call."""
        count = _num_parts(obj.node)
        if count is None:
            try:
                return super().iter(obj)
            except fx.proxy.TraceError:
                if self.sizes is None:
                    raise
                count = self.sizes.length(obj)
        return (operator.getitem(obj, place) for place in range(count))

    def create_arg(self, a: Any) -> Any:
        """Return the node of a proxy; the base class would take it for a tensor that nobody holds."""
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:  # noqa: ARG002  # torch.fx's
        """Return what reading an attribute of a module gives: a proxy for a parameter or buffer of the network."""
        if self.sizes is not None and self.sizes.asking:
            return attr_val
        is_parameter = isinstance(attr_val, nn.Parameter)
        if not isinstance(attr_val, torch.Tensor) or not (self.buffers or is_parameter):
            return attr_val
        name, held = self._names.get(id(attr_val), ("", None))
        if held is not attr_val:  # nobody's, or made by the forward that is being traced
            return attr_val
        if name not in parameter_proxy_cache:
            make = lambda node: _Held(node, self, attr_val)  # noqa: E731  # what create_proxy asks for
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {}, proxy_factory_fn=make)
        return parameter_proxy_cache[name]


def _num_parts(node: fx.Node) -> int | None:
    """Return into how many parts a call splits a tensor; None where that depends on its size.

    A chunk of a short tensor makes fewer than it says. Then the graph does not run, and torch.export is asked.
    """
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    given = node.args[1] if len(node.args) > 1 else next((node.kwargs[key] for key in _HOW if key in node.kwargs), None)
    if name in ("chunk", "tensor_split") and isinstance(given, int):
        return given
    if not isinstance(given, list | tuple):
        return None
    return {"split": len(given), "split_with_sizes": len(given), "tensor_split": len(given) + 1}.get(str(name))


_HOW = ("chunks", "split_size", "split_size_or_sections", "split_sizes", "sections", "indices", "indices_or_sections")
"""What the argument of a call that splits is called."""


def _is_transparent(m: nn.Module) -> bool:
    return type(m) in FORWARDS and not (m._forward_hooks or m._forward_pre_hooks)


def functional(module: fx.GraphModule) -> fx.GraphModule | None:
    """Return a copy of ``module`` with the rewrites done; None where there is nothing to rewrite.

    Parameters are shared with ``module``, which is left as it is.
    """
    if not any(_concerns(module, node) for node in module.graph.nodes):
        return None
    graph = copy.deepcopy(module.graph)
    made = fx.GraphModule(module, graph, module.__class__.__name__)
    changed = [_rewrite(made, node) for node in list(graph.nodes)]
    if not any(changed):
        return None
    made.meta.update(module.meta)
    graph.lint()
    made.recompile()
    return made


def _concerns(module: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a rewrite may change a node: most networks have none, and their graph need not be copied."""
    if node.op == "call_function":
        circular = "circular" in (*node.args[2:3], node.kwargs.get("mode"))
        return node.target is operator.setitem or (node.target is F.pad and circular)
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(layer, _CIRCULAR_PADS) or (isinstance(layer, _CONVOLUTIONS) and layer.padding_mode == "circular")


def has_writes(module: fx.GraphModule) -> bool:
    """Tell whether assignments to slices are left: nothing reads such a node, so rewrites of the graph may lose it."""
    return any(node.target is operator.setitem for node in module.graph.nodes)


def _rewrite(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is operator.setitem:
        return _scatter(node)
    if node.op == "call_function" and node.target is F.pad:
        return _pad_call(node)
    if node.op == "call_module":
        return _pad_module(module, node)
    return False


def _scatter(node: fx.Node) -> bool:
    """``base[index] = source`` becomes ``slice_scatter(base, source)``, which later readers of ``base`` read."""
    base, index, source = node.args
    if isinstance(base, fx.Node) and isinstance(index, fx.Node) and isinstance(source, int | float):
        return _masked_fill(node, base, index, source)
    where = _single_slice(index)
    if where is None or not isinstance(source, fx.Node) or not isinstance(base, fx.Node) or not _is_unseen(base, node):
        return False
    axis, chosen = where
    with node.graph.inserting_before(node):
        after = node.graph.call_function(
            torch.slice_scatter,
            (base, source),
            {"dim": axis, "start": chosen.start, "end": chosen.stop},
        )
    base.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after and user is not node)
    node.graph.erase_node(node)
    return True


def _masked_fill(node: fx.Node, base: fx.Node, mask: fx.Node, value: float) -> bool:
    """``base[base < 1] = value`` becomes a masked_fill; the mask is a comparison of a tensor of base's shape."""
    compared = mask.args[0] if _name(mask) in _COMPARED else None
    same = compared is base or (base.target in _LIKE and bool(base.args) and base.args[0] is compared)
    before = _before(node)
    seen = [user for user in base.users if user in before]
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


def _before(node: fx.Node) -> set[fx.Node]:
    return set(itertools.takewhile(lambda other: other is not node, node.graph.nodes))


def _single_slice(index: Any) -> tuple[int, slice] | None:
    """Return the one axis that an index selects on, and its slice with known bounds; None for any other index."""
    items = list(index) if isinstance(index, tuple) else [index]
    from_end = bool(items) and items[0] is Ellipsis
    items = items[1:] if from_end else items
    if not all(isinstance(item, slice) for item in items):
        return None
    chosen = [(axis, item) for axis, item in enumerate(items) if item != slice(None)]
    if len(chosen) != 1:
        return None
    axis, item = chosen[0]
    bounds = (item.start, item.stop)
    if item.step not in (None, 1) or not all(bound is None or isinstance(bound, int) for bound in bounds):
        return None
    return axis - len(items) if from_end else axis, item


def _is_unseen(base: fx.Node, write: fx.Node) -> bool:
    """Tell whether ``base`` is memory of its own that nobody has looked at before the write."""
    return _is_fresh(base) and _before(write).isdisjoint(base.users)


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
