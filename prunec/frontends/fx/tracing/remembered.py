"""Sizes that a forward remembers of its last input: ``if self.shape != shape: self.anchors = make(shape)``.

Read as it stands, a module that has run before would be followed for the sizes that it remembers alone. So the forward
is traced as after an input of other sizes, and a second time behind that, on another input of the same sizes. Where
that one finds in its memory what the first left there, and computes of its own input what the first one did of its,
the memory only saves time, and the traced network makes anew what it holds. Owns this comparison of the two.
Read next: sizes.py, which answers; tracer.py, which runs a forward twice.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg


class NotRemembered(fx.proxy.TraceError):
    """A forward that was traced as after an input of other sizes would compute something else."""


class Memory:
    """What one trace knows of the sizes that its forward remembers.

    Args:
        module: what is traced.

    Attributes:
        forgets: whether a comparison was answered otherwise than the module's memory does.
        again: whether the forward runs for the second time.
    """

    def __init__(self, module: nn.Module) -> None:
        self.forgets = self.again = False
        self._module = module
        self._guards: dict[str, list[fx.Node]] = {}
        self._found_again: dict[str, bool] = {}

    def holds(self, node: fx.Node) -> bool:
        """Tell whether a node compares sizes with something that the module holds."""
        if node.target not in (operator.eq, operator.ne) or len(node.all_input_nodes) != 1:
            return False
        (held,) = (operand for operand in node.args if not isinstance(operand, fx.Node))
        return is_size(node.all_input_nodes[0]) and (held is None or any(_is_in(held, each) for each in self._held()))

    def note(self, where: str, guards: Sequence[fx.Node]) -> None:
        """Note a comparison of the first run, and the nodes that guard it."""
        self._guards.setdefault(where, []).extend(guards)

    def look(self, where: str, node: fx.Node, *, equal: bool) -> None:
        """Note a comparison of the second run: is it with what the first one left, and the same?"""
        computed = node.target in (operator.eq, operator.ne) and len(node.args) == len(node.all_input_nodes) == 2
        self._found_again[where] = self._found_again.get(where, True) and equal and computed

    @property
    def asked(self) -> Mapping[str, Sequence[fx.Node]]:
        """Return the places in the user's code that compare with the memory, with their guards."""
        return self._guards

    def is_found(self) -> bool:
        return all(self._found_again.get(where, False) for where in self._guards)

    def _held(self) -> Iterator[Any]:
        for sub in self._module.modules():
            yield from sub._buffers.values()
            for value in vars(sub).values():
                yield from value.values() if type(value) is dict else (value,)


def is_size(node: fx.Node) -> bool:
    """Tell whether a node is the shape of a tensor, a part of it, or one of its sizes."""
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return _is_asked_for(node)


def _is_asked_for(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim", "ndimension", "numel")
    return node.target is getattr and node.args[1] in ("shape", "ndim")


def _is_in(size: Any, held: Any) -> bool:
    """Tell whether something a module holds is, or has, a size or some sizes in a row."""
    if isinstance(held, list | tuple) and not all(type(each) is int for each in held):
        return any(_is_in(size, each) for each in held if type(each) is Tensor)
    if type(held) is int:
        return held is not True and held == size
    if type(held) is not Tensor and not isinstance(held, list | tuple):
        return False
    sizes = [*(held.shape if isinstance(held, Tensor) else held)]
    if not isinstance(size, list | tuple):
        return size in sizes
    return any(sizes[at : at + len(size)] == [*size] for at in range(len(sizes) + 1))


def another(value: Any) -> Any:
    """Stand for another input of the same sizes."""
    return value


def read_at(n: fx.Node, module: nn.Module) -> Any:
    """Return what a node reads or calls: its target, or the content of a tensor that the forward made."""
    if n.op == "get_attr" and str(n.target).startswith("_tensor_constant"):
        held = operator.attrgetter(str(n.target))(module)
        if isinstance(held, Tensor):
            return held.dtype, held.shape, held.detach().cpu().reshape(-1).tolist()
    return n.target


def are_alike(module: nn.Module, nodes: Iterable[fx.Node], first: Any, second: Any) -> bool:
    """Tell whether a second run, whose inputs are ``another``, returned of them what the first one did of its own.

    Args:
        module: what is traced.
        nodes: all nodes of both runs; none may write in place or draw random numbers.
        first: what the first run returned, as an argument of a node; ``second`` likewise.
    """
    numbers: dict[str, int] = {}
    own: dict[fx.Node, int] = {}
    swapped: dict[fx.Node, int] = {}  # the same, if both runs changed their inputs

    def number(n: fx.Node, names: Mapping[fx.Node, int]) -> int:
        args, kwargs = (map_arg(each, lambda of: f"%{names[of]}") for each in (n.args, n.kwargs))
        return numbers.setdefault(repr((n.op, read_at(n, module), args, kwargs)), len(numbers))

    for n in nodes:
        if writes(n) or _draws(n):
            return False
        if n.target is another:
            (source,) = n.all_input_nodes
            own[n], swapped[n] = swapped[source], own[source]
        elif n.op == "placeholder":
            own[n], swapped[n] = number(n, own), numbers.setdefault(f"another {n.name}", len(numbers))
        elif _is_asked_for(n):  # the sizes of both inputs are the same
            least = {of: min(own[of], swapped[of]) for of in n.all_input_nodes}
            own[n] = swapped[n] = number(n, least)
        else:
            own[n], swapped[n] = number(n, own), number(n, swapped)
    made = map_arg(first, lambda of: f"%{swapped[of]}")
    found = map_arg(second, lambda of: f"%{own[of]}")
    return repr(made) == repr(found)


def writes(n: fx.Node) -> bool:
    """Tell whether a call writes into a tensor, by its name."""
    name = n.target if n.op == "call_method" else getattr(n.target, "__name__", "") if n.op == "call_function" else ""
    in_place = (str(name).endswith("_") and name != "is_") or name in _IN_PLACE
    return in_place or n.kwargs.get("out") is not None


def _draws(n: fx.Node) -> bool:
    name = str(n.target if n.op == "call_method" else getattr(n.target, "__name__", ""))
    return n.op in ("call_method", "call_function") and ("rand" in name or name in _RANDOM)


_IN_PLACE = frozenset(
    {"setitem", "setattr"}
    | {f"i{name}" for name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow")}
    | {f"i{name}" for name in ("and", "or", "xor", "lshift", "rshift")}
)
_RANDOM = frozenset({"bernoulli", "multinomial", "normal", "poisson"})
