"""What a forward switches on for a while, as nodes of the traced graph: no_grad, inference_mode and autocast.

torch.fx records calls on tensors and loses the ``with`` around them: a backbone frozen by ``no_grad`` would train
after pruning. Owns what is switched on while a node is made; the nodes that switch it in the graph are in switches.py.
What was on before is put back at the end of a region, for the caller may have switched it himself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from prunec.frontends.fx.running.checkpoints import followed
from prunec.frontends.fx.tracing.switches import begin, end

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

    Attributes:
        seen: names of the modes that were on.
        checkpoints: places in the user's code that checkpoint activations; what they run is followed.
        functions: names of the ``autograd.Function`` whose forward was followed.
    """

    def __init__(self, ignored: Sequence[str] = ()) -> None:
        self.seen: set[str] = set()
        self.checkpoints: dict[str, None] = {}
        self.functions: dict[str, None] = {}
        self._ignored = ignored
        self._casts: list[Mode] = []
        self._open: list[tuple[Mode, fx.Node]] = []
        self._outside: list[bool] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Trace inside of this: gradients are on; autocast and functions with gradients of their own tell of it."""
        started, enter, leave = (getattr(torch.autocast, name) for name in ("__init__", "__enter__", "__exit__"))
        apply = torch.autograd.Function.__dict__["apply"]

        def asking(
            cast: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None
        ) -> None:
            started(cast, device_type, dtype, enabled, cache_enabled)
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

        def applying(function: Any, *args: Any, **kwargs: Any) -> Any:
            self.functions[function.__name__] = None
            self._outside.append(torch.is_grad_enabled())
            try:
                return apply.__func__(function, *args, **kwargs)
            finally:
                self._outside.pop()

        _patch(asking, entering, leaving, classmethod(applying))
        try:
            with torch.inference_mode(False), torch.enable_grad(), followed(self.checkpoints):
                yield
        finally:
            _patch(started, enter, leave, apply)

    def catch_up(self, graph: fx.Graph) -> None:
        """Write the nodes that lead from the modes of the last node to those that are on now."""
        now = [mode for mode in self._now() if mode.name not in self._ignored]
        self.seen.update(mode.name for mode in now)
        common = 0
        while common < min(len(now), len(self._open)) and now[common] == self._open[common][0]:
            common += 1
        while len(self._open) > common:
            end(graph, self._open.pop()[1])
        for mode in now[common:]:
            self._open.append((mode, begin(graph, mode.name, mode.arguments)))

    def _now(self) -> list[Mode]:
        if torch.is_inference_mode_enabled():
            return [Mode("inference_mode"), *self._casts]
        # torch switches gradients off for a Function's forward, whose gradient the user writes; what is traced has one.
        has_gradient = self._outside[0] if self._outside else torch.is_grad_enabled()
        return [*self._casts] if has_gradient else [Mode("no_grad"), *self._casts]


def _patch(started: Any, enter: Any, leave: Any, apply: Any) -> None:
    torch.autocast.__init__, torch.autocast.__enter__ = started, enter  # type: ignore[method-assign]
    torch.autocast.__exit__ = leave  # type: ignore[method-assign]
    torch.autograd.Function.apply = apply  # type: ignore[method-assign]
