"""One op that moves channels, as exporters write it: splits, slices, gathers, pads, reshapes, sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_models.cases.writing import CHANNELS, Build, elementwise
from onnx_models.nets import Net


def concat_with_itself(net: Net, x: str) -> str:
    return str(net.op("Concat", net.op("Relu", x), net.op("Sigmoid", x), axis=1))


def padded_with_zeros(net: Net, x: str) -> str:
    zeros = net.op("ConstantOfShape", net.ints(2, 4, 6, 6))
    return str(net.op("Concat", x, zeros, axis=1))


def split_evenly(net: Net, x: str) -> str:
    first, second = net.op("Split", x, outputs=2, axis=1)
    return str(net.op("Add", first, second))


def split_by_input(net: Net, x: str) -> str:
    first, second = net.op("Split", x, net.ints(3, 5), outputs=2, axis=1)
    return str(net.op("Concat", second, first, axis=1))


def split_by_attribute(net: Net, x: str) -> str:
    first, second = net.op("Split", x, outputs=2, axis=1, split=[3, 5])
    return str(net.op("Concat", second, first, axis=1))


def split_by_count(net: Net, x: str) -> str:
    first, second, third = net.op("Split", x, outputs=3, axis=-3, num_outputs=3)
    return str(net.op("Concat", third, first, second, axis=1))


def pieces(net: Net, x: str, *places: int, split: str = "", **attrs: Any) -> list[str]:
    """Split into a sequence and pick from it, as PyTorch's exporter writes torch.split before it optimises."""
    sequence = net.op("SplitToSequence", x, *([split] if split else []), axis=1, **attrs)
    return [str(net.op("SequenceAt", sequence, net.const(place, np.int64))) for place in places]


def sequence_of_chunks(net: Net, x: str) -> str:
    first, last = pieces(net, x, 0, -1, split=net.const(3, np.int64))
    return str(net.op("Concat", last, net.op("Relu", first), axis=1))


def sequence_by_sizes(net: Net, x: str) -> str:
    second, first = pieces(net, x, 1, 0, split=net.ints(3, 5))
    return str(net.op("Concat", first, net.op("Neg", second), axis=1))


def shuffled_piece(net: Net, x: str) -> str:
    first, second = pieces(net, x, 0, 1, split=net.const(4, np.int64))
    split = net.op("Reshape", first, net.ints(2, 2, 2, 6, 6))
    mixed = net.op("Reshape", net.op("Transpose", split, perm=[0, 2, 1, 3, 4]), net.ints(2, 4, 6, 6))
    return str(net.op("Concat", mixed, second, axis=1))


def slice_by_attributes(net: Net, x: str) -> str:
    return str(net.op("Slice", x, axes=[1, 2], starts=[1, 0], ends=[7, 2**31 - 1]))


def slice_by_inputs(net: Net, x: str) -> str:
    return str(net.op("Slice", x, net.ints(-7, 1), net.ints(2**62, -1), net.ints(1, -1), net.ints(1, 1)))


def overwritten(*cuts: slice) -> Build:
    """x[cuts] = sigmoid(x)[cuts], the indices a grid of as many axes as there are cuts."""

    def build(net: Net, x: str) -> str:
        sizes = (2, CHANNELS, 6, 6)
        grid = np.stack(
            np.meshgrid(*(np.arange(n)[cut] for n, cut in zip(sizes, cuts, strict=False)), indexing="ij"), -1
        )
        y = net.op("Sigmoid", x)
        for axis, cut in enumerate(cuts):
            if cut != slice(None):
                y = net.op("Slice", y, net.ints(cut.start), net.ints(cut.stop), net.ints(axis))
        return str(net.op("ScatterND", x, net.const(grid, np.int64), y))

    return build


def overwritten_first(net: Net, x: str) -> str:
    """As PyTorch's second exporter writes it: the axis that is written to is moved to the front."""
    x = net.op("Transpose", x, perm=[1, 0, 2, 3])
    y = net.op("Slice", net.op("Relu", x), net.ints(2), net.ints(7), net.ints(0))
    x = net.op("ScatterND", x, net.const(np.arange(2, 7)[:, None], np.int64), y)
    return str(net.op("Transpose", x, perm=[1, 0, 2, 3]))


def stepped(axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> Build:
    def build(net: Net, x: str) -> str:
        return str(net.op("Slice", x, *(net.ints(*values) for values in (starts, ends, axes, steps))))

    return build


def focus(net: Net, x: str) -> str:
    parts = [
        net.op("Slice", x, net.ints(row, column), net.ints(2**31 - 1, 2**31 - 1), net.ints(2, 3), net.ints(2, 2))
        for row in (0, 1)
        for column in (0, 1)
    ]
    return str(net.op("Concat", *parts, axis=1))


def gathered(net: Net, x: str) -> str:
    return str(net.op("Gather", x, net.ints(7, 0, 1, 2, -2, 5), axis=1))


def channel_shuffle(net: Net, x: str) -> str:
    split = net.op("Reshape", x, net.ints(0, 2, 4, 6, -1))
    return str(net.op("Reshape", net.op("Transpose", split, perm=[0, 2, 1, 3, 4]), net.ints(0, -1, 6, 6)))


def to_nhwc_and_back(net: Net, x: str) -> str:
    last = net.op("Transpose", x, perm=[0, 2, 3, 1])
    scaled = net.op("Mul", last, net.const(net.rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)))
    return str(net.op("Transpose", scaled, perm=[0, 3, 1, 2]))


def padded(mode: str) -> Build:
    def build(net: Net, x: str) -> str:
        return str(net.op("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1), mode=mode))

    return build


def padded_channels(net: Net, x: str) -> str:
    return str(net.op("Pad", x, net.ints(0, 2, 0, 0, 0, 1, 0, 0), net.const(0.5, np.float32)))


def padded_some_axes(net: Net, x: str) -> str:
    return str(net.op("Pad", x, net.ints(2, 1, 1, 1), net.const(0.5, np.float32), net.ints(1, -1)))


def padded_by_attribute(net: Net, x: str) -> str:
    return str(net.op("Pad", x, pads=[0, 1, 0, 0, 0, 2, 1, 1], value=0.25))


def expanded(net: Net, x: str) -> str:
    pooled = net.op("GlobalMaxPool", x)
    return str(net.op("Expand", pooled, net.ints(2, CHANNELS, 6, 6)))


def tiled(net: Net, x: str) -> str:
    return str(net.op("Tile", x, net.ints(1, 2, 1, 1)))


MOVES: Mapping[str, tuple[int, Build]] = {
    "concat": (13, concat_with_itself),
    "concat-with-zeros": (13, padded_with_zeros),
    "split-even": (11, split_evenly),
    "split-attribute": (11, split_by_attribute),
    "split-input": (13, split_by_input),
    "split-num-outputs": (18, split_by_count),
    "slice-attributes": (9, slice_by_attributes),
    "slice-inputs": (13, slice_by_inputs),
    "slice-steps": (13, stepped((1,), (0,), (8,), (3,))),
    "slice-reversed": (13, stepped((1,), (-1,), (-100,), (-1,))),
    "slice-steps-of-several-axes": (13, stepped((3, 1, 2), (0, 1, 0), (9, 100, -1), (2, 2, 1))),
    "slice-steps-of-all-axes": (10, stepped((-3, 2), (1, 5), (8, -9), (2, -2))),
    "slice-backwards-to-the-first": (13, stepped((-3, 2), (7, 0), (-(2**31), 2**31 - 1), (-2, 2))),
    "overwritten": (13, overwritten(slice(None), slice(2, 7))),
    "overwritten-whole": (11, overwritten(slice(None), slice(None))),
    "overwritten-first": (18, overwritten_first),
    "focus": (13, focus),
    "gather": (13, gathered),
    "sequence-of-chunks": (13, sequence_of_chunks),
    "sequence-by-sizes": (11, sequence_by_sizes),
    "shuffled-piece-of-a-sequence": (13, shuffled_piece),
    "channel-shuffle": (13, channel_shuffle),
    "nhwc": (13, to_nhwc_and_back),
    "pad-constant": (13, padded("constant")),
    "pad-reflect": (13, padded("reflect")),
    "pad-edge": (13, padded("edge")),
    "pad-channels": (13, padded_channels),
    "pad-axes-18": (18, padded_some_axes),
    "pad-attribute-10": (10, padded_by_attribute),
    "expand": (13, expanded),
    "tile": (13, tiled),
    "space-to-depth": (13, elementwise("SpaceToDepth", blocksize=2)),
}
