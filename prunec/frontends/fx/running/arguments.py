"""Example inputs: the tensors inside dicts, tuples and lists, arguments given by name, and their structure as data.

Owns what stands between what a user passes to a network and the flat list of tensors that a graph has as inputs.
"""

from __future__ import annotations

import inspect
import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunec.errors import BadInput, BadPlan

Example = Tensor | Sequence[Any] | Mapping[str, Any]
"""A network's arguments by position, or all of them by name; a tensor is the only one."""

_TRACE_BATCH = 3
"""Batch size to trace with when the example has 1: a size that is told apart from broadcasting."""


def by_position(module: nn.Module, example: Example) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a module and positional arguments that do what ``module`` does on ``example``.

    Where arguments are given by name it is a double of the module, which shares everything with it and takes them
    in the order of its forward.

    Raises:
        BadInput: the forward takes no argument of such a name, or needs one that is not given.
    """
    example = ordered(module, example)
    if not isinstance(example, Mapping):
        return module, example
    return _double(module, list(example)), tuple(example.values())


def positional(example: Tensor | Sequence[Any]) -> tuple[Any, ...]:
    """Return arguments by position as a tuple; a tensor is one of them, not a sequence of its rows."""
    return (example,) if isinstance(example, Tensor) else tuple(example)


def ordered(module: nn.Module, example: Example) -> tuple[Any, ...] | Mapping[str, Any]:
    """Return arguments given by name in the order of the module's forward.

    Raises:
        BadInput: the forward takes no argument of such a name, or needs one that is not given.
    """
    if not isinstance(example, Mapping):
        return positional(example)
    signature = inspect.signature(module.forward)
    try:
        signature.bind(**example)
    except TypeError as error:
        raise BadInput(
            f"the arguments {', '.join(map(str, example)) or '(none)'} do not fit the network's forward",
            why=f"{error}; it takes {signature}",
            do="give its arguments by their names, or in a tuple by their order",
        ) from error
    order = [name for name in signature.parameters if name in example]
    order += [name for name in example if name not in order]
    return {name: example[name] for name in order}


def _double(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return ``module``'s double, whose forward takes the named arguments by position.

    It is written as text: torch.fx names its placeholders after the code's own variables.
    """
    text = f"def forward(self, {', '.join(names)}):\n    return call(self, {', '.join(f'{n}={n}' for n in names)})"
    scope: dict[str, Any] = {"call": type(module).forward}
    exec(text, scope)  # noqa: S102  # of names that Python took for arguments
    double = types.new_class(
        type(module).__name__, (type(module),), exec_body=lambda body: body.update(forward=scope["forward"])
    )
    twin: nn.Module = object.__new__(double)
    twin.__dict__.update(module.__dict__)
    return twin


def named_tensors(inputs: Sequence[Any]) -> list[tuple[str, Tensor]]:
    """Return the tensors among arguments: a tensor is called by its place ("1"), one inside of another ("0.image")."""
    leaves = pytree.tree_flatten_with_path(tuple(inputs))[0]
    return [(path_of(keys), leaf) for keys, leaf in leaves if isinstance(leaf, Tensor)]


def fed_as(dtype: torch.dtype) -> str:
    """Return numpy's name of a type; it has no bfloat16, which is fed as float32."""
    return "float32" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")


def path_of(keys: Sequence[Any]) -> str:
    """Return a path of torch's pytrees as a name: "0.image"."""
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in keys)


def with_tensors(inputs: Sequence[Any], change: Callable[[str, Tensor], Any]) -> tuple[Any, ...]:
    """Return arguments in which each tensor is what ``change`` makes of its name and itself."""

    def changed(keys: Sequence[Any], leaf: Any) -> Any:
        return change(path_of(keys), leaf) if isinstance(leaf, Tensor) else leaf

    made: tuple[Any, ...] = pytree.tree_map_with_path(changed, tuple(inputs))
    return made


# --- structure as data ----------------------------------------------------------------------------------


def structure(example: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments as JSON data, numbers for tensors in their order; None for tensors by position alone."""
    if not isinstance(example, Mapping) and all(isinstance(value, Tensor) for value in example):
        return None
    count = itertools.count()
    if isinstance(example, Mapping):
        return {"by_name": [[name, _written(value, count)] for name, value in example.items()]}
    return {"by_position": [_written(value, count) for value in example]}


def _written(value: Any, count: Iterator[int]) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": next(count)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (list, tuple):
        return {type(value).__name__: [_written(item, count) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_written(key, count), _written(item, count)] for key, item in value.items()]}
    return {"other": f"{type(value).__module__}.{type(value).__qualname__}"}


def example_of(written: Mapping[str, Any] | None, tensors: Sequence[Tensor]) -> Example:
    """Return the arguments that ``structure`` wrote, with these tensors in them.

    Raises:
        BadPlan: a value among them cannot be written as JSON, or the data are damaged.
    """
    if written is None:
        return tuple(tensors)
    try:
        if "by_name" in written:
            return {name: _read(value, tensors) for name, value in written["by_name"]}
        return tuple(_read(value, tensors) for value in written["by_position"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadPlan("the plan is incomplete or damaged", why=repr(error)) from error


def _read(value: Any, tensors: Sequence[Tensor]) -> Any:
    if not isinstance(value, Mapping):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_read(item, tensors) for item in content)
    if kind == "dict":
        return {_read(key, tensors): _read(item, tensors) for key, item in content}
    raise BadPlan(
        f"the plan was made with an argument of type {content}, which it cannot hold",
        do="give the arguments again: prunec.apply_plan(module, plan, example_inputs)",
    )


def zeros(shape: Sequence[int], dtype: str) -> Tensor:
    """Return a tensor to trace with."""
    return torch.zeros(tuple(shape), dtype=getattr(torch, dtype))


def widened(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return inputs with a batch that is told apart from broadcasting, where all tensors among them have 1."""
    tensors = [tensor for _, tensor in named_tensors(inputs)]
    if not tensors or not all(t.dim() > 1 and t.shape[0] == 1 for t in tensors):
        return inputs
    return with_tensors(inputs, lambda _, tensor: tensor.expand(_TRACE_BATCH, *tensor.shape[1:]).contiguous())
