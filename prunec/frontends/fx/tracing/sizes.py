"""What a traced forward asks of sizes, answered as the example's sizes are, and what it asks of values.

Owns the run on shapes beside a symbolic trace. ``if height % 2``, ``range(height // 7)``, ``max(padding, 0)`` and
``for part in x`` need a number where torch.fx has a proxy. What was traced so far is run on the meta device, each node
once, and the number is read off. A guard in the graph says so at sizes that decide otherwise. A question about values
has no such answer: ``Answers`` are tried one after another (values.py). Read next: tracer.py, whose tracer asks.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from prunec.frontends.fx.running.meta import MetaMode
from prunec.frontends.fx.running.places import place
from prunec.frontends.fx.tracing.remembered import Memory
from prunec.frontends.fx.tracing.switches import is_switch, without_casts

NOTES = "prunec_notes"
"""Key of a GraphModule's ``meta``: what a person should know of how it was traced."""


class AsksForValues(fx.proxy.TraceError):
    """A forward wants to know the content of a tensor."""


class Answers:
    """What one trace is told where it asks for values.

    Args:
        decisions: the first answers to yes-or-no questions; later ones are answered with no.
        number: the answer to all questions for a number.

    Attributes:
        decided: the answers that were given to yes-or-no questions.
        places: where in the user's code values were asked for.
        told_numbers: whether there were questions for a number.
    """

    def __init__(self, decisions: Sequence[bool] = (), number: float = 0.5) -> None:
        self.decided: list[bool] = []
        self.places: dict[str, None] = {}
        self.told_numbers = False
        self._decisions = decisions
        self._number = number
        self._left = 200

    def decision(self) -> bool:
        self._ask()
        at = len(self.decided)
        self.decided.append(self._decisions[at] if at < len(self._decisions) else False)
        return self.decided[-1]

    def number(self) -> float:
        self._ask()
        self.told_numbers = True
        return self._number

    def again(self) -> Answers:
        """Return the same answers, for another trace that gives the questions to this one."""
        twin = Answers(self._decisions, self._number)
        twin.decided, twin.places = self.decided, self.places
        self.decided.clear()
        return twin

    def _ask(self) -> None:
        self.places[place()] = None
        self._left -= 1
        if self._left < 0:  # a loop until something is small: no answer ends it
            raise AsksForValues("the forward decides by values of tensors")


class Sizes:
    """The sizes of one example, for one trace.

    Args:
        module: what is traced.
        inputs: the example, by position.
        answers: to questions about values; None refuses them.
        memory: of sizes that the forward compares with: they are taken for others than the example's; None asks it.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[Any], answers: Answers | None = None, memory: Memory | None = None
    ) -> None:
        self.answers = answers
        self.memory = memory
        self.asking = False
        self.places: dict[str, None] = {}
        self._module = module
        self._mode = MetaMode()
        self._inputs = iter(inputs)
        self._known: dict[fx.Node, Any] = {}
        self._last: fx.Node | None = None

    def number(self, proxy: fx.Proxy, *, whole: bool = False) -> bool | int | float:
        """Return what a proxy of a number stands for, and guard it; ``whole``: an integer is needed.

        Raises:
            AsksForValues: it depends on values.
        """
        value = self._value(proxy.node)
        if isinstance(value, bool | int | float):
            self._guard(proxy, value)
            return value
        if (
            self.answers is None or whole
        ):  # a count is gone through: what is large would not end, what is small says little
            raise AsksForValues("the forward decides by values of tensors")
        return self.answers.number()

    def decision(self, proxy: fx.Proxy) -> bool:
        """Return whether a proxy stands for something that is true, and guard it.

        Raises:
            AsksForValues: it depends on values.
        """
        value = self._value(proxy.node)
        if isinstance(value, bool) and self.memory is not None:
            return self._by_memory(proxy, value, self.memory)
        if self.answers is None or isinstance(value, bool | int | float):
            return bool(self.number(proxy))
        return self.answers.decision()

    def _by_memory(self, proxy: fx.Proxy, value: bool, memory: Memory) -> bool:
        differs = proxy.node.target is operator.ne
        if memory.again:
            memory.look(place(), proxy.node, equal=value is not differs)
        elif not memory.holds(proxy.node):
            self._guard(proxy, value)
        elif value is differs:
            memory.note(place(), self._guard(proxy, value))
        else:
            memory.note(place(), [])
            memory.forgets, value = True, differs
        return value

    def length(self, proxy: fx.Proxy) -> int:
        """Return how many parts a tuple or a tensor has.

        Raises:
            torch.fx.proxy.TraceError: that depends on values.
        """
        value = self._value(proxy.node)
        if isinstance(value, Tensor) and value.dim():
            self._guard(proxy.size(0), len(value))
        elif not isinstance(value, tuple | list):
            raise fx.proxy.TraceError("the forward goes over something that has no parts")
        elif _splits_by_size(proxy.node):
            count = proxy.tracer.create_proxy("call_function", len, (proxy,), {})
            self._guard(count, len(value))
        return len(value)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a person should know: empty where nothing was asked."""
        if not self.places:
            return ()
        first = next(iter(self.places))
        more = f" and {len(self.places) - 1} more places" if len(self.places) > 1 else ""
        where = f"the forward decides by sizes ({first}{more})"
        return (f"{where}: the traced network takes sizes that decide as the example's do, and refuses others",)

    def _guard(self, proxy: fx.Proxy, value: float) -> list[fx.Node]:
        where = place()
        self.places[where] = None
        holds = proxy.tracer.create_proxy("call_function", operator.eq, (proxy, value), {})
        message = f"the network was traced for other sizes: here {value} was computed from them ({where})"
        asserted = proxy.tracer.create_proxy("call_function", torch._assert, (holds, message), {})
        return [asserted.node, holds.node]

    def _value(self, node: fx.Node) -> Any:
        """Run what was traced since the last question, up to a node, and return its value; None where it has none."""
        at = next(iter(node.graph.nodes)) if self._last is None else self._last.next
        self.asking = True
        try:
            with self._mode, torch.no_grad(), without_casts():
                while node not in self._known and at.op != "root":
                    self._known[at] = self._run(at)
                    self._last, at = at, at.next
        finally:
            self.asking = False
        return self._known.get(node)

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            given = next(self._inputs, None)
            return pytree.tree_map_only(Tensor, self._mode.twin, given)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._module)
        if is_switch(node):
            return None  # the trace itself is in that mode
        args = map_arg(node.args, self._known.get)
        kwargs = map_arg(node.kwargs, self._known.get)
        try:
            if node.op == "call_module":
                return self._module.get_submodule(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]  # call_function
        except Exception:  # noqa: BLE001  # it needs values: what depends on it has none either
            return None


def _splits_by_size(node: fx.Node) -> bool:
    """Tell whether into how many parts a call splits depends on a size that is no number of channels."""
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))
    at = {"unbind": 1, "split": 2}.get(name)
    return at is not None and node.kwargs.get("dim", node.args[at] if at < len(node.args) else 0) not in (1, -3)
