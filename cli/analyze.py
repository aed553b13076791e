"""``prunec analyze``: what a network is made of, as a table, JSON or a page."""

from __future__ import annotations

from pathlib import Path

import click

from prunec.cli.options import (
    debug_option,
    force_option,
    json_option,
    keep_option,
    model_argument,
    shape_option,
    weights_option,
)


@click.command()
@model_argument
@shape_option
@weights_option
@keep_option
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path),
    metavar="OUT.html",
    help="Also write a page; it can be read offline.",
)
@click.option(
    "--graph",
    "graph",
    type=click.Path(path_type=Path),
    metavar="OUT.graphml",
    help="Also write which layers depend on each other, as .graphml, .json (node-link) or .dot.",
)
@click.option("--full", is_flag=True, help="Show every layer and group, not only the largest.")
@force_option
@json_option
@debug_option
def analyze(
    model: str,
    input_shapes: dict[str, tuple[int, ...]],
    weights: Path | None,
    keep: tuple[str, ...],
    page: Path | None,
    graph: Path | None,
    full: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Show what can be removed, and why the rest has to stay.

    Layers, coupled groups of channels, what is constant or dead, what is pinned and why.

    MODEL is an .onnx file, a built-in architecture (prunec archs), torchvision:NAME, timm:NAME, or
    package.module:factory.
    """
    from prunec.cli.render import show_analysis, show_json, tell
    from prunec.files import check_output, write_text
    from prunec.lookup.resolve import OnnxModel, resolve

    if page is not None:
        check_output(page, force=force, inputs=(model,))
    if graph is not None:
        from prunec.report.dependencies import writer

        text_of = writer(graph)
        check_output(graph, force=force, inputs=(model,))
    found = resolve(model, input_shapes, weights=weights)
    from prunec import api

    if isinstance(found, OnnxModel):
        analysis = api.analyze_onnx(found.path, dict(found.input_shapes), keep=keep)
    else:
        analysis = api.analyze_module(found.module, found.example_inputs, name=found.name, keep=keep)
    if page is not None:
        from prunec.report.analysis_page import analysis_page

        write_text(page, analysis_page(analysis))
        tell(f"wrote {page}")
    if graph is not None:
        from prunec.toolchain.models import dependency_graph

        if isinstance(found, OnnxModel):
            edges = dependency_graph(found.path, input_shapes=dict(found.input_shapes), keep=keep)
        else:
            edges = dependency_graph(found.module, example_inputs=found.example_inputs, keep=keep)
        write_text(graph, text_of(edges))
        tell(f"wrote {graph}")
    if as_json:
        show_json(analysis.to_json_dict())
    else:
        show_analysis(analysis, full=full)
