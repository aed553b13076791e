"""Constants through convolutions, products and attention: sums of constants, zero filters, borders."""

from __future__ import annotations

import numpy as np
import pytest
from graphs.known import assert_known, known
from graphs.tiny import NAN, Tiny

from prunec.passes.constants import constants, made_of_params


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
