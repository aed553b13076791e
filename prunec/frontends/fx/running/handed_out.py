"""Tensor memory that leaves torch (numpy, dlpack, raw addresses): later writes to it cannot be seen.

Owns the watch on who asks for it while the user's network runs. What is done about it is untouched.py's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ALWAYS = ("numpy", "__array__", "__dlpack__")
_FOR_USERS = ("data_ptr", "untyped_storage", "storage")
"""torch's own code asks for these all the time, and tells of what it writes."""


@contextmanager
def watched(hand_out: Callable[[Tensor], None]) -> Iterator[None]:
    """Call ``hand_out`` with each tensor whose memory is about to be given away, for the time of a block."""
    own = {name: vars(Tensor).get(name) for name in (*_ALWAYS, *_FOR_USERS)}
    for name in own:
        setattr(Tensor, name, _asking(getattr(Tensor, name), hand_out, always=name in _ALWAYS))
    try:
        yield
    finally:
        for name, before in own.items():
            if before is None:
                delattr(Tensor, name)  # it is the base class's
            else:
                setattr(Tensor, name, before)


def _asking(method: Any, hand_out: Callable[[Tensor], None], *, always: bool) -> Any:
    def ask(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if always or _is_users(sys._getframe(1).f_globals):
            if not always and tensor.device.type == "meta":
                raise RuntimeError("its forward asks where a tensor lies in memory, and a run on shapes has none")
            hand_out(tensor)
        return method(tensor, *args, **kwargs)

    return ask


def _is_users(namespace: dict[str, Any]) -> bool:
    return str(namespace.get("__name__", "")).partition(".")[0] not in ("torch", "prunec")


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """Return a tensor's storage, asked for past ``watched``."""
    return _UNTYPED_STORAGE(tensor)


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor's content as a read-only array of the same memory, asked for past ``watched``."""
    # A mode around the call would call the method of that name, which may be watched.
    with torch._C.DisableTorchFunction():
        array = _NUMPY(tensor).view()
    array.flags.writeable = False
    return array


_UNTYPED_STORAGE: Callable[[Tensor], torch.UntypedStorage] = Tensor.untyped_storage
_NUMPY: Callable[[Tensor], np.ndarray[Any, Any]] = Tensor.numpy
