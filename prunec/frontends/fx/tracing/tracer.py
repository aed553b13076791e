"""torch.fx's tracer, as prunec uses it: writes into parts of tensors, sizes and values that a forward asks for.

Owns the proxies, and what the tracer records beyond torch.fx's own. What sizes and values are answered with is in
sizes.py, what becomes of the writes in functional.py.
"""

from __future__ import annotations

import functools
import itertools
import logging
import operator
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.frontends.fx.tracing.attention import FORWARDS
from prunec.frontends.fx.tracing.regions import Regions
from prunec.frontends.fx.tracing.remembered import Memory, NotRemembered, another, are_alike
from prunec.frontends.fx.tracing.sizes import Sizes
from prunec.frontends.fx.tracing.switches import write_with_finally

_LOG = logging.getLogger("prunec")
_ASSERT_IS_NONE = getattr(fx._symbolic_trace, "_assert_is_none", None)
"""What torch.fx records for an argument left at None. A saved module with it in its code could be read once: torch.fx
looks for the name in the wrong place from then on, in whatever it traces."""


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


def _written_in_place(name: str) -> Any:
    """Record ``x += y`` as what it is: torch.fx records ``x + y``, and whoever sees x's memory would miss it.

    Numbers are added: the code of a traced network would change them wherever else they are read.
    """
    as_it_is, in_place = getattr(operator, name), getattr(operator, f"i{name.removesuffix('_')}")

    def assign(self: _Assignable, other: Any) -> Any:
        if _is_number(self.node):
            return as_it_is(self, other)
        return self.tracer.create_proxy("call_function", in_place, (self, other), {}, name=name)

    return assign


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"):
    setattr(_Assignable, f"__i{_name.removesuffix('_')}__", _written_in_place(_name))


@contextmanager
def tensors_pass() -> Iterator[None]:
    """Let ``torch.is_tensor`` tell of a proxy what ``isinstance`` does: it asks from inside of torch."""
    asked = torch.is_tensor
    torch.is_tensor = lambda value: isinstance(value, torch.Tensor)  # type: ignore[assignment]  # its guard is narrower
    try:
        yield
    finally:
        torch.is_tensor = asked


_MAKING = (
    *("zeros", "ones", "empty", "full", "rand", "randn", "randint", "randperm", "arange", "linspace", "eye", "tensor"),
    *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "block_diag"),
)
"""Functions that torch calls with no tensor: of sizes alone, or of the parts that another call returns."""


@contextmanager
def makers_recorded() -> Iterator[None]:
    """Record calls of these functions where a proxy is among their arguments: torch itself does not ask proxies."""
    own = {name: getattr(torch, name) for name in _MAKING}
    known = _knows_functions()
    try:
        for name, call in own.items():
            setattr(torch, name, _recorded(call))
        yield
    finally:
        for name, call in own.items():
            setattr(torch, name, call)
        if not known and _knows_functions():
            # torch.compile looked the functions up meanwhile, for the whole process: it would not know the real ones.
            sys.modules[_RULES].clear_lru_cache()


_RULES = "torch._dynamo.trace_rules"


def _knows_functions() -> bool:
    """Tell whether torch.compile has looked up torch's functions by name, which it does once."""
    rules = sys.modules.get(_RULES)
    found = getattr(rules, "get_torch_obj_rule_map", None)
    return found is not None and hasattr(rules, "clear_lru_cache") and found.cache_info().currsize > 0


def _recorded(call: Any) -> Any:
    @functools.wraps(call)
    def record(*args: Any, **kwargs: Any) -> Any:
        proxy = next((leaf for leaf in pytree.tree_leaves((args, kwargs)) if issubclass(type(leaf), fx.Proxy)), None)
        if proxy is None:
            return call(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", call, args, kwargs)

    return record


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

    def __len__(self) -> int:
        return len(self.held)

    def numel(self) -> int:
        return self.held.numel()

    nelement = numel
    ndimension = dim


class _Answering(fx.Proxy):
    """A proxy that answers with a number where one is needed, see ``Sizes``."""

    def __len__(self) -> int:
        count = _num_parts(self.node)
        return self._sizes.length(self) if count is None else count

    def __int__(self) -> int:
        return int(self._sizes.number(self, whole=True))

    def __index__(self) -> int:
        return operator.index(int(self._sizes.number(self, whole=True)))

    def __float__(self) -> float:
        return float(self._sizes.number(self))

    def __format__(self, how: str) -> str:
        return format(self._sizes.number(self), how) if how else str(self)

    @property
    def _sizes(self) -> Sizes:
        assert isinstance(self.tracer, Tracer)
        assert self.tracer.sizes is not None
        return self.tracer.sizes


class _Sized(_Answering, _Assignable):
    """What is computed, in a trace for the example's sizes."""

    def __getattr__(self, k: str) -> Any:
        return _Attribute(self, k) if k in ("shape", "ndim") else super().__getattr__(k)


class _Attribute(_Answering, fx.proxy.Attribute):
    """Sizes, and how many there are: ``len(x.shape)``, ``range(x.ndim)``."""


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
        self.plain: dict[str, None] = {}
        self._names: dict[int, tuple[str, torch.Tensor]] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a module; its tensors are listed once, before its forward can put others in their place."""
        held = (*root.named_parameters(), *root.named_buffers())
        self._names = {id(tensor): (name, tensor) for name, tensor in reversed(held)}
        with (
            self.regions.watched(),
            tensors_pass(),
            makers_recorded(),
        ):  # also where a saved GraphModule is traced again
            graph = super().trace(root, concrete_args)
        if self.regions.seen:
            write_with_finally(graph)
        return graph

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: dict[str, Any] | tuple[Any, ...] | None = None
    ) -> tuple[Any, list[Any]]:
        """Return what is traced: a forward that compares with sizes in its memory runs twice, see remembered.py."""
        forward, given = super().create_args_for_root(root_fn, is_module, concrete_args)
        memory = None if self.sizes is None else self.sizes.memory
        if memory is None:
            return forward, given

        @functools.wraps(forward)
        def remembering(*args: Any) -> Any:
            returned = forward(*args)
            if memory.asked:
                self._run_again(memory, forward, args, returned)
            return returned

        return remembering, given

    def _run_again(self, memory: Memory, forward: Any, args: Sequence[Any], returned: Any) -> None:
        """Let a forward run behind its trace, and take the guards out where it finds in its memory what it left.

        Raises:
            NotRemembered: it does not, and was traced against its memory.
        """
        assert self.sizes is not None
        self.regions.catch_up(self.graph)
        end, places = next(reversed(self.graph.nodes)), {**self.sizes.places}
        found, memory.again = False, True
        try:
            others = [self._another(each) if issubclass(type(each), fx.Proxy) else each for each in args]
            second = forward(*others)
            runs = [self.create_arg(each) for each in (returned, second)]
            found = memory.is_found() and are_alike(self.root, self.graph.nodes, *runs)
        except Exception as error:  # noqa: BLE001  # whatever the user's forward raises
            _LOG.debug("a forward does not run on what it remembers: %s", error)
        self.regions.catch_up(self.graph)
        for n in itertools.takewhile(lambda n: n is not end, reversed(list(self.graph.nodes))):
            self.graph.erase_node(n)
        if memory.forgets and not found:
            raise NotRemembered("the forward decides by sizes that it remembers")
        for where, guards in memory.asked.items() if found else ():
            places.pop(where, None)
            for n in guards:
                self.graph.erase_node(n)
        self.sizes.places = places

    def _another(self, given: fx.Proxy) -> fx.Proxy:
        return self.create_proxy("call_function", another, (given,), {})

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node in the modes (no_grad, autocast) that are on."""
        self.regions.catch_up(self.graph)
        if (kind, target) == ("call_method", "__setitem__"):  # into a tensor that is none of the trace's
            kind, target = "call_function", operator.setitem
        if target is _ASSERT_IS_NONE and target is not None:
            value, message = args[0]
            # Not operator.is_: traced again, a proxy of None is not None, but compares with it by a node of its own.
            is_none = super().create_node("call_function", operator.eq, (value, None), {})
            return super().create_node(kind, torch._assert, (is_none, message), {})
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
            return self.sizes.decision(obj)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_transparent(m) and super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace torch.nn's transformers through forwards that can be traced."""
        if self.sizes is not None and self.sizes.asking:
            return forward(*args, **kwargs)
        path = wrapped_at(m)
        if path and not (m._forward_hooks or m._forward_pre_hooks):
            return m.get_submodule(path)(*args, **kwargs)
        return super().call_module(m, partial(FORWARDS[type(m)], m) if _is_transparent(m) else forward, args, kwargs)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Go over the parts of a tensor that was split: how many there are stands in the call."""
        count = len(obj.held) if isinstance(obj, _Held) else _num_parts(obj.node)
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
        if issubclass(type(a), fx.Proxy):
            return a.node
        if type(a) is torch.Tensor and self._names.get(id(a), ("", None))[1] is not a:
            return self._constant(a)
        made = super().create_arg(a)
        if type(made) is not dict or type(a) is dict:
            return made
        # torch.fx makes a plain dict of any.
        if type(a) is OrderedDict:
            return self.create_node("call_function", OrderedDict, ([*made.items()],), {})
        if is_dataclass(a):
            return self.create_node("call_function", type(a), (), {f.name: made.get(f.name) for f in fields(a)})
        self.plain[type(a).__name__] = None
        return made

    def _constant(self, tensor: torch.Tensor) -> fx.Node:
        """Keep a tensor that is no buffer, as the base class does after looking at all buffers each time."""
        name = self.tensor_attrs.get(tensor)
        if name is None:
            name = self.tensor_attrs[tensor] = self.get_fresh_qualname("_tensor_constant")
            setattr(self.root, name, tensor)
        return self.create_node("get_attr", name, (), {})

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


def wrapped_at(m: nn.Module) -> str:
    """Return where a wrapper that computes what one module in it does has that module; "" for all others."""
    if isinstance(m, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    return "_orig_mod" if type(m).__name__ == "OptimizedModule" and hasattr(m, "_orig_mod") else ""


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
