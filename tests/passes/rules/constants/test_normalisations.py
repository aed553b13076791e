"""Constants behind normalisations: a gamma of zero leaves beta, statistics of a uniform channel are its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs.known import assert_known
from graphs.tiny import NAN, Tiny

from prunec.passes.constants import constants


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
