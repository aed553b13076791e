"""``prunec report``: the page of a training run."""

from __future__ import annotations

from pathlib import Path

import click

from prunec.cli.options import debug_option


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT.html",
    help="Where to write the page; default: report.html in the run folder, which is replaced.",
)
@debug_option
def report(run_dir: Path, output: Path | None) -> None:
    """Write the page of a training run.

    The run may still be going on, or have been stopped.
    """
    from prunec.cli.render import tell
    from prunec.files import RunFolder, check_output
    from prunec.report.run_page import write_run_page

    run = RunFolder(run_dir)
    target = output if output is not None else run.report
    if output is not None:
        check_output(output, force=False, inputs=(run.config, run.metrics, run.summary, run.onnx, run.weights))
    write_run_page(run, target)
    tell(f"wrote {target}")
