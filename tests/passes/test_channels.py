"""The channels pass: each id in one class, what is kept or frozen pinned, literals without channels."""

from __future__ import annotations

import numpy as np
import pytest
from graphs.classes import IMAGE, chain, conv, ended, param_of, pinned_on
from graphs.tiny import Tiny

from prunec.errors import BadInput
from prunec.passes.channels import channels


def test_every_id_is_in_exactly_one_class() -> None:
    classes = channels(chain())
    assert classes.class_of.min() == 0
    assert sorted(set(classes.class_of.tolist())) == list(range(classes.num_classes))
    assert classes.pinned.size == classes.is_channel.size == classes.num_classes


def test_a_kept_parameter_pins_its_channels() -> None:
    graph = chain()
    classes = channels(graph, keep=[param_of(graph, 0)])
    assert pinned_on(classes, param_of(graph, 0)) == [True] * 4
    assert pinned_on(classes, param_of(graph, 1)) == [False] * 5
    assert any(pin.reason == "is kept by request (--keep)" and pin.where == param_of(graph, 0) for pin in classes.pins)


def test_a_kept_node_pins_what_it_computes() -> None:
    graph = chain()
    classes = channels(graph, keep=["conv?"])
    assert pinned_on(classes, param_of(graph, 0)) == [True] * 4
    assert pinned_on(classes, param_of(graph, 1)) == [True] * 5


def test_a_keep_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(BadInput) as error:
        channels(chain(), keep=["layer4.*"])
    assert str(error.value) == (
        "error[bad-input]: the keep pattern 'layer4.*' matches no parameter and no node\n"
        "  do:  use names as `prunec analyze` prints them; * and ? are allowed"
    )


def test_a_node_that_a_backend_cannot_rewrite_is_frozen() -> None:
    graph = chain()
    classes = channels(graph, frozen={"conv0": "cannot be rewritten"})
    assert pinned_on(classes, param_of(graph, 0)) == [True] * 4
    assert ("conv0", "cannot be rewritten") in {(pin.where, pin.reason) for pin in classes.pins}


def test_literals_carry_no_channels() -> None:
    t = Tiny()
    half = t.param(np.float64(0.5), "literal:0.5", literal=True)
    graph = ended(t, t.node("mul", [conv(t, t.input(*IMAGE), 3, 4), half], ("N", 4, 8, 8)), 4)
    classes = channels(graph)
    assert "literal:0.5" not in {m.param for m in classes.members}
    assert pinned_on(classes, param_of(graph, 0)) == [False] * 4
