"""What the tests of data-parallel training start under torchrun: each rank writes down what it has.

``run OUTPUT FOLDER [--resume|--stop|SETTINGS]``: a training run, SETTINGS are JSON.
``loop OUTPUT``: someone's own loop around ``prunec.sparsify``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from modules.training import tiny
from torch import nn

import prunec
from prunec.training.run import run as run_module
from prunec.training.settings.presets import make_config, resume_config

STOP_AT = 45


def rank() -> int:
    return int(os.environ["RANK"])


def train(output: Path, data: str, *arguments: str) -> None:
    """Run ``train_prune``, and save each rank's network and plan as they are before the results are written."""

    class Watched(run_module._Run):
        def _finish(self) -> Any:
            assert self.plan is not None
            facts = {
                "module": dict(self.module.state_dict()),
                "plan": self.plan.to_json(),
                "rng": torch.get_rng_state(),
            }
            torch.save(facts, output.parent / f"{output.name}-rank{rank()}.pt")
            return super()._finish()

    class Stopping(run_module.Silent):
        def row(self, row: Any, full_params: int) -> None:
            if row["step"] >= STOP_AT:
                os.kill(os.getpid(), 9)

    run_module._Run = Watched  # type: ignore[misc]
    given: dict[str, Any] = {"model": "modules.training:tiny", "augment": "shift", "steps": 60, "batch_size": 15}
    given |= {"shares": (0.2, 0.55, 0.25), "gamma_lr": 0.3, "rho": 0.03, "ema_decay": 0.9, "log_every": 5}
    given |= {"checkpoint_every": 10, "device": "cpu", "data": data}
    for settings in (json.loads(argument) for argument in arguments if argument.startswith("{")):
        given |= {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    resume = "--resume" in arguments
    config = resume_config(str(output)) if resume else make_config(str(output), **{"preset": "scratch", **given})
    result = run_module.train_prune(config, Stopping() if "--stop" in arguments else None)
    assert result.after["params"] < result.before["params"]


def loop(output: Path) -> None:
    """Three lines in a DDP loop: the optimiser of the bare module, the forward pass of the wrapped one."""
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    module, example_inputs = tiny()
    parallel = nn.parallel.DistributedDataParallel(module)
    base = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    optimizer = prunec.sparsify(module, example_inputs, base, rho=0.05, lr=0.3)
    torch.manual_seed(1 + rank())  # every rank its own images
    for _ in range(40):
        images, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 2, (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(images), labels).backward()
        optimizer.step()
    gammas = torch.cat([p.detach() for p in optimizer.param_groups[-1]["params"]])
    plan = prunec.prune_module(module, example_inputs).plan.to_json()
    torch.save({"gammas": gammas, "plan": plan, "mean": images.mean()}, f"{output}-rank{rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "loop":
        loop(Path(where))
    else:
        train(Path(where), *rest)
