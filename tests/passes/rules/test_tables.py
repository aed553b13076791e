"""The tables of rules: each has a row for every op of the vocabulary, and channel rules say first what they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from prunec.ir.ops import CONTRACTIONS, OPS
from prunec.passes.rules.channels.table import CHANNEL_RULES
from prunec.passes.rules.constants.table import CONSTANT_RULES
from prunec.passes.rules.cost import COST_RULES, PARTS
from prunec.passes.rules.liveness import LIVENESS_RULES
from prunec.passes.rules.profiles.table import PROFILE_RULES


@pytest.mark.parametrize("table", [CHANNEL_RULES, CONSTANT_RULES, LIVENESS_RULES, PROFILE_RULES, COST_RULES])
def test_every_rule_table_has_exactly_the_ops_of_the_vocabulary(table: Mapping[str, Any]) -> None:
    assert set(table) == set(OPS)


def test_what_the_cost_of_a_contraction_scales_with_is_told_of_each() -> None:
    assert set(PARTS) == set(CONTRACTIONS)


def test_every_rule_says_first_which_of_four_things_it_does() -> None:
    for op in OPS:
        text = (CHANNEL_RULES[op].__doc__ or "").strip()
        first = text.split()[0].strip(".:,;").lower() if text else ""
        assert first in ("move", "unify", "contract", "refuse"), f"{op}: {text!r}"
