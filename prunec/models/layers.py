"""What several of the networks here are made of.

Owns the convolution-BatchNorm-ReLU unit of the Inception family and the loading of published weights whose
names have changed. Read next: googlenet.py, densenet.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class ConvBn(nn.Module):
    """A convolution without bias, BatchNorm, ReLU; the names ``conv`` and ``bn`` are those of published weights.

    Args:
        in_channels, channels: of the convolution.
        kernel, stride, padding: of the convolution; one number, or (vertical, horizontal).
        eps: of the BatchNorm. 0.001 is what the Inception networks were trained with.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        eps: float = 0.001,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(bn(conv(x)))."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def initialise(module: nn.Module) -> None:
    """Initialise one layer as He et al. (arXiv:1502.01852) do for ReLU networks; BatchNorms start at γ 1, β 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(
            module.weight, mode="fan_out" if isinstance(module, nn.Conv2d) else "fan_in", nonlinearity="relu"
        )
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def rename_when_loading(module: nn.Module, new_name: Callable[[str], str | None]) -> None:
    """Let ``module`` load state dicts of other names.

    Args:
        module: what is loaded into, itself or inside of another.
        new_name: a key, less the module's own prefix -> its name here; None drops the entry.
    """

    def rename(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for key in [key for key in state if key.startswith(prefix)]:
            name = new_name(key.removeprefix(prefix))
            if name is None:
                del state[key]
            elif prefix + name != key:
                state[prefix + name] = state.pop(key)

    module.register_load_state_dict_pre_hook(rename)
