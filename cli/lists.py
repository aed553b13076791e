"""``prunec archs``, ``presets`` and ``doctor``: names that the command line knows, and what works on this machine."""

from __future__ import annotations

from typing import Any

import click

from prunec.cli.options import debug_option, json_option


@click.command()
@json_option
@debug_option
def archs(as_json: bool) -> None:
    """List the built-in architectures."""
    from prunec.cli.render import show_json, show_rows
    from prunec.models import ARCHITECTURES, count_macs, count_parameters
    from prunec.report.wording import readable

    found: list[dict[str, Any]] = [
        {
            "name": name,
            "task": arch.task,
            "input_shape": arch.input_shape,
            "params": count_parameters(arch.skeleton()),
            "macs": count_macs(arch),
            "description": arch.description,
        }
        for name, arch in ARCHITECTURES.items()
    ]
    if as_json:
        show_json(found)
        return
    rows = [
        (
            row["name"],
            row["task"],
            "x".join(map(str, row["input_shape"])),
            readable(row["params"]),
            readable(row["macs"]),
            row["description"],
        )
        for row in found
    ]
    show_rows(rows, "architecture", "task", "input", "params>", "MACs>", "")


@click.command()
@json_option
@debug_option
def presets(as_json: bool) -> None:
    """List the recipes of train-prune."""
    from prunec.cli.render import show_json, show_rows
    from prunec.training.settings.presets import PRESETS

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


@click.command()
@json_option
@debug_option
def doctor(as_json: bool) -> None:
    """Show versions, devices and what really works here."""
    from prunec.check.health import examine
    from prunec.cli.render import show_doctor, show_json

    findings = examine()
    if as_json:
        show_json(findings.to_json_dict())
    else:
        show_doctor(findings)
