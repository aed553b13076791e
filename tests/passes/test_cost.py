"""Cost: MACs, parameters and activations against numbers worked out by hand, and the share of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from graphs.tiny import Tiny

from prunec.ir.graph import Graph, Shape
from prunec.ir.labels import ChannelClasses
from prunec.passes.channels import channels
from prunec.passes.cost import ClassCost, class_cost, cost


def macs(t: Tiny, out: str) -> int:
    return cost(t.graph(out)).macs


def classes_on(classes: ChannelClasses, param: str, axis: int = 0) -> list[int]:
    """Return the class of each index on a parameter's axis."""
    (ids,) = (member.ids for member in classes.members if (member.param, member.axis) == (param, axis))
    return [int(number) for number in classes.class_of[ids]]


# --- the whole graph --------------------------------------------------------------------------------


def test_conv_macs_are_weight_elements_times_output_positions() -> None:
    t = Tiny()
    assert macs(t, t.conv(t.input(1, 3, 8, 8), np.ones((4, 3, 3, 3)), (1, 4, 6, 6))) == 4 * 3 * 9 * 36


def test_grouped_and_depthwise_convs_are_cheaper_by_their_groups() -> None:
    t = Tiny()
    x = t.input(1, 8, 10, 10)
    y = t.conv(x, np.ones((8, 4, 3, 3)), (1, 8, 10, 10), pad=1, groups=2)
    z = t.conv(y, np.ones((8, 1, 3, 3)), (1, 8, 10, 10), pad=1, groups=8)
    assert list(cost(t.graph(z)).macs_of.values()) == [8 * 8 * 9 * 100 // 2, 8 * 9 * 100]


@pytest.mark.parametrize("spatial", [1, 3])
def test_convs_of_other_dimensions_count_alike(spatial: int) -> None:
    t = Tiny()
    x = t.input(1, 2, *[5] * spatial)
    assert macs(t, t.conv(x, np.ones((3, 2, *[2] * spatial)), (1, 3, *[4] * spatial))) == 6 * 8**spatial


def test_conv_transpose_macs_are_weight_elements_times_input_positions() -> None:
    t = Tiny()
    x = t.input(1, 4, 5, 5)
    assert macs(t, t.conv(x, np.ones((4, 2, 2, 2)), (1, 2, 6, 6), op="conv_transpose")) == 4 * 2 * 4 * 25


@pytest.mark.parametrize("transposed", [False, True])
def test_matmul_macs_count_every_token(transposed: bool) -> None:
    t = Tiny()
    x = t.input(1, 7, 3)
    weight = t.param(np.ones((5, 3) if transposed else (3, 5)))
    assert macs(t, t.node("matmul", [x, weight], (1, 7, 5), transpose_b=transposed)) == 7 * 3 * 5


def test_matmul_with_a_transposed_first_operand() -> None:
    t = Tiny()
    assert macs(t, t.node("matmul", [t.input(1, 3, 7), t.input(1, 3, 5)], (1, 7, 5), transpose_a=True)) == 7 * 3 * 5


def test_attention_macs_are_two_products() -> None:
    t = Tiny()
    q, k, v = t.input(1, 2, 6, 4), t.input(1, 2, 9, 4), t.input(1, 2, 9, 3)
    assert macs(t, t.node("attention", [q, k, v, ""], (1, 2, 6, 3))) == 2 * 6 * 9 * (4 + 3)


def test_rnn_macs_use_both_weights_at_each_step() -> None:
    t = Tiny()
    w, r = t.param(np.ones((1, 16, 3))), t.param(np.ones((1, 16, 4)))
    assert macs(t, t.node("rnn", [t.input(10, 1, 3), w, r], (10, 1, 1, 4))) == 16 * (3 + 4) * 10 // 10


def test_counts_are_for_one_sample_and_open_sizes_count_as_one() -> None:
    def net(batch: Any, height: Any) -> Graph:
        t = Tiny()
        return t.graph(t.conv(t.input(batch, 3, height, 8), np.ones((4, 3, 3, 3)), (batch, 4, height, 8), pad=1))

    one, eight, open_batch, open_height = (cost(net(*sizes)) for sizes in ((1, 8), (8, 8), ("N", 8), ("N", None)))
    assert one == eight == open_batch
    assert open_height.macs == one.macs // 8
    assert (one.activations, open_height.activations) == (4 * 64, 4 * 8)


def test_a_contraction_that_does_not_carry_the_batch_is_not_divided_by_it() -> None:
    t = Tiny()
    table = t.node("matmul", [t.param(np.ones((5, 3))), t.param(np.ones((3, 2)))], (5, 2))
    x = t.input(4, 5)
    assert macs(t, t.node("matmul", [x, table], (4, 2))) == 5 * 3 * 2 + 5 * 2


def test_parameters_are_counted_once_and_only_if_they_are_read() -> None:
    t = Tiny()
    shared, unused = t.param(np.ones((3, 3))), t.param(np.ones(1000))
    scale = t.param(2.0, literal=True)
    y = t.node("matmul", [t.input(1, 3), shared], (1, 3))
    z = t.node("mul", [t.node("matmul", [y, shared], (1, 3)), scale], (1, 3))
    graph = t.graph(z)
    assert unused in graph.params
    assert cost(graph).params == 9


def test_batch_norm_counts_gamma_and_beta_but_no_running_statistics_and_no_macs() -> None:
    t = Tiny()
    counted = cost(t.graph(t.norm(t.input(1, 6, 4, 4), [1] * 6, [0] * 6)))
    assert (counted.params, counted.macs, counted.activations) == (12, 0, 0)


def test_a_pruned_network_is_recounted_from_its_shapes() -> None:
    t = Tiny()
    x = t.input(1, 3, 8, 8)
    y = t.conv(x, np.ones((4, 3, 3, 3)), (1, 4, 8, 8), pad=1)
    z = t.conv(y, np.ones((5, 4, 1, 1)), (1, 5, 8, 8))
    graph = t.graph(z)
    pruned: dict[str, Shape] = {"p0": (2, 3, 3, 3), "p1": (5, 2, 1, 1), y: (1, 2, 8, 8)}
    counted = cost(graph, lambda name: pruned.get(name, graph.shape(name)))
    assert counted.params == 2 * 27 + 10
    assert counted.macs == 64 * (2 * 27 + 10)
    assert counted.activations == 64 * (2 + 5)
    assert cost(graph).macs == 64 * (4 * 27 + 20)


def test_a_branch_of_no_channels_costs_nothing() -> None:
    t = Tiny()
    graph = t.graph(t.conv(t.input(1, 3, 8, 8), np.ones((4, 3, 3, 3)), (1, 4, 8, 8), pad=1))
    gone: dict[str, Shape] = {"p0": (0, 3, 3, 3), "conv0": (1, 0, 8, 8)}
    counted = cost(graph, lambda name: gone.get(name, graph.shape(name)))
    assert (counted.params, counted.macs, counted.activations) == (0, 0, 0)


# --- per channel class ------------------------------------------------------------------------------


def chain(batch: Any = 1) -> Graph:
    """Return conv 3×3 (3→4) on 8×8, conv 5×5 (4→6) on 4×4, each with BatchNorm; flatten, linear (96→5)."""
    t = Tiny()
    first = t.conv(t.input(batch, 3, 8, 8), np.ones((4, 3, 3, 3)), (batch, 4, 8, 8), pad=1)
    a = t.node("relu", [t.norm(first, [1] * 4, [0] * 4)], (batch, 4, 8, 8))
    second = t.conv(a, np.ones((6, 4, 5, 5)), (batch, 6, 4, 4))
    b = t.node("relu", [t.norm(second, [1] * 6, [0] * 6)], (batch, 6, 4, 4))
    flat = t.node("reshape", [b], (batch, 96), shape=[-1, 96])
    return t.graph(
        t.node("matmul", [flat, t.param(np.ones((5, 96)), "fc"), t.param(np.ones(5))], (batch, 5), transpose_b=True)
    )


def of_classes(found: ClassCost, numbers: Sequence[int]) -> dict[str, list[int]]:
    fields = ("params", "contraction_params", "activations", "macs")
    return {field: sorted({int(getattr(found, field)[number]) for number in numbers}) for field in fields}


@pytest.mark.parametrize("batch", [1, 4, "N"])
def test_on_a_chain_the_class_cost_is_the_bracket_of_the_papers_penalty(batch: Any) -> None:
    graph = chain(batch)
    classes = channels(graph)
    found = class_cost(graph, classes)
    first, second = classes_on(classes, "p0"), classes_on(classes, "p5")
    bracket = found.contraction_params + found.activations
    # k·k·c of the layer, k·k·c of those that read it (for the linear layer its 4×4 inputs), its own map.
    assert set(bracket[first]) == {3 * 3 * 3 + 5 * 5 * 6 + 8 * 8}
    assert set(bracket[second]) == {5 * 5 * 4 + 4 * 4 * 5 + 4 * 4}


def test_class_cost_counts_what_goes_with_a_channel() -> None:
    graph = chain()
    classes = channels(graph)
    found = class_cost(graph, classes)
    assert of_classes(found, classes_on(classes, "p0")) == {
        "params": [27 + 2 + 150],
        "contraction_params": [27 + 150],
        "activations": [64],
        "macs": [27 * 64 + 25 * 6 * 16],
    }
    assert of_classes(found, classes_on(classes, "p5")) == {
        "params": [100 + 2 + 80],
        "contraction_params": [100 + 80],
        "activations": [16],
        "macs": [100 * 16 + 80],
    }
    assert all(int(getattr(found, name)[0]) == 0 for name in ("params", "contraction_params", "activations", "macs"))


def test_removing_a_channel_saves_what_its_class_costs() -> None:
    graph = chain()
    found = class_cost(graph, channels(graph))
    pruned: dict[str, Shape] = {"p0": (3, 3, 3, 3), "conv0": (1, 3, 8, 8), "p5": (6, 3, 5, 5)}
    pruned |= {f"p{i}": (3,) for i in range(1, 5)}
    before, after = cost(graph), cost(graph, lambda name: pruned.get(name, graph.shape(name)))
    number = classes_on(channels(graph), "p0")[0]
    assert before.params - after.params == int(found.params[number])
    assert before.macs - after.macs == int(found.macs[number])


def test_a_residual_class_holds_both_branches() -> None:
    t = Tiny()
    x = t.input(1, 3, 8, 8)
    stem = t.norm(t.conv(x, np.ones((4, 3, 3, 3)), (1, 4, 8, 8), pad=1), [1] * 4, [0] * 4)
    branch = t.norm(t.conv(stem, np.ones((4, 4, 3, 3)), (1, 4, 8, 8), pad=1), [1] * 4, [0] * 4)
    total = t.node("add", [stem, branch], (1, 4, 8, 8))
    graph = t.graph(t.conv(total, np.ones((2, 4, 1, 1)), (1, 2, 8, 8)))
    classes = channels(graph)
    found = of_classes(class_cost(graph, classes), classes_on(classes, "p0"))
    # The branch's weight holds the class on both axes.
    assert found == {
        "params": [27 + 36 + 36 + 2 + 4],
        "contraction_params": [27 + 36 + 36 + 2],
        "activations": [2 * 64],
        "macs": [64 * (27 + 36 + 36 + 2)],
    }


def test_without_batch_norm_the_contractions_own_map_counts() -> None:
    t = Tiny()
    y = t.node("relu", [t.conv(t.input(1, 3, 8, 8), np.ones((4, 3, 3, 3)), (1, 4, 8, 8), pad=1)], (1, 4, 8, 8))
    graph = t.graph(t.conv(y, np.ones((2, 4, 1, 1)), (1, 2, 8, 8)))
    classes = channels(graph)
    assert of_classes(class_cost(graph, classes), classes_on(classes, "p0"))["activations"] == [64]


def test_a_depthwise_convolutions_macs_count_once() -> None:
    t = Tiny()
    x = t.input(1, 3, 8, 8)
    y = t.conv(x, np.ones((4, 3, 1, 1)), (1, 4, 8, 8))
    z = t.conv(y, np.ones((4, 1, 3, 3)), (1, 4, 8, 8), pad=1, groups=4)
    graph = t.graph(t.conv(z, np.ones((2, 4, 1, 1)), (1, 2, 8, 8)))
    classes = channels(graph)
    assert of_classes(class_cost(graph, classes), classes_on(classes, "p0")) == {
        "params": [3 + 9 + 2],
        "contraction_params": [3 + 9 + 2],
        "activations": [2 * 64],
        "macs": [64 * (3 + 9 + 2)],
    }


def test_a_grouped_convolutions_inputs_hold_their_slices_of_the_weight() -> None:
    t = Tiny()
    x = t.input(1, 3, 8, 8)
    y = t.conv(x, np.ones((4, 3, 1, 1)), (1, 4, 8, 8))
    z = t.conv(y, np.ones((6, 2, 3, 3)), (1, 6, 8, 8), pad=1, groups=2)
    graph = t.graph(t.conv(z, np.ones((2, 6, 1, 1)), (1, 2, 8, 8)))
    classes = channels(graph)
    found = class_cost(graph, classes)
    assert of_classes(found, classes_on(classes, "p0")) == {
        "params": [3 + 3 * 9],
        "contraction_params": [3 + 3 * 9],
        "activations": [64],
        "macs": [64 * (3 + 3 * 9)],
    }
    assert of_classes(found, classes_on(classes, "p1"))["macs"] == [64 * (2 * 9 + 2)]


def test_a_linear_layers_features_share_its_macs_once() -> None:
    t = Tiny()
    hidden = t.node("matmul", [t.input(1, 3), t.param(np.ones((4, 3)))], (1, 4), transpose_b=True)
    graph = t.graph(t.node("matmul", [hidden, t.param(np.ones((5, 4)))], (1, 5), transpose_b=True))
    classes = channels(graph)
    assert of_classes(class_cost(graph, classes), classes_on(classes, "p0"))["macs"] == [3 + 5]


def test_standardised_weights_are_contraction_weights_and_their_gains_are_not() -> None:
    t = Tiny()
    raw, gain = t.param(np.ones((4, 3, 3, 3))), t.param(np.ones((4, 1, 1, 1)))
    weight = t.node("mul", [raw, gain], (4, 3, 3, 3))
    attrs = {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "conv_groups": 1}
    y = t.node("conv", [t.input(1, 3, 8, 8), weight, ""], (1, 4, 8, 8), **attrs)
    graph = t.graph(t.conv(y, np.ones((2, 4, 1, 1)), (1, 2, 8, 8)))
    classes = channels(graph)
    found = of_classes(class_cost(graph, classes), classes_on(classes, raw))
    assert found["params"] == [27 + 1 + 2]
    assert found["contraction_params"] == [27 + 2]


def test_attention_channels_share_the_product_that_they_are_in() -> None:
    t = Tiny()
    x = t.input(1, 6, 3)
    q, k = (t.node("matmul", [x, t.param(np.ones((4, 3)))], (1, 6, 4), transpose_b=True) for _ in range(2))
    v = t.node("matmul", [x, t.param(np.ones((2, 3)))], (1, 6, 2), transpose_b=True)
    y = t.node("attention", [q, k, v, ""], (1, 6, 2))
    graph = t.graph(t.node("matmul", [y, t.param(np.ones((5, 2)))], (1, 6, 5), transpose_b=True))
    classes = channels(graph)
    found = class_cost(graph, classes)
    assert of_classes(found, classes_on(classes, "p0"))["macs"] == [2 * 6 * 3 + 6 * 6]
    assert of_classes(found, classes_on(classes, "p2"))["macs"] == [6 * 3 + 6 * 6 + 6 * 5]
