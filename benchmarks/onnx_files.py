"""Put every ONNX file of a folder through prunec and print one row per file and question, as Markdown.

    python benchmarks/onnx_files.py FOLDER [FILE.onnx ...] [--only NAME,NAME] [--no-time] [--json]

The questions: what does the analysis see; what is removed of the file as it is (convolution filters that
are all zero, by a count of this script's own, and why the others stay); what is removed when 30% of the
channels of every convolution are made constant (tests/onnx_models/inject.py says how), how far the outputs then
differ, and what more goes with sums expanded and gates folded; does pruning by score give the MACs that were
asked for; is any output larger than its input; how long does it take, against loading, inferring the shapes of,
and saving the file. Errors are measured in ONNX Runtime without graph optimisation, on several kinds of input and
a second input size where the file leaves sizes open, relative to the output's largest magnitude. MACs and
parameters after pruning are counted on the written file, read anew. The seed is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from onnx_models.inject import inject_alive, randomize, zero_filters
from onnx_prune import measure

from prunec.api import analyze_onnx, prune_onnx
from prunec.check.validate import validate_onnx
from prunec.errors import BudgetNotMet, PrunecError
from prunec.report.findings import Analysis, PruneReport, Validation


def num_weights(model: onnx.ModelProto) -> int:
    """Count the elements of stored float tensors with more than one element."""
    constants = (a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t"))
    sizes = (int(np.prod(t.dims)) for t in (*model.graph.initializer, *constants) if t.data_type in (1, 10, 11, 16))
    return sum(size for size in sizes if size > 1)


def fall(before: float, after: float) -> str:
    """Write a relative change: −37.2%."""
    return f"−{100 * (before - after) / before:.1f}%" if before else "0"


# --- the questions ------------------------------------------------------------------------------------


def as_it_is(path: Path, out: Path, analysis: Analysis) -> dict[str, Any]:
    """Prune the file as it is, exactly; tell what of its zero filters went, and why the others stay."""
    before = zero_filters(onnx.load(path))
    report = prune_onnx(path, out, validate=False)
    check = validate_onnx(path, out, provider="cpu", runs=0)
    after = zero_filters(onnx.load(out))
    held = {
        (layer.node, channel): f"{item.reason} ({item.op})"
        for item in report.blocked
        for layer in item.layers
        for channel in layer.channels
    }
    left = [(name, channel) for name, channels in after.items() for channel in channels]
    count = sum(map(len, before.values()))
    return {
        "channels": analysis.channels.total,
        "prunable": analysis.channels.prunable,
        "pinned": analysis.channels.pinned,
        "zero_filters": count,
        "removed": count - len(left),
        "explained": sum(channel in held for channel in left),
        "reasons": sorted({held[channel] for channel in left if channel in held}),
        "channels_removed": report.removed_channels,
        "error": _error(check),
        "bytes": [path.stat().st_size, out.stat().st_size],
    }


def injected(path: Path, folder: Path) -> dict[str, Any]:
    """Make 30% of the channels of every convolution constant, prune, and compare."""
    model, before, after = onnx.load(path), folder / f"injected_{path.name}", folder / "injected_out.onnx"
    tried = inject_alive(model)
    onnx.save(model, before)
    report = prune_onnx(before, after, validate=False)
    onnx.checker.check_model(str(after)) if _checkable(model) else None
    check = validate_onnx(before, after, provider="cpu", runs=0)
    sizes = [num_weights(onnx.load(file)) for file in (before, after)]
    macs = [analyze_onnx(file).macs for file in (before, after)]
    return {
        "injected": tried.channels,
        "scale": tried.scale,
        "removed": report.removed_channels,
        "carriers": report.carriers,
        "params": fall(*sizes),
        "macs": fall(*macs),
        "error": _error(check),
        "on": max(check.families, key=lambda family: check.families[family]),
        "agrees": check.passed,
        "vacuous": check.vacuous,
        "second_size": _other_size(check),
        "blocked": _blocked(report),
        "bytes": [before.stat().st_size, after.stat().st_size],
    }


def rewritten(path: Path, folder: Path) -> dict[str, Any]:
    """Prune the file with constants again, its sums expanded and its gates folded where that pays."""
    model, before, after = onnx.load(path), folder / f"injected_{path.name}", folder / "rewritten_out.onnx"
    inject_alive(model)
    onnx.save(model, before)
    report = prune_onnx(before, after, residual="expand", gates="fold", validate=False)
    onnx.checker.check_model(str(after)) if _checkable(model) else None
    check = validate_onnx(before, after, provider="cpu", runs=0)
    sizes = [num_weights(onnx.load(file)) for file in (before, after)]
    macs = [analyze_onnx(file).macs for file in (before, after)]
    return {
        "removed": report.removed_channels,
        "sums": len(report.expanded),
        "gates": len(report.gates),
        "params": fall(*sizes),
        "macs": fall(*macs),
        "error": _error(check),
        "second_size": _other_size(check),
        "blocked": _blocked(report),
        "bytes": [before.stat().st_size, after.stat().st_size],
    }


def by_score(path: Path, out: Path) -> dict[str, Any]:
    """Prune to half of the MACs by score; the result must load, run, and have the MACs."""
    try:
        report = prune_onnx(path, out, criterion="l1", target_macs=0.5, validate=False)
    except BudgetNotMet as error:
        return {"macs": None, "why": str(error)}
    check = validate_onnx(path, out, provider="cpu", runs=0)
    recount = analyze_onnx(out).macs
    return {
        "macs": round(recount / max(1, report.before.macs), 4),
        "promised": round(report.after.macs / max(1, report.before.macs), 4),
        "runs": bool(check.families),
        "bytes": [path.stat().st_size, out.stat().st_size],
    }


def _error(check: Validation) -> float:
    return float(f"{check.max_rel_error:.2g}")


def _other_size(check: Validation) -> float | None:
    found = [error for family, error in check.families.items() if family.endswith("other size")]
    return float(f"{max(found):.2g}") if found else None


def _blocked(report: PruneReport) -> list[str]:
    worst = sorted(report.blocked, key=lambda item: -item.channels)[:2]
    return [f"{item.channels}: {item.reason} ({item.node or item.op})" for item in worst]


def _checkable(model: onnx.ModelProto) -> bool:
    """Tell whether the checker knows the file's ops; experimental ones it rejects in every file."""
    return not {node.op_type for node in model.graph.node} & {"Affine", "Crop", "ImageScaler"}


def questions(path: Path, folder: Path, timed: bool) -> dict[str, Any]:
    """Return one file's answers; a refusal is an answer."""
    out = folder / "out.onnx"
    row: dict[str, Any] = {"file": path.stem}
    analysis = analyze_onnx(path)
    asked = {
        "as_it_is": lambda: as_it_is(path, out, analysis),
        "injected": lambda: injected(path, folder),
        "rewritten": lambda: rewritten(path, folder),
        "by_score": lambda: by_score(path, out),
        **({"time": lambda: measure(path, 3, {})} if timed else {}),
    }
    for name, ask in asked.items():
        try:
            row[name] = ask()
        except PrunecError as error:
            row[name] = {"failed": f"{type(error).__name__}: {error}"}
    return row


# --- the tables ---------------------------------------------------------------------------------------


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the answers as Markdown tables, one per question."""
    parts = [
        _table(
            "As they are",
            rows,
            "as_it_is",
            ("channels", "prunable", "pinned", "zero_filters", "removed", "explained", "error"),
            "reasons",
        ),
        _table(
            "With constants injected",
            rows,
            "injected",
            ("injected", "scale", "removed", "carriers", "params", "macs", "error", "on", "agrees", "second_size"),
            "blocked",
        ),
        _table(
            "With sums expanded and gates folded",
            rows,
            "rewritten",
            ("removed", "sums", "gates", "params", "macs", "error", "second_size"),
            "blocked",
        ),
        _table("Half of the MACs by score", rows, "by_score", ("macs", "promised", "runs"), "why"),
        _table("Time, in seconds", rows, "time", ("megabytes", "nodes", "baseline", "prune", "ratio"), ""),
    ]
    grown = [
        f"{row['file']}, {name}"
        for row in rows
        for name in ("as_it_is", "injected", "rewritten", "by_score")
        if (size := row.get(name, {}).get("bytes")) and size[1] > size[0]
    ]
    parts.append(f"Outputs larger than their inputs: {', '.join(grown) or 'none'}.")
    return "\n\n".join(part for part in parts if part)


def _table(title: str, rows: Sequence[Mapping[str, Any]], key: str, columns: Sequence[str], more: str) -> str:
    if not any(key in row for row in rows):
        return ""
    names = ("file", *columns, *((more,) if more else ()))
    lines = [f"### {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        answer = row.get(key, {})
        cells = ["" if answer.get(name) is None else str(answer[name]) for name in columns]
        if more:
            rest = answer.get("failed") or answer.get(more) or ""
            cells.append(" ".join((rest if isinstance(rest, str) else "; ".join(rest)).split()))
        lines.append(f"| {' | '.join((row['file'], *cells))} |")
    return "\n".join(lines)


def _with_weights(path: Path, folder: Path) -> Path:
    """Return the file, or a copy with random weights where ConstantOfShape makes them (one value says nothing)."""
    model = onnx.load(path)
    if not randomize(model):
        return path
    onnx.save(model, folder / path.name)
    return folder / path.name


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask every file, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FOLDER|FILE.onnx")
    parser.add_argument("--only", help="comma-separated names of files to take of a folder")
    parser.add_argument("--no-time", action="store_true", help="leave the timing out")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    given = parser.parse_args(arguments)
    found = [file for item in given.files for file in (sorted(item.rglob("*.onnx")) if item.is_dir() else [item])]
    only = set(given.only.split(",")) if given.only else None
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for path in found:
            if only is None or path.stem in only:
                rows.append(questions(_with_weights(path, Path(name)), Path(name), timed=not given.no_time))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1) if given.json else tables(rows))


if __name__ == "__main__":
    main()
