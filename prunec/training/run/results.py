"""The results of a finished run: the exported network, its weights and plan, the summary, the report.

Owns the files of the run folder that are written at the end, each completely or not at all, and RunResult.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunec.errors import BudgetNotMet
from prunec.files import replacing, write_json, write_text
from prunec.ir.plan import PrunePlan
from prunec.pipeline.export import export_checked
from prunec.report.findings import Validation, plain
from prunec.report.run_page import write_run_page
from prunec.timing.pairs import PROVIDER
from prunec.training.logs.pictures import write_sheet
from prunec.training.logs.progress import Progress
from prunec.training.run.record import LatencyBudget, Record
from prunec.training.run.time_budget import TOLERANCE, stopwatch
from prunec.training.settings.setup import Setup

MOMENTS = ("before", "removed", "after")
"""When a network is scored: the given weights (or the network before the penalty), right after removal, and the
exported network."""
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class RunResult:
    """The outcome of a run; summary.json holds the same keys.

    Args:
        model: what was trained.
        output: the run folder.
        before, after: params, macs, activations and channels, recounted on the result.
        metric: the score that counts: ``accuracy``, or ``miou`` for masks.
        scores: of the test images, by name, each in 0..1 at the MOMENTS; in JSON each has a key of its own.
        layers: node, op and output channels before and after, per contraction.
        validation: the exported file against the module; its latency is that of the unpruned network
            (a) and the pruned one (b) in ONNX Runtime.
        reasons: what was chosen, and why phases ended; sentences.
        advice: symptoms that the curves showed; sentences.
        blocked: channels that were constant but have to stay, with the node that holds them.
        files: the files that were written, by name.
        milestones: per milestone its target, folder, params, macs, score and latency ratio.
        latency: with --target-latency, the share asked for, the measured share of the exported network, the provider,
            the budget of MACs that was used for it, and the probes that led to it; else None.
    """

    model: str
    output: str
    before: Mapping[str, int]
    after: Mapping[str, int]
    metric: str
    scores: Mapping[str, Mapping[str, float]]
    layers: tuple[Mapping[str, Any], ...]
    validation: Validation
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    blocked: tuple[Mapping[str, Any], ...]
    files: tuple[str, ...]
    milestones: tuple[Mapping[str, Any], ...] = ()
    latency: Mapping[str, Any] | None = None

    @property
    def score(self) -> Mapping[str, float]:
        """The score that counts, at the MOMENTS."""
        return self.scores[self.metric]

    def to_json_dict(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        document = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        document |= document.pop("scores")
        return {"format": "prunec-summary", "version": 1, **document, "validation": self.validation.to_json_dict()}


def write_results(setup: Setup, module: nn.Module, plan: PrunePlan, record: Record, progress: Progress) -> RunResult:
    """Write the run folder's results.

    Args:
        module: the pruned network, on the CPU, in eval mode.
        plan: how it was made from the original.
        record: what the run measured and chose.

    Raises:
        ValidationFailed: ONNX Runtime does not agree with ``module``.
        UnsupportedModel: no exporter takes it.
        BudgetNotMet: everything is written, but the network is larger than asked for.
    """
    folder = setup.folder
    save_weights(module, folder.weights)
    write_text(folder.plan, plan.to_json() + "\n")
    one_image = tuple(tensor[:1] for tensor in setup.example_inputs)
    names = setup.interface
    validation = export_checked(
        module,
        one_image,
        folder.onnx,
        tolerance=_TOLERANCE,
        input_names=(names.input_name,),
        output_names=(names.output_name,),
        open_axes=names.open_axes,
    )
    with stopwatch(setup.module.to("cpu"), one_image, names) as watch:
        was, now = watch.time(folder.onnx, _slowest(setup))
    validation = dataclasses.replace(validation, latency_a_ms=was, latency_b_ms=now)
    if record.masks:
        write_sheet(folder.pictures, setup.data.test, _in_order(record.masks))
    result = _result(setup, record, validation)
    write_json(folder.summary, result.to_json_dict())
    write_run_page(folder)
    progress.note(f"wrote {folder.path}")
    _check_budget(setup, result)
    return result


def _slowest(setup: Setup) -> float:
    """Return the largest share of the original's latency that passes."""
    asked = setup.config.target_latency
    return math.inf if asked is None else asked * (1 + TOLERANCE)


def _in_order(at_moments: Mapping[str, Any]) -> list[Any]:
    return [at_moments[moment] for moment in MOMENTS if moment in at_moments]


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a state dict as safetensors; shared tensors are written under each of their names."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    with replacing(path) as aside:
        aside.touch()
        mode = aside.stat().st_mode
        save_file(state, aside, metadata={"format": "pt"})
        aside.chmod(mode)  # safetensors creates files that only their owner can read


def _result(setup: Setup, record: Record, validation: Validation) -> RunResult:
    folder, report = setup.folder, record.report
    measured = record.scores
    scores = {
        name: {moment: measured[moment][name] for moment in MOMENTS if moment in measured} for name in measured["after"]
    }
    files = [folder.onnx, folder.weights, folder.plan, folder.metrics, folder.summary, folder.report, folder.config]
    files += [folder.pictures] * bool(record.masks)
    latency = _against_target(record.latency, validation)
    return RunResult(
        model=setup.config.model_spec,
        output=str(folder.path),
        before=report["before"],
        after=report["after"],
        metric=setup.objective.metric,
        scores=scores,
        layers=tuple(report["layers"]),
        validation=validation,
        reasons=(*record.reasons, *_latency_in_words(latency)),
        advice=tuple(record.advice),
        blocked=tuple(report["blocked"]),
        files=tuple(file.name for file in files),
        latency=latency,
    )


def _against_target(chosen: LatencyBudget | None, validation: Validation) -> Mapping[str, Any] | None:
    if chosen is None or validation.latency_a_ms is None or validation.latency_b_ms is None:
        return None
    return {
        "asked": chosen.asked,
        "measured": validation.latency_b_ms / validation.latency_a_ms,
        "provider": PROVIDER,
        "macs_budget": chosen.macs,
        "probes": [dataclasses.asdict(point) for point in chosen.probes],
    }


def _latency_in_words(latency: Mapping[str, Any] | None) -> tuple[str, ...]:
    if latency is None:
        return ()
    sentence = (
        f"latency: the exported network takes {latency['measured']:.1%} of the original's time, {latency['asked']:.1%} "
        f"were asked for; measured in ONNX Runtime ({latency['provider']}) on this machine, one image at a time"
    )
    return (sentence,)


def _check_budget(setup: Setup, result: RunResult) -> None:
    if result.latency is not None:
        _check_latency(result.latency["asked"], result.latency["measured"])
        return
    for goal in setup.goals:
        share = result.after[goal.quantity] / result.before[goal.quantity]
        if share > goal.share:
            raise BudgetNotMet(
                f"{share:.1%} of the {goal.quantity} are left, {goal.share:.1%} were asked for",
                why="some of the channels that were to go could not be removed",
                do="see what blocks them in the report, and give a smaller target",
            )


def _check_latency(asked: float, measured: float) -> None:
    if measured > asked * (1 + TOLERANCE):
        raise BudgetNotMet(
            f"the exported network takes {measured:.1%} of the original's time, {asked:.1%} were asked for",
            why=f"measured in ONNX Runtime ({PROVIDER}) on this machine, where {TOLERANCE:.0%} more would pass",
            do="run it again with a smaller target, on a machine with nothing else to do",
        )
