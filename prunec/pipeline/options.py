"""Options of a pruning as the user gave them, and checks that they make sense."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from prunec.errors import BadInput
from prunec.passes.selection.criteria import WITH_DATA, Name, Scorer
from prunec.passes.selection.widths import AUTO, MultipleOf

if TYPE_CHECKING:
    from prunec.passes.selection.budget import Target

Border = Literal["exact", "bias"]
Residual = Literal["tie", "expand"]
Gates = Literal["tie", "fold"]
Criterion = Name | Scorer


@dataclass(frozen=True, slots=True)
class Options:
    """How to prune; see ``prune_module``."""

    border: Border = "exact"
    residual: Residual = "tie"
    gates: Gates = "tie"
    keep: tuple[str, ...] = ()
    criterion: Criterion | None = None
    target_macs: float | None = None
    target_params: float | None = None
    target_latency: float | None = None
    multiple_of: MultipleOf = AUTO
    seed: int = 0
    compensate: bool = True

    @classmethod
    def of(cls, *, with_data: bool = False, **given: Any) -> Options:
        """Return options as a caller wrote them; with data and a target the criterion is ``reconstruct`` by default.

        Raises:
            BadInput: there is no option of that name, or its value is not allowed.
        """
        known = [entry.name for entry in fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}? there are" if near else "there are"
                raise BadInput(f"there is no option {name!r}", do=f"{hint} {', '.join(known)}")
        budget = any(given.get(name) is not None for name in ("target_macs", "target_params", "target_latency"))
        if with_data and budget and given.get("criterion") is None:
            given["criterion"] = WITH_DATA
        keep = given.get("keep", ())
        return cls(**{**given, "keep": (keep,) if isinstance(keep, str) else tuple(keep)})

    def __post_init__(self) -> None:
        if self.border not in ("exact", "bias"):
            raise BadInput(f"border is {self.border!r}", do="use exact or bias")
        if self.residual not in ("tie", "expand"):
            raise BadInput(f"residual is {self.residual!r}", do="use tie or expand")
        if self.gates not in ("tie", "fold"):
            raise BadInput(f"gates is {self.gates!r}", do="use tie or fold")
        if self.seed < 0:
            raise BadInput(f"seed is {self.seed}", do="give 0 or a larger number")
        if self.multiple_of != AUTO and not (type(self.multiple_of) is int and self.multiple_of >= 1):
            raise BadInput(f"multiple_of is {self.multiple_of!r}", do='give a positive number of channels, or "auto"')
        for name in ("target_macs", "target_params", "target_latency"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise BadInput(f"{name} is {value}", do="give the fraction that may stay, above 0 and at most 1")
        budget = any(share is not None for share in (self.target_macs, self.target_params, self.target_latency))
        if self.criterion is not None and not budget:
            raise BadInput(
                "a criterion without a budget removes nothing",
                do="give a target: of MACs (--target-macs, target_macs=), parameters or latency",
            )
        if budget and self.criterion is None:
            raise BadInput(
                "a budget without a criterion cannot be met",
                do="give data to choose by (--calibrate, calibration=), or a criterion that needs none "
                "(--criterion l1, criterion='l1')",
            )

    @property
    def target(self) -> Target:
        """The budgets of MACs and parameters; one of time needs a clock."""
        from prunec.passes.selection.budget import Target

        return Target(self.target_macs, self.target_params)

    @property
    def rounding(self) -> MultipleOf:
        """What widths are rounded to; without a criterion nothing is rounded unless a number is given."""
        return 1 if self.criterion is None and self.multiple_of == AUTO else self.multiple_of
