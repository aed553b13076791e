"""Running a user's module without leaving a trace on it.

Owns the mode that it runs in. Which inputs it runs on is probes.py's, what is compared prunec.check's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module in eval mode for the length of a block; every submodule gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False  # not eval(): what torch.export made refuses it
        yield
    finally:
        for part, training in modes:
            part.training = training
