"""How much longer a step of ``prunec train-prune`` takes than one of a bare loop. Goal: a ratio of 1.03 or less.

A real run of the ISTA phase (proximal steps, moving average, sums for the log, log rows, checkpoints) and a bare
loop (zero_grad, forward, backward, SGD) train copies of one network on the same batches, made by the same pipeline, in
one process, a step of each in turn. Times are added up over blocks of ten log rows; the median over the blocks of the
run's time over the loop's stands. Checkpoints go by the clock, one a minute.

    python benchmarks/train_loop.py --arch resnet20 --batch 125 --blocks 5

On the CPU the clock is the process's CPU time, which other processes disturb less; ``--clock wall`` takes the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from prunec.training.learning.ranks import Alone
from prunec.training.logs.progress import Silent
from prunec.training.run.run import train_prune
from prunec.training.settings.config import RunConfig
from prunec.training.settings.presets import make_config
from prunec.training.settings.setup import prepare

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class EnoughStepsError(Exception):
    """Ends the run that is measured."""


def bare_loop(config: RunConfig) -> Callable[[], None]:
    """Return a function that makes the next step of a loop such as anyone writes."""
    setup = prepare(config, Alone())
    module, batches = setup.module, setup.batches
    forward = torch.compile(module) if config.compile else module
    device = next(module.parameters()).device.type
    optimizer = torch.optim.SGD(module.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=5e-4)
    done = 0

    def step() -> None:
        nonlocal done
        inputs, labels = batches.at(done)
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = nn.functional.cross_entropy(forward(inputs), labels)
        loss.backward()
        optimizer.step()
        done += 1

    return step


class Interleaved(Silent):
    """Told of each step of the run; makes one of the bare loop, and keeps both times."""

    def __init__(self, bare: Callable[[], None], steps: int, clock: Callable[[], float]) -> None:
        self._bare, self._steps, self._clock = bare, steps, clock
        self._since = 0.0
        self.run: list[float] = []
        self.loop: list[float] = []

    def phase(self, name: str, total: int, done: int) -> None:  # noqa: ARG002 - as in Progress
        self._since = self._now()

    def step(self, done: int) -> None:
        now = self._now()
        self.run.append(now - self._since)
        self._bare()
        self._since = self._now()
        self.loop.append(self._since - now)
        if done == self._steps:
            raise EnoughStepsError

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._clock()


def measure(
    arch: str,
    batch: int,
    block: int,
    blocks: int,
    device: str,
    clock: str,
    *,
    bf16: bool = False,
    compiled: bool = False,
) -> dict[str, object]:
    """Run both and return the ratio's median and quartiles."""
    with tempfile.TemporaryDirectory() as scratch:
        # One step more than is timed: the first of all warms up. A rho that prunes nothing keeps the networks alike.
        steps = 1 + block * blocks
        config = make_config(
            str(Path(scratch) / "run"), preset="scratch", arch=arch, data="digits", batch_size=batch, steps=steps + 1,
            shares=(0.0, 1.0, 0.0), augment="crop-flip", rho=1e-9, device=device,
            stop_on_plateau=False, precision="bf16" if bf16 else "fp32", compile=compiled,
        )  # fmt: skip
        progress = Interleaved(bare_loop(config), steps, CLOCKS[clock])
        with contextlib.suppress(EnoughStepsError):
            train_prune(config, progress)
    starts = range(1, steps, block)
    run = [sum(progress.run[start : start + block]) for start in starts]
    loop = [sum(progress.loop[start : start + block]) for start in starts]
    ratios = [a / b for a, b in zip(run, loop, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "arch": arch,
        "batch": batch,
        "steps": steps - 1,
        "log_every": config.log_every,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "clock": clock,
        "bf16": bf16,
        "compiled": compiled,
        "loop_step_ms": round(1e3 * sum(loop) / (steps - 1), 3),
        "run_step_ms": round(1e3 * sum(run) / (steps - 1), 3),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
    }


def main() -> None:
    """Measure and print one JSON line per architecture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet20", "convnet"])
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--block", type=int, default=200, help="steps of a block")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=list(CLOCKS))
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    options = parser.parse_args()
    clock = options.clock or ("wall" if options.device == "cuda" else "cpu")
    for arch in options.arch:
        how = {"bf16": options.bf16, "compiled": options.compile}
        row = measure(arch, options.batch, options.block, options.blocks, options.device, clock, **how)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
