"""What the arrays of every room hold, by name: one spelling for the whole of prunec."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Ids = Ints
"""Numbers of channel classes, or indices of channels."""
