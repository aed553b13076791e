"""Arithmetic on sizes that are numbers, symbols or unknown: what shape-computing chains need.

An *item* is one element of a tensor that holds sizes: a number, a ``Product`` of symbols, a ``Computed``
whole number of which only the formula is known, or None (unknown). Whatever cannot be said exactly is
None. Knows no ONNX; read folding/ next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunec.ir.graph import Dim, Shape


@dataclass(frozen=True, slots=True)
class Product:
    """``factor`` times the sizes called ``names`` (sorted, with repeats). A bare number is never a Product."""

    factor: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return "*".join(([str(self.factor)] if self.factor != 1 else []) + list(self.names))


@dataclass(frozen=True, slots=True)
class Computed:
    """A whole number that a formula over sizes gives: ``(height - 1) // 2 + 1``. It may be negative.

    The same formula is the same number, which is all that is asked of it.
    """

    formula: str

    def __str__(self) -> str:
        return self.formula


Item = int | float | bool | Product | Computed | None

MAX_FORMULA = 200
"""Characters; a chain of sums that doubles in length at each step ends there."""


def item(dim: Dim) -> Item:
    """Return a size as an item."""
    return Product(1, (dim,)) if isinstance(dim, str) else dim


def dim(value: Item) -> Dim:
    """Return an item as a size; the same product gives the same name."""
    if isinstance(value, Product):
        return str(value)
    if isinstance(value, Computed):
        return str(value)
    return int(value) if value is not None else None


def is_symbolic(value: Item) -> bool:
    """Tell whether a value is known, but not as a number."""
    return isinstance(value, Product | Computed)


def _computed(operator: str, a: Item, b: Item, commutes: bool = True) -> Item:
    """Return a formula of two whole items; None where one is not whole, or it gets too long."""
    parts = [str(int(value) if isinstance(value, int | float) else value) for value in (a, b)]
    whole = all(not isinstance(value, float) or value == int(value) for value in (a, b))
    formula = f"[{f' {operator} '.join(sorted(parts) if commutes else parts)}]"
    return Computed(formula) if whole and len(formula) <= MAX_FORMULA else None


def times(a: Item, b: Item) -> Item:
    """Multiply; zero times anything is zero, for a size is finite."""
    if a == 0 or b == 0:
        return 0
    if a is None or b is None:
        return None
    if isinstance(a, Computed) or isinstance(b, Computed):
        return b if a == 1 else a if b == 1 else _computed("*", a, b)
    if not isinstance(a, Product) and not isinstance(b, Product):
        return a * b
    factor = 1
    names: list[str] = []
    for part in (a, b):
        if isinstance(part, Product):
            factor *= part.factor
            names += part.names
        elif part == int(part):
            factor *= int(part)
        else:
            return None
    return Product(factor, tuple(sorted(names)))


def over(a: Item, b: Item) -> Item:
    """Divide where that comes out exactly whatever the symbols are; None elsewhere."""
    if a is None or b is None or b == 0 or isinstance(a, Computed) or isinstance(b, Computed):
        return None
    if any(not isinstance(value, Product) and value != int(value) for value in (a, b)):
        return None
    if not isinstance(a, Product) and not isinstance(b, Product):
        return int(a) // int(b) if a % b == 0 else None
    top = a if isinstance(a, Product) else None
    bottom = b if isinstance(b, Product) else None
    names = Counter(top.names if top else ())
    names.subtract(bottom.names if bottom else ())
    a_factor = top.factor if top else int(a)  # type: ignore[arg-type]  # not a Product here
    b_factor = bottom.factor if bottom else int(b)  # type: ignore[arg-type]  # not a Product here
    if a_factor % b_factor or any(count < 0 for count in names.values()):
        return None
    left = tuple(sorted(names.elements()))
    return Product(a_factor // b_factor, left) if left else a_factor // b_factor


def divide(a: Item, b: Item) -> Item:
    """Divide as ONNX's Div does: whole numbers truncate towards zero."""
    if a is None or b is None or b == 0:
        return None
    if isinstance(a, Product | Computed) or isinstance(b, Product | Computed):
        exact = over(a, b)
        # Between whole numbers only: an int among the operands tells. Of floats it would be a true quotient.
        return _computed("/", a, b, commutes=False) if exact is None and type(b) is int else exact
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return int(a) // int(b) if (a < 0) == (b < 0) else -(abs(int(a)) // abs(int(b)))


def plus(a: Item, b: Item) -> Item:
    """Add."""
    if a == 0:
        return b
    if b == 0:
        return a
    if a is None or b is None:
        return None
    if isinstance(a, Product) and isinstance(b, Product) and a.names == b.names:
        return times(Product(1, a.names), a.factor + b.factor)
    if is_symbolic(a) or is_symbolic(b):
        return _computed("+", a, b)
    return a + b  # type: ignore[operator]  # both are numbers here


def minus(a: Item, b: Item) -> Item:
    """Subtract."""
    return plus(a, times(b, -1))


def total(dims: Iterable[Dim]) -> Item:
    """Return the number of elements of a shape."""
    product: Item = 1
    for size in dims:
        product = times(product, item(size))
    return product


def reshaped(before: Shape | None, target: Sequence[Item], allow_zero: bool = False) -> Shape:
    """Return the shape that Reshape gives: 0 copies a size of ``before``, one -1 takes what is left."""
    after: list[Item] = []
    for axis, size in enumerate(target):
        if size == 0 and not allow_zero:
            after.append(item(before[axis]) if before is not None and axis < len(before) else None)
        else:
            after.append(size)
    open_axes = [axis for axis, size in enumerate(after) if size is None or size == -1]
    if len(open_axes) == 1 and before is not None:
        rest = total(dim(size) for axis, size in enumerate(after) if axis != open_axes[0])
        after[open_axes[0]] = over(total(before), rest)
    return tuple(None if size == -1 else dim(size) for size in after)


def broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    """Return the shape that numpy broadcasting gives; None where a rank is unknown."""
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max((len(shape) for shape in known), default=0)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        sizes: set[Dim] = {shape[axis] for shape in known if len(shape) >= -axis} - {1}
        numbers = {size for size in sizes if isinstance(size, int)}
        if numbers:
            result.append(next(iter(numbers)))  # an open size can only be that number, or 1
        else:
            result.append(next(iter(sizes)) if len(sizes) == 1 else (None if sizes else 1))
    return tuple(result)
