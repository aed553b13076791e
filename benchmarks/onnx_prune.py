"""Time `prunec prune` of ONNX files against loading, inferring the shapes of, and saving the same file.

    python benchmarks/onnx_prune.py FILE.onnx ... [--repeats 5] [--random-weights] [--json]

Both are measured in one process, in turn, and the best of ``--repeats`` is taken; the check with ONNX
Runtime, whose time is the model's own, is left out. ``--random-weights`` first replaces weights that
the file makes with ConstantOfShape (the onnx package's light_* models) by random ones, so that the file
has the size of the real network. The goal is a ratio of at most 3. Also told: where prunec's time goes,
and what importing and exporting the file with onnx-graphsurgeon takes, which prunec does not use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon

from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import save_onnx
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.select import plan
from prunec.pipeline.options import Options
from prunec.pipeline.planning import choose, gather_facts
from prunec.pipeline.reading import read_onnx


def baseline(path: Path, out: Path) -> None:
    """Load, infer and save, as any tool has to."""
    model = onnx.load(path)
    onnx.shape_inference.infer_shapes(model)
    onnx.save(model, out)


def graphsurgeon(path: Path, out: Path) -> None:
    """Import and export with onnx-graphsurgeon."""
    onnx.save(onnx_graphsurgeon.export_onnx(onnx_graphsurgeon.import_onnx(onnx.load(path))), out)


def pruning(path: Path, out: Path, steps: dict[str, list[float]], options: Mapping[str, Any]) -> None:
    """Prune, and note how long each step took."""
    chosen = Options(**options)
    traced = _timed(steps, "read", partial(read_onnx, path))
    facts = _timed(steps, "analyse", partial(gather_facts, traced.graph))
    selection, reason = _timed(steps, "select", partial(choose, facts, chosen))
    made = _timed(steps, "plan", lambda: plan(facts, selection, (), border="exact", reason=reason))
    edits = _timed(steps, "lower", lambda: lower(traced.graph, facts.classes, made, facts.constants))
    pruned = _timed(steps, "apply", partial(apply_onnx, traced, edits))
    _timed(steps, "save", partial(save_onnx, pruned, out))


def _timed(steps: dict[str, list[float]], name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    steps.setdefault(name, []).append(time.perf_counter() - start)
    return result


def measure(path: Path, repeats: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return seconds of each, best of ``repeats``, run in turn."""
    steps: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {"baseline": [], "prune": [], "graphsurgeon": []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for _ in range(repeats):
            _timed(times, "baseline", partial(baseline, path, out))
            _timed(times, "prune", partial(pruning, path, out, steps, options))
            _timed(times, "graphsurgeon", partial(graphsurgeon, path, out))
    best = {name: min(seconds) for name, seconds in times.items()}
    return {
        "file": path.name,
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "nodes": len(onnx.load(path, load_external_data=False).graph.node),
        **{name: round(seconds, 4) for name, seconds in best.items()},
        "ratio": round(best["prune"] / best["baseline"], 2),
        "steps": {name: round(min(seconds), 4) for name, seconds in steps.items()},
    }


def with_random_weights(path: Path, folder: Path) -> Path:
    """Write the file again with random weights where ConstantOfShape made them."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from onnx_models.inject import randomize

    model = onnx.load(path)
    randomize(model)
    onnx.save(model, folder / path.name)
    return folder / path.name


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per file, then the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.onnx")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--target-macs", type=float, help="prune by l1 to this fraction of the MACs; default: exact")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    options = {"criterion": "l1", "target_macs": given.target_macs} if given.target_macs else {}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in given.files:
            chosen = with_random_weights(path, Path(folder)) if given.random_weights else path
            rows.append(measure(chosen, given.repeats, options))
            if not given.json:
                print(_line(rows[-1]), flush=True)
    ratio = statistics.median(row["ratio"] for row in rows)
    print(json.dumps({"files": rows, "median_ratio": ratio}) if given.json else f"median ratio {ratio:.2f}")


def _line(row: Mapping[str, Any]) -> str:
    steps = "  ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in row["steps"].items())
    times = "  ".join(f"{name} {1000 * row[name]:.1f} ms" for name in ("baseline", "prune", "graphsurgeon"))
    size = f"{row['megabytes']:7.1f} MB  {row['nodes']:5d} nodes"
    return f"{row['file']:32s} {size}  {times}  ratio {row['ratio']:.2f}  ({steps})"


if __name__ == "__main__":
    main()
