"""Forwards that look at values and are the same whatever they see: a mean that is logged, a check for NaN.

A symbolic trace has no values to look at. Owns the search: every answer to questions of yes or no is tried, and some
to questions for a number. Where all traces that come to an end are one graph, that is the network; what a forward
raises in between is its own check, which the traced network does not make. Read next: sizes.py, which answers.
"""

from __future__ import annotations

import dis
import math
import operator
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from prunec.frontends.fx.running.reachable import LIBRARIES
from prunec.frontends.fx.tracing.remembered import read_at
from prunec.frontends.fx.tracing.sizes import NOTES, Answers, AsksForValues
from prunec.frontends.fx.tracing.switches import is_switch

_NUMBERS = (0.5, math.nan, 1e30, -1e30, 0.0, 1.5, -0.3, 20.0)
"""What questions for a number are answered with."""

_MOST_TRACES, _MOST_SECONDS = 64, 15.0
"""How long to look, in traces and in processor time."""

_READS = frozenset({"item", "tolist", "numpy", "__float__", "__int__", "__bool__"})
"""Methods of a tensor that return its values."""


def whatever_it_sees(trace: Callable[[Answers], fx.GraphModule]) -> fx.GraphModule:
    """Return the one graph that all answers lead to.

    Raises:
        AsksForValues: they lead to several, or there are too many questions.
        Exception: the trace's own.
    """
    found: fx.GraphModule | None = None
    places: dict[str, None] = {}
    failure: Exception | None = None
    traces, end = 0, time.thread_time() + _MOST_SECONDS
    for number in _NUMBERS:
        told_numbers = False
        left: list[tuple[bool, ...]] = [()]
        while left:
            decisions, answers = left[-1], Answers(left.pop(), number)
            traces += 1
            made = None
            try:
                made = trace(answers)
            except Exception as error:
                if not _is_a_check(error):
                    raise
                failure = error
            told_numbers |= answers.told_numbers
            places |= answers.places
            left += [(*answers.decided[:at], True) for at in range(len(decisions), len(answers.decided))]
            too_many = traces + len(left) > _MOST_TRACES or time.thread_time() > end
            if too_many or (found is not None and made is not None and not _same(found, made)):
                raise AsksForValues(f"the forward decides by values of tensors ({next(iter(places))})")
            found = found or made
        if not told_numbers:
            break
    if found is None:
        assert failure is not None
        raise failure
    note = f"the forward looks at values ({', '.join(list(places)[:3])}), which the traced network does not: they are"
    found.meta[NOTES] = (*found.meta.get(NOTES, ()), f"{note} logged or checked, and change nothing that it computes")
    return found


def drop_unread(graph: fx.Graph) -> None:
    """Take out of a graph what a forward read off tensors and did not compute with: shapes alone have no values."""
    needed = _needed(graph)
    read: set[fx.Node] = set()
    for n in graph.nodes:
        if (n.op == "call_method" and n.target in _READS) or not read.isdisjoint(n.all_input_nodes):
            read.add(n)
    for n in reversed(list(graph.nodes)):
        if n in read and n not in needed:
            graph.erase_node(n)


def _same(one: fx.GraphModule, other: fx.GraphModule) -> bool:
    return _written(one) == _written(other)


def _written(module: fx.GraphModule) -> list[Any]:
    """Return a graph as what can be compared: without names of nodes, and without what nobody reads."""
    needed = _needed(module.graph)
    numbers: dict[fx.Node, str] = {}
    lines = []
    for n in module.graph.nodes:
        if n not in needed:
            continue
        numbers[n] = f"%{len(numbers)}"
        lines.append(repr((n.op, read_at(n, module), map_arg(n.args, numbers.get), map_arg(n.kwargs, numbers.get))))
    return lines


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that an output comes of, or that do something else than computing a value."""
    needed: set[fx.Node] = set()
    for n in reversed(list(graph.nodes)):
        if n in needed or _acts(n):
            needed.add(n)
            needed.update(n.all_input_nodes)
    return needed


def _acts(n: fx.Node) -> bool:
    if n.kwargs.get("out") is not None:
        return True
    if n.op == "call_function":
        name = str(getattr(n.target, "__name__", ""))
        in_place = n.target is setattr or name == "setitem" or (hasattr(operator, f"__{name}__") and name[0] == "i")
        return is_switch(n) or in_place or n.target is torch._assert or name.endswith("_")
    if n.op == "call_method":
        return str(n.target).endswith("_") and n.target not in _READS
    return n.op in ("placeholder", "output", "call_module")


def _is_a_check(error: BaseException) -> bool:
    """Tell whether somebody's own code raised an error, by a statement that does only that."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or isinstance(error, fx.proxy.TraceError):
        return False
    frame = trace.tb_frame
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] in LIBRARIES:
        return False
    at = {instruction.offset: instruction.opname for instruction in dis.get_instructions(frame.f_code)}
    return at.get(trace.tb_lasti) in ("RAISE_VARARGS", "RERAISE")
