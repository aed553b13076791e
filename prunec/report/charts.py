"""Charts as inline SVG, drawn from numbers alone: no script, no font and no file from elsewhere.

Owns geometry and marks. Colours are CSS variables of the page (prunec/report/run_page.py), so that a chart
follows its page into dark mode. Every mark has a <title>, which browsers show on hover.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_MAX_POINTS = 400
_LONGEST_LABEL = 16
_NAME = (38, 11)
"""Width and height of the name of a point."""
_WIDE = 960
"""Charts of this width scroll on a small screen, where they would be too small to read."""


@dataclass(frozen=True, slots=True)
class Series:
    """A line: its name, one of the page's colour names, and its points (y may be NaN: a gap)."""

    name: str
    colour: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A named stretch of the x axis, shaded behind the lines."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plot area inside a chart and the ranges that it shows."""

    left: float
    top: float
    width: float
    height: float
    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return self.left + self.width * (value - self.x0) / ((self.x1 - self.x0) or 1)

    def y(self, value: float) -> float:
        return self.top + self.height * (1 - (value - self.y0) / ((self.y1 - self.y0) or 1))


def text(value: object) -> str:
    """Return ``value`` safe to stand in HTML and SVG."""
    return html.escape(str(value), quote=True)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers that lie in [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Write a number for an axis: 1.2k, 3.4M, 0.05, 2e-06."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_range: tuple[float, float],
    spans: Sequence[Span] = (),
    percent: bool = False,
    width: int = 470,
    height: int = 230,
) -> str:
    """Return lines over steps, with a legend if there are several; "" if there is nothing to show."""
    ys = [y for line in series for y in line.y if math.isfinite(y)]
    if not ys:
        return ""
    # A percentage keeps its meaning on a full axis, unless all of it happens near the top.
    low, high = (min(math.floor(10 * min(ys)) / 10, 0.9) if min(ys) > 0.5 else 0.0, 1.0) if percent else _padded(ys)
    # One logged step still gets an axis.
    right = x_range[1] if x_range[1] > x_range[0] else x_range[0] + 1
    frame = _Frame(58, 34, width - 74, height - 66, x_range[0], right, low, high)
    body = [_spans(frame, spans), _axes(frame, percent)]
    body.append(_label(frame.left - 14, frame.top + frame.height + 17, "step", "tick", "end"))
    body += [_line(frame, line, percent) for line in series]
    if len(series) > 1:
        body.append(_legend(frame, series))
    return _svg(title, width, height, "".join(body))


def pareto_chart(title: str, points: Sequence[tuple[str, float, float]], *, width: int = 470, height: int = 260) -> str:
    """Return scores (0..1) against sizes as named points, with a line through those that no other point beats."""
    if not points:
        return ""
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    low, high = _padded([min(ys), min(1.0, max(ys) + 1e-9)])
    frame = _Frame(58, 34, width - 84, height - 66, 0.0, 1.08 * max(xs), low, min(high, 1.02))
    best = sorted((x, y) for x, y in zip(xs, ys, strict=True) if not _beaten(x, y, points))
    line = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in best)
    body = [_axes(frame, percent=True), _tag("polyline", css="line", stroke="var(--c0)", points=line)]
    placed: list[tuple[float, float]] = []
    for name, x, y in points:
        placed.append(_free_place(frame.x(x), frame.y(y), placed))
        tip = _tag("title", text(f"{name}: {short(x)}, {100 * y:.2f}%"))
        body.append(_tag("circle", tip, cx=frame.x(x), cy=frame.y(y), r=4.5, fill="var(--accent)"))
        body.append(_label(*placed[-1], name, "value", "middle"))
    return _svg(title, width, height, "".join(body))


def _free_place(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return a free place for a point's name: above it, or else below, beside or further off."""
    tries = [(x, y - 9), (x, y + 19), (x + 24, y + 4), (x - 24, y + 4), (x, y + 33), (x, y - 23)]
    free = (at for at in tries if all(abs(at[0] - a) > _NAME[0] or abs(at[1] - b) > _NAME[1] for a, b in taken))
    return next(free, tries[0])


def _beaten(x: float, y: float, points: Sequence[tuple[str, float, float]]) -> bool:
    """Tell whether some point is no larger and no worse, and better in one of the two."""
    return any(px <= x and py >= y and (px, py) != (x, y) for _, px, py in points)


def kept_bars(
    title: str,
    labels: Sequence[str],
    before: Sequence[int],
    after: Sequence[int],
    *,
    width: int = _WIDE,
    height: int = 300,
) -> str:
    """Return a bar per layer: its full height before, filled to what is kept."""
    if not labels:
        return ""
    named = len(labels) <= 60
    bottom = 28 + (4 * min(_LONGEST_LABEL, max(map(len, labels))) if named else 0)
    top = max(max(before), max(after), 1)
    frame = _Frame(50, 34, width - 62, height - 34 - bottom, 0, len(labels), 0, top * 1.05)
    step = frame.width / len(labels)
    bar = max(1.0, min(46.0, step * 0.72))
    body = [_axes(frame, percent=False, x_axis=False)]
    for index, (label, was, now) in enumerate(zip(labels, before, after, strict=True)):
        middle = frame.left + (index + 0.5) * step
        share = f"{100 * now / was:.0f}%" if was else ""
        body.append(f"<g><title>{text(label)}: {now} of {was} channels ({share})</title>")
        body.append(_rect(middle - bar / 2, frame.y(was), bar, frame.y(0) - frame.y(was), "was"))
        body.append(_rect(middle - bar / 2, frame.y(now), bar, frame.y(0) - frame.y(now), "now"))
        if step >= 22:
            body.append(_label(middle, frame.y(was) - 4, short(now), "value", "middle"))
        body.append("</g>")
        if named:
            body.append(_slanted(middle, frame.y(0) + 10, label))
    return _svg(title, width, height, "".join(body))


def heatmap(
    title: str,
    x: Sequence[float],
    edges: Sequence[float],
    columns: Sequence[Sequence[float]],
    *,
    width: int = _WIDE,
    height: int = 260,
) -> str:
    """Return shares over time: one column per step, one cell per bin between ``edges``.

    A cell's strength is the square root of its share, so that small shares can still be seen.
    """
    if not columns or len(edges) < 2:
        return ""
    picked = _stride(range(len(columns)), 160)
    frame = _Frame(56, 34, width - 68, height - 66, 0, len(picked), 0, len(edges) - 1)
    body = []
    for at, index in enumerate(picked):
        total = sum(columns[index]) or 1
        for level, count in enumerate(columns[index]):
            if count > 0:
                share = count / total
                tip = f"step {x[index]:g}: {100 * share:.1f}% in {edges[level]:.3g} to {edges[level + 1]:.3g}"
                # A hair wider than its column: browsers leave seams between exact neighbours.
                size = frame.x(at + 1) - frame.x(at) + 0.3
                rise = frame.y(level) - frame.y(level + 1)
                cell = _rect(frame.x(at), frame.y(level + 1), size, rise, "heat", max(0.06, math.sqrt(share)))
                body.append(f"<g><title>{tip}</title>{cell}</g>")
    body += [
        _label(frame.left - 7, frame.y(level) + 4, f"{edges[level]:.2g}", "tick", "end")
        for level in range(0, len(edges), max(1, (len(edges) - 1) // 6))
    ]
    body += [
        _label(frame.x(at + 0.5), frame.y(0) + 17, short(x[picked[at]]), "tick", "middle")
        for at in sorted({round(quarter * (len(picked) - 1) / 4) for quarter in range(5)})
    ]
    body.append(_rect(frame.left, frame.top, frame.width, frame.height, "box"))
    return _svg(title, width, height, "".join(body))


def stacked_bar(parts: Sequence[tuple[str, str, float]], *, width: int = 180, height: int = 12) -> str:
    """Return one thin bar of (name, colour, amount) parts, for a table cell."""
    total = sum(amount for _, _, amount in parts)
    if total <= 0:
        return ""
    at, body = 0.0, []
    for name, colour, amount in parts:
        size = width * amount / total
        if amount > 0:
            tip = _tag("title", f"{text(name)}: {amount:g}")
            body.append(_tag("rect", tip, x=at, y=0, width=size, height=height, fill=f"var(--{colour})"))
        at += size
    box = f"0 0 {width} {height}"
    return _tag("svg", "".join(body), css="mini", width=width, height=height, viewBox=box, role="img")


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Return a range with room above, from 0 where the values are positive and not far from it."""
    low, high = min(values), max(values)
    if low >= 0 and low < 0.6 * high:
        low = 0.0
    room = 0.06 * (high - low) or max(abs(high), 1e-12) * 0.1
    return (low if low == 0 else low - room), high + room


def _stride(items: Sequence[int], most: int) -> list[int]:
    """Return at most ``most`` of the items, evenly spread, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _axes(frame: _Frame, percent: bool, x_axis: bool = True) -> str:
    body = []
    for value in ticks(frame.y0, frame.y1):
        y = frame.y(value)
        body.append(_tag("line", css="grid", x1=frame.left, x2=frame.left + frame.width, y1=y, y2=y))
        body.append(_label(frame.left - 7, y + 4, f"{100 * value:.0f}%" if percent else short(value), "tick", "end"))
    if x_axis:
        body += [
            _label(frame.x(value), frame.top + frame.height + 17, short(value), "tick", "middle")
            for value in ticks(frame.x0, frame.x1, 6)
        ]
    return "".join(body)


def _spans(frame: _Frame, spans: Sequence[Span]) -> str:
    body = []
    for index, span in enumerate(spans):
        left, right = frame.x(max(span.start, frame.x0)), frame.x(min(span.end, frame.x1))
        if right <= left:
            continue
        body.append(_rect(left, frame.top, right - left, frame.height, "span odd" if index % 2 else "span"))
        if right - left > 6.5 * len(span.name):
            body.append(_label((left + right) / 2, frame.top + frame.height + 30, span.name, "phase", "middle"))
    return "".join(body)


def _line(frame: _Frame, line: Series, percent: bool) -> str:
    parts: list[list[str]] = [[]]
    for index in _stride(range(len(line.x)), _MAX_POINTS):
        x, y = line.x[index], line.y[index]
        if math.isfinite(y):
            parts[-1].append(f"{frame.x(x):.1f},{frame.y(y):.1f}")
        elif parts[-1]:
            parts.append([])
    finite = [y for y in line.y if math.isfinite(y)]
    last = (f"{100 * finite[-1]:.1f}%" if percent else f"{finite[-1]:.4g}") if finite else ""
    marks = []
    for part in parts:
        if len(part) == 1:
            left, top = part[0].split(",")
            marks.append(_tag("circle", cx=left, cy=top, r=2.5, fill=f"var(--{line.colour})"))
        elif part:
            marks.append(_tag("polyline", css="line", stroke=f"var(--{line.colour})", points=" ".join(part)))
    return f"<g><title>{text(line.name)}, last {last}</title>{''.join(marks)}</g>"


def _legend(frame: _Frame, series: Sequence[Series]) -> str:
    body, right = [], frame.left + frame.width
    for line in reversed(series):
        body.append(_label(right, 20, line.name, "legend", "end"))
        right -= 6.4 * len(line.name) + 8
        body.append(_tag("line", x1=right - 12, x2=right, y1=16, y2=16, stroke=f"var(--{line.colour})", stroke_width=3))
        right -= 26
    return "".join(body)


def _tag(name: str, body: str = "", **attributes: object) -> str:
    """Return an SVG element; ``css`` is its class, and underscores in names stand for hyphens."""
    shown = []
    for key, value in attributes.items():
        if value is not None:
            key = "class" if key == "css" else key.replace("_", "-")
            shown.append(f' {key}="{f"{value:.1f}" if isinstance(value, float) else text(value)}"')
    return f"<{name}{''.join(shown)}>{body}</{name}>"


def _rect(x: float, y: float, width: float, height: float, css: str, opacity: float | None = None) -> str:
    shade = None if opacity is None else f"{opacity:.2f}"
    return _tag("rect", css=css, x=x, y=y, width=max(width, 0.0), height=max(height, 0.0), fill_opacity=shade)


def _label(x: float, y: float, value: object, css: str, anchor: str) -> str:
    return _tag("text", text(value), css=css, x=x, y=y, text_anchor=anchor)


def _slanted(x: float, y: float, value: str) -> str:
    # The end of a dotted name tells layers apart.
    shown = value if len(value) <= _LONGEST_LABEL else "…" + value[1 - _LONGEST_LABEL :]
    turn = f"rotate(-40 {x:.1f} {y:.1f})"
    return _tag("text", text(shown), css="tick", x=x, y=y, text_anchor="end", transform=turn)


def _svg(title: str, width: int, height: int, body: str) -> str:
    heading = _tag("text", text(title), css="title", x=8, y=20)
    box = f"0 0 {width} {height}"
    css = "chart wide" if width >= _WIDE else "chart"
    return _tag("svg", heading + body, css=css, viewBox=box, width=width, height=height, role="img", aria_label=title)
