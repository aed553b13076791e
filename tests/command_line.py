"""What the tests of the command line share: a file of networks, and ways to run a line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

NETWORKS = """
import torch
from torch import nn


class Half(nn.Module):
    '''Half of its inner channels are constant.'''

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1)
        with torch.no_grad():
            self.norm.weight[::2] = 0
            self.norm.bias.normal_()

    def forward(self, image):
        return self.conv2(self.norm(self.conv1(image)).relu())


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def with_inputs():
    return Half(), torch.zeros(1, 3, 9, 7)


class AsksValues(Half):
    def forward(self, x):
        y = super().forward(x)
        return y + 1 if int(torch.tensor([y.shape[1]]).sum()) > 100 else y


def asks_values():
    return AsksValues(), torch.zeros(1, 3, 9, 7)


def fails():
    raise ValueError("no such thing as [brackets]")


def exits():
    raise SystemExit(3)


def number():
    return 3
"""


Run = Callable[..., tuple[int, str, str]]


def assert_one_message(err: str) -> None:
    assert err.startswith(("error[", "Usage:", "internal error"))
    assert "Traceback" not in err
    assert err.count("error[") <= 1


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``prunec`` is this prunec; its exit status is that of the last command to fail."""
    script = f"set -o pipefail; prunec() {{ '{sys.executable}' -m prunec \"$@\"; }}; {command}"
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
