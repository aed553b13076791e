"""Where in the user's own code something happens, as messages and notes say it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

from prunec.frontends.fx.running.reachable import LIBRARIES


def place() -> str:
    """Return "file.py:12, in forward" for the innermost frame that belongs to no library."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in LIBRARIES:
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}, in {frame.f_code.co_name}"
        frame = frame.f_back
    return "its forward"
