"""What the cases are written with: how wide they are, which channels are silent, ops without more ado."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx_models.nets import Net

SILENT = (1, 2, 5, 6)


CHANNELS = 8


Build = Callable[[Net, str], str]


NEW_DOMAIN = "com.microsoft"


def elementwise(kind: str, **attrs: Any) -> Build:
    return lambda net, x: str(net.op(kind, x, **attrs))
