"""Where widths change in blocks, the order of channels has to go on below the budget: a block's place is a mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunec.api import prune_module
from prunec.data.calibration import Calibration
from prunec.fitting.reconstruct import Reconstruction
from tests.fitting.test_branches import X, residual


def test_the_order_goes_on_below_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((60, 3, 12, 12)).astype(np.float32))
    left, made = list[float](), Reconstruction._removals

    def told(self: Reconstruction, *given: Any, **asked: Any) -> Any:
        found = made(self, *given, **asked)
        left.append(float(found.left.min()))
        return found

    monkeypatch.setattr(Reconstruction, "_removals", told)
    prune_module(residual(), (X,), calibration=Calibration(tmp_path, orders=1), target_macs=0.7, validate=False)
    assert left
    assert max(left) < 0.55
