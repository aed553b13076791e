"""Networks with squeeze-excite gates, and others that make training hard to start, by name: ``modules.gated:NAME``."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Gated(nn.Module):
    """An inverted residual block as MobileNetV3 and EfficientNet have it: SiLU, and a gate before the projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.expand, self.expand_norm = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(24)
        self.down, self.up = nn.Conv2d(24, 4, 1), nn.Conv2d(4, 24, 1)
        self.project, self.project_norm = nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.stem_norm(self.stem(x)))
        y = F.silu(self.expand_norm(self.expand(x)))
        y = F.silu(self.depthwise_norm(self.depthwise(y)))
        y = y * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project_norm(self.project(y))
        scores: torch.Tensor = self.head(x.mean((2, 3)))
        return scores


def gated() -> nn.Module:
    torch.manual_seed(0)
    return Gated()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


class Remembering(Gated):
    """Its state holds settings beside its tensors."""

    def get_extra_state(self) -> object:
        return {"bits": 8}

    def set_extra_state(self, state: object) -> None:
        assert state == {"bits": 8}


def remembering() -> nn.Module:
    return Remembering()
