"""The constants pass: what is not known stays so, and what is known is what PyTorch computes for any input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs.known import assert_known
from graphs.tiny import NAN, Tiny
from graphs.traced import run, silenced

from prunec.passes.constants import constants


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
