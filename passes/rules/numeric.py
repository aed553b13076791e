"""What the elementwise ops and reductions compute, on float64 arrays in which NaN means "unknown".

Owns the numeric tables; every unknown in gives an unknown out, except where the result does not
depend on it. Does not know graphs or shapes: passes/rules/constants/ applies these to a node.
Semantics are those of PyTorch and ONNX, which agree wherever both have the op. Booleans are 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.ir.arrays import Array

Attrs = Mapping[str, Any]
Unary = Callable[[Array, Attrs], Array]
Binary = Callable[[Array, Array, Attrs], Array]
Reduction = Callable[[Array, tuple[int, ...]], Array]


def _plain(function: Callable[..., Any]) -> Callable[..., Array]:
    """Give a function that has no attributes the signature of the tables (its last argument is dropped)."""
    return lambda *operands: np.asarray(function(*operands[:-1]))


def _erf(x: Array) -> Array:
    from scipy.special import erf  # importing scipy takes longer than most analyses

    return np.asarray(erf(x))


def _expit(x: Array) -> Array:
    from scipy.special import expit

    return np.asarray(expit(x))


SELU_ALPHA = 1.6732632423543772
SELU_GAMMA = 1.0507009873554805


def _leaky_relu(x: Array, attrs: Attrs) -> Array:
    return np.where(x >= 0, x, attrs.get("alpha", 0.01) * x)


def _elu(x: Array, attrs: Attrs) -> Array:
    return np.where(x > 0, x, attrs.get("alpha", 1.0) * np.expm1(x))


def _celu(x: Array, attrs: Attrs) -> Array:
    alpha = attrs.get("alpha", 1.0)
    return np.where(x > 0, x, alpha * np.expm1(x / alpha))


def _selu(x: Array, attrs: Attrs) -> Array:
    alpha, gamma = attrs.get("alpha", SELU_ALPHA), attrs.get("gamma", SELU_GAMMA)
    return np.asarray(gamma * np.where(x > 0, x, alpha * np.expm1(x)))


def _gelu(x: Array, attrs: Attrs) -> Array:
    """``approximate``: none (erf), tanh, or sigmoid (x·sigmoid(1.702·x))."""
    kind = attrs.get("approximate", "none")
    if kind == "tanh":
        share = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    elif kind == "sigmoid":
        share = _expit(1.702 * x)
    else:
        share = 0.5 * (1 + _erf(x / math.sqrt(2)))
    return np.asarray(x * share)


def _hard_sigmoid(x: Array, attrs: Attrs) -> Array:
    """``alpha`` defaults to PyTorch's 1/6; ONNX's default is 0.2, which its frontend writes out."""
    return np.asarray(np.clip(attrs.get("alpha", 1 / 6) * x + attrs.get("beta", 0.5), 0, 1))


def _softplus(x: Array, attrs: Attrs) -> Array:
    """log(1 + exp(beta·x)) / beta; beyond ``threshold`` the two sides agree to rounding, so it may be absent."""
    beta, threshold = attrs.get("beta", 1.0), attrs.get("threshold", math.inf)
    scaled = beta * x
    return np.where(scaled > threshold, x, np.logaddexp(0, scaled) / beta)


def _hard_shrink(x: Array, attrs: Attrs) -> Array:
    return np.where(np.abs(x) > attrs.get("lambd", 0.5), x, 0)


def _soft_shrink(x: Array, attrs: Attrs) -> Array:
    """``bias`` is ONNX Shrink's; PyTorch has it equal to ``lambd``."""
    lambd = attrs.get("lambd", 0.5)
    bias = attrs.get("bias", lambd)
    return np.where(x > lambd, x - bias, np.where(x < -lambd, x + bias, 0))


def _threshold(x: Array, attrs: Attrs) -> Array:
    return np.where(x > attrs.get("threshold", 0.0), x, attrs.get("value", 0.0))


def _thresholded_relu(x: Array, attrs: Attrs) -> Array:
    return np.where(x > attrs.get("alpha", 1.0), x, 0)


def _clip(x: Array, attrs: Attrs) -> Array:
    """``min`` and ``max`` may each be absent or None. Where min > max the result is max, as everywhere."""
    low, high = attrs.get("min"), attrs.get("max")
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _hard_tanh(x: Array, attrs: Attrs) -> Array:
    return np.clip(x, attrs.get("min", -1.0), attrs.get("max", 1.0))


def _cast(x: Array, attrs: Attrs) -> Array:
    """Truncate to integers, or to 0 and 1 for bool; what the type cannot hold is unknown.

    Rounding to a shorter float is left out: it is of the size of the network's own rounding.
    """
    to = str(attrs.get("to", "float32"))
    if to == "bool":
        return np.where(x != 0, 1.0, 0.0)
    if not to.startswith(("int", "uint")):
        return x
    bits = int(to.lstrip("uint") or 64)
    low, high = (0.0, 2.0**bits) if to.startswith("u") else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1))
    whole = np.trunc(x)
    return np.where((whole >= low) & (whole < high), whole, np.nan)


UNARY_FUNCTIONS: Mapping[str, Unary] = MappingProxyType(
    {
        "identity": lambda x, _: x,
        "relu": _plain(lambda x: np.maximum(x, 0)),
        "leaky_relu": _leaky_relu,
        "elu": _elu,
        "celu": _celu,
        "selu": _selu,
        "gelu": _gelu,
        "sigmoid": _plain(_expit),
        "log_sigmoid": _plain(lambda x: -np.logaddexp(0, -x)),
        "tanh": _plain(np.tanh),
        "hard_tanh": _hard_tanh,
        "hard_sigmoid": _hard_sigmoid,
        "hard_swish": _plain(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
        "silu": lambda x, attrs: x * _expit(attrs.get("alpha", 1.0) * x),
        "mish": _plain(lambda x: x * np.tanh(np.logaddexp(0, x))),
        "softplus": _softplus,
        "softsign": _plain(lambda x: x / (1 + np.abs(x))),
        "hard_shrink": _hard_shrink,
        "soft_shrink": _soft_shrink,
        "tanh_shrink": _plain(lambda x: x - np.tanh(x)),
        "threshold": _threshold,
        "thresholded_relu": _thresholded_relu,
        "clip": _clip,
        "exp": _plain(np.exp),
        "expm1": _plain(np.expm1),
        "log": _plain(np.log),
        "log1p": _plain(np.log1p),
        "sqrt": _plain(np.sqrt),
        "rsqrt": _plain(lambda x: 1 / np.sqrt(x)),
        "square": _plain(np.square),
        "abs": _plain(np.abs),
        "neg": _plain(lambda x: -x),
        "reciprocal": _plain(lambda x: 1 / x),
        "sign": _plain(np.sign),
        "floor": _plain(np.floor),
        "ceil": _plain(np.ceil),
        "round": _plain(np.rint),  # half to even, in PyTorch and ONNX alike
        "erf": _plain(_erf),
        "sin": _plain(np.sin),
        "cos": _plain(np.cos),
        "tan": _plain(np.tan),
        "asin": _plain(np.arcsin),
        "acos": _plain(np.arccos),
        "atan": _plain(np.arctan),
        "sinh": _plain(np.sinh),
        "cosh": _plain(np.cosh),
        "asinh": _plain(np.arcsinh),
        "acosh": _plain(np.arccosh),
        "atanh": _plain(np.arctanh),
        "not": _plain(lambda x: (x == 0).astype(np.float64)),
        "is_nan": _plain(np.zeros_like),  # NaN stands for "unknown" here, so a known number is neither
        "is_inf": _plain(lambda x: np.isinf(x).astype(np.float64)),
        "cast": _cast,
    }
)


def _div(a: Array, b: Array, attrs: Attrs) -> Array:
    """``rounding``: None, floor or trunc (PyTorch's rounding_mode; integer division truncates)."""
    quotient = a / b
    rounding = attrs.get("rounding")
    if rounding == "floor":
        return np.floor(quotient)
    return np.trunc(quotient) if rounding == "trunc" else quotient


def _mod(a: Array, b: Array, attrs: Attrs) -> Array:
    """The sign follows the divisor, or the dividend where ``fmod`` is set."""
    return np.fmod(a, b) if attrs.get("fmod") else np.mod(a, b)


def _bit_shift(a: Array, b: Array, attrs: Attrs) -> Array:
    right = str(attrs.get("direction", "LEFT")).upper() == "RIGHT"
    return np.floor(a / 2.0**b) if right else a * 2.0**b


def _truth(test: Callable[[Array, Array], Array]) -> Binary:
    return _plain(lambda a, b: test(a, b).astype(np.float64))


BINARY_FUNCTIONS: Mapping[str, Binary] = MappingProxyType(
    {
        "add": lambda a, b, attrs: a + attrs.get("alpha", 1) * b,
        "sub": lambda a, b, attrs: a - attrs.get("alpha", 1) * b,
        "rsub": lambda a, b, attrs: b - attrs.get("alpha", 1) * a,
        "mul": _plain(lambda a, b: a * b),
        "div": _div,
        "floor_div": _plain(np.floor_divide),
        "mod": _mod,
        "pow": _plain(np.power),
        "minimum": _plain(np.minimum),
        "maximum": _plain(np.maximum),
        "equal": _truth(np.equal),
        "not_equal": _truth(np.not_equal),
        "less": _truth(np.less),
        "less_equal": _truth(np.less_equal),
        "greater": _truth(np.greater),
        "greater_equal": _truth(np.greater_equal),
        "and": _truth(np.logical_and),
        "or": _truth(np.logical_or),
        "xor": _truth(np.logical_xor),
        "atan2": _plain(np.arctan2),
        "bit_shift": _bit_shift,
    }
)


def unary(op: str, x: Array, attrs: Attrs) -> Array:
    """Apply a unary op; unknown in, unknown out."""
    y = UNARY_FUNCTIONS[op](np.asarray(x, dtype=np.float64), attrs)
    return np.where(np.isnan(x), np.nan, y)


_BITWISE: Mapping[str, Callable[[Array, Array], Array]] = MappingProxyType(
    {"bit_and": np.bitwise_and, "bit_or": np.bitwise_or, "bit_xor": np.bitwise_xor}
)
"""What and, or and xor are on integers."""


def _bitwise(op: str, a: Array, b: Array) -> Array:
    return _BITWISE[op](np.nan_to_num(a).astype(np.int64), np.nan_to_num(b).astype(np.int64)).astype(np.float64)


def binary(op: str, a: Array, b: Array, attrs: Attrs) -> Array:
    """Apply a binary op with numpy broadcasting; ``bit_and``, ``bit_or`` and ``bit_xor`` are for integers.

    One unknown operand makes the result unknown, but zero times anything is zero, false and anything
    is false, true or anything is true. (0 / unknown is unknown: the divisor may be 0.)
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    y = _bitwise(op, a, b) if op in _BITWISE else BINARY_FUNCTIONS[op](a, b, attrs)
    y = np.where(np.isnan(a) | np.isnan(b), np.nan, y)
    if op == "mul":
        return np.where(((a == 0) & ~np.isinf(b)) | ((b == 0) & ~np.isinf(a)), 0.0, y)
    if op in ("and", "bit_and"):
        return np.where((a == 0) | (b == 0), 0.0, y)
    if op == "or":
        return np.where(_is_true(a) | _is_true(b), 1.0, y)
    return y


def _is_true(x: Array) -> Array:
    return np.asarray((x != 0) & ~np.isnan(x))


def prelu(x: Array, slope: Array) -> Array:
    """Return x where x >= 0, else slope·x; a slope is only needed where x is known to be negative."""
    return np.where(x >= 0, x, np.where(np.isnan(x), np.nan, slope * x))


def where(condition: Array, a: Array, b: Array) -> Array:
    """Choose by ``condition``; where that is unknown, the result is known only if both choices agree."""
    either = np.where(a == b, a, np.nan)
    chosen = np.where(condition != 0, a, b)
    return np.where(np.isnan(condition), either, chosen)


def reduce(kind: str, x: Array, axes: tuple[int, ...], repeats: float | None, correction: float) -> Array | None:
    """Reduce ``axes`` of ``x`` (kept with size 1); each element stands for ``repeats`` equal ones.

    ``repeats`` is None where that number is not known; ``correction`` is Bessel's, for var and std.
    Unknown elements make their result unknown. Returns None for a kind that is not followed.
    """
    times = np.nan if repeats is None else repeats
    if kind in _PLAIN:
        return _PLAIN[kind](x, axes)
    if kind in _SUMS:
        before, after = _SUMS[kind]
        total: Array = np.sum(before(x), axis=axes, keepdims=True)
        return after(np.where(total == 0, 0.0, total * times))
    if kind in ("var", "std"):
        count = times * math.prod(x.shape[axis] for axis in axes)
        spread = np.sum(np.square(x - np.mean(x, axis=axes, keepdims=True)), axis=axes, keepdims=True)
        var = spread * times / (count - correction)
        return np.asarray(np.sqrt(var) if kind == "std" else var)
    if kind == "prod":
        product: Array = np.prod(x, axis=axes, keepdims=True)
        return np.where((product == 0) | (product == 1), product, product**times)
    if kind == "logsumexp":
        return np.asarray(np.logaddexp.reduce(x, axis=axes, keepdims=True) + np.log(times))
    return None


_PLAIN: Mapping[str, Reduction] = MappingProxyType(
    {
        "mean": lambda x, axes: np.mean(x, axis=axes, keepdims=True),
        "max": lambda x, axes: np.max(x, axis=axes, keepdims=True),
        "min": lambda x, axes: np.min(x, axis=axes, keepdims=True),
        "any": lambda x, axes: np.max(np.where(np.isnan(x), x, x != 0), axis=axes, keepdims=True),
        "all": lambda x, axes: np.min(np.where(np.isnan(x), x, x != 0), axis=axes, keepdims=True),
    }
)

_SUMS: Mapping[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = MappingProxyType(
    {"sum": (np.asarray, np.asarray), "l1": (np.abs, np.asarray), "l2": (np.square, np.sqrt)}
)
"""kind -> what is done before and after summing."""
