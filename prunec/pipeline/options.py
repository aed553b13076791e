"""Options: how to prune, as the user gave it, and what of that makes no sense. Data, and functions of the user's."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any, Literal

from prunec.errors import BadInput
from prunec.passes.selection.scores import Scorer

Border = Literal["exact", "bias"]
Residual = Literal["tie", "expand"]
Gates = Literal["tie", "fold"]
Criterion = Literal["l1", "gamma", "taylor", "random", "reconstruct"] | Scorer


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
    multiple_of: int = 1
    seed: int = 0
    compensate: bool = True

    @classmethod
    def of(cls, *, with_data: bool = False, **given: Any) -> Options:
        """Return options as a caller wrote them; with data and a target the criterion is ``reconstruct`` by default.

        Raises:
            BadInput: there is no option of such a name, or its value is none.
        """
        known = [entry.name for entry in fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}? there are" if near else "there are"
                raise BadInput(f"there is no option {name!r}", do=f"{hint} {', '.join(known)}")
        budget = any(given.get(name) is not None for name in ("target_macs", "target_params"))
        if with_data and budget and given.get("criterion") is None:
            given["criterion"] = "reconstruct"
        keep = given.get("keep", ())
        return cls(**{**given, "keep": (keep,) if isinstance(keep, str) else tuple(keep)})

    def __post_init__(self) -> None:
        if self.border not in ("exact", "bias"):
            raise BadInput(f"border is {self.border!r}", do="use exact or bias")
        if self.residual not in ("tie", "expand"):
            raise BadInput(f"residual is {self.residual!r}", do="use tie or expand")
        if self.gates not in ("tie", "fold"):
            raise BadInput(f"gates is {self.gates!r}", do="use tie or fold")
        if self.multiple_of < 1:
            raise BadInput(f"multiple_of is {self.multiple_of}", do="give a positive number of channels")
        for name in ("target_macs", "target_params"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise BadInput(f"{name} is {value}", do="give the fraction that may stay, above 0 and at most 1")
        budget = self.target_macs is not None or self.target_params is not None
        if self.criterion is not None and not budget:
            raise BadInput("a criterion without a budget removes nothing", do="give target_macs or target_params")
        if budget and self.criterion is None:
            raise BadInput(
                "a budget without a criterion cannot be met",
                do="give a criterion (l1, gamma, taylor or random), or data, which choose by themselves (calibration)",
            )
