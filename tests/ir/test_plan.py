"""PrunePlan: JSON both ways, exactly, and a clear message for everything that is not a plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec.errors import BadPlan
from prunec.ir.plan import AxisKeep, ConstantInput, Expansion, Fold, GroupedKeep, InputSpec, PrunePlan, Refit
from prunec.passes.lowering.refits import loaded, stored

PLAN = PrunePlan(
    inputs=(InputSpec("x", (2, 3, 32, 32)), InputSpec("mask", (2, 1), "int64")),
    keeps=(AxisKeep("conv1.weight", 0, 4, (0, 2)), AxisKeep("conv2.weight", 1, 4, (0, 2))),
    grouped=(GroupedKeep("conv3.weight", 1, ((0, 1), (), (1, 2))),),
    folds=(
        Fold("conv2", "bias", (1, 3), (0.1, -2.5), "conv2.bias"),
        Fold("conv4", "carrier", (5,), (1e-300,), "", 2, 1 / 3),
        Fold("conv5", "running_mean", (0,), (3.0,), "bn5.running_mean"),
    ),
    constant_inputs=(ConstantInput("add", 1, (1, 2, 1, 1), (0.25, 0.0)),),
    exact=False,
    reason="removed the channels that score lowest by l1",
)


def test_a_plan_survives_json() -> None:
    assert PrunePlan.from_json(PLAN.to_json()) == PLAN


def test_the_document_names_its_format_and_version() -> None:
    document = json.loads(PLAN.to_json())
    assert (document["format"], document["version"]) == ("prunec-plan", 1)
    assert document["keeps"][0] == {"param": "conv1.weight", "axis": 0, "size": 4, "keep": [0, 2]}


def test_a_plan_with_expansions_is_of_version_2_and_one_without_still_of_version_1() -> None:
    made = replace(PLAN, expansions=(Expansion("add", 1, 1, (0, 3), (0.5, 1 / 3)),))
    document = json.loads(made.to_json())
    assert document["version"] == 2
    assert document["expansions"] == [
        {"node": "add", "index": 1, "axis": 1, "positions": [0, 3], "constants": [0.5, 1 / 3]}
    ]
    assert PrunePlan.from_json(made.to_json()) == made
    assert "expansions" not in json.loads(PLAN.to_json())


def test_a_plan_that_comes_after_others_holds_them() -> None:
    first = PrunePlan((InputSpec("x", (1, 3)),), keeps=(AxisKeep("a", 0, 4, (1,)),))
    made = PLAN.after(first, replace(PLAN, exact=True))
    assert made.earlier == (first, replace(PLAN, exact=True))
    assert not made.exact
    assert json.loads(made.to_json())["version"] == 2
    assert PrunePlan.from_json(made.to_json()) == made
    nothing = PrunePlan((InputSpec("x", (1, 3)),))
    assert not nothing.after(first).is_empty
    assert nothing.after(nothing).is_empty


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_floats_survive_json_exactly(values: list[float]) -> None:
    made = PrunePlan((), folds=(Fold("n", "bias", tuple(range(len(values))), tuple(values), "b"),))
    assert PrunePlan.from_json(made.to_json()) == made


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_fitted_weights_survive_json_to_the_bit(dtype: str) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 2, 3, 3)).astype(dtype)
    vector = stored(np.array([np.inf, -0.0, 1e-7], dtype))
    made = PrunePlan((), refits=(Refit("n", "w", stored(weight), "bias", "b", vector),))
    again = PrunePlan.from_json(made.to_json())
    assert again == made
    assert not made.is_empty
    assert json.loads(made.to_json())["version"] == 3
    content = again.refits[0].content
    assert content is not None
    np.testing.assert_array_equal(loaded(content), weight)
    assert loaded(content).dtype == weight.dtype


def test_a_plan_that_changes_nothing_says_so() -> None:
    assert PrunePlan((InputSpec("x", (1,)),), reason="nothing").is_empty
    assert not PLAN.is_empty
    assert not PrunePlan((), expansions=(Expansion("add", 0, 1, (2,), (0.0,)),)).is_empty
    for name in ("keeps", "grouped", "folds", "constant_inputs"):
        assert not replace(PrunePlan(()), **{name: getattr(PLAN, name)}).is_empty


def test_a_plan_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(PLAN.to_json(), encoding="utf-8")
    assert PrunePlan.load(path) == PLAN
    assert PrunePlan.load(str(path)) == PLAN


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadPlan, match=r"cannot read the plan .*nowhere\.json"):
        PrunePlan.load(tmp_path / "nowhere.json")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(BadPlan, match="cannot read the plan"):
        PrunePlan.load(path)


@pytest.mark.parametrize("text", ["", "{", "not json at all"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(BadPlan, match="the plan is not JSON"):
        PrunePlan.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", '"plan"', "{}", '{"format": "other", "version": 1}'])
def test_other_documents_are_refused(text: str) -> None:
    with pytest.raises(BadPlan) as error:
        PrunePlan.from_json(text)
    assert str(error.value) == (
        "error[bad-plan]: the document is not a prunec plan\n  do:  give the plan.json of a run folder"
    )


@pytest.mark.parametrize("version", [0, 4, "1", None])
def test_an_unknown_version_is_refused_with_both_numbers(version: object) -> None:
    document = {**json.loads(PLAN.to_json()), "version": version}
    with pytest.raises(BadPlan) as error:
        PrunePlan.from_json(json.dumps(document))
    assert str(error.value) == (
        f"error[bad-plan]: the plan has format version {version}\n"
        "  why: this prunec reads versions 1 to 3\n"
        "  do:  use the prunec that wrote it, or prune again"
    )


_REFIT: dict[str, object] = {"node": "n", "weight": "w", "content": None, "kind": "none", "target": "", "vector": None}


@pytest.mark.parametrize(
    "damage",
    [
        {"keeps": None},
        {"keeps": [{"param": "w"}]},
        {"keeps": [{"param": "w", "axis": 0, "size": 4, "keep": ["a"]}]},
        {"grouped": [{"param": "w", "axis": 1, "keep": 3}]},
        {"folds": [{"kind": "magic"}]},
        {"folds": 7},
        {"inputs": [{"name": "x", "shape": [1, None], "dtype": "float32"}]},
        {"constant_inputs": [{"node": "n", "index": 0, "shape": [1], "value": [None]}]},
        {"refits": [{"node": "n"}]},
        {"refits": [_REFIT | {"kind": "magic"}]},
        {"refits": [_REFIT | {"content": {"shape": [2], "dtype": "float32", "data": "AAAA"}}]},
        {"refits": [_REFIT | {"content": {"shape": [1], "dtype": "int32", "data": "AAAAAA=="}}]},
        {"refits": [_REFIT | {"content": {"shape": [1], "dtype": "float32", "data": "not base64"}}]},
    ],
)
def test_a_damaged_plan_is_refused(damage: dict[str, object]) -> None:
    document = {**json.loads(PLAN.to_json()), **damage}
    with pytest.raises(BadPlan, match="the plan is incomplete or damaged"):
        PrunePlan.from_json(json.dumps(document))


@pytest.mark.parametrize("missing", ["inputs", "keeps", "folds", "exact", "reason"])
def test_a_missing_key_is_named(missing: str) -> None:
    document = json.loads(PLAN.to_json())
    del document[missing]
    with pytest.raises(BadPlan, match=missing):
        PrunePlan.from_json(json.dumps(document))


def test_numbers_that_json_cannot_hold_are_refused_when_written() -> None:
    made = PrunePlan((), folds=(Fold("n", "bias", (0,), (float("nan"),), "b"),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        made.to_json()
