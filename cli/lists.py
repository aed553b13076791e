"""``prunec archs`` and ``prunec presets``: what can be named on the command line."""

from __future__ import annotations

import click

from prunec.cli.options import debug_option, json_option


@click.command()
@json_option
@debug_option
def archs(as_json: bool) -> None:
    """List the built-in architectures."""
    from prunec.cli.render import show_json, show_rows
    from prunec.models import ARCHITECTURES, count_parameters
    from prunec.report import readable

    params = {name: count_parameters(architecture.build()) for name, architecture in ARCHITECTURES.items()}
    if as_json:
        found = [
            {"name": name, "input_shape": arch.input_shape, "params": params[name], "description": arch.description}
            for name, arch in ARCHITECTURES.items()
        ]
        show_json(found)
        return
    rows = [
        (name, "x".join(map(str, arch.input_shape)), readable(params[name]), arch.description)
        for name, arch in ARCHITECTURES.items()
    ]
    show_rows(rows, "architecture", "input", "params>", "")


@click.command()
@json_option
@debug_option
def presets(as_json: bool) -> None:
    """List the recipes of train-prune."""
    from prunec.cli.render import show_json, show_rows
    from prunec.training.presets import PRESETS

    if as_json:
        found = [
            {
                "name": name,
                "description": preset.description,
                "needs": list(preset.needs),
                "settings": dict(preset.settings),
            }
            for name, preset in PRESETS.items()
        ]
        show_json(found)
        return
    rows = [
        (name, preset.description, ", ".join(f"--{need}" for need in preset.needs)) for name, preset in PRESETS.items()
    ]
    show_rows(rows, "preset", "what it is for", "needs")
