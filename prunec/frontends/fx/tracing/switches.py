"""Nodes of a graph that switch a mode (no_grad, inference_mode, autocast) on and off, and the code that they become.

Owns what such nodes are, and that an error between them leaves the caller's mode as it was: a GraphModule's code is
written with ``try`` and ``finally``, as a ``with`` does it. Which modes a forward switches is in regions.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.amp import autocast_mode
from torch.autograd import grad_mode

_GRAD = torch._C._set_grad_enabled
_CASTS = (autocast_mode._enter_autocast, autocast_mode._exit_autocast)
_INFERENCE = (grad_mode._enter_inference_mode, grad_mode._exit_inference_mode)

_LINE = re.compile(r"(?P<result>\w+) = [\w.]*?(?P<call>_(?:enter|exit)_\w+|_?(?:set|is)_grad_enabled)\((?P<given>\w*)")
_INDENT = "    "


def begin(graph: fx.Graph, name: str, arguments: Sequence[Any] = ()) -> fx.Node:
    """Write what switches a mode on; return what its end needs.

    Args:
        graph: written where it is inserting.
        name: "no_grad", "enable_grad", "inference_mode" or "autocast".
        arguments: of autocast, see ``regions.Mode``.
    """
    if name == "autocast":
        return graph.call_function(_CASTS[0], tuple(arguments))
    if name == "inference_mode":
        return graph.call_function(_INFERENCE[0], (True,))
    before = graph.call_function(torch.is_grad_enabled)
    graph.call_function(_GRAD, (name == "enable_grad",))
    return before


def end(graph: fx.Graph, begun: fx.Node) -> None:
    """Write what puts the mode back that ``begin`` switched."""
    ends: dict[Any, Any] = {_CASTS[0]: _CASTS[1], _INFERENCE[0]: _INFERENCE[1], torch.is_grad_enabled: _GRAD}
    graph.call_function(ends[begun.target], (begun,))


def is_cast(n: fx.Node) -> bool:
    """Tell whether a node begins or ends autocast: tensors without memory know none of it."""
    return n.target in _CASTS


def is_switch(n: fx.Node) -> bool:
    """Tell whether a node switches a mode: no tensor comes of it."""
    return is_cast(n) or n.target in _INFERENCE or n.target in (_GRAD, torch.is_grad_enabled)


@contextmanager
def without_casts() -> Iterator[None]:
    """Switch autocast off, as code and not as a region of the network: sizes do not depend on it."""
    before = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
    try:
        for device in before:
            torch.set_autocast_enabled(device, False)
        yield
    finally:
        for device, on in before.items():
            torch.set_autocast_enabled(device, on)


def write_with_finally(graph: fx.Graph) -> None:
    """Have a graph's code put every mode back that it switches, whatever is raised in between."""
    graph.on_generate_code(lambda before: before or _with_finally)


def _with_finally(body: list[str]) -> list[str]:
    """Return a forward's code with each region in a ``try``; as it is where regions do not nest."""
    lines = "".join(body).splitlines(keepends=True)
    ends = _regions(lines)
    if not ends:
        return body
    closing = {last: first for first, last in ends.items()}
    written: list[str] = []
    depth = 0
    for place, line in enumerate(lines):
        if place in closing:
            written += [_INDENT * depth + "pass\n", _INDENT * (depth - 1) + "finally:\n"]
        written.append(_INDENT * depth + line)
        depth -= place in closing
        if place in ends:
            written.append(_INDENT * depth + "try:\n")
            depth += 1
    return written


def _regions(lines: Sequence[str]) -> dict[int, int]:
    """Return {line that switches a mode on: line that puts it back}; nothing where one is not put back in turn."""
    found: dict[int, int] = {}
    open_regions: list[tuple[str, int]] = []
    asked = ""
    for place, line in enumerate(lines):
        called = _LINE.match(line)
        if called is None:
            continue
        result, call, given = called["result"], called["call"], called["given"]
        if call.endswith("is_grad_enabled"):
            asked = result
        elif call.startswith("_enter_"):
            open_regions.append((result, place))
        elif given in ("True", "False"):
            open_regions.append((asked, place))
        elif not open_regions or open_regions[-1][0] != given:
            return {}
        else:
            found[open_regions.pop()[1]] = place
    return {} if open_regions else found
