"""With fewer samples than a layer has inputs a fit stays near the weights there were, and makes nothing worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module
from prunec.data.calibration import Calibration


def conv(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def flattened() -> nn.Module:
    return nn.Sequential(conv(3, 12), conv(12, 8), nn.Flatten(), nn.Linear(512, 16))


def lenet() -> nn.Module:
    first = [nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    last = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*first, nn.Flatten(), *last)


def smooth(count: int, seed: int) -> Tensor:
    """Return float32[count, 3, 32, 32]: neighbours are alike, as in pictures, so that channels depend on each other."""
    torch.manual_seed(seed)
    coarse = F.interpolate(torch.randn(count, 3, 6, 6), size=(32, 32), mode="bicubic")
    return coarse + 0.2 * torch.randn(count, 3, 32, 32)


@pytest.mark.parametrize("criterion", ["reconstruct", "l1"])
@pytest.mark.parametrize("samples", [40, 64, 100, 400])
@pytest.mark.parametrize("make", [flattened, lenet])
def test_a_fit_makes_new_samples_no_worse(tmp_path: Path, make: Any, samples: int, criterion: str) -> None:
    torch.manual_seed(5)
    net, x = make().train(), smooth(64, seed=1)
    with torch.no_grad():
        for seed in range(20):
            net(smooth(16, seed + 2))
        net.eval()
        wanted = net(x)
    np.save(tmp_path / "x.npy", smooth(samples, seed=0).numpy())
    errors, sizes = [], []
    for compensate in (True, False):
        how: dict[str, Any] = {"criterion": criterion, "target_macs": 0.6, "compensate": compensate, "validate": False}
        made = prune_module(net, (x[:2],), calibration=Calibration(tmp_path, orders=1), **how).module
        with torch.no_grad():
            errors.append(float((made(x) - wanted).square().mean()))
        sizes.append(max(float(m.weight.detach().norm()) for m in made.modules() if isinstance(m, nn.Linear)))
    assert errors[0] < errors[1]
    assert sizes[0] < 2 * sizes[1]
