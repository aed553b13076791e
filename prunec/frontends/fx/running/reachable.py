"""What a module's forward can change: every container, object, namespace and tensor that it reaches, each once.

Owns the search only, from the module through attributes, hooks, closures and defaults, and through the names that
the code of its own methods reads in globals and classes. Code of torch and of Python's library is not searched: it
keeps nothing of what passes through. What is done with what was found is in untouched.py.
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

LruCache = functools._lru_cache_wrapper
"""What functools.lru_cache and functools.cache make; its content can be neither read nor set."""

LIBRARIES = frozenset(
    # The last two do torch.export's arithmetic of sizes: a program's nodes hold numbers of theirs.
    {*sys.stdlib_module_names, "builtins", "torch", "numpy", "prunec", "sympy", "mpmath"}
) - {"__main__"}
_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), type(Ellipsis), slice, range, torch.dtype,
                    torch.device, torch.Size, torch.layout, torch.memory_format,
                    types.BuiltinFunctionType})  # fmt: skip
_CHECKPOINT = "torch.utils.checkpoint"
_CODE = (property, staticmethod, classmethod, functools.cached_property)


class Reachable:
    """Everything that was found.

    Attributes:
        dicts, lists, sets, deques: containers, and the ``__dict__`` of objects.
        empty: dicts that hold nothing; a module has a dozen of them, for hooks.
        names: the names that code reads in the globals of its modules: (namespace, name), the value may be missing.
        classes: the user's classes.
        slots: (object, name) of objects without a ``__dict__``.
        cells: variables that closures share.
        tensors, arrays, generators: of torch and of numpy; sources of random numbers.
        checkpoints: whether the code can checkpoint activations.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.dicts: list[dict[Any, Any]] = []
        self.empty: list[dict[Any, Any]] = []
        self.lists: list[list[Any]] = []
        self.deques: list[deque[Any]] = []
        self.sets: list[set[Any]] = []
        self.names: list[tuple[dict[str, Any], str]] = []
        self.classes: list[type] = []
        self.slots: list[tuple[Any, str]] = []
        self.cells: list[types.CellType] = []
        self.tensors: list[Tensor] = []
        self.arrays: list[np.ndarray[Any, Any]] = []
        self.generators: list[Any] = []
        self.checkpoints = False
        self._seen: dict[int, Any] = {}
        self._named: set[tuple[int, str]] = set()
        self._pending: list[Any] = list(roots)
        while self._pending:
            self._visit(self._pending.pop())

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN or id(value) in self._seen:
            return
        self._seen[id(value)] = value  # an id is only unique while its object lives
        follow = self._pending.extend
        if kind is dict or kind is OrderedDict:
            (self.dicts if value else self.empty).append(value)
            follow(value.values())
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, dict):
            self.dicts.append(value)
            follow(value.values())
            self._object(value)
        elif isinstance(value, list):
            self.lists.append(value)
            follow(value)
        elif isinstance(value, tuple | frozenset):
            follow(value)
        elif isinstance(value, set):
            self.sets.append(value)
            follow(value)
        elif isinstance(value, deque):
            self.deques.append(value)
            follow(value)
        elif isinstance(value, np.ndarray):
            self.arrays.append(value)
        elif isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
            self.generators.append(value)
        elif kind is types.FunctionType:
            self._function(value)
        elif kind is types.MethodType:
            follow((value.__self__, value.__func__))
        elif isinstance(value, functools.partial):
            follow((value.func, value.args, value.keywords))
        elif isinstance(value, LruCache):
            follow((value.__wrapped__,))
        elif isinstance(value, _CODE):
            follow(_parts(value))
        elif isinstance(value, type):
            self._class(value)
        elif not isinstance(value, types.ModuleType):
            self._object(value)
            self._pending.append(kind)

    def _module(self, module: nn.Module) -> None:
        """Follow a module's attributes: the way through networks of thousands of modules, so it takes no detours."""
        own = vars(module)
        self._seen[id(own)] = own
        self.dicts.append(own)
        for value in own.values():
            if type(value) in (dict, OrderedDict) and not value:
                self.empty.append(value)
            elif type(value) not in _PLAIN:
                self._pending.append(value)
        self._pending.append(type(module))

    def _tensor(self, value: Tensor) -> None:
        if not isinstance(value, UninitializedParameter | UninitializedBuffer):
            self.tensors.append(value)
            own = getattr(value, "__dict__", None)
            if own:
                self._pending.append(own)

    def _object(self, value: Any) -> None:
        """Follow what an object holds, in its ``__dict__`` and in slots."""
        own = getattr(value, "__dict__", None)
        if type(own) is dict:
            self._pending.append(own)
        for base in type(value).__mro__:
            named = base.__dict__.get("__slots__", ()) if not is_library(base) else ()
            for name in (named,) if isinstance(named, str) else named:
                name = _mangled(base, name)
                # A subclass may have put something that computes in the place of a slot.
                if type(inspect.getattr_static(type(value), name, None)) is types.MemberDescriptorType:
                    self.slots.append((value, name))
                    self._pending.append(getattr(value, name, None))

    def _class(self, kind: type) -> None:
        """Follow the methods of a user's class, and what it keeps for all of its objects."""
        for base in kind.__mro__:
            if is_library(base) or (base is not kind and id(base) in self._seen):
                continue
            self._seen[id(base)] = base
            self.classes.append(base)
            self._pending.extend(vars(base).values())

    def _function(self, function: types.FunctionType) -> None:
        """Follow a closure, and the globals that the code of a user's function reads."""
        self.checkpoints |= function.__module__ == _CHECKPOINT
        if is_library(function):
            # A decorator's wrapper is a closure over what it wraps: contextlib's, torch.no_grad's.
            self._pending.extend(_contents(cell) for cell in function.__closure__ or ())
            return
        self.cells.extend(function.__closure__ or ())
        self._pending.extend(_contents(cell) for cell in function.__closure__ or ())
        self._pending.extend((function.__defaults__, function.__kwdefaults__, function.__dict__))
        names = set(_names(function.__code__))
        for name in names:
            self._global(function.__globals__, name, names)

    def _global(self, namespace: dict[str, Any], name: str, names: set[str]) -> None:
        if (id(namespace), name) in self._named:
            return
        self._named.add((id(namespace), name))
        value = namespace.get(name)
        if isinstance(value, types.ModuleType):
            self.checkpoints |= _CHECKPOINT.startswith(value.__name__) and "checkpoint" in names
            if not is_library(value):  # names are read off it as attributes
                for inner in names:
                    if inner in vars(value):
                        self._global(vars(value), inner, names)
            return
        self.names.append((namespace, name))
        self._pending.append(value)


def is_library(value: Any) -> bool:
    """Tell whether a class, function or module belongs to a library that keeps nothing of what passes through."""
    home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return isinstance(home, str) and home.partition(".")[0] in LIBRARIES


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes that code uses, that of functions inside it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value yet
        return None


def _parts(code: Any) -> Iterator[Any]:
    for name in ("fget", "fset", "func", "__func__"):
        part = getattr(code, name, None)
        if part is not None:
            yield part


def _mangled(owner: type, name: str) -> str:
    private = name.startswith("__") and not name.endswith("__")
    return f"_{owner.__name__.lstrip('_')}{name}" if private else name
