"""``prunec prune``: a smaller network into an ONNX file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunec.cli.options import (
    CriterionType,
    MultipleOfType,
    check_time_option,
    compensate_option,
    debug_option,
    force_option,
    inputs_option,
    json_option,
    keep_option,
    labels_option,
    memory_option,
    model_argument,
    normalise_option,
    seed_option,
    shape_option,
    weights_option,
)

if TYPE_CHECKING:
    from prunec.data.calibration import Calibration
    from prunec.ir.plan import PrunePlan
    from prunec.lookup.resolve import TorchModel
    from prunec.report.findings import PruneReport

_FRACTION = click.FloatRange(min=0, max=1, min_open=True)


@click.command()
@model_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT.onnx", help="The file to write."
)
@shape_option
@weights_option
@click.option(
    "--border",
    type=click.Choice(["exact", "bias"]),
    default="exact",
    show_default=True,
    help="Where zero padding meets removed constants: exact keeps one carrier channel, bias accepts an error there.",
)
@click.option(
    "--residual",
    type=click.Choice(["tie", "expand"]),
    default="tie",
    show_default=True,
    help="Where one branch of a sum is constant in a channel: tie keeps the channel as long as another branch varies, "
    "expand takes it out of the branch and puts it back at the sum, if that pays.",
)
@click.option(
    "--gates",
    type=click.Choice(["tie", "fold"]),
    default="tie",
    show_default=True,
    help="Constant channels times an input-dependent gate (squeeze-excite): tie keeps them, fold takes them past the "
    "product by a convolution on the gate, if that pays.",
)
@click.option(
    "--calibrate",
    metavar="DATA",
    help="Also remove channels that stay constant on this folder of .npy, .npz or image files (ReLUs that never fire).",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=1, max_open=True),
    metavar="T",
    help="With --calibrate: how far from constant, as a fraction of the tensor's largest magnitude.  [default: 1e-06]",
)
@normalise_option
@inputs_option
@click.option(
    "--criterion",
    type=CriterionType(),
    help="Also remove channels by this score, which changes the function; needs a target (taylor, reconstruct: "
    "--calibrate too). reconstruct takes the channels that the others can make up for.  [default with --calibrate "
    "and a target: reconstruct]",
)
@compensate_option
@memory_option
@labels_option
@click.option("--target-macs", type=_FRACTION, metavar="F", help="Keep at most this fraction of the MACs, 0 to 1.")
@click.option(
    "--target-params", type=_FRACTION, metavar="F", help="Keep at most this fraction of the parameters, 0 to 1."
)
@click.option(
    "--target-latency",
    type=_FRACTION,
    metavar="F",
    help="Take at most this fraction of the original's time on one thread of this machine's CPU, measured, 0 to 1.",
)
@click.option(
    "--multiple-of",
    type=MultipleOfType(),
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="By score, layers keep multiples of N channels: auto takes 16, 8 or 4, whatever suits kernels at the layer's "
    "width, and finer steps if a budget needs them. A number also rounds what exact removal leaves.",
)
@seed_option
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    metavar="PLAN.json",
    help="Also write the plan, to apply it again: apply_plan_onnx(MODEL, PrunePlan.load(PLAN), OUT).",
)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path),
    metavar="OUT.html",
    help="Also write a page of what was done; it can be read offline.",
)
@check_time_option
@click.option("--no-validate", is_flag=True, help="Do not compare the result with the original.")
@keep_option
@force_option
@json_option
@debug_option
def prune(
    model: str,
    output: Path,
    input_shapes: dict[str, tuple[int, ...]],
    weights: Path | None,
    calibrate: str | None,
    tolerance: float | None,
    normalise: str | None,
    memory: str | None,
    labels: str | None,
    plan_file: Path | None,
    page: Path | None,
    no_validate: bool,
    check_time: float,
    force: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Write a smaller network as ONNX.

    Without data and a target, only provably constant or dead channels are removed, and the result computes the
    same function. With --calibrate, channels that are constant on your data go too; the function is the same on
    these data. With --calibrate and a target, the data choose the channels, and the rest is fitted to make up for them.
    MODEL is an .onnx file, a built-in architecture, torchvision:NAME, timm:NAME, or
    package.module:factory. Nothing is written when the check fails.
    """
    from prunec.cli.render import show_json, show_prune, tell, ticker
    from prunec.errors import BadInput
    from prunec.files import check_name, check_output, same_file
    from prunec.lookup.resolve import OnnxModel, resolve

    check_output(output, force=force, inputs=(model,))
    check_name(output)
    if plan_file is not None:
        check_output(plan_file, force=force, inputs=(model,))
        if same_file(plan_file, output):
            raise BadInput(f"--plan and --output are both {output}", do="give the plan a file of its own")
    if page is not None:
        check_output(page, force=force, inputs=(model,))
        if any(other is not None and same_file(page, other) for other in (output, plan_file)):
            raise BadInput(f"--report and another output are both {page}", do="give the page a file of its own")
    progress = choices["progress"] = ticker()
    choices["calibration"] = calibration_of(calibrate, tolerance, normalise, memory, labels)
    if no_validate and choices["inputs"] is not None:
        raise BadInput("--inputs are for the check that --no-validate leaves out", do="leave one of them out")
    choices["check_time"] = check_time
    found = resolve(model, input_shapes, weights=weights)
    if isinstance(found, OnnxModel):
        from prunec import api

        report = api.prune_onnx(
            found.path,
            output,
            input_shapes=dict(found.input_shapes),
            validate=not no_validate,
            plan_file=plan_file,
            **choices,
        )
    else:
        report = _prune_module(found, output, plan_file, validate=not no_validate, **choices)
    progress("")
    if page is not None:
        from prunec.files import write_text
        from prunec.report.prune_page import prune_page

        write_text(page, prune_page(report, str(output)))
    if as_json:
        show_json({**report.to_json_dict(), "output": str(output)})
    else:
        untried = [option for option in ("residual", "gates") if choices[option] == "tie"]
        show_prune(report, str(output), untried=untried)
        if page is not None:
            tell(f"wrote {page}")


def calibration_of(
    data: str | None,
    tolerance: float | None,
    normalise: str | None,
    memory: str | None = None,
    labels: str | None = None,
) -> Calibration | None:
    """Return what --calibrate and its options mean; None without data."""
    from prunec.errors import BadInput

    if data is None:
        given = {"--tolerance": tolerance, "--normalise": normalise, "--memory": memory, "--labels": labels}
        for name, value in given.items():
            if value is not None:
                raise BadInput(f"{name} is for --calibrate", do="give the data: --calibrate FOLDER")
        return None
    from prunec.data.calibration import DEFAULT_MEMORY, DEFAULT_TOLERANCE, Calibration

    bytes_ = DEFAULT_MEMORY if memory is None else _bytes(memory)
    return Calibration(data, DEFAULT_TOLERANCE if tolerance is None else tolerance, normalise, bytes_, labels)


def _bytes(text: str) -> int:
    """Return what "500MB", "1.5 GB" or "300000000" says."""
    from prunec.errors import BadInput

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    if found is None:
        raise BadInput(f"--memory is {text!r}", do="give a size such as 500MB or 2GB")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " "))


def _prune_module(
    found: TorchModel, output: Path, plan_file: Path | None, *, validate: bool, **choices: Any
) -> PruneReport:
    from prunec import api
    from prunec.pipeline.export import export_checked, export_onnx

    pruned = api.prune_module(found.module, found.example_inputs, validate=validate, **choices)
    report = replace(pruned.report, model=found.name)
    if not validate:
        notes = export_onnx(pruned.module, found.example_inputs, output)
        _write_plan(pruned.plan, plan_file)
        return replace(report, notes=(*report.notes, *notes))
    spent = report.validation.seconds if report.validation is not None else 0.0
    # A file that computes the same function is compared with the original, any other with the pruned module.
    original = found.module if report.exact else None
    checked = export_checked(
        pruned.module,
        found.example_inputs,
        output,
        original=original,
        check_time=max(choices["check_time"] - spent, 0.0),
        progress=choices["progress"],
    )
    _write_plan(pruned.plan, plan_file)
    # A comparison on the user's own inputs says more than the check of the export.
    on_data = report.validation is not None and "data" in report.validation.families
    return report if on_data else replace(report, validation=checked)


def _write_plan(plan: PrunePlan, path: Path | None) -> None:
    from prunec.files import write_text

    if path is not None:
        write_text(path, plan.to_json() + "\n")
