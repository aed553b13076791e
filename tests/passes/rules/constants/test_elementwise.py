"""Constants through elementwise ops: activations, arithmetic, logic, choices, steps of integers."""

from __future__ import annotations

import numpy as np
import pytest
from graphs.known import assert_known, known
from graphs.tiny import NAN, Tiny


def test_activations_map_constants() -> None:
    t = Tiny()
    x = t.constant([-1.0, 2.0, NAN, 0.0], 4, 4)
    assert_known(t, t.node("relu", [x], ("N", 4, 4, 4)), [0, 2, NAN, 0])
    assert_known(t, t.node("sigmoid", [x], ("N", 4, 4, 4)), [1 / (1 + np.e), 1 / (1 + np.e**-2), NAN, 0.5])


def test_zero_times_a_gate_is_zero_and_one_times_a_gate_is_not_known() -> None:
    t = Tiny()
    gate = t.node("sigmoid", [t.input("N", 3, 1, 1)], ("N", 3, 1, 1))
    x = t.constant([0.0, 1.0, NAN], 4, 4)
    assert_known(t, t.node("mul", [x, gate], ("N", 3, 4, 4)), [0, NAN, NAN])
    assert_known(t, t.node("div", [x, gate], ("N", 3, 4, 4)), None)


def test_zero_times_infinity_is_not_zero() -> None:
    t = Tiny()
    out = t.node(
        "mul", [t.constant([0.0, 0.0], 4, 4), t.param(np.array([np.inf, 1.0]).reshape(2, 1, 1))], ("N", 2, 4, 4)
    )
    assert_known(t, out, [NAN, 0])


@pytest.mark.parametrize("op", ["minimum", "maximum", "less", "greater_equal", "equal", "add", "pow", "atan2"])
def test_one_unknown_operand_makes_the_result_unknown(op: str) -> None:
    t = Tiny()
    x = t.constant([NAN, 2.0], 4, 4)
    expected = {
        "minimum": 2,
        "maximum": 2,
        "less": 0,
        "greater_equal": 1,
        "equal": 1,
        "add": 4,
        "pow": 4,
        "atan2": np.pi / 4,
    }
    assert_known(t, t.node(op, [x, t.param(np.float32(2), literal=True)], ("N", 2, 4, 4)), [NAN, expected[op]])


def test_logic_is_settled_by_one_operand() -> None:
    t = Tiny()
    a, b = t.constant([0.0, 1.0, NAN], 4, 4), t.input("N", 3, 4, 4)
    assert_known(t, t.node("and", [a, b], ("N", 3, 4, 4), "bool"), [0, NAN, NAN])
    assert_known(t, t.node("or", [a, b], ("N", 3, 4, 4), "bool"), [NAN, 1, NAN])


def test_logic_on_integers_is_bitwise() -> None:
    t = Tiny()
    six, three = t.param(np.int64(6)), t.param(np.int64(3))
    assert [known(t, t.node(op, [six, three], (), "int64")) for op in ("and", "or", "xor")] == [[2], [7], [5]]
    assert_known(t, t.node("not", [six], (), "int64"), None)


def test_integer_division_truncates() -> None:
    t = Tiny()
    minus_seven, two = t.param(np.int64(-7)), t.param(np.int64(2))
    assert_known(t, t.node("div", [minus_seven, two], (), "int64"), [-3])
    assert_known(t, t.node("div", [minus_seven, two], (), "float32"), [-3.5])
    assert_known(t, t.node("floor_div", [minus_seven, two], (), "int64"), [-4])


def test_scaled_sums_use_alpha() -> None:
    t = Tiny()
    x, y = t.param(3.0), t.param(4.0)
    found = [known(t, t.node(op, [x, y], (), alpha=2)) for op in ("add", "sub", "rsub")]
    assert found == [[11], [-5], [-2]]


def test_clip_bounds_may_be_inputs() -> None:
    t = Tiny()
    x = t.constant([-1.0, 9.0, NAN], 4, 4)
    assert_known(t, t.node("clip", [x, t.param(0.0), t.param(6.0)], ("N", 3, 4, 4)), [0, 6, NAN])
    assert_known(t, t.node("clip", [x, "", t.param(6.0)], ("N", 3, 4, 4)), [-1, 6, NAN])
    assert_known(t, t.node("clip", [x, t.input(), ""], ("N", 3, 4, 4)), None)


def test_cast_truncates_and_loses_what_the_type_cannot_hold() -> None:
    t = Tiny()
    x = t.constant([-1.7, 200.5, NAN], 4, 4)
    assert_known(t, t.node("cast", [x], ("N", 3, 4, 4), "int8", to="int8"), [-1, NAN, NAN])
    assert_known(t, t.node("cast", [x], ("N", 3, 4, 4), "bool", to="bool"), [1, 1, NAN])
    assert_known(t, t.node("cast", [x], ("N", 3, 4, 4), "float16", to="float16"), [-1.7, 200.5, NAN])


def test_prelu_slopes_lie_along_their_axis() -> None:
    t = Tiny()
    x = t.constant([-2.0, -2.0, 3.0, NAN], 4, 4)
    assert_known(t, t.node("prelu", [x, t.param([0.5, 0.25, 9, 9])], ("N", 4, 4, 4), axis=1), [-1, -0.5, 3, NAN])
    assert_known(t, t.node("prelu", [x, t.param(np.full((4, 1, 1), 0.5))], ("N", 4, 4, 4)), [-1, -1, 3, NAN])


def test_where_needs_a_known_condition_or_equal_choices() -> None:
    t = Tiny()
    a, b = t.constant([1.0, 1.0, 1.0], 4, 4), t.constant([2.0, 1.0, NAN], 4, 4)
    open_condition = t.input("N", 1, 4, 4, dtype="bool")
    assert_known(t, t.node("where", [open_condition, a, b], ("N", 3, 4, 4)), [NAN, 1, NAN])
    chosen = t.param(np.array([True, False, False]).reshape(3, 1, 1))
    assert_known(t, t.node("where", [chosen, a, b], ("N", 3, 4, 4)), [1, 1, NAN])


def test_dequantize_scales_per_channel() -> None:
    t = Tiny()
    q = t.param(np.array([[3, 5], [3, 5]], dtype=np.int8))
    out = t.node("dequantize", [q, t.param([0.5, 2.0]), t.param(np.array([1, 0], dtype=np.int8))], (2, 2), axis=0)
    assert_known(t, out, [1, 2, 6, 10])


def test_quantize_rounds_saturates_and_leaves_ties_unknown() -> None:
    t = Tiny()
    x = t.constant([0.0, 0.26, 0.25, 100.0, NAN], 4, 4)
    out = t.node("quantize", [x, t.param(0.5), t.param(np.int8(3))], ("N", 5, 4, 4), "int8", axis=1)
    assert_known(t, out, [3, 4, NAN, 127, NAN])
