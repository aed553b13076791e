"""What a traced forward asks of sizes, answered as the example's sizes are.

Owns the run on shapes beside a symbolic trace. ``if height % 2``, ``range(height // 7)``, ``max(padding, 0)`` and
``for part in x`` need a number where torch.fx has a proxy. What was traced so far is run on the meta device, each node
once, and the number is read off. A guard in the graph says so at sizes that decide otherwise; a question about values
stays unanswered. Read next: functional.py, whose tracer asks.
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
from prunec.frontends.fx.tracing.places import place
from prunec.frontends.fx.tracing.switches import is_switch, without_casts

NOTES = "prunec_notes"
"""Key of a GraphModule's ``meta``: what a person should know of how it was traced."""


class Sizes:
    """The sizes of one example, for one trace.

    Args:
        module: what is traced.
        inputs: the example, by position.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        self.asking = False
        self.places: dict[str, None] = {}
        self._module = module
        self._mode = MetaMode()
        self._inputs = iter(inputs)
        self._known: dict[fx.Node, Any] = {}
        self._last: fx.Node | None = None

    def number(self, proxy: fx.Proxy) -> bool | int | float:
        """Return what a proxy of a number stands for, and guard it.

        Raises:
            torch.fx.proxy.TraceError: it depends on values.
        """
        value = self._value(proxy.node)
        if not isinstance(value, bool | int | float):
            raise fx.proxy.TraceError("the forward decides by values of tensors")
        self._guard(proxy, value)
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

    def _guard(self, proxy: fx.Proxy, value: float) -> None:
        where = place()
        self.places[where] = None
        holds = proxy.tracer.create_proxy("call_function", operator.eq, (proxy, value), {})
        message = f"the network was traced for other sizes: here {value} was computed from them ({where})"
        proxy.tracer.create_proxy("call_function", torch._assert, (holds, message), {})

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
