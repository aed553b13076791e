"""Reading a module leaves torch.compile as it was, also where the module's forward was what loaded it."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import warnings
warnings.simplefilter("error", UserWarning)
import torch
from torch import nn
from prunec import analyze_module

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        import torch._dynamo
        torch._dynamo.trace_rules.lookup(torch.sin)
        return self.conv(x)

assert analyze_module(Net(), (torch.zeros(1, 3, 8, 8),)).params
joined = torch.compile(lambda x: torch.cat([x, torch.zeros(1)]), backend="eager")
print(joined(torch.ones(1)).tolist())
"""


def test_functions_that_a_forward_made_torch_compile_look_up_are_the_real_ones_afterwards() -> None:
    """Torch looks its functions up once per process; it found those that stand in for them while a module is read."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[1.0, 0.0]", done.stderr
