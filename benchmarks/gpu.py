"""All that prunec claims of GPUs, in one go (`make gpu`): under eight minutes, no network, no data but what is made.

    python benchmarks/gpu.py [--seconds 460] [--output FILE.jsonl]

Runs the tests marked ``gpu``; the ratios of an ISTA step to an SGD step and of a whole run to a bare loop, in fp32 and
bf16, with and without torch.compile; and prunes files, checks them in ONNX Runtime's CUDAExecutionProvider and times
them there. One JSON line per figure, with the card's name. Parts that no time is left for are named. Without a GPU it
says so and ends with status 0: there is nothing to measure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

ROOT = Path(__file__).resolve().parent.parent
GOAL_STEP, GOAL_SPEEDUP = 1.03, 0.8
FILES = (("resnet20", 0.5), ("resnet56", 0.5), ("mobilenet_v2", 0.5))
"""Built-in architectures, and the share of the MACs that stays."""


@dataclass(frozen=True, slots=True)
class Part:
    """A program to run.

    Args:
        name: as it is printed.
        program: what Python runs.
        seconds: it may take, at most.
        goal: of the ratio in each of its lines; None where there is none.
    """

    name: str
    program: tuple[str, ...]
    seconds: float
    goal: float | None = None


@dataclass(slots=True)
class Outcome:
    """What a part printed, and why it did not end well ("" where it did)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""


def parts() -> Iterator[Part]:
    """Yield what is run, in order: what must hold first, what takes longest last."""
    yield Part("gpu tests", ("-m", "pytest", "-q", "-m", "gpu", "tests"), 120)
    yield Part("pruned files", (str(Path(__file__).resolve()), "--files"), 120)
    for compiled, bf16 in itertools.product((False, True), (False, True)):
        how = (("--bf16",) if bf16 else ()) + (("--compile",) if compiled else ())
        name = f"{'bf16' if bf16 else 'fp32'}, compile {'on' if compiled else 'off'}"
        step = ("benchmarks/ista_step.py", "--arch", "resnet20", "--rounds", "200", "--device", "cuda", *how)
        yield Part(f"ISTA step, {name}", step, 60, GOAL_STEP)
        loop = ("benchmarks/train_loop.py", "--arch", "resnet20", "--block", "100", "--device", "cuda", *how)
        yield Part(f"loop, {name}", loop, 90, GOAL_STEP)


def run(part: Part, seconds: float) -> Outcome:
    """Run a part, and gather the JSON lines that it prints."""
    try:
        done = subprocess.run(
            [sys.executable, *part.program], cwd=ROOT, timeout=seconds, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(trouble=f"stopped after {seconds:.0f} s")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["it printed nothing"]
    if done.returncode:
        return Outcome(rows, f"status {done.returncode}: {last[0]}")
    return Outcome(rows or [{"said": last[0]}])


def missed(part: Part, rows: Sequence[dict[str, Any]]) -> str:
    """Tell which ratios are above the goal; "" for none."""
    if part.goal is None:
        return ""
    return ", ".join(f"{row['arch']} {row['ratio']} above {part.goal}" for row in rows if row["ratio"] > part.goal)


def files(names: Sequence[tuple[str, float]] = FILES, provider: Literal["cuda", "cpu"] = "cuda") -> int:
    """Prune files, check and time them there; one JSON line each, status 1 where a check fails."""
    from prunec.api import prune_onnx
    from prunec.check.validate import validate_onnx
    from prunec.errors import PrunecError
    from prunec.models import ARCHITECTURES
    from prunec.pipeline.export import export_onnx

    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, share in names:
            before, same, after = (Path(folder) / f"{name}.{kind}.onnx" for kind in ("before", "same", "after"))
            architecture = ARCHITECTURES[name]
            torch.manual_seed(0)
            net = architecture.build().eval()
            silence(net)
            export_onnx(net, architecture.example_inputs(), before)
            row: dict[str, Any] = {"arch": name, "target_macs": share}
            try:
                prune_onnx(before, same, validate=False)
                checked = validate_onnx(before, same, provider=provider)
                report = prune_onnx(before, after, validate=False, criterion="l1", target_macs=share)
                timed = validate_onnx(before, after, provider=provider, tolerance=float("inf"))
            except PrunecError as error:
                print(json.dumps({**row, "failed": str(error)}), flush=True)
                failed = True
                continue
            promised = report.before.macs / report.after.macs
            row |= {
                "ran": checked.provider_ran,
                "relative_error": checked.max_rel_error,
                "promised": round(promised, 3),
            }
            if timed.latency_a_ms and timed.latency_b_ms:
                measured = timed.latency_a_ms / timed.latency_b_ms
                row |= {"measured": round(measured, 3), "ratio": round(measured / promised, 3), "goal": GOAL_SPEEDUP}
            print(json.dumps(row), flush=True)
            failed |= checked.provider_ran != provider or not checked.passed
    return int(failed)


def silence(net: torch.nn.Module) -> None:
    """Set every second gamma to zero, so that an exact removal has something to remove."""
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight[::2] = 0


def main() -> int:
    """Run all parts and print what they found; status 1 where a test, a check or a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=460.0, help="for all parts together")
    parser.add_argument("--output", type=Path, help="where the lines go too")
    parser.add_argument("--files", action="store_true", help="only the part on pruned files")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 0
    if options.files:
        return files()
    card, end, bad = torch.cuda.get_device_name(), time.monotonic() + options.seconds, False
    for part in parts():
        left = end - time.monotonic()
        found = run(part, min(part.seconds, left)) if left > 1 else Outcome(trouble="no time was left for it")
        trouble = found.trouble or missed(part, found.rows)
        bad |= bool(trouble)
        for row in found.rows or [{}]:
            line = json.dumps({"part": part.name, "card": card, **row, **({"trouble": trouble} if trouble else {})})
            print(line, flush=True)
            if options.output is not None:
                with options.output.open("a") as file:
                    print(line, file=file)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
