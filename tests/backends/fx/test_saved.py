"""Pruned modules that torch.export has read are saved and loaded like any other."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunec


class Written(nn.Module):
    """Writes into views, which torch.fx does not follow; takes and returns structures."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.o, self.shift = nn.Conv2d(8, 2, 1), nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        y = self.a(batch["image"])
        y[:, :2].mul_(2)
        y[:, 2:4] += 1
        return {"map": self.o(y + self.shift), "sums": [y.sum(1)]}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, of its pytrees
@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_module_that_was_exported_is_loaded_as_it_was(how: str) -> None:
    net = Written().eval()
    pruned = prunec.prune_module(net, ({"image": torch.randn(2, 3, 9, 9)},), criterion="l1", target_macs=0.5)
    assert any("torch.export" in note for note in pruned.report.notes)
    if how == "pickle":
        loaded = pickle.loads(pickle.dumps(pruned.module))  # written a moment ago
    else:
        file = io.BytesIO()
        torch.save(pruned.module, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
    other = {"image": torch.randn(3, 3, 12, 10)}
    wanted, found = pruned.module(other), loaded(other)
    assert torch.equal(found["map"], wanted["map"])
    assert torch.equal(found["sums"][0], wanted["sums"][0])
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in pruned.module.named_parameters()]
