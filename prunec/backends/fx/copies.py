"""Copies of modules: what copy.deepcopy does, in less time, and of what it refuses to copy.

Owns the memo that a deepcopy starts with. What a pruned module is made of is in backend.py.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn


def copies(module: nn.Module, known: Mapping[int, Any] = MappingProxyType({})) -> dict[int, Any]:
    """Return a memo for the deepcopy of a module: what it need not, or cannot, copy by itself.

    Tensors with a history (the weight that weight_norm's hook makes) are refused by deepcopy. It takes longest for the
    dozen empty dicts that each module has for hooks, and for looking at each number that a module holds.

    Args:
        known: what stands for others already, by their identities.
    """
    values = [value for sub in module.modules() for value in vars(sub).values()]
    memo: dict[int, Any] = {id(value): type(value)() for value in values if type(value) in _DICTS and not value}
    memo.update({id(value): value.detach().clone() for value in values if _is_computed(value)})
    memo.update(known)
    plain = [sub for sub in module.modules() if sub is not module and _is_plain(type(sub))]
    memo.update({id(sub): type(sub).__new__(type(sub)) for sub in plain})
    for sub in plain:
        state = sub.__getstate__()
        held = {name: value if _is_constant(value) else copy.deepcopy(value, memo) for name, value in state.items()}
        memo[id(sub)].__setstate__(held)
    return memo


_DICTS = (dict, OrderedDict)
_CONSTANTS = (int, float, bool, str, type(None))


def _is_computed(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_leaf


def _is_plain(kind: type[nn.Module]) -> bool:
    """Tell whether copying modules of a kind is copying their attributes, in torch's way."""
    own = ("__deepcopy__", "__copy__", "__getnewargs__", "__getnewargs_ex__", "__slots__")
    return (
        kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is nn.Module.__getstate__
        and not any(hasattr(kind, name) for name in own)
    )


def _is_constant(value: Any) -> bool:
    return type(value) in _CONSTANTS or (type(value) is tuple and all(type(item) in _CONSTANTS for item in value))
