"""Activation checkpointing inside a forward (torch.utils.checkpoint): followed as plain calls, and told.

It changes what a step of training keeps in memory and nothing else, so a traced network goes without. Owns what stands
in for torch's two ways to do it while a forward is read: the older one (``use_reentrant=True``) runs under no_grad,
which would be taken for a part that must not train.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils import checkpoint

from prunec.frontends.fx.running.places import place


@contextmanager
def followed(places: dict[str, None]) -> Iterator[None]:
    """Run what is checkpointed at once for the time of a block, and note where in the user's code that is."""
    before = (checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator)

    class AtOnce:
        """Stands for the function of autograd that runs a part without gradients, and again with them."""

        @staticmethod
        def apply(function: Any, _preserve: bool, *args: Any) -> Any:
            places[place()] = None
            return function(*args)

    def around(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        places[place()] = None
        yield

    _put(AtOnce, around)
    try:
        yield
    finally:
        _put(*before)


def _put(reentrant: Any, around: Any) -> None:
    checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]
    checkpoint._checkpoint_without_reentrant_generator = around


def is_asked_for(module: nn.Module) -> bool:
    """Tell whether a module whose code can checkpoint may do so: no where it has switches for it, and all are off."""
    switches = [
        value
        for sub in module.modules()
        for name, value in vars(sub).items()
        if "checkpoint" in name and isinstance(value, int)
    ]
    return any(switches) or not switches


def notes_of(places: Sequence[str]) -> tuple[str, ...]:
    """Return what a person should know; empty where nothing was checkpointed."""
    if not places:
        return ()
    more = f" and {len(places) - 1} more places" if len(places) > 1 else ""
    where = f"{places[0]}{more}"
    instead = "prunec.apply_plan(module, plan, keep_class=True) gives a pruned copy of your own class, which does"
    return (f"checkpointing inside its forward ({where}) is not kept, training takes more memory: {instead}",)
