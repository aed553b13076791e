"""Options that several commands share, and the settings they fill.

Owns their names, help texts and conversion; each command decides what follows from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(slots=True)
class Settings:
    """What the user asked of all commands; filled while the command line is read."""

    debug: bool


def _remember_debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and isinstance(context.find_object(Settings), Settings):
        context.find_object(Settings).debug = True  # type: ignore[union-attr]  # checked on the line above


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_remember_debug,
    help="Show the traceback of an error, and libraries' warnings.",
)


class CriterionType(click.ParamType[Any]):
    """The name of a criterion; the table of criteria is only loaded if one is asked for."""

    name = "criterion"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name, if there is such a criterion."""
        return self._choice().convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Return the names, as the help shows them."""
        return self._choice().get_metavar(param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin with ``incomplete``."""
        return self._choice().shell_complete(ctx, param, incomplete)

    @staticmethod
    def _choice() -> click.Choice[str]:
        from prunec.passes.selection.criteria import CRITERIA

        return click.Choice(tuple(CRITERIA))


class MultipleOfType(click.ParamType[Any]):
    """A positive number of channels, or ``auto``."""

    name = "multiple"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or "auto"."""
        if value == "auto" or (isinstance(value, int) and value >= 1):
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a positive number of channels nor auto", param, ctx)
        return int(value)


model_argument = click.argument(
    "model", shell_complete=lambda _context, _parameter, begun: [CompletionItem(begun, type="file")]
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else."
)

force_option = click.option("--force", is_flag=True, help="Replace an existing output file.")

shape_option = click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="[NAME:]1x3x224x224",
    callback=lambda _context, _parameter, value: _shapes(value),
    help="Shape of an input, batch included; repeatable with names. Without one: the first input that is not named.",
)

provider_option = click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to run; auto takes CUDA if it works.",
)

weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="State dict for a module or built-in architecture (.safetensors, .pt).",
)

keep_option = click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Do not remove channels of layers and parameters whose name matches (shell wildcards); repeatable.",
)


seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of random inputs and of the random criterion.",
)


inputs_option = click.option(
    "--inputs",
    metavar="FOLDER",
    help="Compare on the inputs in this folder (.npy, .npz or images) instead of random ones.",
)

normalise_option = click.option(
    "--normalise",
    type=click.Choice(["imagenet", "unit", "signed", "raw", "standardise"]),
    help="How image files become inputs: ImageNet's mean and deviation, 0..1, -1..1, 0..255, or each image to mean 0 "
    "and deviation 1.  [default: imagenet]",
)


memory_option = click.option(
    "--memory",
    metavar="SIZE",
    help="Memory for fitting, such as 500MB: wider layers get one combination per channel.  [default: 2GB]",
)

labels_option = click.option(
    "--labels",
    metavar="folders|FILE.csv",
    help="The classes of the data (a folder each, or a CSV file), to report the accuracy on held-out samples.",
)

compensate_option = click.option(
    "--compensate/--no-compensate",
    default=True,
    show_default=True,
    help="With a criterion: fit the rest to the data, to make up for removed channels; without data fold the means "
    "that BatchNorms imply.",
)

check_time_option = click.option(
    "--check-time",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for comparing and timing: slow models are run on fewer inputs and less often, and the report says so.",
)


def _shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    if not texts:
        return {}
    from prunec.lookup.resolve import parse_shapes

    return parse_shapes(texts)


def is_main_process() -> bool:
    """Tell whether this process is the one that prints, of those that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK", "0") == "0"
