"""Prune one network to several sizes, and tell what each is worth.

Owns the order of the steps and what is kept of them on disk: data are looked at once, every point is a file in the
folder, and sweep.json is written after each step, so that a sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prunec import __version__
from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import model_bytes, save_onnx
from prunec.check.agreement import agreement
from prunec.check.finding import working_feed
from prunec.data.calibration import Calibration, Observed
from prunec.data.observing import observe_onnx
from prunec.data.samples import Samples
from prunec.errors import BadInput, BudgetNotMet
from prunec.files import check_folder, read_json, write_json, write_text
from prunec.frontends.onnx.frontend import TracedOnnx
from prunec.ir.edits import Edits
from prunec.ir.graph import Graph
from prunec.ir.plan import PrunePlan
from prunec.lookup.resolve import OnnxModel, TorchModel
from prunec.passes.channels import channels
from prunec.passes.groups import group_classes
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.budget import Target
from prunec.passes.selection.scores import score
from prunec.pipeline.evidence import no_gradients, onnx_samples
from prunec.pipeline.options import Options
from prunec.pipeline.planning import gather_facts, plan_and_apply
from prunec.pipeline.reading import open_specs, read_onnx
from prunec.pipeline.reporting import report_of
from prunec.report.findings import Agreement
from prunec.runtime import sessions
from prunec.runtime.probes import Feed
from prunec.runtime.sessions import Runner
from prunec.sweep.findings import GroupCost, Point, SweepReport, group_of, point_of
from prunec.sweep.page import sweep_page
from prunec.sweep.sensitivity import Probe, group_costs
from prunec.timing import staircases
from prunec.timing.pairs import ONE, PROVIDER, timed

FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Of the MACs, where none are asked for."""

HELD_OUT_EVERY, _LEAST_FOR_HOLDING_OUT = 4, 8
_MOST_COMPARED, _MOST_PROBED = 256, 8
"""Samples on which points are compared with the original, and parts of single groups; at most."""
_RANDOM = 16
"""Random inputs, where there are no data."""


def sweep(
    model: OnnxModel | TorchModel,
    output: str | Path,
    *,
    fractions: Sequence[float] = FRACTIONS,
    calibration: Calibration | None = None,
    sensitivity: bool = True,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> SweepReport:
    """Prune ``model`` to each fraction of its MACs into ``output``, with a report and a page.

    Args:
        model: a module is exported into the folder first.
        output: a folder; one that holds an unfinished sweep of the same model with the same options goes on.
        fractions: of the MACs that stay, each above 0 and at most 1.
        calibration: data; agreement is measured on every fourth sample, and nothing else looks at those.
        sensitivity: also measure what each coupled group costs.
        force: start anew where the folder holds another sweep.
        progress: told what is being done, with the time that is left.
        options: as for ``prune_onnx``, except for targets.

    Raises:
        BadInput: the folder holds another sweep, or no point can be made with these options.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file", do="give a folder: -o sweep/")
    check_folder(folder.parent if not folder.exists() else folder)
    chosen = Options(**{"criterion": "l1", **options, "keep": tuple(options.get("keep", ())), "target_macs": 1.0})
    if chosen.criterion == "taylor" and calibration is None:
        raise no_gradients()
    for fraction in fractions:
        replace(chosen, target_macs=fraction)  # says what is wrong with it
    folder.mkdir(parents=True, exist_ok=True)
    path, shapes = _as_file(model, folder)
    settings = _settings(path, shapes, chosen, calibration)
    known = _known(folder, settings, force)
    network = _Network(path, shapes, chosen, calibration)
    report = network.report(model.name, settings, known, sorted(set(fractions), reverse=True))
    todo = [fraction for fraction in report.settings["fractions"] if fraction not in {p.target for p in report.points}]
    clock = _Countdown(progress, len(todo))
    for fraction in todo:
        clock.begins(f"{fraction:.0%} of the MACs")
        point = _point(network, folder, fraction)
        report = replace(report, points=tuple(sorted((*report.points, point), key=lambda p: -p.target)))
        _written(folder, report)
    if sensitivity:
        report = _with_groups(network, folder, report, known, progress)
    _written(folder, report)
    if not any(point.file for point in report.points):
        raise BudgetNotMet(
            "no point of the sweep can be reached by removing channels",
            why=report.points[0].note if report.points else "",
            do="give larger fractions, or pin fewer channels",
        )
    return report


def _as_file(model: OnnxModel | TorchModel, folder: Path) -> tuple[Path, Mapping[str, tuple[int, ...]]]:
    if isinstance(model, OnnxModel):
        return model.path, model.input_shapes
    from prunec.pipeline.export import export_onnx

    path = folder / "original.onnx"
    export_onnx(model.module, model.example_inputs, path)
    return path, {}


def _settings(
    path: Path, shapes: Mapping[str, Sequence[int]], options: Options, calibration: Calibration | None
) -> dict[str, Any]:
    """Return what the points depend on, as JSON data."""
    return {
        "prunec": __version__,
        "model": hashlib.sha256(path.read_bytes()).hexdigest(),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "criterion": options.criterion,
        "border": options.border,
        "residual": options.residual,
        "gates": options.gates,
        "keep": list(options.keep),
        "multiple_of": options.multiple_of,
        "seed": options.seed,
        "data": None if calibration is None else str(calibration.data),
        "tolerance": None if calibration is None else calibration.tolerance,
        "normalise": None if calibration is None else calibration.normalise,
    }


@dataclass(frozen=True, slots=True)
class _Known:
    """What an earlier call left."""

    points: tuple[Point, ...] = ()
    groups: tuple[GroupCost, ...] = ()


def _known(folder: Path, settings: Mapping[str, Any], force: bool) -> _Known:
    state = folder / "sweep.json"
    if not state.exists() or force:
        return _Known()
    document = read_json(state)
    try:
        held = {key: value for key, value in document["settings"].items() if key != "fractions"}
        if held != settings:
            changed = sorted(key for key in {*held, *settings} if held.get(key) != settings.get(key))
            raise BadInput(
                f"{folder} holds another sweep",
                why=f"other than now: {', '.join(changed)}",
                do="give another folder, or --force to start anew",
            )
        points = tuple(map(point_of, document["points"]))
        groups = tuple(map(group_of, document["groups"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{state} is no report of a sweep", why=repr(error), do="give another folder") from error
    return _Known(tuple(p for p in points if not p.file or (folder / p.file).is_file()), groups)


class _Network:
    """The network, read once, and what data show of it, looked at once."""

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[int, ...]], options: Options, calibration: Calibration | None
    ) -> None:
        self.path, self.shapes, self.options, self.calibration = path, shapes, options, calibration
        self.traced: TracedOnnx = read_onnx(path, shapes)
        self.specs = open_specs(self.traced.graph)
        self.notes: list[str] = []
        self.feeds, self.inputs, fitted = self._data()
        self.observed, self.saliency = self._evidence(fitted)

    def _data(self) -> tuple[list[Feed], str, Samples | None]:
        """Return what points are compared on, in words too, and the samples that may be looked at."""
        if self.calibration is None:
            made = [working_feed(self.original, self.path, self.shapes, seed) for seed in range(_RANDOM)]
            return made, f"{_RANDOM} random inputs, which say little about real ones: --calibrate gives some", None
        samples = onnx_samples(self.path, self.calibration.data, self.shapes, self.calibration.normalise)
        fitted, held, where = samples, samples, f"the samples of {samples.name}, all of which were looked at"
        if len(samples.records) >= _LEAST_FOR_HOLDING_OUT:
            parts = [[], []]  # type: list[list[Any]]
            for number, record in enumerate(samples.records):
                parts[number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1].append(record)
            fitted, held = (replace(samples, records=tuple(part)) for part in parts)
            where = f"every fourth sample of {samples.name}, which nothing else looked at"
        else:
            self.notes.append(f"{samples.name} holds too few files to hold some out")
        feeds: list[Feed] = []
        rows = 0
        for feed in held:
            feeds.append(feed)
            rows += max((len(value) for value in feed.values() if value.ndim > 1), default=1)
            if rows >= _MOST_COMPARED:
                break
        return feeds, f"{rows} samples: {where}", fitted

    def _evidence(self, fitted: Samples | None) -> tuple[Observed | None, Any]:
        if fitted is None or self.calibration is None:
            return None, None
        classes = channels(self.traced.graph, self.options.keep)
        observed = observe_onnx(self.traced, classes, fitted, self.calibration.tolerance)
        if self.options.criterion != "taylor":
            return observed, None
        from prunec.data.saliency import onnx_saliency

        return observed, onnx_saliency(self.traced, fitted)

    @cached_property
    def original(self) -> Runner:
        return sessions.open_runner(self.path, "the original", PROVIDER, optimise=True)

    def report(self, name: str, settings: Mapping[str, Any], known: _Known, fractions: Sequence[float]) -> SweepReport:
        whole = self.make(Target(macs=1.0))
        before = report_of(whole, name, None, None).before
        return SweepReport(
            model=name,
            settings={**settings, "fractions": list(fractions)},
            criterion=str(self.options.criterion),
            inputs=self.inputs,
            macs=before.macs,
            params=before.params,
            bytes=self.path.stat().st_size,
            points=tuple(point for point in known.points if point.target in fractions),
            groups=known.groups,
            notes=tuple(self.notes),
        )

    def make(self, target: Target) -> Any:
        """Prune to a target."""

        def apply(graph: Graph, edits: Edits) -> Any:
            return apply_onnx(replace(self.traced, graph=graph), edits)

        options = replace(self.options, target_macs=target.macs)
        return plan_and_apply(
            self.traced.graph, self.specs, options, self.saliency, apply, self.observed, target=target
        )

    def compared(self, pruned: Runner, feeds: Sequence[Feed]) -> Agreement:
        return agreement(self.original, pruned, self.original.outputs, feeds)


def _point(network: _Network, folder: Path, fraction: float) -> Point:
    try:
        job = network.make(Target(macs=fraction))
    except BudgetNotMet as error:
        return Point(fraction, note=f"{error.what}: {error.why}")
    report = report_of(job, "", None, None)
    file = folder / f"macs-{round(1000 * fraction) / 10:g}.onnx"
    save_onnx(job.result, file)
    pruned = sessions.open_runner(file, "the pruned network", PROVIDER, optimise=True)
    times = timed(network.path, file, network.feeds[0], threads=ONE)
    return Point(
        target=fraction,
        file=file.name,
        macs=report.after.macs,
        params=report.after.params,
        channels=report.after.channels,
        bytes=file.stat().st_size,
        original_ms=times[0],
        pruned_ms=times[1],
        agreement=network.compared(pruned, network.feeds),
    )


def _with_groups(
    network: _Network, folder: Path, report: SweepReport, known: _Known, progress: Callable[[str], None]
) -> SweepReport:
    """Add what each coupled group costs; the report is written after each."""
    facts = gather_facts(network.traced.graph, network.options.keep)
    few = network.feeds[:_MOST_PROBED]

    def error(made: PrunePlan) -> float:
        edits = lower(facts.graph, facts.classes, made, facts.constants)
        pruned = model_bytes(apply_onnx(replace(network.traced, graph=facts.graph), edits))
        runner = sessions.open_runner(pruned, "the network without a part of a group", PROVIDER, optimise=False)
        return max((output.error for output in network.compared(runner, few).outputs), default=0.0)

    scores = score(facts, str(network.options.criterion), seed=network.options.seed, saliency=network.saliency)
    skip = {group.id: group for group in known.groups}
    count = len(group_classes(facts.classes))
    if all(number in skip for number in range(count)):
        return report
    probe = Probe(facts, scores, network.specs, error, staircases.measured(facts.graph, progress))
    countdown = _Countdown(progress, count - len(skip))
    found: list[GroupCost] = []
    costs = group_costs(probe, skip)
    for number in range(count):
        if number not in skip:
            countdown.begins(f"what coupled group {number + 1} of {count} costs")
        found.append(next(costs))
        report = replace(report, groups=tuple(found))
        write_json(folder / "sweep.json", report.to_json_dict())
    return report


def _written(folder: Path, report: SweepReport) -> None:
    write_json(folder / "sweep.json", report.to_json_dict())
    write_text(folder / "index.html", sweep_page(report))


class _Countdown:
    """Tells what begins, and how long the rest takes if it goes on as it did."""

    def __init__(self, progress: Callable[[str], None], count: int) -> None:
        self._progress, self._count, self._done = progress, count, -1
        self._started = time.perf_counter()

    def begins(self, what: str) -> None:
        """Tell what begins; the time left is known once something has ended."""
        self._done += 1
        taken = time.perf_counter() - self._started
        left = taken / self._done * (self._count - self._done) if self._done else 0.0
        self._progress(what + (f", about {_duration(left)} left" if self._done else ""))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
