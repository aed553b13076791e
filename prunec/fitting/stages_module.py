"""A traced module, run one stretch at a time with torch; prunec/fitting/stages.py says why.

Does for modules what stages_onnx.py does for files. Activations stay in memory, on the device of the module's
parameters. In-place calls would overwrite kept values, so they are replaced by ordinary ones in a copy; a network that
writes into views is run in the order of its graph, each node once, so that nothing is read too late.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from prunec.backends.fx.copies import copies
from prunec.backends.fx.origin import ORIGIN, origin_of
from prunec.data.observing import arguments
from prunec.fitting.refit import Place
from prunec.frontends.fx.running.containers import tensors_in
from prunec.frontends.fx.running.untouched import Untouched
from prunec.frontends.fx.traced import Ref, Traced
from prunec.ir.arrays import Array
from prunec.runtime.modules import evaluating
from prunec.runtime.probes import Feed

_PLAIN: Mapping[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

Tensors = Callable[[Place, Array, Array | None], Mapping[str, Array]]


class ModuleStages:
    """Implements ``prunec.fitting.stages.Stages``.

    Args:
        traced: the module as it was traced: it knows which node makes which value.
        module: that module, or its pruned form; a copy is run.
        feeds: all data, batch by batch.
    """

    def __init__(self, traced: Traced, module: fx.GraphModule, feeds: Sequence[Feed]) -> None:
        self._module = copy.deepcopy(module, copies(module)).eval()
        for was, n in zip(module.graph.nodes, self._module.graph.nodes, strict=True):
            n.meta[ORIGIN] = origin_of(was)
        self.in_order = _without_in_place(self._module)
        self._nodes = [n for n in self._module.graph.nodes if n.op != "output"]
        self._at = {n: number for number, n in enumerate(self._nodes)}
        names: dict[str, str] = {}
        for key, ref in traced.results.items():
            if isinstance(ref, Ref):
                names.setdefault(ref.name, key)
        by_origin = {origin_of(n): n for n in self._nodes}
        self._node_of = {name: by_origin[key] for name, key in names.items() if key in by_origin}
        self._done: set[fx.Node] = set()
        self._wanted: set[fx.Node] = set()
        self._held = frozenset[fx.Node]()
        self._expected = Counter[fx.Node]()
        self.num_batches = len(feeds)
        self._kept: list[dict[fx.Node, Any]] = [{} for _ in feeds]
        self._given = [arguments(traced, feed) for feed in feeds]

    @property
    def module(self) -> fx.GraphModule:
        return self._module

    def has(self, name: str) -> bool:
        return name in self._node_of

    def node(self, name: str) -> fx.Node:
        """Return the node that makes a value."""
        found: fx.Node = self._node_of[name]
        return found

    def keep(self, names: Iterable[str]) -> None:
        self._held |= frozenset(self._node_of[name] for name in names)
        self._wanted |= self._held

    def expect(self, names: Iterable[str]) -> None:
        self._expected.update(self._node_of[name] for name in names if self.has(name))

    def advance(self, names: Iterable[str]) -> None:
        wanted = [self._node_of[name] for name in names]
        self._wanted.update(wanted)
        ahead = self._needed(wanted)
        with torch.no_grad():
            for kept, given in zip(self._kept, self._given, strict=True):
                self._run(ahead, kept, given)
        self._done.update(ahead)
        for kept in self._kept:
            for n in [n for n in kept if not self._is_kept(n)]:
                del kept[n]

    def value(self, name: str, batch: int) -> Array:
        return _array(self._kept[batch][self._node_of[name]])

    def drop(self, names: Iterable[str]) -> None:
        for n in {self._node_of[name] for name in names} - self._held:
            self._wanted.discard(n)
            self._expected -= Counter([n])
            if not self._is_kept(n):
                for kept in self._kept:
                    kept.pop(n, None)

    def rest(
        self, names: Iterable[str], tensors: Mapping[str, Array], replaced: Mapping[str, Array] = MappingProxyType({})
    ) -> Iterator[list[Array]]:
        wanted = [self._node_of[name] for name in names]
        own = {name: _content(self._module, name) for name in tensors}
        self.set_tensors(tensors)
        try:
            for kept, given in zip(self._kept, self._given, strict=True):
                env = dict(kept)
                for name, array in replaced.items():
                    was = kept[self._node_of[name]]
                    env[self._node_of[name]] = torch.from_numpy(np.array(array)).to(was).expand_as(was)
                with torch.no_grad():
                    interpreter = fx.Interpreter(self._module, garbage_collect_values=False)
                    interpreter.env = env
                    values = dict(zip((n for n in self._nodes if n.op == "placeholder"), given, strict=False))
                    for n in self._needed(wanted):
                        env[n] = values[n] if n in values else interpreter.run_node(n)
                yield [_array(env[n]) for n in wanted]
        finally:
            self.set_tensors(own)

    def set_tensors(self, tensors: Mapping[str, Array]) -> None:
        for name, array in tensors.items():
            tensor = _tensor(self._module, name)
            assert tensor is not None, "only names of tensors are given"
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(np.array(array)).reshape(tensor.shape))

    def _is_kept(self, n: fx.Node) -> bool:
        return (
            n in self._wanted
            or self._expected[n] > 0
            or any(user not in self._done and user.op != "output" for user in n.users)
        )

    def _needed(self, wanted: Sequence[fx.Node]) -> list[fx.Node]:
        if self.in_order:
            last = max((self._at[n] for n in wanted if n not in self._done), default=-1)
            return [n for n in self._nodes[: last + 1] if n not in self._done]
        pending, found = [n for n in wanted if n not in self._done], set[fx.Node]()
        while pending:
            n = pending.pop()
            if n not in found:
                found.add(n)
                pending += [source for source in n.all_input_nodes if source not in self._done]
        return sorted(found, key=self._at.__getitem__)

    def _run(self, ahead: Sequence[fx.Node], kept: dict[fx.Node, Any], given: Sequence[Any]) -> None:
        interpreter = fx.Interpreter(self._module, garbage_collect_values=False)
        interpreter.env = kept
        placeholders = [n for n in self._nodes if n.op == "placeholder"]
        values = dict(zip(placeholders, given, strict=False))
        chosen = set(ahead)
        for n in ahead:
            kept[n] = values[n] if n in values else interpreter.run_node(n)
            for source in n.all_input_nodes:
                if source in kept and source not in self._wanted:
                    users = (user for user in source.users if user.op != "output" and user not in self._done)
                    if all(user in chosen and user in kept for user in users):
                        del kept[source]


def _array(tensor: torch.Tensor) -> Array:
    """Return a tensor's content, half precision as float32: numpy has no bfloat16."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    found: Array = (tensor.float() if half else tensor).detach().cpu().numpy()
    return found


def _tensor(module: nn.Module, name: str) -> torch.Tensor | None:
    """Return a parameter or buffer by its name; None if there is none."""
    owner, _, leaf = name.rpartition(".")
    try:
        found = getattr(module.get_submodule(owner), leaf, None)
    except AttributeError:
        return None
    return found if isinstance(found, torch.Tensor) else None


def _content(module: nn.Module, name: str) -> Array:
    """Return a copy of a parameter's or buffer's content."""
    tensor = _tensor(module, name)
    assert tensor is not None, "only names of tensors are given"
    return _array(tensor).copy()


def _without_in_place(module: fx.GraphModule) -> bool:
    """Replace in-place calls by ordinary ones; tell whether some are left, so that the order of the graph matters."""
    for sub in module.modules():
        if getattr(sub, "inplace", False) is True:
            sub.inplace = False  # type: ignore[assignment]  # torch's modules say so by an attribute
    left = False
    for n in module.graph.nodes:
        if n.kwargs.get("inplace"):
            n.kwargs = {**n.kwargs, "inplace": False}
        if n.op == "call_function" and n.target in _PLAIN:
            n.target = _PLAIN[n.target]
        if n.target is operator.setitem or _is_in_place(n):
            left = not _made_plain(n) or left
    return left


def _is_in_place(n: fx.Node) -> bool:
    name = str(n.target) if n.op == "call_method" else getattr(n.target, "__name__", "")
    in_place = name.split(".")[0].endswith("_") and not name.endswith("__")
    return in_place and n.op in ("call_method", "call_function")


def _made_plain(n: fx.Node) -> bool:
    """Replace an in-place call by the ordinary one if nobody can tell: what it writes to is new, and read by it alone.

    Returns:
        Whether that was done.
    """
    written = n.args[0] if n.args else None
    if not isinstance(written, fx.Node) or n.kwargs or len(written.users) > 1 or not _is_new(written):
        return False
    if n.op == "call_method" and callable(getattr(torch.Tensor, str(n.target)[:-1], None)):
        n.target = str(n.target)[:-1]
        return True
    plain = _PLAIN_FUNCTIONS.get(getattr(n.target, "__name__", ""))
    if n.op == "call_function" and plain is not None:
        n.target = plain
        return True
    return False


_PLAIN_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    f"{f.__name__}_": f for f in (F.relu, F.leaky_relu, F.elu, F.celu, F.selu, F.hardtanh, torch.sigmoid, torch.tanh)
}
_NEW = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.Linear, nn.GroupNorm, nn.LayerNorm)
"""Layers whose result is no view, whatever they are given."""
_NEW_METHODS = ("add", "sub", "mul", "div", "relu", "sigmoid", "tanh")
_NEW_FUNCTIONS = (operator.add, operator.sub, operator.mul, operator.truediv, torch.cat, torch.add, torch.mul, F.conv2d)


def _is_new(n: fx.Node) -> bool:
    """Tell whether a node's result shares its memory with nothing."""
    owner = n.graph.owning_module
    if n.op == "call_module" and owner is not None:
        return isinstance(owner.get_submodule(str(n.target)), _NEW)
    return n.target in {"call_function": _NEW_FUNCTIONS, "call_method": _NEW_METHODS}.get(n.op, ())


def runner(traced: Traced, module: nn.Module) -> Callable[[Feed], list[Array]]:
    """Return a function from a feed to the module's outputs, in eval mode and without gradients.

    Each run begins with what the module holds now: it has the user's own tensors, and may write into them.
    """
    kept = Untouched(module)

    def run(feed: Feed) -> list[Array]:
        with kept.block(), evaluating(module), torch.no_grad():
            outputs = module(*arguments(traced, feed))
        return [_array(leaf) for leaf in tensors_in(outputs)]

    return run


@dataclass(frozen=True, slots=True, eq=False)
class OpenedModule:
    """Implements ``prunec.fitting.reconstruct.Opened`` for modules.

    Args:
        traced: the module.
        feeds: the data.
    """

    traced: Traced
    feeds: Sequence[Feed]

    def sees(self, value: str) -> bool:
        return any(isinstance(ref, Ref) and ref.name == value for ref in self.traced.results.values())

    def original(self) -> ModuleStages:
        return ModuleStages(self.traced, self.traced.module, self.feeds)

    def over(self, feeds: Sequence[Feed]) -> OpenedModule:
        return replace(self, feeds=feeds)

    def changeable(self) -> tuple[ModuleStages, Tensors]:
        return self.pruned(self.traced.module)

    def pruned(self, result: Any) -> tuple[ModuleStages, Tensors]:
        now = ModuleStages(self.traced, result, self.feeds)

        def tensors(place: Place, weight: Array, vector: Array | None) -> Mapping[str, Array]:
            bias = place.target
            if vector is not None and not bias:
                bias = self._made_bias(now, place)
            found = {place.operand.weight: weight, **({bias: vector} if vector is not None and bias else {})}
            known = {name: _tensor(now.module, name) for name in found}
            fits = all(t is not None and t.numel() == found[name].size for name, t in known.items())
            return found if fits and (vector is None or bias) else {}

        return now, tensors

    def _made_bias(self, now: ModuleStages, place: Place) -> str:
        """Return the name of the bias that a backend gave a contraction."""
        by_origin = {origin_of(n): n for n in now.module.graph.nodes}
        n = by_origin.get(place.node.origin)
        if n is None:
            return ""
        return f"{n.target}.bias" if n.op == "call_module" else f"{n.name}_folded_bias"
