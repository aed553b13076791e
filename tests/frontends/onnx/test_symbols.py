"""Arithmetic on open sizes: exact where it can be, a formula where it cannot, and never wrong."""

from __future__ import annotations

import operator
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from prunec.frontends.onnx.sizes import symbols as sym

OPERATIONS: dict[str, tuple[Callable[[sym.Item, sym.Item], sym.Item], Callable[[int, int], int]]] = {
    "plus": (sym.plus, operator.add),
    "minus": (sym.minus, operator.sub),
    "times": (sym.times, operator.mul),
    "divide": (sym.divide, lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)),
}
SIZES = ("height", "width")
Pair = tuple[sym.Item, tuple[int, ...]]
"""An item, and what it is for several choices of the sizes."""


def choices(values: list[tuple[int, int]]) -> list[Pair]:
    return [
        *((sym.Product(1, (name,)), tuple(pair[place] for pair in values)) for place, name in enumerate(SIZES)),
        *((number, (number,) * len(values)) for number in (-2, -1, 0, 1, 2, 3, 8)),
    ]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=3, max_size=6),
    st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 40), st.integers(0, 40)), max_size=12),
)
def test_equal_items_are_equal_numbers(values: list[tuple[int, int]], steps: list[tuple[str, int, int]]) -> None:
    """Whatever two chains of arithmetic give: items that are the same are the same for all sizes."""
    known = choices(values)
    for name, left, right in steps:
        (a, many_a), (b, many_b) = known[left % len(known)], known[right % len(known)]
        if name == "divide" and 0 in many_b:
            continue
        symbolic, exact = OPERATIONS[name]
        result = symbolic(a, b)
        if result is not None:
            known.append((result, tuple(map(exact, many_a, many_b))))
    for item, numbers in known:
        assert all(other == numbers for same, other in known if same == item and type(same) is type(item))
        if not sym.is_symbolic(item):
            assert set(numbers) == {item}
        if isinstance(item, sym.Product):
            wanted = [item.factor * h ** item.names.count("height") * w ** item.names.count("width") for h, w in values]
            assert list(numbers) == wanted


def test_the_same_formula_is_the_same_size() -> None:
    def halved() -> sym.Item:
        return sym.plus(sym.divide(sym.minus(sym.Product(1, ("height",)), 1), 2), 1)

    assert halved() == halved() is not None
    assert sym.reshaped((2, 12, 2, sym.dim(halved()), "w"), [2, -1, halved(), sym.Product(1, ("w",))])[1] == 24


def test_formulas_do_not_grow_without_end() -> None:
    item: sym.Item = sym.plus(sym.Product(1, ("height",)), 1)
    for _ in range(100):
        item = sym.times(item, item)
    assert item is None
