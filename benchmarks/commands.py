"""Time whole commands beside what else one would call, as processes that are started in turn.

    python benchmarks/commands.py FILE.onnx ... [--beside onnxslim] [--repeats 3] [--no-check]
    python benchmarks/commands.py --beside onnx --models efficientnet_b0 resnet50 vgg16
    python benchmarks/commands.py FILE.onnx ... --beside imports --repeats 10

``onnxslim`` (the default): `prunec prune FILE -o OUT` with its check and timing, and `onnxslim FILE OUT` (needs
`pip install onnxslim`, which prunec does not use); the goal is a ratio of at most 2 in the median. ``onnx``: `prunec
prune FILE -o OUT --no-validate`, and a script that loads the file with onnx, infers its shapes and saves it; the goal
is at most 1.2 from 20 MB up. ``imports``: `prunec analyze FILE`, and `python -c "import numpy, onnx"`.

The best of ``--repeats`` is taken, in seconds of the wall and, in brackets, of the CPU. All run from compiled bytecode,
as installed packages do. ``--models`` are torchvision's (or timm:NAME), exported with random weights.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PLAIN = """
import sys, onnx
onnx.save(onnx.shape_inference.infer_shapes(onnx.load(sys.argv[1])), sys.argv[2])
"""


def measured(command: Sequence[str], out: Path, environment: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the seconds of the wall and of the CPU that a command takes; None where it fails."""
    out.unlink(missing_ok=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env=dict(environment)
    )
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (took, cpu) if done.returncode == 0 else None


def _best(found: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    done = [each for each in found if each is not None]
    return (min(wall for wall, _ in done), min(cpu for _, cpu in done)) if len(done) == len(found) else None


def pair(beside: str, file: Path, out: Path, *, check: bool) -> tuple[list[str], list[str]]:
    """Return prunec's command and the other one."""
    python, prunec = sys.executable, str(Path(sys.executable).parent / "prunec")
    if beside == "imports":
        return [prunec, "analyze", str(file)], [python, "-c", "import numpy, onnx"]
    pruned = [prunec, "prune", str(file), "-o", str(out)]
    if beside == "onnx":
        return [*pruned, "--no-validate"], [python, "-c", PLAIN, str(file), str(out)]
    return pruned if check else [*pruned, "--no-validate"], [python, "-m", "onnxslim", str(file), str(out)]


def exported(name: str, folder: Path) -> Path:
    """Write a torchvision or timm model with random weights, in a process of its own."""
    path = folder / f"{name.replace(':', '_')}.onnx"
    code = (
        "import sys, torch, peer_pruning; peer_pruning._declare_detection_ops(); "
        "torch.onnx.export(peer_pruning._build(sys.argv[1]), (torch.randn(1, 3, 224, 224),), sys.argv[2], dynamo=False)"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, name, str(path)],
        check=True,
        cwd=Path(__file__).parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return path


def main() -> None:
    """Print a row per file, then the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--models", nargs="*", default=(), help="made for the occasion")
    parser.add_argument("--beside", choices=("onnxslim", "onnx", "imports"), default="onnxslim")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-check", action="store_true", help="without the comparison and the timing")
    arguments = parser.parse_args()
    beside = arguments.beside
    names = {"onnxslim": ("prunec prune", "onnxslim"), "onnx": ("prunec prune", "load, infer, save")}
    ours, theirs = names.get(beside, ("prunec analyze", "import numpy, onnx"))
    ratios = []
    print(f"| file | MB | {ours}, s (CPU) | {theirs}, s (CPU) | ratio | ratio, CPU |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        out = Path(folder) / "out.onnx"
        for file in (*arguments.files, *(exported(name, Path(folder)) for name in arguments.models)):
            commands = pair(beside, file, out, check=not arguments.no_check)
            for command in commands:
                measured(command, out, environment)  # compiles
            runs = [[measured(command, out, environment) for command in commands] for _ in range(arguments.repeats)]
            best = [_best(found) for found in zip(*runs, strict=True)]
            cells = [f"{each[0]:.2f} ({each[1]:.2f})" if each else "fails" for each in best]
            ratio = ["", ""]
            if best[0] and best[1]:
                ratios.append([a / b for a, b in zip(best[0], best[1], strict=True)])
                ratio = [f"{each:.2f}" for each in ratios[-1]]
            size = f"{file.stat().st_size / 1e6:.1f}"
            print(f"| {file.name} | {size} | {' | '.join(cells)} | {' | '.join(ratio)} |", flush=True)
    if ratios:
        wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
        print(f"\nmedian ratio {wall:.2f} ({cpu:.2f} of CPU time) over {len(ratios)} files")


if __name__ == "__main__":
    main()
