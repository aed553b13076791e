"""Time whole commands, `prunec prune FILE -o OUT` with its check and timing, beside `onnxslim FILE OUT`.

    python benchmarks/commands.py FILE.onnx ... [--repeats 3] [--no-check]

Each command is a process of its own, started in turn; the best of ``--repeats`` is taken, in seconds of the wall and,
in brackets, of the CPU. Needs onnxslim (`pip install onnxslim`, which prunec does not use). The goal: a ratio of
at most 2 in the median, the check included.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def measured(command: Sequence[str], out: Path) -> tuple[float, float] | None:
    """Return the seconds of the wall and of the CPU that a command takes to write a file; None where it fails."""
    out.unlink(missing_ok=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (took, cpu) if done.returncode == 0 else None


def _best(found: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    done = [each for each in found if each is not None]
    return (min(wall for wall, _ in done), min(cpu for _, cpu in done)) if len(done) == len(found) else None


def main() -> None:
    """Print a row per file, then the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-check", action="store_true", help="without the comparison and the timing")
    arguments = parser.parse_args()
    scripts = Path(sys.executable).parent
    ratios = []
    print("| file | MB | prunec prune, s (CPU) | onnxslim, s (CPU) | ratio | ratio, CPU |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for file in arguments.files:
            extra = ["--no-validate"] if arguments.no_check else []
            commands = {
                "prunec": [str(scripts / "prunec"), "prune", str(file), "-o", str(out), *extra],
                "onnxslim": [sys.executable, "-m", "onnxslim", str(file), str(out)],
            }
            runs: dict[str, list[tuple[float, float] | None]] = {name: [] for name in commands}
            for _ in range(arguments.repeats):
                for name, command in commands.items():
                    runs[name].append(measured(command, out))
            best = {name: _best(found) for name, found in runs.items()}
            cells = [f"{each[0]:.2f} ({each[1]:.2f})" if each else "fails" for each in best.values()]
            ours, theirs = best["prunec"], best["onnxslim"]
            ratio = ["", ""]
            if ours and theirs:
                ratio = [f"{a / b:.2f}" for a, b in zip(ours, theirs, strict=True)]
                ratios.append([a / b for a, b in zip(ours, theirs, strict=True)])
            size = f"{file.stat().st_size / 1e6:.1f}"
            print(f"| {file.name} | {size} | {' | '.join(cells)} | {' | '.join(ratio)} |", flush=True)
    if ratios:
        wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
        print(f"\nmedian ratio {wall:.2f} ({cpu:.2f} of CPU time) over {len(ratios)} files")


if __name__ == "__main__":
    main()
