r"""What options of ``prunec train-prune`` do to its result: a run for each of them, and a markdown table of all.

    OMP_NUM_THREADS=1 python benchmarks/train_options.py --common "--epochs 12 --target-macs 0.3" -- \
        "--penalty memory" "--penalty macs" "--penalty uniform"

Each argument behind ``--`` is a string of options, "" the run without any; what every run is given is in ``--common``.
With several ``--seeds`` each cell is the median of the runs, with the smallest and largest value behind it. Latencies
are those of summary.json: the pruned file against the unpruned one, timed in turns in ONNX Runtime on this CPU.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Summary = Mapping[str, Any]


def left(quantity: str) -> Callable[[Summary], float]:
    """Return the reading of what share of a quantity is left."""
    return lambda summary: summary["after"][quantity] / summary["before"][quantity]


def score(moment: str) -> Callable[[Summary], float]:
    """Return the reading of the score that counts, at a moment of the run."""
    return lambda summary: summary[summary["metric"]][moment]


def latency(summary: Summary) -> float:
    """Return the pruned file's time as a share of the unpruned one's."""
    return summary["validation"]["latency_b_ms"] / summary["validation"]["latency_a_ms"]


COLUMNS: Mapping[str, Callable[[Summary], float]] = {
    "parameters left": left("params"),
    "MACs left": left("macs"),
    "latency left": latency,
    "score before": score("before"),
    "right after removal": score("removed"),
    "at the end": score("after"),
}


def run(options: str, common: str, seed: int, folder: Path) -> tuple[Summary, str]:
    """Make a run; return its summary, {} where it wrote none, and the error that it ended with, or ""."""
    command = [sys.executable, "-m", "prunec", "train-prune", "-o", str(folder), "--seed", str(seed)]
    done = subprocess.run(
        [*command, *shlex.split(common), *shlex.split(options)], capture_output=True, text=True, check=False
    )
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if done.returncode == 0:
        return summary, ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error[")]
    return summary, errors[-1] if errors else done.stderr.strip()


def row(options: str, summaries: Sequence[Summary]) -> str:
    """Return the table's line of one string of options."""
    cells = [_cell([reading(summary) for summary in summaries]) if summaries else "—" for reading in COLUMNS.values()]
    return f"| {f'`{options}`' if options else 'none'} | {' | '.join(cells)} |"


def _cell(values: Sequence[float]) -> str:
    spread = f" ({min(values):.1%} to {max(values):.1%})" if len(values) > 1 else ""
    return f"{statistics.median(values):.1%}{spread}"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="+", help='options of a run, in one string; "" for none')
    parser.add_argument("--common", default="", help="options that every run is given, in one string")
    parser.add_argument("--seeds", default="0", help="with commas between them; default: 0")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the run folders stay; default: nowhere")
    given = parser.parse_args()
    failures: list[str] = []
    print(f"| option | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for number, options in enumerate(given.options):
            summaries = []
            for seed in map(int, given.seeds.split(",")):
                folder = (given.keep or Path(scratch)) / f"run{number}-seed{seed}"
                summary, error = run(options, given.common, seed, folder)
                summaries += [summary] if summary else []
                failures += [f"{options or 'none'}, seed {seed}: {error}"] if error else []
            print(row(options, summaries), flush=True)
    for failure in failures:
        print(failure, file=sys.stderr)


if __name__ == "__main__":
    main()
