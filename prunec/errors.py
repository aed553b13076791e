"""Every exception prunec raises on purpose, and how it reads.

Owns the exception tree and its one text form; does not print or exit (cli/main.py does).

    PrunecError                the model's or the options' fault: one message, exit status 2
    ├── BadInput               a file, shape, weight set or option value that cannot be used
    ├── UntraceableModel       neither torch.fx nor torch.export can read the module
    ├── UnsupportedModel       a model that was read but that prunec cannot work on
    ├── BadPlan                a plan that does not fit the model it is applied to
    ├── MissingDependency      an optional package that this feature needs
    ├── WriteFailed            the disk is full, or will be: nothing half-written stays
    └── CheckFailed            the work was done and failed a check: exit status 1
        ├── ValidationFailed   the pruned network's outputs differ too much
        ├── BudgetNotMet       the asked-for size could not be reached
        └── EmptyNetwork       pruning would leave no channels in a layer that the network needs
    InternalError              prunec's own fault: it names the pass; exit status 70
    Interrupted                the user (Ctrl-C) or the system (SIGTERM) asked a run to stop; exit status 130, 143

Each class has a heading of its ``code`` in docs/errors.md.
"""

from __future__ import annotations


class PrunecError(Exception):
    """A fault of the model or the options, as a message for people.

    Args:
        what: what is wrong and where, in the names of the user's model.
        why: the cause, where it is known.
        do: what the user can do about it.
    """

    code = "error"
    exit_status = 2

    def __init__(self, what: str, *, why: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.do = do

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.what}"]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.do:
            lines.append(f"  do:  {self.do}")
        return "\n".join(lines)


class BadInput(PrunecError):
    """A file, shape, weight set or option value that cannot be used."""

    code = "bad-input"


class UntraceableModel(PrunecError):
    """Neither torch.fx nor torch.export can read the module."""

    code = "untraceable-model"


class UnsupportedModel(PrunecError):
    """The model was read, but prunec cannot work on it."""

    code = "unsupported-model"


class BadPlan(PrunecError):
    """A plan that does not fit the model it is applied to."""

    code = "bad-plan"


class MissingDependency(PrunecError):
    """An optional package that the asked-for feature needs is not installed."""

    code = "missing-dependency"


class WriteFailed(PrunecError):
    """A file could not be written: the disk is full, over quota or read-only."""

    code = "write-failed"


class CheckFailed(PrunecError):
    """The work was done, and its result failed a check."""

    code = "check-failed"
    exit_status = 1


class ValidationFailed(CheckFailed):
    """The pruned network's outputs differ from the original's by more than the tolerance."""

    code = "validation-failed"


class BudgetNotMet(CheckFailed):
    """The asked-for size could not be reached."""

    code = "budget-not-met"


class EmptyNetwork(CheckFailed):
    """Pruning would leave no channels in a layer that the network needs."""

    code = "empty-network"


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop; the message says how to continue it.

    Args:
        message: a sentence or two.
        signal_number: the signal that asked.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number


class InternalError(Exception):
    """A fault of prunec itself.

    Args:
        stage: the pass, frontend or backend that failed.
        what: what it found.
        lines: the graph's lines around the place.
    """

    exit_status = 70

    def __init__(self, stage: str, what: str, lines: str = "") -> None:
        super().__init__(stage, what, lines)
        self.stage = stage
        self.what = what
        self.lines = lines

    def __str__(self) -> str:
        text = f"internal error in {self.stage}: {self.what}\n  do:  please report this with the model"
        return f"{text}\n{self.lines}" if self.lines else text
