"""When Python looks for garbage while a network is read or written."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_later() -> Iterator[None]:
    """Put the search for garbage off to the end of a block.

    A graph of thousands of nodes is made of objects that stay. They would set off searches of all that a process holds,
    a third of a second each beside torch and a library of models.
    """
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searches:
            gc.enable()
