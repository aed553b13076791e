"""Constant rules of ops that compute each element by itself, with the functions of passes/rules/numeric.py."""

from __future__ import annotations

from prunec.passes.rules import numeric
from prunec.passes.rules.arrays import along, fits, lift
from prunec.passes.rules.constants.call import Call, Known


def unary(call: Call) -> Known:
    """Apply the function to what is known: a ReLU that never fires, as its input is a negative constant, gives 0.

    Further inputs are the bounds of a clip.
    """
    if call.known[0] is None or (call.node.op == "not" and call.out_dtype != "bool"):
        return [None]
    x = numeric.unary(call.node.op, call.known[0], call.node.attrs)
    for index, op in ((1, "maximum"), (2, "minimum")):
        if call.node.op == "clip" and call.has(index):
            x = numeric.binary(op, x, call.array(index), {})
    return [x]


ABSORBING = frozenset({"mul", "and", "or", "bit_and"})
"""Ops whose result one known operand can settle."""


def binary(call: Call) -> Known:
    """Apply the function where both operands are known, or where one settles the result."""
    op, attrs = call.node.op, call.node.attrs
    if call.known[0] is None and call.known[1] is None:
        return [None]
    if op in ("and", "or", "xor") and call.out_dtype != "bool":
        op = f"bit_{op}"
    if op not in ABSORBING and (call.known[0] is None or call.known[1] is None):
        return [None]
    operands = [lift(call.array(index), call.rank) for index in (0, 1)]
    if not fits(operands):
        return [None]
    if op == "div" and call.out_dtype.startswith(("int", "uint")) and "rounding" not in attrs:
        attrs = {**attrs, "rounding": "trunc"}
    return [numeric.binary(op, operands[0], operands[1], attrs)]


def prelu(call: Call) -> Known:
    """A slope with one axis lies along attribute ``axis``, or as numpy broadcasting has it."""
    x, slope = call.known[0], call.array(1)
    if x is None:
        return [None]
    axis = call.node.attrs.get("axis")
    if axis is not None and slope.ndim == 1:
        slope = along(slope, axis, call.rank)
    return [numeric.prelu(x, slope) if fits([x, slope]) else None]


def where(call: Call) -> Known:
    """A known condition chooses; else the choices must agree."""
    operands = [call.array(index) for index in range(3)]
    return [numeric.where(*operands) if fits(operands) else None]
