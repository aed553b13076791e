"""What all files that are refused have in common: bounded time and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """No file may cost more than seconds, or memory out of proportion."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert time.process_time() - start < 20, "took too long"  # other work on the machine does not count
    assert grown < 500e6, f"took {grown / 1e6:.0f} MB"
