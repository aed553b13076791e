"""``prunec doctor``: versions, devices, and which execution providers really work."""

from __future__ import annotations

import click

from prunec.cli.options import debug_option, json_option


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
