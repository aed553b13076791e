"""The table of what is folded: ONNX op type -> how its outputs' contents follow from its inputs'."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from prunec.frontends.onnx.folding import arithmetic, moves
from prunec.frontends.onnx.folding.rule import Fold
from prunec.frontends.onnx.sizes import symbols as sym

FOLDS: Mapping[str, Fold] = MappingProxyType(
    {
        "Identity": moves.same,
        "ConstantOfShape": moves.constant_of_shape,
        "Range": moves.number_range,
        "Gather": moves.gather,
        "Concat": moves.concat,
        "Slice": moves.slice_axes,
        "Unsqueeze": moves.unsqueeze,
        "Squeeze": moves.squeeze,
        "Reshape": moves.reshape,
        "Flatten": moves.flatten,
        "Transpose": moves.transpose,
        "Expand": moves.expand,
        "Tile": moves.tile,
        "Split": moves.split,
        "Cast": moves.cast,
        "CastLike": moves.cast_like,
        "Add": arithmetic.elementwise(np.add, sym.plus),
        "Sub": arithmetic.elementwise(np.subtract, sym.minus),
        "Mul": arithmetic.elementwise(np.multiply, sym.times),
        "Div": arithmetic.elementwise(arithmetic.divide, sym.divide),
        "Neg": arithmetic.elementwise(np.negative, lambda a: sym.times(a, -1)),
        "Sqrt": arithmetic.elementwise(np.sqrt, arithmetic.on_numbers(math.sqrt)),
        "Floor": arithmetic.rounding(np.floor, math.floor),
        "Ceil": arithmetic.rounding(np.ceil, math.ceil),
        "Round": arithmetic.rounding(np.rint, round),
        "Equal": arithmetic.elementwise(np.equal, arithmetic.equal_items),
        "Less": arithmetic.elementwise(np.less, arithmetic.less_than),
        "Greater": arithmetic.elementwise(np.greater, lambda a, b: arithmetic.less_than(b, a)),
        "Not": arithmetic.elementwise(np.logical_not, arithmetic.on_numbers(lambda a: not a)),
        "Where": arithmetic.elementwise(np.where, arithmetic.choose),
        "BatchNormalization": arithmetic.batch_norm,
        "ReduceProd": arithmetic.reduce(np.prod, sym.times),
        "ReduceSum": arithmetic.reduce(np.sum, sym.plus),
        "ReduceMax": arithmetic.reduce(np.max, arithmetic.largest),
        "ReduceMin": arithmetic.reduce(np.min, arithmetic.smallest),
    }
)
