"""How each op treats a positive factor on some of its channels: the table SCALING_RULES.

A value's channel class is UNSCALED, SCALED (carries the factor α), ZERO (no factor shows) or MIXED (the
factor did not pass; the class must be left alone). The first word of each docstring: pass, join or block.
passes/sparsity/scaling.py runs these. Where a factor starts (a BatchNorm's gamma) and where it is undone (the axis
that a contraction sums over) is that pass's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from prunec.ir.graph import Node
from prunec.ir.ops import BINARY, CONTRACTIONS, NORMALISATIONS, UNARY

Factors = np.ndarray[Any, np.dtype[np.int8]]
"""int8[k]: one of the constants below for each class of a value."""

UNSCALED: Final = 0
SCALED: Final = 1
ZERO: Final = 2
ABSENT: Final = 3
"""The operand does not carry the class (a scalar, another part of a concat)."""
MIXED: Final = -1

Rule = Callable[[Node, Sequence[Factors]], Factors]
"""(node, per input the factor of each class of the output) -> the factor of each class of the output."""


def passes(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Pass: f(αx) = α·f(x) and f(0) = 0 on the first input; further inputs must be unscaled."""
    return _unless(_any_scaled(inputs[1:]), inputs[0])


def unpools(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Pass: where a maximum lies does not depend on a positive factor, so the indices carry none."""
    return inputs[0]


def blocks(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Block: a scaled input changes the output in another way than by the factor."""
    return _unless(_any_scaled(inputs), np.full(inputs[0].shape if inputs else (0,), UNSCALED, dtype=np.int8))


def contracts(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Block nothing: the weights undo the factor, so the output is UNSCALED even where its classes are the input's."""
    return np.full(inputs[0].shape, UNSCALED, dtype=np.int8)


def clip(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Pass where both bounds are 0 or open (a ReLU); block at any other bound."""
    low, high = node.attrs.get("min"), node.attrs.get("max")
    homogeneous = low in (None, 0, -np.inf) and high in (None, 0, np.inf)
    return passes(node, inputs) if homogeneous and len(inputs) == 1 else blocks(node, inputs)


def threshold(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Pass where threshold and replacement are 0 (a ReLU); else block."""
    at = node.attrs.get("threshold", 0.0) if node.op == "threshold" else node.attrs.get("alpha", 1.0)
    return passes(node, inputs) if at == 0 and node.attrs.get("value", 0.0) == 0 else blocks(node, inputs)


def cast(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Pass between floating-point types; block where values are rounded to whole numbers."""
    return passes(node, inputs) if "float" in str(node.attrs.get("to", "float32")) else blocks(node, inputs)


def joins(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Join operands that must carry the same factor (add, sub, minimum, maximum): max(αa, αb) = α·max(a, b)."""
    inputs = [np.where(factors == ABSENT, UNSCALED, factors).astype(np.int8) for factors in inputs]
    return _agreed(inputs)


def lies_beside(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Join operands whose positions lie side by side: those that lack a class have no say in it."""
    inputs = [np.where(factors == ABSENT, ZERO, factors).astype(np.int8) for factors in inputs]
    return _agreed(inputs)


def mul(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Pass the factor of one scaled operand; two of them make α²: block."""
    scaled = sum((factors == SCALED).astype(np.int8) for factors in inputs)
    result = np.where(scaled == 1, SCALED, UNSCALED).astype(np.int8)
    zero = np.logical_or.reduce([factors == ZERO for factors in inputs])
    return _unless(np.asarray(scaled) > 1, np.where(zero, ZERO, result).astype(np.int8))


def div(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Pass the dividend's factor; a scaled divisor, or a rounded quotient, blocks."""
    return blocks(node, inputs) if node.attrs.get("rounding") else passes(node, inputs)


def where(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Join the two choices; the condition must be unscaled."""
    return _unless(_any_scaled(inputs[:1]), joins(node, inputs[1:]))


def reduce(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Pass through mean, sum, extremes and norms; block products, variances and logarithms."""
    linear = ("mean", "sum", "max", "min", "l1", "l2", "std")
    return passes(node, inputs) if node.attrs["kind"] in linear else blocks(node, inputs)


def pad(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Pass with zero, reflected or repeated padding; block another constant. New channels of zeros are ZERO."""
    if node.attrs.get("mode", "constant") == "constant" and node.attrs.get("value", 0):
        return blocks(node, inputs)
    return lies_beside(node, inputs)


def full(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Start with ZERO, or with UNSCALED where the value is not zero; the one input stands for the shape."""
    return np.full(inputs[0].shape, UNSCALED if node.attrs["value"] else ZERO, dtype=np.int8)


def resize(node: Node, inputs: Sequence[Factors]) -> Factors:
    """Pass; block where the border is extrapolated with a value of its own."""
    return passes(node, inputs) if node.attrs.get("keeps_constants", True) else blocks(node, inputs)


def _any_scaled(inputs: Sequence[Factors]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.logical_or.reduce([factors == SCALED for factors in inputs]) if inputs else np.zeros(1, dtype=bool)


def _unless(wrong: np.ndarray[Any, np.dtype[np.bool_]], factors: Factors) -> Factors:
    return np.where(wrong, MIXED, factors).astype(np.int8)


def _agreed(inputs: Sequence[Factors]) -> Factors:
    result = inputs[0]
    for factors in inputs[1:]:
        differ = (result != factors) & (result != ZERO) & (factors != ZERO)
        result = _unless(differ, np.where(result == ZERO, factors, result).astype(np.int8))
    return result


_PASSING_UNARY = ("identity", "relu", "leaky_relu", "abs", "neg")
_JOINING = ("add", "sub", "rsub", "minimum", "maximum")
_MOVES = (
    "reshape", "transpose", "slice", "split", "gather", "expand", "tile", "depth_to_space", "space_to_depth", "im2col",
)  # fmt: skip

SCALING_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(CONTRACTIONS, contracts),
        **dict.fromkeys(NORMALISATIONS, blocks),
        **dict.fromkeys(UNARY, blocks),
        **dict.fromkeys(_PASSING_UNARY, passes),
        "clip": clip,
        "threshold": threshold,
        "thresholded_relu": threshold,
        "cast": cast,
        "prelu": passes,
        **dict.fromkeys(BINARY, blocks),
        **dict.fromkeys(_JOINING, joins),
        "mul": mul,
        "div": div,
        "where": where,
        **dict.fromkeys(_MOVES, passes),
        "concat": lies_beside,
        "scatter_slice": lies_beside,
        "pad": pad,
        "full": full,
        **dict.fromkeys(("max_pool", "avg_pool", "sample"), passes),
        "linear": passes,
        "max_unpool": unpools,
        "resize": resize,
        **dict.fromkeys(("quantize", "dequantize", "dynamic_quantize"), blocks),
        "reduce": reduce,
        **dict.fromkeys(("along", "arg_reduce", "shape_of", "opaque"), blocks),
    }
)
