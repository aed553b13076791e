"""``prunec validate``: two ONNX files, the same inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from prunec.cli.options import (
    check_time_option,
    debug_option,
    inputs_option,
    json_option,
    provider_option,
    seed_option,
    shape_option,
)

if TYPE_CHECKING:
    from prunec.runtime.sessions import ProviderName


@click.command()
@click.argument("a", metavar="A.onnx")
@click.argument("b", metavar="B.onnx")
@provider_option
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=1e-4,
    show_default=True,
    help="Largest relative error that passes: max|a-b| / max|a| per output.",
)
@click.option(
    "--runs", type=click.IntRange(min=0), default=30, show_default=True, help="Timed runs of each file; 0: no latency."
)
@seed_option
@check_time_option
@inputs_option
@shape_option
@json_option
@debug_option
def validate(
    a: str,
    b: str,
    provider: ProviderName,
    tolerance: float,
    runs: int,
    seed: int,
    check_time: float,
    inputs: str | None,
    input_shapes: dict[str, tuple[int, ...]],
    as_json: bool,
) -> None:
    """Compare two ONNX files: errors and latencies.

    Both run on the same inputs; A is the reference. Exit status 1 if the outputs differ by more than the tolerance.
    """
    from prunec.check.validate import validate_onnx
    from prunec.cli.render import show_json, show_validation, tell
    from prunec.errors import ValidationFailed
    from prunec.pipeline.evidence import onnx_samples

    result = validate_onnx(
        a,
        b,
        provider=provider,
        tolerance=tolerance,
        runs=runs,
        input_shapes=input_shapes,
        inputs=None if inputs is None else onnx_samples(a, inputs, input_shapes),
        seed=seed,
        check_time=check_time,
        progress=tell,
    )
    if as_json:
        show_json({"a": a, "b": b, **result.to_json_dict()})
    else:
        show_validation(result, a, b)
    if not result.passed:
        raise ValidationFailed(
            f"the outputs differ by {result.max_rel_error:.2g} (relative)",
            why=f"more than the tolerance of {tolerance:g}",
            do="see the error of each input family above, or raise --tolerance if that is good enough for you",
        )
