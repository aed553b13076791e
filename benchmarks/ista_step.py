"""How much longer a training step takes with ISTA than with plain SGD. Goal: a ratio of 1.03 or less.

Two copies of one network train on the same batches in one process, a step of each in turn (the order
alternates); what is compared is the whole step: forward, backward, update. The median over the rounds
of ISTA's time over SGD's stands, and beside it the time of the two updates alone. On the CPU the clock is the
process's CPU time, which other processes disturb less; ``--clock wall`` takes the other.

    python benchmarks/ista_step.py --arch resnet20 --batch 125 --rounds 40
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from prunec import sparsify
from prunec.models import ARCHITECTURES

Step = Callable[[], tuple[float, float]]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def make_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    clock: Callable[[], float],
    *,
    bf16: bool = False,
    compiled: bool = False,
) -> Step:
    """Return a function that trains one step and tells the seconds of the step and of its update."""
    forward = torch.compile(net) if compiled else net

    def synchronise() -> None:
        if x.is_cuda:
            torch.cuda.synchronize()

    def step() -> tuple[float, float]:
        synchronise()
        start = clock()
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(forward(x), y)
        loss.backward()
        # Waiting in the middle would hide what the update overlaps with, so only the whole step is exact on CUDA.
        before_update = clock()
        optimizer.step()
        synchronise()
        end = clock()
        return end - start, end - before_update

    return step


def measure(
    name: str,
    batch: int,
    rounds: int,
    device: str,
    residual: str,
    clock: str,
    *,
    bf16: bool = False,
    compiled: bool = False,
) -> dict[str, object]:
    """Train both copies in turn and return the medians."""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    plain_net = architecture.build().to(device)
    ista_net = copy.deepcopy(plain_net)
    x = torch.randn(batch, *architecture.input_shape, device=device)
    y = torch.randint(0, architecture.num_classes, (batch,), device=device)
    sgd = torch.optim.SGD(plain_net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    ista = sparsify(
        ista_net,
        architecture.example_inputs(),
        torch.optim.SGD(ista_net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4),
        rho=1e-4,
        residual="keep" if residual == "keep" else "group",
    )
    now = CLOCKS[clock]
    how = {"bf16": bf16, "compiled": compiled}
    steps = {
        "sgd": make_step(plain_net, sgd, x, y, now, **how),
        "ista": make_step(ista_net, ista, x, y, now, **how),
    }
    whole: dict[str, list[float]] = {"sgd": [], "ista": []}
    update: dict[str, list[float]] = {"sgd": [], "ista": []}
    for turn in range(rounds + 3):
        for key in ("sgd", "ista") if turn % 2 else ("ista", "sgd"):
            seconds, in_update = steps[key]()
            if turn >= 3:  # the first rounds warm up
                whole[key].append(seconds)
                update[key].append(in_update)
    ratios = [a / b for a, b in zip(whole["ista"], whole["sgd"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "arch": name,
        "batch": batch,
        "rounds": rounds,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "clock": clock,
        **how,
        "sgd_step_ms": round(1e3 * statistics.median(whole["sgd"]), 3),
        "ista_step_ms": round(1e3 * statistics.median(whole["ista"]), 3),
        "sgd_update_ms": round(1e3 * statistics.median(update["sgd"]), 3),
        "ista_update_ms": round(1e3 * statistics.median(update["ista"]), 3),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
    }


def main() -> None:
    """Measure and print one JSON line per architecture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet20", "convnet"], choices=list(ARCHITECTURES))
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--residual", default="group", choices=["group", "keep"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=list(CLOCKS))
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    options = parser.parse_args()
    clock = options.clock or ("wall" if options.device == "cuda" else "cpu")
    for name in options.arch:
        how = {"bf16": options.bf16, "compiled": options.compile}
        row = measure(name, options.batch, options.rounds, options.device, options.residual, clock, **how)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
