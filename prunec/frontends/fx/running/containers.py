"""The tensors inside what a forward returns: in lists, tuples, dicts, whatever torch flattens, and dataclasses.

Owns the order in which they are listed. Everything that reads a network's outputs (tracing, checks, export)
reads them here, so that outputs agree by their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def leaves(value: Any) -> Iterator[Any]:
    """Yield what a value holds, in order; torch's own flattening takes a dataclass for a leaf."""
    for leaf in pytree.tree_leaves(value):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            for field in fields(leaf):
                yield from leaves(getattr(leaf, field.name))
        else:
            yield leaf


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors that a value holds, in order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
