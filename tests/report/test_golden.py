"""Golden files: what `analyze` says of a dozen networks, as text. ``--update-golden`` rewrites; review the diff."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from modules.networks import NETWORKS, make

from prunec.api import analyze_module
from prunec.report.findings import Analysis

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
NAMES = (
    "resnet20", "resnet18", "densenet", "googlenet", "mobilenetv2", "shufflenetv2", "unet", "squeeze_excite", "resnext",
    "convnext", "attention", "weight_norm", "pixel_shuffle", "in_place", "opaque_leaf",
)  # fmt: skip


def lines(found: Analysis) -> Iterator[str]:
    """Write an analysis as lines that do not depend on floating-point rounding."""
    counts, gone = found.channels, found.removable
    sizes = f"{found.params} params, {found.macs} MACs, {found.activations} activations"
    yield f"{found.model}: {found.nodes} nodes, {sizes}"
    yield (
        f"channels: {counts.total} total, {counts.prunable} prunable, {counts.pinned} pinned, "
        f"{counts.constant} constant, {counts.dead} dead"
    )
    yield f"removable: {gone.channels} channels, {gone.params} params, {gone.macs} MACs"
    yield "layers:"
    for layer in found.layers:
        state = f"{layer.channels} channels ({layer.pinned} pinned, {layer.constant} constant, {layer.dead} dead)"
        where = f"groups {list(layer.groups)} from {list(layer.inputs)}"
        yield f"  {layer.node} {layer.op}: {state} {where} {layer.note}".rstrip()
    yield "groups:"
    for group in found.groups:
        members = ", ".join(f"{m.param}[{m.axis}]x{m.count}" for m in group.members)
        yield f"  {group.id}: {group.channels} {'prunable' if group.prunable else 'pinned'}: {members}"
    yield "pins:"
    yield from (f"  {p.node} ({p.op}): {p.reason}: {p.channels}" for p in found.pins)
    yield "blocked:"
    yield from (f"  {b.node} ({b.op}): {b.reason}: {b.channels}" for b in found.blocked)


@pytest.mark.parametrize("name", NAMES)
def test_analysis_is_what_it_was(name: str, update_golden: bool) -> None:
    text = "\n".join(lines(analyze_module(make(name), NETWORKS[name].inputs(), name=name))) + "\n"
    path = GOLDEN / f"{name}.txt"
    if update_golden:
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, (
        "if the change is meant: pytest tests/report/test_golden.py --update-golden"
    )


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(NAMES)
