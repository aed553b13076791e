"""Plans turned into edits: what a plan on parameter axes implies for everything else."""

from __future__ import annotations

import torch
from assertions import assert_same_function
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module


class PaddedThenGrouped(nn.Module):
    """Each group of the second convolution reads one channel of zeros that the padding made."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.grouped = nn.Conv2d(6, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(F.pad(self.first(x), (0, 0, 0, 0, 1, 1)))


def test_padding_that_only_a_grouped_convolution_reads_is_removed() -> None:
    torch.manual_seed(0)
    net = PaddedThenGrouped().eval()
    batch = torch.randn(2, 3, 8, 8)
    result = prune_module(net, (batch,))
    assert_same_function(net, result.module, batch)
    assert result.module.get_parameter("grouped.weight").shape == (4, 2, 3, 3)
    assert not result.report.blocked
