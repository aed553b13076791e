"""What a forward switches on for a while, as nodes of the traced graph: no_grad, inference_mode and autocast.

torch.fx records calls on tensors and loses the ``with`` around them: a backbone frozen by ``no_grad`` would train
after pruning. Owns what is switched on while a node is made, and the pairs of nodes that switch it in the graph.
What was on before is put back at the end of a region, for the caller may have switched it himself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.amp import autocast_mode
from torch.autograd import grad_mode

_ASKED = "_prunec_asked"


@dataclass(frozen=True, slots=True)
class Mode:
    """Something that is switched on: its name, and the arguments with which.

    ``no_grad`` and ``inference_mode`` have none; those of ``autocast`` are device, dtype, whether it is on, and
    whether what it casts is cached.
    """

    name: str
    arguments: tuple[Any, ...] = ()


class Regions:
    """Keeps a graph's nodes in the modes in which they were made.

    Args:
        ignored: names of modes that are not kept.
    """

    def __init__(self, ignored: Sequence[str] = ()) -> None:
        self.seen: set[str] = set()
        self._ignored = ignored
        self._casts: list[Mode] = []
        self._open: list[tuple[Mode, fx.Node]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Trace inside of this: gradients are on, and autocast tells when it begins and ends."""
        begin, enter, leave = (getattr(torch.autocast, name) for name in ("__init__", "__enter__", "__exit__"))

        def asking(
            cast: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None
        ) -> None:
            begin(cast, device_type, dtype, enabled, cache_enabled)
            # What a machine without the device makes of it is not what was asked for.
            setattr(cast, _ASKED, (device_type, dtype, enabled, cache_enabled))

        def entering(cast: Any) -> Any:
            own = (cast.device, cast.fast_dtype, cast._enabled, cast._cache_enabled)
            self._casts.append(Mode("autocast", getattr(cast, _ASKED, own)))
            return enter(cast)

        def leaving(cast: Any, *error: Any) -> Any:
            if self._casts:
                self._casts.pop()
            return leave(cast, *error)

        _patch(asking, entering, leaving)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            _patch(begin, enter, leave)

    def catch_up(self, graph: fx.Graph) -> None:
        """Write the nodes that lead from the modes of the last node to those that are on now."""
        now = [mode for mode in self._now() if mode.name not in self._ignored]
        self.seen.update(mode.name for mode in now)
        common = 0
        while common < min(len(now), len(self._open)) and now[common] == self._open[common][0]:
            common += 1
        while len(self._open) > common:
            _close(graph, *self._open.pop())
        for mode in now[common:]:
            self._open.append((mode, _begin(graph, mode)))

    def _now(self) -> list[Mode]:
        if torch.is_inference_mode_enabled():
            return [Mode("inference_mode"), *self._casts]
        return [*self._casts] if torch.is_grad_enabled() else [Mode("no_grad"), *self._casts]


def is_cast(n: fx.Node) -> bool:
    """Tell whether a node begins or ends autocast: tensors without memory know none of it."""
    return n.target in (autocast_mode._enter_autocast, autocast_mode._exit_autocast)


def _patch(begin: Any, enter: Any, leave: Any) -> None:
    torch.autocast.__init__, torch.autocast.__enter__ = begin, enter  # type: ignore[method-assign]
    torch.autocast.__exit__ = leave  # type: ignore[method-assign]


def _begin(graph: fx.Graph, mode: Mode) -> fx.Node:
    """Switch a mode on; return what its end needs."""
    if mode.name == "autocast":
        return graph.call_function(autocast_mode._enter_autocast, mode.arguments)
    if mode.name == "inference_mode":
        return graph.call_function(grad_mode._enter_inference_mode, (True,))
    before = graph.call_function(torch.is_grad_enabled)
    graph.call_function(torch._C._set_grad_enabled, (False,))
    return before


def _close(graph: fx.Graph, mode: Mode, begun: fx.Node) -> None:
    if mode.name == "autocast":
        graph.call_function(autocast_mode._exit_autocast, (begun,))
    elif mode.name == "inference_mode":
        graph.call_function(grad_mode._exit_inference_mode, (begun,))
    else:
        graph.call_function(torch._C._set_grad_enabled, (begun,))
