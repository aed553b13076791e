"""What channels that leave while training goes on save: ``prunec train-prune --shrink-after K``, and without it.

Both runs are made in one process, in turns. What is timed is ISTA, log rows and the rebuilding of the network included;
on the CPU the clock is the process's CPU time, which other processes disturb less (``--clock wall`` takes the other).

    python benchmarks/shrinking.py --preset digits --epochs 12 --shrink-after 44
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from prunec.training.logs.progress import Silent
from prunec.training.run.results import RunResult
from prunec.training.run.run import train_prune
from prunec.training.settings.presets import make_config

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Timed(Silent):
    """Adds up what the steps of ISTA take."""

    def __init__(self, clock: str) -> None:
        self.clock = CLOCKS[clock]
        self.steps: list[float] = []
        self.in_ista = False
        self.last = 0.0

    def phase(self, name: str, total: int, done: int) -> None:  # noqa: ARG002 - as in Progress
        if name == "ista" and not self.in_ista:
            self.last = self.clock()
        self.in_ista = name == "ista"

    def step(self, done: int) -> None:  # noqa: ARG002 - as in Progress
        if self.in_ista:
            now = self.clock()
            self.steps.append(now - self.last)
            self.last = now


def run(given: dict[str, Any], clock: str) -> tuple[Timed, RunResult]:
    """Make one run in a folder that is thrown away."""
    timed = Timed(clock)
    with tempfile.TemporaryDirectory() as folder:
        result = train_prune(make_config(str(Path(folder) / "run"), **given), timed)
    return timed, result


def main() -> None:
    """Make the runs, and print what they took and what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="")
    for name in ("arch", "data", "weights"):
        parser.add_argument(f"--{name}")
    for name in ("epochs", "rho", "alpha", "lr", "gamma-lr", "target-macs"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("steps", "batch-size", "log-every"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--shrink-after", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    given = vars(parser.parse_args())
    after, rounds, clock = given.pop("shrink_after"), given.pop("rounds"), given.pop("clock")
    ratios = []
    for number in range(rounds):
        (plain, whole), (shrinking, smaller) = run(given, clock), run({**given, "shrink_after": after}, clock)
        ratios.append(sum(shrinking.steps) / sum(plain.steps))
        late = [statistics.median(timed.steps[-len(timed.steps) // 10 :]) for timed in (plain, shrinking)]
        print(f"round {number + 1}: ISTA takes {ratios[-1]:.2f} of the time; its last steps {late[1] / late[0]:.2f}")
    for name, result in (("without", whole), ("with", smaller)):
        macs, params = (result.after[key] / result.before[key] for key in ("macs", "params"))
        print(
            f"{name:>8}: {macs:.1%} of the MACs and {params:.1%} of the parameters left; {result.metric} "
            f"{result.score['removed']:.1%} right after removal, {result.score['after']:.1%} at the end"
        )
    print("\n".join(reason for reason in smaller.reasons if "have left" in reason))


if __name__ == "__main__":
    main()
