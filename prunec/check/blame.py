"""Whose fault it is: a crash on a file that ONNX itself rejects is reported as bad input.

The frontend checks only what it needs (frontends/onnx: loading/nodes.py, check.py), since a check
against the whole specification would refuse files that run. Only when something breaks do ONNX's checker and
ONNX Runtime get the file; if one of them rejects it, or it does not run, their reason is the message. A run on
random inputs proves nothing if such inputs may not suit the file: inputs that could be sizes, or that have open axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

from prunec.errors import BadInput, PrunecError

Given = ParamSpec("Given")
Result = TypeVar("Result")


def judged(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """Let work on an .onnx file (argument ``path``, the first) raise BadInput if it fails on an invalid file."""

    @wraps(work)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return work(*args, **kwargs)
        except (PrunecError, OSError, MemoryError):
            raise
        except Exception as error:
            path = str(args[0] if args else kwargs["path"])
            complaint = _complaint(path)
            if not complaint:
                raise
            raise BadInput(
                f"{path} is not a valid ONNX model", why=complaint, do="fetch or export the model again"
            ) from error

    return checked


def _complaint(path: str) -> str:
    """Return the complaint of ONNX's checker, or else of ONNX Runtime; "" if both accept the file and it runs."""
    import onnx

    from prunec.check.finding import working_feed
    from prunec.runtime import sessions

    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # noqa: BLE001  # of several types by version; whatever it is, it is a complaint
        complaint = sessions.first_line(error)
        if _RANKLESS not in complaint:
            return complaint
    try:
        runner = sessions.open_runner(path, path, "cpu", optimise=False)
        if all(_takes_anything(shape, kind) for _, shape, kind in runner.inputs):
            working_feed(runner, path, None)
    except PrunecError as error:
        return error.why or error.what
    return ""


def _takes_anything(shape: Sequence[int | str | None], kind: str) -> bool:
    """Tell whether an input is a map of floats of known sizes: numbers, indices, masks and open sizes have to fit."""
    return kind in _FLOATS and len(shape) > 1 and all(isinstance(size, int) for size in shape[1:])


_RANKLESS = "Field 'shape' of 'type' is required"
"""What the checker says of inputs and outputs whose rank is not told, which all else takes."""
_FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")
