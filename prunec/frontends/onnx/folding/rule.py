"""What a rule of folding is, how large folded contents may become, and arrays of items."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prunec.frontends.onnx.sizes import symbols as sym
from prunec.frontends.onnx.sizes.view import View
from prunec.ir.arrays import Array

MAX_NEW_ELEMENTS = 2**24
"""Above this nothing is computed; views of what the model holds are free."""

MAX_REFERENCE_ELEMENTS = 2**16

MAX_UNIFORM_ELEMENTS = 2**28
"""A tensor of one repeated value takes no memory, but every pass walks its axes."""

Fold = Callable[[View, Sequence[Array]], Array | Sequence[Array] | None]
"""(node, known contents of every input; absent ones are empty arrays) -> contents of the outputs."""


def objects(items: Sequence[sym.Item]) -> Array:
    """Return the items as an object array of one axis."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array
