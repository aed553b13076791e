"""The steps of a sweep: points one after the other, then what each coupled group costs, a report after each.

Owns the order and the folder; what points share is network.py's, what the folder held before is state.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunec.backends.onnx.save import save_onnx
from prunec.data.calibration import Calibration
from prunec.errors import BadInput, BudgetNotMet, PrunecError
from prunec.files import check_folder, write_json, write_text
from prunec.lookup.resolve import OnnxModel, TorchModel
from prunec.passes.selection.budget import Target
from prunec.passes.selection.criteria import WITH_DATA, WITHOUT_DATA, check_has_data
from prunec.pipeline.options import Options
from prunec.pipeline.reporting import report_of
from prunec.runtime import sessions
from prunec.sweep.countdown import Countdown
from prunec.sweep.findings import GroupCost, Point, SweepReport
from prunec.sweep.network import Network
from prunec.sweep.page import sweep_page
from prunec.sweep.sensitivity import Probe, group_costs
from prunec.sweep.state import Known, known_of, settings_of
from prunec.timing import staircases
from prunec.timing.pairs import ONE, PROVIDER, timed

FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Of the MACs, where none are asked for."""


def sweep(
    model: OnnxModel | TorchModel,
    output: str | Path,
    *,
    fractions: Sequence[float] = FRACTIONS,
    calibration: Calibration | str | Path | None = None,
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
        calibration: data on disk, or ``Calibration`` with more settings: they choose what goes, and what stays is
            fitted to them (criterion ``reconstruct``, the default then). Agreement is measured on every fourth sample,
            and nothing else looks at those.
        sensitivity: also measure what each coupled group costs.
        force: start anew where the folder holds another sweep.
        progress: told what is being done, with the time that is left.
        options: as for ``prune_onnx``, except for targets; the criterion is ``l1`` where there are no data.

    Raises:
        BadInput: the folder holds another sweep, the data do not fit, or no point can be made with these options.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file", do="give a folder: -o sweep/")
    check_folder(folder.parent if not folder.exists() else folder)
    calibration = Calibration.of(calibration)
    if calibration is not None and not isinstance(calibration.data, str | Path):
        raise BadInput(
            "a sweep needs its data on disk",
            why="it can be stopped and go on later",
            do="save them with numpy.save, and give that file or its folder",
        )
    chosen = _options(options, calibration)
    for fraction in fractions:
        replace(chosen, target_macs=fraction)  # says what is wrong with it
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _swept(
            model, folder, chosen, calibration, sorted(set(fractions), reverse=True), sensitivity, force, progress
        )
    except PrunecError:
        if is_new:
            _unmade(folder)
        raise


def _options(given: Mapping[str, Any], calibration: Calibration | None) -> Options:
    """Return the options of a sweep: data choose by themselves, without any the smallest filters go."""
    criterion = given.get("criterion") or (WITHOUT_DATA if calibration is None else WITH_DATA)
    check_has_data(criterion, data=calibration is not None)
    return Options.of(**{**given, "criterion": criterion, "target_macs": 1.0})


def _unmade(folder: Path) -> None:
    """Take away a folder that was made for nothing: the module's export is all that lies in it."""
    if not (folder / "sweep.json").exists():
        (folder / "original.onnx").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _swept(
    model: OnnxModel | TorchModel,
    folder: Path,
    options: Options,
    calibration: Calibration | None,
    fractions: Sequence[float],
    sensitivity: bool,
    force: bool,
    progress: Callable[[str], None],
) -> SweepReport:
    path, shapes = _as_file(model, folder)
    settings = settings_of(path, shapes, options, calibration)
    known = known_of(folder, settings, force)
    clock = Countdown(progress)
    network = Network(path, shapes, options, calibration, min(fractions), clock.tells)
    todo = [fraction for fraction in fractions if fraction not in {p.target for p in known.points}]
    skip = {group.id: group for group in known.groups}
    missing = [number for number in range(network.num_groups) if sensitivity and number not in skip]
    if (todo or missing) and calibration is not None:
        clock.begins("looking at the data")
        network.look()
    report = _begun(network, model.name, settings, fractions, known)
    clock.counts(len(todo))
    for number, fraction in enumerate(todo):
        clock.begins(f"point {number + 1} of {len(todo)}, {fraction:.0%} of the MACs")
        point = _point(network, folder, fraction)
        report = replace(report, points=tuple(sorted((*report.points, point), key=lambda p: -p.target)))
        _written(folder, report)
    if missing:
        report = _with_groups(network, folder, report, skip, clock)
    _written(folder, report)
    asked = [point for point in report.points if point.target in fractions]
    if not any(point.file for point in asked):
        raise BudgetNotMet(
            "no point of the sweep can be reached by removing channels",
            why=asked[0].note if asked else "",
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


def _begun(
    network: Network, name: str, settings: Mapping[str, Any], fractions: Sequence[float], known: Known
) -> SweepReport:
    """Return the report with what is known already; points that were asked for before stay."""
    whole = network.whole
    inputs, notes = known.inputs, known.notes
    if inputs is None:
        inputs, notes = network.compared_on.words, (*network.compared_on.notes, *_short(network))
    return SweepReport(
        model=name,
        settings={**settings, "fractions": sorted({*fractions, *(p.target for p in known.points)}, reverse=True)},
        criterion=str(network.options.criterion),
        inputs=inputs,
        macs=whole.macs,
        params=whole.params,
        bytes=network.path.stat().st_size,
        points=known.points,
        groups=known.groups,
        notes=notes,
    )


def _short(network: Network) -> tuple[str, ...]:
    fit = network.evidence.fit
    return () if fit is None or not network.options.compensate else fit.short_of_data(network.facts)


def _point(network: Network, folder: Path, fraction: float) -> Point:
    try:
        job = network.make(Target(macs=fraction))
    except BudgetNotMet as error:
        return Point(fraction, note=f"{error.what}: {error.why}")
    report = report_of(job, "", None, None)
    file = folder / f"macs-{round(1000 * fraction) / 10:g}.onnx"
    save_onnx(job.result, file)
    pruned = sessions.open_runner(file, "the pruned network", PROVIDER, optimise=True)
    times = timed(network.path, file, network.timed_on, threads=ONE)
    return Point(
        target=fraction,
        file=file.name,
        macs=report.after.macs,
        params=report.after.params,
        channels=report.after.channels,
        bytes=file.stat().st_size,
        original_ms=times[0],
        pruned_ms=times[1],
        agreement=network.agreement(pruned),
    )


def _with_groups(
    network: Network, folder: Path, report: SweepReport, skip: Mapping[int, GroupCost], clock: Countdown
) -> SweepReport:
    """Add what each coupled group costs; the report is written after each."""
    facts, count = network.facts, network.num_groups
    clock.begins("timing layers")
    times = staircases.measured(facts.graph, clock.tells)
    probe = Probe(facts, network.scores, network.specs, network.error_of, times)
    clock.counts(count - len(skip))
    found: list[GroupCost] = []
    costs = group_costs(probe, skip)
    for number in range(count):
        if number not in skip:
            clock.begins(f"what coupled group {number + 1} of {count} costs")
        found.append(next(costs))
        report = replace(report, groups=tuple(found))
        write_json(folder / "sweep.json", report.to_json_dict())
    return report


def _written(folder: Path, report: SweepReport) -> None:
    write_json(folder / "sweep.json", report.to_json_dict())
    write_text(folder / "index.html", sweep_page(report))
