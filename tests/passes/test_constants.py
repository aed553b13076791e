"""Constants: rule by rule on hand-written graphs, and against what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs.tiny import NAN, Tiny
from graphs.traced import run, silenced
from torch import Tensor

from prunec.ir.ops import BINARY, OPS, UNARY
from prunec.passes.constants import constants, made_of_params
from prunec.passes.rules import numeric
from prunec.passes.rules.channels.table import CHANNEL_RULES
from prunec.passes.rules.constants.table import CONSTANT_RULES
from prunec.passes.rules.cost import COST_RULES
from prunec.passes.rules.liveness import LIVENESS_RULES


def known(t: Tiny, name: str) -> list[float] | None:
    """Return what is known of a value's channels, flat; None where nothing is."""
    found = constants(t.graph(name)).of(name)
    return None if found is None else [float(value) for value in found.ravel()]


def assert_known(t: Tiny, name: str, expected: list[float] | None) -> None:
    found = known(t, name)
    if expected is None or found is None:
        assert found == expected
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("table", [CHANNEL_RULES, CONSTANT_RULES, LIVENESS_RULES, COST_RULES])
def test_every_rule_table_has_exactly_the_ops_of_the_vocabulary(table: Mapping[str, Any]) -> None:
    assert set(table) == set(OPS)


# --- normalisation ----------------------------------------------------------------------------------


def test_batch_norm_with_gamma_zero_leaves_beta() -> None:
    t = Tiny()
    x = t.input("N", 3, None, None)
    assert_known(t, t.norm(x, [0, 1, 0], [0.5, 2, -1]), [0.5, NAN, -1])


def test_batch_norm_of_a_known_channel_uses_the_running_statistics() -> None:
    t = Tiny()
    x = t.constant([3.0, NAN], 4, 4)
    assert_known(t, t.norm(x, [2, 1], [1, 0], mean=[1, 0], var=[4, 1]), [2 * (3 - 1) / 2 + 1, NAN])


def test_batch_norm_with_batch_statistics_leaves_beta_of_a_uniform_channel() -> None:
    t = Tiny()
    x = t.constant([3.0, NAN, 7.0], 4, 4)
    assert_known(t, t.norm(x, [2, 1, 0], [1, 0, 4], training=True, eps=1e-5), [1, NAN, 4])


def test_batch_norm_without_gamma_and_statistics_is_zero_on_a_uniform_channel() -> None:
    t = Tiny()
    x = t.constant([3.0, NAN], 4, 4)
    assert_known(t, t.node("batch_norm", [x], ("N", 2, 4, 4), axis=1, eps=1e-5, training=True), [0, NAN])


@pytest.mark.parametrize(
    ("op", "attrs"),
    [("instance_norm", {"axis": 1}), ("group_norm", {"axis": 1, "num_groups": 1}), ("layer_norm", {"axes": [3]})],
)
def test_other_norms_with_gamma_zero_leave_beta(op: str, attrs: dict[str, Any]) -> None:
    t = Tiny()
    x = t.input("N", 2, 4, 2)
    gamma, beta = t.param([0.0, 1.0]), t.param([5.0, 6.0])
    assert_known(t, t.node(op, [x, gamma, beta], ("N", 2, 4, 2), eps=1e-5, **attrs), [5, NAN])


def test_instance_norm_of_a_uniform_channel_is_beta() -> None:
    t = Tiny()
    x = t.constant([3.0, NAN], 4, 4)
    out = t.node("instance_norm", [x, t.param([2.0, 2.0]), t.param([5.0, 6.0])], ("N", 2, 4, 4), axis=1, eps=1e-5)
    assert_known(t, out, [5, NAN])


def test_group_norm_needs_the_whole_group() -> None:
    t = Tiny()
    x = t.constant([1.0, 3.0, 1.0, NAN], 4, 4)
    out = t.node(
        "group_norm", [x, t.param(np.ones(4)), t.param(np.zeros(4))], ("N", 4, 4, 4), axis=1, num_groups=2, eps=0.0
    )
    assert_known(t, out, [-1, 1, NAN, NAN])


def test_weight_standardisation_is_computed_from_the_parameter() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    t = Tiny()
    flat = t.node("reshape", [t.param(weight)], (1, 4, 27), shape=[1, 4, 27])
    normal = t.node("batch_norm", [flat], (1, 4, 27), axis=1, eps=1e-5, training=True)
    back = t.node("reshape", [normal], (4, 3, 3, 3), shape=[4, 3, 3, 3])
    found = constants(t.graph(back)).of(back)
    expected = F.batch_norm(torch.from_numpy(weight).reshape(1, 4, 27), None, None, training=True).reshape(weight.shape)
    assert found is not None
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_lrn_lets_only_zero_through() -> None:
    t = Tiny()
    assert_known(t, t.node("lrn", [t.constant([0.0, 2.0, NAN], 4, 4)], ("N", 3, 4, 4), axis=1), [0, NAN, NAN])


# --- contractions -----------------------------------------------------------------------------------


def test_conv_with_an_all_zero_filter_gives_its_bias() -> None:
    t = Tiny()
    weight = np.ones((3, 2, 3, 3))
    weight[1] = 0
    x = t.input("N", 2, 8, 8)
    assert_known(t, t.conv(x, weight, ("N", 3, 8, 8), bias=[1, 2, 3], pad=1), [NAN, 2, NAN])


def test_conv_without_padding_adds_up_its_constant_inputs() -> None:
    t = Tiny()
    weight = np.zeros((2, 3, 3, 3))
    weight[0, 0], weight[0, 1] = 1, 2
    weight[1, 2] = 1
    x = t.constant([0.5, -1.0, NAN], 8, 8)
    assert_known(t, t.conv(x, weight, ("N", 2, 6, 6), bias=[10, 20]), [10 + 9 * 0.5 - 18, NAN])


def test_zero_padding_lets_only_zero_constants_through() -> None:
    t = Tiny()
    x = t.constant([0.0, 2.0], 8, 8)
    weight = np.ones((2, 2, 3, 3))
    weight[0, 1] = 0
    assert_known(t, t.conv(x, weight, ("N", 2, 8, 8), bias=[1, 2], pad=1), [1, NAN])


def test_conv_ignores_a_constant_that_varies_over_space() -> None:
    t = Tiny()
    ramp = t.param(np.arange(4.0).reshape(1, 1, 1, 4))
    x = t.node("add", [t.constant([1.0], 4, 4), ramp], ("N", 1, 4, 4))
    assert known(t, x) == [1, 2, 3, 4]
    assert_known(t, t.conv(x, np.ones((1, 1, 1, 1)), ("N", 1, 4, 4)), None)


def test_grouped_conv_reads_only_its_group() -> None:
    t = Tiny()
    x = t.constant([1.0, 2.0, NAN, 4.0], 5, 5)
    assert_known(t, t.conv(x, np.ones((2, 2, 1, 1)), ("N", 2, 5, 5), groups=2), [3, NAN])


def test_depthwise_conv_with_a_multiplier_passes_constants_through() -> None:
    t = Tiny()
    x = t.constant([1.0, NAN], 5, 5)
    weight = np.array([1, 2, 3, 4.0]).reshape(4, 1, 1, 1)
    assert_known(t, t.conv(x, weight, ("N", 4, 5, 5), groups=2), [1, 2, NAN, NAN])


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_conv_works_in_any_number_of_dimensions(spatial: int) -> None:
    t = Tiny()
    x = t.constant([0.5, 0.5], *[6] * spatial)
    out = t.conv(x, np.ones((1, 2, *[3] * spatial)), ("N", 1, *[4] * spatial))
    assert_known(t, out, [3**spatial])


def test_conv_that_lost_all_its_inputs_gives_its_bias() -> None:
    t = Tiny()
    x = t.input("N", 0, 8, 8)
    assert_known(t, t.conv(x, np.zeros((2, 0, 3, 3)), ("N", 2, 8, 8), bias=[1, 2], pad=1), [1, 2])


def test_a_weight_that_is_not_a_number_makes_its_output_unknown() -> None:
    t = Tiny()
    weight = np.zeros((2, 1, 1, 1))
    weight[0] = NAN
    assert_known(t, t.conv(t.constant([1.0], 4, 4), weight, ("N", 2, 4, 4)), [NAN, 0])


def test_conv_with_a_computed_weight_knows_its_output_only_if_the_input_is_zero() -> None:
    t = Tiny()
    weight = t.input(2, 1, 3, 3)
    bias = t.param([1.0, 2.0])
    attrs = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "conv_groups": 1}
    one = t.node("conv", [t.constant([1.0], 4, 4), weight, bias], ("N", 2, 4, 4), **attrs)
    zero = t.node("conv", [t.constant([0.0], 4, 4), weight, bias], ("N", 2, 4, 4), **attrs)
    assert_known(t, one, None)
    assert_known(t, zero, [1, 2])


def test_conv_sees_through_a_weight_made_of_parameters() -> None:
    t = Tiny()
    raw, gain = t.param(np.ones((2, 1, 3, 3))), t.param(np.array([0.0, 3.0]).reshape(2, 1, 1, 1))
    weight = t.node("mul", [raw, gain], (2, 1, 3, 3))
    attrs = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "conv_groups": 1}
    unread = t.node("conv", [t.input("N", 1, 8, 8), weight, ""], ("N", 2, 6, 6), **attrs)
    assert_known(t, unread, [0, NAN])
    assert_known(t, t.node("conv", [t.constant([1.0], 8, 8), weight, ""], ("N", 2, 6, 6), **attrs), [0, 27])
    assert made_of_params(t.graph(unread)) == {weight}


def test_half_precision_weights_are_read_bit_by_bit() -> None:
    t = Tiny()
    weight = np.array([[-0.0, 0.0], [6e-8, 0.0]], dtype=np.float16).reshape(2, 2, 1, 1)
    attrs = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "conv_groups": 1}
    out = t.node("conv", [t.input("N", 2, 4, 4), t.param(weight), ""], ("N", 2, 4, 4), dtype="float16", **attrs)
    assert_known(t, out, [0, NAN])


def test_a_single_tap_anywhere_in_a_wide_filter_counts() -> None:
    t = Tiny()
    weight = np.zeros((3, 100, 3, 3))
    weight[0, 0, 0, 0] = weight[1, 20, 1, 1] = weight[2, 99, 2, 2] = 1e-30
    assert_known(t, t.conv(t.input("N", 100, 8, 8), weight, ("N", 3, 6, 6)), None)


def test_conv_transpose_follows_constants_only_where_each_output_reads_one_tap() -> None:
    t = Tiny()
    x = t.constant([2.0, NAN, 0.0], 4, 4)
    weight = np.zeros((3, 2, 1, 1))
    weight[0, 0], weight[1, 1] = 3, 1
    assert_known(t, t.conv(x, weight, ("N", 2, 4, 4), bias=[1, 1], op="conv_transpose"), [7, NAN])
    wide = np.zeros((3, 2, 2, 2))
    wide[0, 0] = wide[2, 1] = 1
    assert_known(t, t.conv(x, wide, ("N", 2, 5, 5), bias=[1, 1], op="conv_transpose"), [NAN, 1])


def test_grouped_conv_transpose_reads_only_its_group() -> None:
    t = Tiny()
    x = t.constant([2.0, NAN, 3.0, 4.0], 4, 4)
    weight = np.arange(1.0, 9.0).reshape(4, 2, 1, 1)
    out = t.conv(x, weight, ("N", 4, 4, 4), groups=2, op="conv_transpose")
    assert_known(t, out, [NAN, NAN, 3 * 5 + 4 * 7, 3 * 6 + 4 * 8])


@pytest.mark.parametrize("transposed", [False, True])
def test_matmul_with_a_weight_adds_up_constants_and_skips_zero_weights(transposed: bool) -> None:
    t = Tiny()
    x = t.node("reshape", [t.constant([1.0, NAN, 3.0], 1, 1)], ("N", 3), shape=[-1, 3])
    weight = np.array([[1.0, 1.0], [0.0, 1.0], [2.0, 0.0]])
    param = t.param(weight.T if transposed else weight)
    out = t.node("matmul", [x, param, t.param([10.0, 20.0])], ("N", 2), transpose_b=transposed)
    assert_known(t, out, [1 + 6 + 10, NAN])


def test_gemm_scales_the_product_and_the_bias() -> None:
    t = Tiny()
    x = t.node("reshape", [t.constant([1.0, 3.0], 1, 1)], ("N", 2), shape=[-1, 2])
    out = t.node("matmul", [x, t.param(np.ones((2, 1))), t.param([10.0])], ("N", 1), alpha=2.0, beta=0.5)
    assert_known(t, out, [2 * 4 + 5])


def test_matmul_of_two_known_operands_is_computed() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 5, 4))
    t = Tiny()
    out = t.node("matmul", [t.param(a), t.param(b)], (2, 3, 5), transpose_b=True)
    found = constants(t.graph(out)).of(out)
    assert found is not None
    np.testing.assert_allclose(found, a @ b.swapaxes(1, 2))


def test_matmul_of_vectors_has_their_ranks() -> None:
    t = Tiny()
    a, b = t.param([1.0, 2.0]), t.param([3.0, 4.0])
    out = t.node("matmul", [a, b], ())
    found = constants(t.graph(out)).of(out)
    assert found is not None
    assert found.shape == ()
    assert float(found) == 11


def test_matmul_of_activations_is_zero_where_each_term_has_a_zero() -> None:
    t = Tiny()
    a = t.constant([0.0, NAN, 1.0], 4, batch=1)  # [1, 3, 4]: row 0 is zero
    b = t.input(1, 4, 5)
    assert_known(t, t.node("matmul", [a, b], (1, 3, 5)), [0, NAN, NAN])
    assert_known(t, t.node("matmul", [b, t.constant([NAN] * 5, 3, batch=1)], (1, 4, 3)), None)


def test_matmul_over_an_open_axis_knows_only_sums_of_zeros() -> None:
    t = Tiny()
    zero, one = t.constant([0.0, 1.0], "K", batch=1), t.param(np.ones((1, 1)))
    ones = t.node("expand", [one], ("K", 3), shape=["K", 3])
    assert_known(t, t.node("matmul", [zero, ones], (1, 2, 3)), [0, NAN])


def test_attention_passes_on_what_all_values_agree_on() -> None:
    t = Tiny()
    q, k, v = t.input(1, 2, 8, 4), t.input(1, 2, 8, 4), t.input(1, 2, 8, 3)
    zeroed = t.node("mul", [v, t.param([0.0, 1.0, 0.0])], (1, 2, 8, 3))
    shifted = t.node("add", [zeroed, t.param([0.0, 0.0, 5.0])], (1, 2, 8, 3))
    assert_known(t, t.node("attention", [q, k, shifted, ""], (1, 2, 8, 3)), [0, NAN, 5])
    placed = t.node("add", [shifted, t.param(np.arange(8.0).reshape(8, 1))], (1, 2, 8, 3))
    assert_known(t, t.node("attention", [q, k, placed, ""], (1, 2, 8, 3)), None)


# --- elementwise ------------------------------------------------------------------------------------


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


# --- movement ---------------------------------------------------------------------------------------


def test_padding_the_channel_axis_gives_its_value() -> None:
    t = Tiny()
    x = t.input("N", 2, 4, 4)
    pads = [0, 1, 0, 0, 0, 2, 0, 0]
    assert_known(
        t, t.node("pad", [x], ("N", 5, 4, 4), pads=pads, mode="constant", value=0.5), [0.5, NAN, NAN, 0.5, 0.5]
    )


def test_padding_a_lone_last_axis_is_followed_too() -> None:
    t = Tiny()
    x = t.input("N", 4, 4, 2)
    pads = [0, 0, 0, 1, 0, 0, 0, 0]
    assert_known(t, t.node("pad", [x], ("N", 4, 4, 3), pads=pads, mode="constant", value=0), [0, NAN, NAN])


def test_padding_space_keeps_only_channels_that_equal_the_padding() -> None:
    t = Tiny()
    x = t.constant([0.0, 1.0, NAN], 4, 4)
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    assert_known(t, t.node("pad", [x], ("N", 3, 6, 6), pads=pads, mode="constant", value=0), [0, NAN, NAN])
    assert_known(t, t.node("pad", [x], ("N", 3, 6, 6), pads=pads, mode="reflect"), [0, 1, NAN])
    cropped = [0, 0, -1, -1, 0, 0, -1, -1]
    assert_known(t, t.node("pad", [x], ("N", 3, 2, 2), pads=cropped, mode="constant", value=0), [0, 1, NAN])


def test_concat_of_channels_lays_constants_end_to_end() -> None:
    t = Tiny()
    a, b = t.constant([1.0, NAN], "H", "W"), t.input("N", 1, "H", "W")
    assert_known(t, t.node("concat", [a, b, a], ("N", 5, "H", "W"), axis=1), [1, NAN, NAN, 1, NAN])


def test_concat_over_space_keeps_what_agrees() -> None:
    t = Tiny()
    a, b = t.constant([1.0, 2.0], 4, "W"), t.constant([1.0, 3.0], 5, "W")
    joined = t.node("concat", [a, b], ("N", 2, 9, "W"), axis=2)
    pooled = t.node("max_pool", [joined], ("N", 2, 3, "W"), pads=[0] * 4, ceil=False)
    assert_known(t, pooled, [1, NAN])
    open_axis = t.node("concat", [a, b], ("N", 2, 9, None), axis=3)
    assert_known(t, open_axis, None)


def test_slices_splits_and_gathers_pick_constants() -> None:
    t = Tiny()
    x = t.constant([1.0, NAN, 3.0, 4.0], 4, 4)
    assert_known(t, t.node("slice", [x], ("N", 2, 4, 4), axes=[1], starts=[0], ends=[4], steps=[2]), [1, 3])
    first, second = t.split("split", [x], [("N", 1, 4, 4), ("N", 3, 4, 4)], axis=1, sizes=[1, 3])
    assert_known(t, first, [1])
    assert_known(t, second, [NAN, 3, 4])
    assert_known(t, t.node("gather", [x], ("N", 2, 4, 4), axis=1, indices=np.array([3, 1])), [4, NAN])
    assert_known(t, t.node("gather", [x, t.input(2, dtype="int64")], ("N", 2, 4, 4), axis=1, indices=None), None)


def test_flatten_repeats_a_channel_over_its_pixels() -> None:
    t = Tiny()
    x = t.constant([1.0, NAN], 1, 3)
    assert_known(t, t.node("reshape", [x], ("N", 6), shape=[-1, 6]), [1, 1, 1, NAN, NAN, NAN])


@pytest.mark.parametrize(("mode", "expected"), [("CRD", [1, NAN]), ("DCR", [1, 5])])
def test_depth_to_space_needs_a_pixels_channels_to_agree(mode: str, expected: list[float]) -> None:
    t = Tiny()
    channels = [1.0, 1, 1, 1, 5, 5, 5, 6] if mode == "CRD" else [1.0, 5, 1, 5, 1, 5, 1, 5]
    x = t.constant(channels, 4, 4)
    assert_known(t, t.node("depth_to_space", [x], ("N", 2, 8, 8), block=2, mode=mode), expected)


def test_im2col_lets_only_zero_through() -> None:
    t = Tiny()
    x = t.constant([0.0, 2.0], 4, 4)
    assert_known(t, t.node("im2col", [x], ("N", 4, 9), kernel=2), [0, 0, NAN, NAN])


def test_scatter_slice_overwrites_a_stretch() -> None:
    t = Tiny()
    base, source = t.constant([1.0, 2.0, NAN], 4, 4), t.constant([7.0], 4, 4)
    out = t.node("scatter_slice", [base, source], ("N", 3, 4, 4), axis=1, start=1, end=2, step=1)
    assert_known(t, out, [1, 7, NAN])


def test_full_is_known_everywhere() -> None:
    t = Tiny()
    assert_known(t, t.node("full", [], (1, 3, 4, 4), shape=[1, 3, 4, 4], value=2.0), [2])


# --- channelwise, reductions, the rest --------------------------------------------------------------


def test_pools_keep_uniform_channels() -> None:
    t = Tiny()
    x = t.constant([2.0, 0.0, NAN], 8, 8)
    assert_known(t, t.node("max_pool", [x], ("N", 3, 4, 4), pads=[1] * 4, ceil=True), [2, 0, NAN])
    assert_known(t, t.node("avg_pool", [x], ("N", 3, 4, 4), pads=[1] * 4, counts_padding=False), [2, 0, NAN])
    assert_known(t, t.node("avg_pool", [x], ("N", 3, 4, 4), pads=[1] * 4, counts_padding=True), [NAN, 0, NAN])
    assert_known(t, t.node("avg_pool", [x], ("N", 3, 4, 4), pads=[0] * 4, counts_padding=True), [2, 0, NAN])
    assert_known(
        t, t.node("avg_pool", [x], ("N", 3, 4, 4), pads=[0] * 4, counts_padding=True, ceil=True), [NAN, 0, NAN]
    )


def test_resize_keeps_constants_unless_it_extrapolates() -> None:
    t = Tiny()
    x = t.constant([2.0, NAN], 8, 8)
    assert_known(t, t.node("resize", [x], ("N", 2, 16, 16), keeps_constants=True), [2, NAN])
    assert_known(t, t.node("resize", [x], ("N", 2, 16, 16), keeps_constants=False), None)


def test_sampling_outside_the_map_lets_only_zero_through() -> None:
    t = Tiny()
    x, grid = t.constant([2.0, 0.0], 8, 8), t.input("N", 4, 4, 2)
    assert_known(t, t.node("sample", [x, grid], ("N", 2, 4, 4)), [NAN, 0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [2, NAN]), ("max", [2, NAN]), ("min", [2, NAN]), ("sum", [24, NAN]), ("l1", [24, NAN]),
        ("l2", [48**0.5, NAN]), ("prod", [2**12, NAN]), ("var", [0, NAN]), ("std", [0, NAN]),
        ("logsumexp", [2 + np.log(12), NAN]), ("any", [1, NAN]), ("all", [1, NAN]),
    ],
)  # fmt: skip
def test_reductions_over_space_count_the_pixels(kind: str, expected: list[float]) -> None:
    t = Tiny()
    x = t.constant([2.0, NAN], 3, 4)
    assert_known(t, t.node("reduce", [x], ("N", 2), kind=kind, axes=[2, 3], keepdims=False), expected)


def test_reductions_over_an_open_axis_know_only_what_does_not_depend_on_its_size() -> None:
    t = Tiny()
    x = t.constant([2.0, 0.0, NAN], "H", 4)
    assert_known(t, t.node("reduce", [x], ("N", 3, 1, 1), kind="mean", axes=[2, 3]), [2, 0, NAN])
    assert_known(t, t.node("reduce", [x], ("N", 3, 1, 1), kind="sum", axes=[2, 3]), [NAN, 0, NAN])


def test_reductions_over_channels_need_them_all() -> None:
    t = Tiny()
    assert_known(t, t.node("reduce", [t.constant([1.0, 5.0], 4)], ("N", 1, 4), kind="mean", axes=[1]), [3])
    assert_known(t, t.node("reduce", [t.constant([1.0, NAN], 4)], ("N", 1, 4), kind="mean", axes=[1]), None)
    spread = t.node("reduce", [t.constant([1.0, 5.0], 4)], ("N", 1, 4), kind="var", axes=[1], correction=1)
    assert_known(t, spread, [8])


@pytest.mark.parametrize("op", ["along", "arg_reduce", "shape_of", "opaque", "rnn"])
def test_what_is_not_followed_is_unknown(op: str) -> None:
    t = Tiny()
    x = t.constant([2.0, 0.0], 4)
    assert_known(t, t.node(op, [x, t.param(np.ones((1, 4, 4)))], ("N", 2, 4), kind="softmax", axes=[1]), None)


def test_a_value_of_unknown_rank_is_unknown() -> None:
    t = Tiny()
    x = t.node("opaque", [t.input(1, 3)], None)
    y = t.node("mul", [x, t.param(0.0)], None)
    assert_known(t, t.node("relu", [y], None), None)


def test_what_varies_along_an_open_axis_is_unknown() -> None:
    t = Tiny()
    ramp = t.param(np.array([[1.0, 2.0], [3.0, 3.0]]))
    assert_known(t, t.node("add", [t.constant([1.0, 1.0], "W"), ramp], ("N", 2, "W")), [NAN, 4])


def test_what_is_too_large_to_write_out_is_unknown() -> None:
    t = Tiny()
    column, row = t.param(np.arange(6000.0).reshape(-1, 1)), t.param(np.arange(6000.0))
    assert_known(t, t.node("add", [column, row], (6000, 6000)), None)


def test_no_infinity_is_kept() -> None:
    t = Tiny()
    assert_known(t, t.node("exp", [t.constant([1000.0, 0.0], 4)], ("N", 2, 4)), [NAN, 1])
    assert_known(t, t.node("log", [t.constant([0.0, 1.0], 4)], ("N", 2, 4)), [NAN, 0])


def test_parameters_are_known_as_they_are() -> None:
    t = Tiny()
    name = t.param(np.arange(3, dtype=np.int64))
    text = t.param(np.array(["a", "b"]))
    found = constants(t.graph())
    assert found.of(name) is t.graph().params[name].array
    assert found.of(text) is None


# --- against PyTorch --------------------------------------------------------------------------------

TORCH_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x, "leaky_relu": F.leaky_relu, "hard_sigmoid": F.hardsigmoid, "log_sigmoid": F.logsigmoid,
    "hard_tanh": F.hardtanh, "hard_swish": F.hardswish, "hard_shrink": F.hardshrink, "soft_shrink": F.softshrink,
    "tanh_shrink": F.tanhshrink, "threshold": lambda x: F.threshold(x, 0, 0), "clip": lambda x: x,
    "thresholded_relu": lambda x: F.threshold(x, 1, 0), "not": torch.logical_not, "is_nan": torch.isnan,
    "is_inf": torch.isinf, "cast": lambda x: x,
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_unary_functions_agree_with_torch_at_their_defaults(op: str) -> None:
    x = torch.cat([torch.linspace(-8, 8, 161, dtype=torch.float64), torch.tensor([0.0, -0.5, 0.5, 1.5, 2.5, 1e-9])])
    function = TORCH_UNARY.get(op) or getattr(F, op, None) or getattr(torch, op)
    expected = function(x.double()).double().numpy()
    with np.errstate(all="ignore"):
        found, unknown = numeric.unary(op, x.numpy(), {}), numeric.unary(op, np.array(NAN), {})
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.isnan(unknown)


@pytest.mark.parametrize(
    ("op", "attrs", "function"),
    [
        ("leaky_relu", {"alpha": 0.3}, lambda x: F.leaky_relu(x, 0.3)),
        ("elu", {"alpha": 0.7}, lambda x: F.elu(x, 0.7)),
        ("celu", {"alpha": 0.7}, lambda x: F.celu(x, 0.7)),
        ("gelu", {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
        ("gelu", {"approximate": "sigmoid"}, lambda x: x * torch.sigmoid(1.702 * x)),
        ("hard_sigmoid", {"alpha": 0.2, "beta": 0.4}, lambda x: (0.2 * x + 0.4).clamp(0, 1)),
        ("softplus", {"beta": 2.0, "threshold": 5.0}, lambda x: F.softplus(x, 2, 5)),
        ("hard_shrink", {"lambd": 1.0}, lambda x: F.hardshrink(x, 1.0)),
        ("soft_shrink", {"lambd": 1.0}, lambda x: F.softshrink(x, 1.0)),
        ("threshold", {"threshold": 1.0, "value": 7.0}, lambda x: F.threshold(x, 1.0, 7.0)),
        ("silu", {"alpha": 2.0}, lambda x: x * torch.sigmoid(2 * x)),
        ("hard_tanh", {"min": -2.0, "max": 3.0}, lambda x: F.hardtanh(x, -2.0, 3.0)),
        ("clip", {"min": -2.0, "max": None}, lambda x: x.clamp(min=-2.0)),
        ("clip", {"max": 0.5}, lambda x: x.clamp(max=0.5)),
    ],
)
def test_unary_attributes_mean_what_torch_means(
    op: str, attrs: dict[str, Any], function: Callable[[Tensor], Tensor]
) -> None:
    x = torch.linspace(-8, 8, 161, dtype=torch.float64)
    np.testing.assert_allclose(numeric.unary(op, x.numpy(), attrs), function(x).numpy(), rtol=1e-9, atol=1e-12)


TORCH_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rsub": torch.rsub, "floor_div": torch.floor_divide, "mod": torch.remainder, "equal": torch.eq,
    "not_equal": torch.ne,
    "less_equal": torch.le, "greater_equal": torch.ge, "and": torch.logical_and, "or": torch.logical_or,
    "xor": torch.logical_xor, "bit_shift": lambda a, b: a * 2**b,
}  # fmt: skip


@pytest.mark.parametrize("op", BINARY)
def test_binary_functions_agree_with_torch(op: str) -> None:
    values = torch.tensor([-3.0, -1.5, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    a, b = values[:, None], values[None, :]
    function = TORCH_BINARY.get(op) or getattr(torch, op)
    with np.errstate(all="ignore"):
        found = numeric.binary(op, a.numpy(), b.numpy(), {})
    expected = function(a, b).double().numpy()
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], np.broadcast_to(expected, found.shape)[finite], rtol=1e-12)
    assert not np.isfinite(found[~finite]).any()


def test_fmod_takes_the_sign_of_the_dividend() -> None:
    assert float(numeric.binary("mod", np.array(-7.0), np.array(3.0), {})) == 2
    assert float(numeric.binary("mod", np.array(-7.0), np.array(3.0), {"fmod": 1})) == -1


@pytest.mark.parametrize("seed", range(8))
def test_every_known_element_is_what_torch_computes_for_any_input(seed: int) -> None:
    net = silenced(seed)
    for image in (torch.randn(2, 3, 16, 16), 5 * torch.rand(2, 3, 16, 16)):
        with torch.no_grad():
            graph, activations, _ = run(net, image)
        found = constants(graph)
        checked = 0
        for name in found.known.keys() & activations.keys():
            actual = activations[name].numpy()
            claimed = np.broadcast_to(found.known[name], actual.shape)
            sure = ~np.isnan(claimed)
            np.testing.assert_allclose(actual[sure], claimed[sure], rtol=1e-4, atol=1e-4, err_msg=name)
            checked += int(sure.sum())
        assert checked > 1000


@pytest.mark.parametrize("value", [0.0, -0.25])
def test_padding_of_an_axis_of_one_is_no_part_of_what_was_there(value: float) -> None:
    """Two constant channels as a split axis of two rows of one, with a position added on both sides of each row."""
    t = Tiny()
    rows = t.node("reshape", [t.constant([2.0, NAN], 4, 4)], ("N", 2, 1, 4, 4), shape=[0, 2, 1, 4, 4])
    y = t.node("pad", [rows], ("N", 2, 3, 4, 4), pads=[0, 0, 1, 0, 0, 0, 0, 1, 0, 0], value=value)
    known = constants(t.graph(y)).of(y)
    assert known is not None
    np.testing.assert_array_equal(known[0, :, :, 0, 0], [[value, 2.0, value], [value, NAN, value]])
