"""What is known of a value's channels, as flat lists: shared by the tests of the constants' rules."""

from __future__ import annotations

import numpy as np

from graphs.tiny import Tiny
from prunec.passes.constants import constants


def known(t: Tiny, name: str) -> list[float] | None:
    """Return what is known of a value's channels, flat; None where nothing is."""
    found = constants(t.graph(name)).of(name)
    return None if found is None else [float(value) for value in found.ravel()]


def assert_known(t: Tiny, name: str, expected: list[float] | None) -> None:
    found = known(t, name)
    if expected is None or found is None:
        assert found == expected
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
