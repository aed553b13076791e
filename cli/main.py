"""The click group, and the one place where errors become messages and exit statuses.

Owns nothing of what the commands do: each is a thin file beside this one, imported when it is asked for. Nothing heavy
is imported here, nor when a command module is: ``prunec --help`` must answer at once.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import importlib
import io
import logging
import os
import sys
import traceback
import warnings
from collections import UserDict
from collections.abc import Iterator, Sequence
from typing import Any

import click

from prunec import __version__
from prunec.cli.options import Settings, debug_option, is_main_process
from prunec.errors import InternalError, Interrupted, PrunecError, WriteFailed
from prunec.files import disk_reason

_INTERRUPTED = 130
_BROKEN_PIPE = 141
_INTERNAL = 70
_PLAIN = {"−": "-", "×": "x", "…": "...", "→": "->", "μ": "mu", "ρ": "rho", "α": "alpha", "λ": "lambda"}


class _Commands(UserDict[str, Any]):
    """The commands by name, each found in its module when it is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        module = importlib.import_module(f"prunec.cli.{super().__getitem__(name)}")
        command = getattr(module, name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command


@click.group(
    commands=_Commands(
        {
            "analyze": "analyze",
            "prune": "prune",
            "sweep": "sweep",
            "train-prune": "train_prune",
            "validate": "validate",
            "bench": "bench",
            "report": "report",
            "archs": "lists",
            "presets": "lists",
            "doctor": "lists",
        }
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="prunec")
@debug_option
def main() -> None:
    """Remove channels from neural networks, without changing what they compute or to a budget.

    Exit status: 0 done; 1 the result failed a check; 2 bad usage or bad input.
    """


_COLLECT_AFTER = 50_000
"""Allocations between two garbage collections: most objects of a command live until it ends, so few are worth it."""


def run() -> None:
    """Run the command line and leave with its exit status: the ``prunec`` script."""
    gc.set_threshold(_COLLECT_AFTER)
    _open_streams()
    try:
        sys.exit(execute(sys.argv[1:]))
    finally:
        # Python looks for garbage before it leaves, for a seventh of a small file's time; it all goes with the process.
        gc.freeze()


def _open_streams() -> None:
    """Keep terminals from failing a command: closed streams drop output, characters they cannot show are escaped."""
    codecs.register_error("prunec.plain", _escaped)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open to the end
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="prunec.plain")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    there = error.object[error.start : error.end]
    # A surrogate stands for a byte of a file name that is not UTF-8.
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in there), error.end


def execute(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; every error is one message on stderr."""
    streams = sys.stdout, sys.stderr
    try:
        return _execute(arguments)
    except (BrokenPipeError, SystemExit) as leaving:
        # click and rich turn a pipe without a reader into exit status 1, which is a failed check here;
        # click puts streams of its own in place of the broken ones.
        cause = leaving.__context__ if isinstance(leaving, SystemExit) else leaving
        if sys.stdout is streams[0] and not isinstance(cause, BrokenPipeError):
            raise
        sys.stdout, sys.stderr = streams
        return _readers_left()


def _execute(arguments: Sequence[str]) -> int:
    settings = Settings(debug=False)
    try:
        with _quiet_libraries("--debug" not in arguments):
            status = main.main(list(arguments), prog_name="prunec", standalone_mode=False, obj=settings)
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        cause = error.__cause__ if isinstance(error, click.Abort) else error  # click wraps Ctrl-C
        if is_main_process():
            click.echo(str(cause or "") or "interrupted", err=True)
        return cause.exit_status if isinstance(cause, Interrupted) else _INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever it is, it is told in one message
        if settings.debug:
            traceback.print_exc()
        message, status = _message(error)
        # All ranks raise the same PrunecError, and rank 0 prints it. Other errors may occur on one rank only.
        if is_main_process() or not isinstance(error, PrunecError):
            click.echo(message, err=True)
        return status
    return status if isinstance(status, int) else 0


def _readers_left() -> int:
    """Keep Python from complaining at exit about output that nobody reads (`prunec … | head`)."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return _BROKEN_PIPE


@contextlib.contextmanager
def _quiet_libraries(quiet: bool) -> Iterator[None]:
    """Keep other libraries' warnings and logs off stderr: our users cannot act on them. --debug shows them."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        else:
            _show_own_log()
        try:
            yield
        finally:
            logging.disable(before)


def _show_own_log() -> None:
    """Show on stderr what prunec tries, and why it failed."""
    log = logging.getLogger("prunec")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("prunec: %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.DEBUG)


def _message(error: Exception) -> tuple[str, int]:
    """Return the message and the exit status."""
    if isinstance(error, PrunecError | InternalError):
        return str(error), error.exit_status
    reason = disk_reason(error)
    if reason:
        where = getattr(error, "filename", None) or "the output"
        return str(WriteFailed(f"cannot write {where}", why=reason, do="free some space, or write elsewhere")), 2
    if isinstance(error, MemoryError):
        what = f"error[bad-input]: there is not enough memory: {error}".rstrip(": ")
        return f"{what}\n  do:  give smaller inputs (--input-shape), or less data", PrunecError.exit_status
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"error[bad-input]: {where}{error.strerror}", PrunecError.exit_status
    kind = type(error).__name__
    text = str(error).strip().partition("\n")[0]
    return (
        f"internal error: {kind}: {text}\n"
        "  why: this is a fault of prunec, not of your input\n"
        "  do:  run again with --debug and report the message with the model"
    ), _INTERNAL
