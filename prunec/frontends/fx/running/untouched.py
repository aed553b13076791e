"""Work on somebody's module that leaves no trace: whatever a forward changes while prunec runs it is put back.

Owns the mechanism behind the promise that the user's network is theirs. A forward may do anything: assign
``self.weight.data``, write into buffers, count its calls, keep tensors on the module, in a global dict, in a helper or
an ``lru_cache``. Run on shapes or under a tracer, these would be left with tensors that hold no values. What is
reachable (reachable.py) is noted before a block of work and put back after it, whether it ended well or not; nothing
is copied but containers, and the memory of tensors that are really written into. Identity stays: hooks, closures and
bound methods go on meaning the module that they mean.
"""

from __future__ import annotations

import functools
import operator
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from prunec.frontends.fx.running.handed_out import storage_of, watched
from prunec.frontends.fx.running.places import place
from prunec.frontends.fx.running.reachable import LruCache, Reachable

Undo = Callable[[], None]
_MISSING = object()


class Untouched:
    """A module, and all that its forward reaches, found once.

    ``with untouched.block():`` may be entered as often as work is done, one block after another or inside each other;
    after each everything is as it was before it, the state of random generators included.

    Args:
        roots: modules, and inputs that they are run on.

    Attributes:
        checkpoints: whether the code that was found can checkpoint activations.
        built: parameters that a block gave the modules, which had none of these names.
        written_past_torch: places in the user's code that wrote into tensors by numpy and the like.
    """

    def __init__(self, *roots: Any) -> None:
        self._found = Reachable(roots)
        self._caches = list(_caches(self._found))
        self.checkpoints = self._found.checkpoints
        self.built: dict[str, None] = {}
        self._modules = [root for root in roots if isinstance(root, nn.Module)]
        self._parameters = self._named()
        self._names = [(held, tuple(held)) for held in _holders(self._modules)]
        self.written_past_torch: dict[str, None] = {}
        self._held = _Held.of(self._found.tensors)
        self._last = _Tensors(self._held)
        self._inside: list[_Tensors] = []

    @contextmanager
    def block(self, *, on_shapes: bool = False) -> Iterator[None]:
        """Put everything back at the end of the block.

        Args:
            on_shapes: the block runs on the meta device, or on fake tensors, which do not bear dispatch modes around
                them and compute for real where all operands are real; or in blocks of its own.
        """
        tensors = _Tensors(self._held)
        undo = [
            *_containers(self._found),
            *_namespaces(self._found),
            *_random_state(self._found.generators),
            *_state_of_torch(),
        ]
        with ExitStack() as at_exit:
            at_exit.callback(_all, undo)
            at_exit.callback(self._put_back, tensors)
            at_exit.enter_context(_not_compiled())
            at_exit.enter_context(watched(functools.partial(tensors.hand_out, place)))
            for bind, cache in self._caches:
                bind(functools.lru_cache(**cache.cache_parameters())(cache.__wrapped__))
            at_exit.enter_context(self._calls(tensors) if on_shapes else tensors)
            yield

    @contextmanager
    def _calls(self, tensors: _Tensors) -> Iterator[None]:
        """Tell ``tensors`` of calls. A look at a tensor is one, too: blocks inside each other share a mode."""
        self._inside.append(tensors)
        try:
            with nullcontext() if len(self._inside) > 1 else _Calls(self._inside):
                yield
        finally:
            self._inside.pop()

    def _named(self) -> dict[str, None]:
        return dict.fromkeys(
            name for root in self._modules for name, _ in root.named_parameters(remove_duplicate=False)
        )

    def _put_back(self, tensors: _Tensors) -> None:
        if any(tuple(held) != names for held, names in self._names):
            self.built |= dict.fromkeys(name for name in self._named() if name not in self._parameters)
        self._last = tensors
        self.written_past_torch |= tensors.written_past_torch()
        tensors.put_back()

    def lost_write(self, held: Sequence[Tensor]) -> str:
        """Return where the last block wrote into memory that it read, too, or that ``held`` shows; "" if nowhere."""
        seen = {_memory(tensor) for tensor in held if _has_memory(tensor)} | self._last.read
        return next((where for key, where in self._last.written.items() if key in seen), "")


def _holders(modules: Sequence[nn.Module]) -> Iterator[dict[str, Any]]:
    """Yield where the names of parameters come from."""
    for sub in (sub for module in modules for sub in module.modules()):
        yield sub._parameters
        yield sub._modules


@contextmanager
def untouched(*roots: Any) -> Iterator[None]:
    """Run one block that leaves modules, and inputs that they are run on, as they are."""
    with Untouched(*roots).block():
        yield


def _all(undo: Sequence[Undo]) -> None:
    for step in undo:
        step()
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        torch.clear_autocast_cache()  # parameters that were cast under a tracer


# --- containers and names -------------------------------------------------------------------------------


def _containers(found: Reachable) -> Iterator[Undo]:
    # Copied as dicts: pairs would be a tuple each, a hundred thousand of them in a deep network.
    dicts = [(mapping, dict(mapping)) for mapping in found.dicts]
    yield functools.partial(_reset_dicts, dicts, found.empty)
    for items in (*found.lists, *found.deques):
        yield functools.partial(_reset_list, items, list(items))
    for members in found.sets:
        yield functools.partial(_reset_set, members, set(members))
    for array in found.arrays:
        if array.flags.writeable and array.dtype.kind != "O":
            yield functools.partial(_reset_array, array, array.copy())


def _reset_dicts(dicts: Sequence[tuple[Any, dict[Any, Any]]], empty: Sequence[Any]) -> None:
    """Give dicts their content back, in its order; nothing is touched where nothing changed."""
    for mapping in empty:
        if mapping:
            mapping.clear()
    for mapping, before in dicts:
        if not (
            len(mapping) == len(before)
            and all(map(operator.is_, mapping, before))
            and all(map(operator.is_, mapping.values(), before.values()))
        ):
            mapping.clear()
            mapping.update(before)


def _reset_list(items: Any, before: list[Any]) -> None:
    if len(items) != len(before) or any(a is not b for a, b in zip(items, before, strict=True)):
        items.clear()
        items.extend(before)


def _reset_set(members: set[Any], before: set[Any]) -> None:
    members.intersection_update(before)
    members.update(before)


def _reset_array(array: np.ndarray[Any, Any], before: np.ndarray[Any, Any]) -> None:
    np.copyto(array, before)


def _namespaces(found: Reachable) -> Iterator[Undo]:
    """Note names one by one: other names of a namespace are nobody's business."""
    for namespace, name in found.names:
        yield functools.partial(_reset_name, namespace, name, namespace.get(name, _MISSING))
    for kind in found.classes:
        yield functools.partial(_reset_class, kind, dict(vars(kind)))
    for owner, name in found.slots:
        yield functools.partial(_reset_slot, owner, name, getattr(owner, name, _MISSING))
    for cell in found.cells:
        yield functools.partial(_reset_cell, cell, _content(cell))


def _reset_name(namespace: dict[str, Any], name: str, before: Any) -> None:
    if before is _MISSING:
        namespace.pop(name, None)
    elif namespace.get(name, _MISSING) is not before:
        namespace[name] = before


def _reset_class(kind: type, before: dict[str, Any]) -> None:
    for name in [name for name in vars(kind) if name not in before]:
        delattr(kind, name)
    for name, value in before.items():
        if vars(kind).get(name, _MISSING) is not value:
            setattr(kind, name, value)


def _reset_slot(owner: Any, name: str, before: Any) -> None:
    if before is _MISSING:
        if hasattr(owner, name):
            delattr(owner, name)
    elif getattr(owner, name, _MISSING) is not before:
        object.__setattr__(owner, name, before)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value yet
        return _MISSING


def _reset_cell(cell: types.CellType, before: Any) -> None:
    if _content(cell) is before:
        return
    if before is _MISSING:
        del cell.cell_contents
    else:
        cell.cell_contents = before


def _caches(found: Reachable) -> Iterator[tuple[Callable[[Any], None], LruCache[Any]]]:
    """Yield where an lru_cache is bound, and it: for a block an empty one takes its place, and theirs stays as it is.

    Functions that torch.fx is told to leave alone are part of the traced network: these stay.
    """
    wrapped = {name for _, name in _wrapped_fns_to_patch}
    for namespace, name in found.names:
        if isinstance(namespace.get(name), LruCache) and name not in wrapped:
            yield functools.partial(namespace.__setitem__, name), namespace[name]
    for kind in found.classes:
        for name, value in vars(kind).items():
            if isinstance(value, LruCache):
                yield functools.partial(setattr, kind, name), value
            elif isinstance(value, staticmethod | classmethod) and isinstance(value.__func__, LruCache):
                yield functools.partial(_bind_method, kind, name, type(value)), value.__func__
    for mapping in found.dicts:
        for key, value in mapping.items():
            if isinstance(value, LruCache):
                yield functools.partial(mapping.__setitem__, key), value
    for cell in found.cells:
        if isinstance(_content(cell), LruCache):
            yield functools.partial(setattr, cell, "cell_contents"), _content(cell)


def _bind_method(kind: type, name: str, wrapper: type, cache: Any) -> None:
    setattr(kind, name, wrapper(cache))


# --- random numbers -------------------------------------------------------------------------------------


def _random_state(generators: Sequence[Any]) -> Iterator[Undo]:
    yield functools.partial(random.setstate, random.getstate())
    yield functools.partial(np.random.set_state, np.random.get_state())  # noqa: NPY002  # the user's, whatever is modern
    yield functools.partial(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield functools.partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    for generator in generators:
        if isinstance(generator, random.Random):
            yield functools.partial(generator.setstate, generator.getstate())
        elif isinstance(generator, np.random.Generator):
            yield functools.partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)
        else:
            yield functools.partial(generator.set_state, generator.get_state())


# --- torch itself ---------------------------------------------------------------------------------------


def _state_of_torch() -> Iterator[Undo]:
    """Note what a forward may set for the whole process, or leave open where it fails under a tracer (a vmap)."""
    yield functools.partial(torch.set_default_dtype, torch.get_default_dtype())
    depth = torch._C._functorch.get_dynamic_layer_stack_depth()
    yield functools.partial(torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth, depth)


@contextmanager
def _not_compiled() -> Iterator[None]:
    """Run what torch.compile has wrapped as it was written: tracers are no place to compile for, or to guard."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        yield
        return
    with torch.compiler.set_stance("force_eager"), dynamo.config.patch(error_on_nested_fx_trace=False):
        yield


# --- tensors --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """What tensors are made of; it is the same in front of each block.

    Args:
        before: each tensor, another one of the same memory, requires_grad and grad.
        memory: the memory of all -> a tensor that shows it.
    """

    before: Sequence[tuple[Tensor, Tensor, bool, Tensor | None]]
    memory: Mapping[int, Tensor]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> _Held:
        aliases = [tensor.data for tensor in tensors]
        with torch._C.DisableTorchFunction():  # blocks around this one need not be told of each look at a tensor
            flags = [(tensor.requires_grad, tensor.grad if tensor.is_leaf else None) for tensor in tensors]
            before = [(t, alias, *held) for t, alias, held in zip(tensors, aliases, flags, strict=True)]
            return cls(before, {_memory(alias): alias for alias in aliases if _has_memory(alias)})


class _Tensors(TorchDispatchMode):
    """Keeps the content of memory that somebody is about to write into."""

    def __init__(self, held: _Held) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's dispatch modes are untyped
        self._before, self._memory = held.before, held.memory
        self._contents: dict[int, torch.UntypedStorage] = {}
        self._handed_out: dict[int, str] = {}
        self.written: dict[int, str] = {}
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._memory:
            written = list(_written(func, args, kwargs))
            for tensor in written:
                if self.keep(tensor) and _memory(tensor) not in self.written:
                    self.written[_memory(tensor)] = place()
            if not _is_view(func):
                read = _operands((*args, *kwargs.values()))
                self.read.update(_memory(t) for t in read if _has_memory(t) and not any(t is w for w in written))
        return func(*args, **kwargs)

    def hand_out(self, where: Callable[[], str], tensor: Any) -> None:
        """Keep the content of memory that somebody gets hold of, and where that is."""
        if isinstance(tensor, Tensor) and _has_memory(tensor):
            self.keep(tensor)
            self._handed_out.setdefault(_memory(tensor), where())

    def written_past_torch(self) -> dict[str, None]:
        """Return where memory was handed out that holds something else now."""
        changed = (
            where
            for key, where in self._handed_out.items()
            if key in self._contents and not _same_bytes(storage_of(self._memory[key]), self._contents[key])
        )
        return dict.fromkeys(changed)

    def keep(self, tensor: Tensor) -> bool:
        """Keep what a tensor's memory holds; return whether that is memory of the module's."""
        key = _memory(tensor) if _has_memory(tensor) else None
        if key is None or key not in self._memory:
            return False
        if key not in self._contents:
            self._contents[key] = storage_of(self._memory[key]).clone()
        return True

    def put_back(self) -> None:
        for key, content in self._contents.items():
            storage_of(self._memory[key]).copy_(content)
        with torch._C.DisableTorchFunction():
            changed = [before for before in self._before if not _is_as_it_was(*before)]
        for tensor, alias, requires_grad, grad in changed:
            if not _same_memory(tensor, alias):
                tensor.data = alias
            if tensor.is_leaf and tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.is_leaf and tensor.grad is not grad:
                tensor.grad = grad


class _Calls(TorchFunctionMode):
    """Keeps the content of memory that a call of torch's Python functions writes into."""

    def __init__(self, tensors: Sequence[_Tensors]) -> None:
        super().__init__()
        self._tensors = tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", ""))
        in_place = name.endswith("_") and not name.endswith("__")
        written = [kwargs["out"]] if "out" in kwargs else []
        if args and (in_place or name in _WRITING or kwargs.get("inplace")):
            written.append(args[0])
        if written:  # most calls only read, those for a tensor's shape above all
            with _disable_current_modes():
                for tensor in pytree.tree_leaves(written):
                    if isinstance(tensor, Tensor):
                        for tensors in self._tensors:
                            tensors.keep(tensor)
        return func(*args, **kwargs)


_WRITING = frozenset(
    {"__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow"))}
    | {f"__i{name}__" for name in ("and", "or", "xor", "lshift", "rshift")}
)
"""Methods that write into their tensor, besides those whose names end in an underscore."""


def _operands(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among an op's arguments; they come alone or in a list."""
    for value in values:
        yield from (
            item for item in (value if isinstance(value, list | tuple) else (value,)) if isinstance(item, Tensor)
        )


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Yield the tensors that an op writes into. Batch norms update their statistics without saying so."""
    schema = func._schema
    if "batch_norm" in schema.name:
        yield from (leaf for leaf in args if isinstance(leaf, Tensor))
    elif schema.is_mutable:
        for place, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


@functools.cache
def _is_view(func: Any) -> bool:
    """Tell whether what an op returns is its operand's memory."""
    return any(result.alias_info is not None for result in func._schema.returns)


def _has_memory(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return plain and tensor.layout is torch.strided and tensor.device.type != "meta"


def _memory(tensor: Tensor) -> int:
    return int(storage_of(tensor)._cdata)


def _same_bytes(a: torch.UntypedStorage, b: torch.UntypedStorage) -> bool:
    now, before = (torch.empty(0, dtype=torch.uint8, device=held.device).set_(held) for held in (a, b))
    return torch.equal(now, before)


def _is_as_it_was(tensor: Tensor, alias: Tensor, requires_grad: bool, grad: Tensor | None) -> bool:
    flags = not tensor.is_leaf or (tensor.requires_grad == requires_grad and tensor.grad is grad)
    return flags and _same_memory(tensor, alias)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if (a.device, a.dtype, a.shape) != (b.device, b.dtype, b.shape) or a.layout is not b.layout:
        return False
    if not _has_memory(b):
        return True
    return a.stride() == b.stride() and a.storage_offset() == b.storage_offset() and _memory(a) == _memory(b)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode for the time of the trace, then each back as it was."""
    modes = [(sub, sub.training) for sub in module.modules()]
    try:
        for sub, mode in modes:
            if mode:  # torch's modules take microseconds to set an attribute
                sub.training = False
        yield
    finally:
        for sub, mode in modes:
            if sub.training != mode:
                sub.training = mode
