"""Criteria: the table and the names agree, and what needs data says so."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from prunec.errors import BadInput
from prunec.passes.selection.criteria import CRITERIA, WITH_DATA, WITHOUT_DATA, Name, check_has_data, needs, score
from prunec.passes.selection.select import Facts
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import read_module


def _facts() -> Facts:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([3.0, 1.0, 4.0, 2.0]).view(4, 1, 1, 1).expand(4, 3, 3, 3))
        network[1].weight.copy_(torch.tensor([0.2, 0.4, 0.1, 0.3]))
    return gather_facts(read_module(network, (torch.zeros(1, 3, 8, 8),)).graph)


def test_every_name_is_a_row_and_every_row_has_its_name() -> None:
    assert tuple(CRITERIA) == get_args(Name)
    assert {WITH_DATA, WITHOUT_DATA} <= set(CRITERIA)
    assert not needs(WITHOUT_DATA)


@pytest.mark.parametrize(("criterion", "order"), [("l1", [1, 3, 0, 2]), ("gamma", [2, 0, 3, 1])])
def test_channels_go_in_the_order_of_the_criterion(criterion: str, order: list[int]) -> None:
    facts = _facts()
    (member,) = [m for m in facts.classes.members if m.param == "0.weight" and m.axis == 0]
    found = score(facts, criterion)[facts.classes.class_of[member.ids]]
    assert np.argsort(found).tolist() == order


@pytest.mark.parametrize("criterion", [name for name, row in CRITERIA.items() if row.needs])
def test_what_needs_data_says_so_and_names_what_does_not(criterion: str) -> None:
    with pytest.raises(BadInput, match=f"the {criterion} criterion needs") as error:
        check_has_data(criterion, data=False)
    assert "--calibrate" in error.value.do
    assert "l1, gamma or random" in error.value.do
    check_has_data(criterion, data=True)


@pytest.mark.parametrize(
    "criterion", [None, lambda facts: np.zeros(3), *(n for n, row in CRITERIA.items() if not row.needs)]
)
def test_what_needs_no_data_is_not_refused(criterion: object) -> None:
    assert needs(criterion) == ""  # type: ignore[arg-type]  # a function is a criterion too
    check_has_data(criterion, data=False)  # type: ignore[arg-type]  # a function is a criterion too


def test_a_criterion_of_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="there is no criterion 'magic'") as error:
        score(_facts(), "magic")
    assert error.value.do == "use l1, gamma, taylor, random or reconstruct"
