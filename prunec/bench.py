"""How much of the speed-up that fewer MACs promise ONNX Runtime delivers.

Owns the measurement behind ``prunec bench``: a model pruned by score at several sizes, each result timed against the
original in turns. Pruning is api.py's, timing sessions.py's; read those next.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec import api
from prunec.check.finding import working_feed
from prunec.errors import BudgetNotMet
from prunec.lookup.resolve import OnnxModel, TorchModel
from prunec.passes.selection.criteria import name_of
from prunec.passes.selection.widths import AUTO, MultipleOf
from prunec.pipeline.options import Criterion
from prunec.runtime import sessions
from prunec.runtime.probes import Feed
from prunec.runtime.sessions import ProviderName, Runner
from prunec.timing import latency

DEFAULT_FRACTIONS = (0.75, 0.5, 0.25)


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One pruned file against the original.

    Args:
        target_macs: the fraction that was asked for.
        multiple_of: what kept channels were rounded to; 1 is no rounding.
        macs, params: of the pruned file, batch 1; None where the budget cannot be met, and ``note`` says why.
        original_ms, pruned_ms: median latencies, measured in turns.
    """

    target_macs: float
    multiple_of: MultipleOf
    macs: int | None = None
    params: int | None = None
    original_ms: float | None = None
    pruned_ms: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All measurements of one model.

    Args:
        model: its name.
        provider: what ran.
        criterion: the score by which channels went.
        inputs: the shapes that were timed, by input.
        macs, params: of the original, batch 1.
        rows: by fraction, each without and with rounding.
        notes: what to know of the measurement.
    """

    model: str
    provider: str
    criterion: str
    inputs: Mapping[str, tuple[int, ...]]
    macs: int
    params: int
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...] = ()

    def promised(self, row: BenchRow) -> float | None:
        """Return the speed-up if latency followed the MACs."""
        return self.macs / row.macs if row.macs else None

    def measured(self, row: BenchRow) -> float | None:
        """Return the speed-up that was measured."""
        return row.original_ms / row.pruned_ms if row.original_ms and row.pruned_ms else None

    def ratio(self, row: BenchRow) -> float | None:
        """Return measured over promised: 1 delivers everything, below 0.5 half of it is lost."""
        promised, measured = self.promised(row), self.measured(row)
        return measured / promised if promised and measured else None

    def to_json_dict(self) -> dict[str, Any]:
        """Return the report as JSON data, the three ratios with each row."""
        document = dataclasses.asdict(self)
        for row, shown in zip(self.rows, document["rows"], strict=True):
            shown.update(promised=self.promised(row), measured=self.measured(row), ratio=self.ratio(row))
        return document


def bench(
    model: OnnxModel | TorchModel,
    *,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    multiple_of: MultipleOf = AUTO,
    criterion: Criterion = "l1",
    provider: ProviderName = "auto",
    runs: int = 30,
    seed: int = 0,
    keep: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Prune ``model`` to each fraction of its MACs, without and with rounding, and time every result.

    Accuracy is not looked at: scores of untrained weights are as good as any for measuring speed.

    Args:
        model: a module is exported first, so that files are compared with files.
        fractions: of the MACs that stay, each above 0 and at most 1.
        multiple_of: rounding of kept channels; "auto" takes what suits each layer (passes/selection/widths.py).
        criterion: the score by which channels go.
        provider: where to run; "auto" takes CUDA where it works.
        runs: timed runs of each file.
        seed: of the inputs and of the random criterion.
        keep: shell patterns of parameters and nodes to leave alone.
        progress: told what is being measured.

    Raises:
        BadInput, UnsupportedModel, UntraceableModel: the model cannot be exported, pruned or run.
    """
    with tempfile.TemporaryDirectory(prefix="prunec-bench-") as name:
        folder = Path(name)
        path, shapes = _as_file(model, folder)
        chosen = sessions.choose_provider(provider)
        original = sessions.open_runner(path, model.name, chosen.name, optimise=True)
        feed = working_feed(original, path, shapes, seed)
        # What is counted are the sizes that are timed, also where the file leaves them open.
        sizes = {name: tuple(value.shape) for name, value in feed.items()}
        whole = api.analyze_onnx(path, sizes)
        timing = _Timing(path, folder / "pruned.onnx", original, feed, runs)
        options = {"criterion": criterion, "keep": tuple(keep), "seed": seed, "input_shapes": sizes}
        rows = []
        for fraction in fractions:
            for multiple in dict.fromkeys((1, multiple_of)):
                progress(f"{fraction:.0%} of the MACs, channels {_in_words(multiple)}")
                rows.append(_row(timing, fraction, multiple, options))
    return BenchReport(
        model=model.name,
        provider=original.provider,
        criterion=name_of(criterion),
        inputs=sizes,
        macs=whole.macs,
        params=whole.params,
        rows=tuple(rows),
        notes=(chosen.note,) if chosen.note and provider == "cuda" else (),
    )


@dataclass(frozen=True, slots=True)
class _Timing:
    """The original, open, where pruned files go, and what both are fed."""

    path: Path
    pruned: Path
    original: Runner
    feed: Feed
    runs: int


def _as_file(model: OnnxModel | TorchModel, folder: Path) -> tuple[Path, Mapping[str, tuple[int, ...]]]:
    if isinstance(model, OnnxModel):
        return model.path, model.input_shapes
    from prunec.pipeline.export import export_onnx

    export_onnx(model.module, model.example_inputs, folder / "original.onnx")
    return folder / "original.onnx", {}


def _in_words(multiple: MultipleOf) -> str:
    return "at widths that suit each layer" if multiple == AUTO else f"in multiples of {multiple}"


def _row(timing: _Timing, fraction: float, multiple: MultipleOf, options: Mapping[str, Any]) -> BenchRow:
    try:
        report = api.prune_onnx(
            timing.path, timing.pruned, validate=False, target_macs=fraction, multiple_of=multiple, **options
        )
    except BudgetNotMet as error:
        return BenchRow(fraction, multiple, note=error.what)
    original = timing.original
    pruned = sessions.open_runner(timing.pruned, "the pruned model", original.provider, optimise=True)
    before, after = latency.interleaved_latency(original, pruned, timing.feed, timing.runs)
    return BenchRow(fraction, multiple, report.after.macs, report.after.params, before, after)
