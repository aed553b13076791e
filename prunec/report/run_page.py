"""The pages that people read: a training run, as one self-contained HTML file.

Owns the page frame, its style and the run page. Charts are prunec/report/charts.py's, the page of an analysis
is prunec/report/analysis_page.py. Every section needs only its own data, so the page of a run that is still
going on, or that was stopped, shows what there is.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from prunec.errors import BadInput
from prunec.files import RunFolder, read_json, read_lines, write_text
from prunec.report.charts import Series, Span, heatmap, kept_bars, line_chart, pareto_chart, stacked_bar, text
from prunec.report.wording import MOMENT_NAMES, PHASE_NAMES, SCORE_NAMES, percent, readable

Rows = Sequence[Mapping[str, Any]]

_STYLE = """
:root{--ink:#1c2430;--soft:#5d6b7d;--line:#e2e7ee;--page:#f6f8fb;--card:#fff;--accent:#2f6fde;--was:#d5deea;
--good:#1d8a57;--bad:#c2362f;--c1:#2f6fde;--c2:#e07b1a;--c3:#1d9a6c;--c4:#b0479b;--c5:#7a5cd6;--c6:#b98b00;--c7:#0e93a8;
--c8:#c2362f;--c9:#6f7f2a;--c0:#98a4b3;--shade:#2f6fde10;--shade2:#e07b1a12}
@media (prefers-color-scheme:dark){:root{--ink:#e6ebf2;--soft:#97a5b8;--line:#2c3644;--page:#12171f;--card:#1a212c;
--accent:#6ea0ff;--was:#35425a;--good:#4fca8f;--bad:#ff7a70;--c1:#6ea0ff;--c2:#f5a04e;--c3:#4fca9b;--c4:#e07ccc;--c5:#a892f5;
--c6:#e0b93a;--c7:#46c4d8;--c8:#ff7a70;--c9:#b3c45a;--c0:#71809a;--shade:#6ea0ff14;--shade2:#f5a04e14}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 20px 60px}h1{font-size:26px;margin:0 0 2px;
overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 10px}p{margin:4px 0 10px}.soft{color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;
margin-top:18px;overflow-x:auto}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:18px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.tile b{display:block;font-size:22px;font-variant-numeric:tabular-nums;line-height:1.3}
.tile span{color:var(--soft);font-size:13px}.good{color:var(--good)}.bad{color:var(--bad)}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
th{color:var(--soft);font-weight:500;text-align:left}td,th{padding:3px 18px 3px 0;vertical-align:top}
tbody tr{border-top:1px solid var(--line)}.r{text-align:right;white-space:nowrap}
.n{display:inline-flex;align-items:baseline;min-width:13em;max-width:26em;overflow-wrap:anywhere}.n .chip{flex:none}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:8px}
svg{max-width:100%;height:auto;display:block}svg.wide{min-width:640px}svg.mini{display:inline-block;vertical-align:middle;max-width:none}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .title{font-weight:600;font-size:13.5px}
svg .tick,svg .phase,svg .legend{fill:var(--soft);font-size:11px}svg .value{font-size:11px}
svg .grid{stroke:var(--line)}svg .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
svg .was{fill:var(--was)}svg .now{fill:var(--accent)}svg .heat{fill:var(--accent)}svg .box{fill:none;stroke:var(--line)}
svg .span{fill:var(--shade)}svg .span.odd{fill:var(--shade2)}
.sheet{max-width:100%}.sheet img{display:block;width:100%;image-rendering:pixelated}
.captions{display:grid;font-size:12px;color:var(--soft);margin-bottom:4px}
summary{cursor:pointer;font-weight:600}details>*:not(summary){margin-top:10px}code,pre{font-size:12.5px}
pre{white-space:pre-wrap;word-break:break-word;margin:0}.chip{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
"""


def page(title: str, body: str) -> str:
    """Return a whole HTML document that loads nothing."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a card, or nothing if it would be empty."""
    inside = "".join(part for part in parts if part)
    return f"<section><h2>{text(title)}</h2>{inside}</section>" if inside else ""


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """Return a row of (value, caption, css class) tiles."""
    made = "".join(
        f'<div class="tile"><b class="{css}">{text(value)}</b><span>{text(name)}</span></div>'
        for value, name, css in items
    )
    return f'<div class="tiles">{made}</div>' if made else ""


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are HTML already, and a column whose name ends in ">" is right-aligned."""
    sides = [' class="r"' if column.endswith(">") else "" for column in columns]
    head = "".join(
        f"<th{side}>{text(column.removesuffix('>'))}</th>" for column, side in zip(columns, sides, strict=True)
    )
    lines = [
        "<tr>" + "".join(f"<td{side}>{cell}</td>" for cell, side in zip(row, sides, strict=True)) + "</tr>"
        for row in rows
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>" if lines else ""


def name_cell(words: str, mark: str = "") -> str:
    """Return a cell for a long name, which may break anywhere so that the table fits its page; ``mark`` is HTML."""
    return f'<span class="n">{mark}<span>{text(words)}</span></span>' if words else ""


def write_run_page(run: RunFolder, target: str | Path | None = None) -> Path:
    """Write the page of a run folder and return where it is.

    Args:
        run: the folder; the page leaves out what the folder lacks.
        target: where to write; by default ``report.html`` in the folder.

    Raises:
        BadInput: there is no such folder, it holds no run, or a file in it is damaged.
    """
    if not run.path.is_dir():
        raise BadInput(f"there is no folder {run.path}", do="give the folder that train-prune wrote")
    if not (run.config.is_file() or run.metrics.is_file()):
        raise BadInput(f"{run.path} is not a run folder", why="it holds neither config.json nor metrics.jsonl")
    config = read_json(run.config) if run.config.is_file() else {}
    metrics = read_lines(run.metrics) if run.metrics.is_file() else []
    summary = read_json(run.summary) if run.summary.is_file() else {}
    final = run.report if target is None else Path(target)
    pictures = run.pictures.read_bytes() if run.pictures.is_file() else b""
    write_text(final, run_page(run.path.resolve().name, config, metrics, summary, pictures))
    return final


def run_page(
    name: str, config: Mapping[str, Any], metrics: Rows, summary: Mapping[str, Any], pictures: bytes = b""
) -> str:
    """Return the page of a run.

    Args:
        name: of the run folder.
        config: config.json.
        metrics: metrics.jsonl's rows.
        summary: summary.json; empty while the run goes on.
        pictures: masks.png: a sheet of test images with their masks; b"" if there is none.
    """
    model = str(summary.get("model") or config.get("arch") or config.get("model") or config.get("onnx") or name)
    state = "" if summary else '<p class="soft">This run has not ended: the page shows what it has logged so far.</p>'
    body = [
        f"<h1>{text(model)}</h1>",
        f'<p class="soft">prunec train-prune, run {text(name)}</p>{state}',
        tiles((*size_tiles(summary), *_headline(summary))),
        section("Milestones", _milestones(summary)),
        section("Channels kept per layer", kept(summary)),
        section("Masks of test images", _masks(summary, pictures)),
        section("Size", sizes(summary)),
        section("Training", f'<div class="pair">{_curves(metrics)}</div>' if metrics else "", _histogram(metrics)),
        section("Check in ONNX Runtime", _validation(summary.get("validation"))),
        section("What was chosen, and why", _sentences(summary)),
        details("Layers", layer_table(summary)),
        details("Settings", f"<pre>{text(json.dumps(config, indent=2))}</pre>" if config else ""),
    ]
    return page(f"{model} pruned", "".join(body))


def size_tiles(summary: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Yield a tile for each measure of size, with its change."""
    before, after = summary.get("before") or {}, summary.get("after") or {}
    for key, name in (("params", "parameters"), ("macs", "MACs"), ("channels", "channels")):
        if before.get(key) and after.get(key) is not None:
            share = f"{100 * (after[key] / before[key] - 1):+.1f}%".replace("-", "−")
            yield share, f"{name}: {readable(before[key])} → {readable(after[key])}", ""


def _headline(summary: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    for key, name in SCORE_NAMES.items():
        score = summary.get(key) or {}
        if _is_number(score.get("before")) and _is_number(score.get("after")):
            yield f"{100 * score['after']:.2f}%", f"{name}, from {100 * score['before']:.2f}%", ""
    check = summary.get("validation") or {}
    if _is_number(check.get("max_rel_error")):
        css = "good" if check.get("passed") else "bad"
        yield f"{check['max_rel_error']:.1e}", "ONNX output error, relative", css
    if _is_number(check.get("latency_ratio")):
        yield f"{check['latency_ratio']:.2f}×", f"speed in ONNX Runtime ({check.get('provider_ran', 'cpu')})", ""


def kept(summary: Mapping[str, Any]) -> str:
    """Return the bars of the layers' output channels, before and after."""
    layers = summary.get("layers") or []
    return kept_bars(
        "output channels: before (pale) and kept (solid)",
        [str(layer["node"]) for layer in layers],
        [int(layer["before"]) for layer in layers],
        [int(layer["after"]) for layer in layers],
    )


def _masks(summary: Mapping[str, Any], pictures: bytes) -> str:
    """Return the sheet under the captions of its columns."""
    moments = summary.get(str(summary.get("metric"))) or {}
    if not pictures or not moments:
        return ""
    columns = ("image", "true mask", *(MOMENT_NAMES.get(moment, moment) for moment in moments))
    captions = "".join(f"<span>{text(column)}</span>" for column in columns)
    sheet = base64.b64encode(pictures).decode()
    grid = f"grid-template-columns:repeat({len(columns)},1fr)"
    image = f'<img alt="test images, their true masks and those found" src="data:image/png;base64,{sheet}">'
    head = f'<div class="captions" style="{grid}">{captions}</div>'
    return f'<div class="sheet" style="width:{140 * len(columns)}px">{head}{image}</div>'


def _milestones(summary: Mapping[str, Any]) -> str:
    """Return a table and the plots of score against size, of all networks of the run."""
    made = summary.get("milestones") or []
    if not made:
        return ""
    metric, whole = str(summary.get("metric")), summary["before"]
    name = SCORE_NAMES.get(metric, metric)
    networks = [("unpruned", whole, (summary.get(metric) or {}).get("before"), None)]
    networks += [(Path(m["folder"]).name, m, m["score"].get("after"), m.get("latency_ratio")) for m in made]
    rows = [
        (
            text(label), f"{size['params']:,}", f"{size['macs']:,}", percent(size["macs"], whole["macs"]),
            f"{100 * score:.2f}%" if _is_number(score) else "", f"{speed:.2f}×" if _is_number(speed) else "",
        )
        for label, size, score, speed in networks
    ]  # fmt: skip
    plots = [
        pareto_chart(f"{name} against {what}", [(n, float(s[key]), v) for n, s, v, _ in networks if _is_number(v)])
        for key, what in (("macs", "MACs"), ("params", "parameters"))
    ]
    table = html_table(("folder", "parameters>", "MACs>", "of all>", f"{name}>", "speed>"), rows)
    return table + f'<div class="pair">{"".join(plots)}</div>'


def sizes(summary: Mapping[str, Any]) -> str:
    """Return the table of a network's parameters and MACs, before and after."""
    before, after = summary.get("before") or {}, summary.get("after") or {}
    rows = []
    for key, name in (
        ("params", "parameters"),
        ("macs", "MACs"),
        ("activations", "activation elements"),
        ("channels", "channels"),
    ):
        a, b = before.get(key), after.get(key)
        if _is_number(a) and _is_number(b):
            bar = stacked_bar((("left", "accent", min(b, a)), ("gone", "was", max(a - b, 0))), width=220)
            rows.append((name, f"{a:,}", f"{b:,}", percent(b, a), bar))
    return html_table(("", "before>", "after>", "left>", ""), rows)


def _curves(metrics: Rows) -> str:
    steps = tuple(float(row.get("step", index)) for index, row in enumerate(metrics))
    spans, ends = _phases(metrics, steps), (min(steps), max(steps))

    def line(key: str, name: str, colour: str, scale: float = 1.0) -> Series:
        # Lines join values that are not logged at every step.
        seen = [(x, float(row[key])) for x, row in zip(steps, metrics, strict=True) if _is_number(row.get(key))]
        return Series(name, colour, tuple(x for x, _ in seen), tuple(scale * y for _, y in seen))

    def relative(key: str, name: str, colour: str) -> Series:
        first = next((float(row[key]) for row in metrics if _is_number(row.get(key)) and row[key]), 1.0)
        return line(key, name, colour, 1 / first)

    size = [relative("params_if_pruned", "parameters", "c1"), relative("macs_if_pruned", "MACs", "c2")]
    colours = ("c3", "c3", "c6", "c7")
    named = [line(key, name, colour) for (key, name), colour in zip(SCORE_NAMES.items(), colours, strict=True)]
    scores = [score for score in named if score.x]
    charts = (
        line_chart("Loss", [line("loss", "loss", "c1")], x_range=ends, spans=spans),
        line_chart("On training images", scores, x_range=ends, spans=spans, percent=True),
        line_chart("Sparsity of γ", [line("sparsity", "γ at zero", "c4")], x_range=ends, spans=spans, percent=True),
        line_chart("Lasso Σ ρλ|γ|", [line("lasso", "lasso", "c2")], x_range=ends, spans=spans),
        line_chart("Size if pruned now", size, x_range=ends, spans=spans, percent=True),
        line_chart("ρ", [line("rho", "rho", "c5")], x_range=ends, spans=spans),
    )
    return "".join(charts)


def _phases(metrics: Rows, steps: Sequence[float]) -> list[Span]:
    spans: list[Span] = []
    for row, step in zip(metrics, steps, strict=True):
        name = str(row.get("phase") or "")
        name = PHASE_NAMES.get(name, name)
        if spans and spans[-1].name == name:
            spans[-1] = Span(name, spans[-1].start, step)
        elif name:
            # A phase begins at the last step of the one before.
            spans.append(Span(name, spans[-1].end if spans else step, step))
    return spans


def _histogram(metrics: Rows) -> str:
    rows = [row for row in metrics if isinstance(row.get("gamma_histogram"), dict)]
    if not rows:
        return ""
    edges = [float(edge) for edge in rows[-1]["gamma_histogram"]["edges"]]
    same = [row for row in rows if len(row["gamma_histogram"]["counts"]) == len(edges) - 1]
    columns = [[float(c) for c in row["gamma_histogram"]["counts"]] for row in same]
    return heatmap(
        "|γ| over the steps: darker means more channels", [float(row["step"]) for row in same], edges, columns
    )


def _validation(check: Any) -> str:
    if not isinstance(check, dict):
        return ""
    css, word = ("good", "agrees") if check.get("passed") else ("bad", "differs")
    rows = [
        (text(name), f"{error:.2e}" if _is_number(error) else "not finite")
        for name, error in (check.get("families") or {}).items()
    ]
    notes = "".join(f"<p>{text(note)}</p>" for note in check.get("notes") or ())
    latency = ""
    was, now = check.get("latency_a_ms"), check.get("latency_b_ms")
    if _is_number(was) and _is_number(now):
        latency = f"<p>Latency: {was:.3g} ms before, {now:.3g} ms after (the faster of interleaved runs).</p>"
    tolerance = f"tolerance {check.get('tolerance', 0):g}, relative"
    verdict = f'<p>The exported file <b class="{css}">{word}</b> with the network ({tolerance}).</p>'
    return verdict + html_table(("inputs", "relative error>"), rows) + latency + notes


def _sentences(summary: Mapping[str, Any]) -> str:
    said = [*(summary.get("reasons") or []), *(summary.get("advice") or [])]
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in said)
    return f"<ul>{items}</ul>" if items else ""


def layer_table(summary: Mapping[str, Any]) -> str:
    """Return the table of the layers' output channels."""
    rows = []
    for layer in summary.get("layers") or []:
        before, after = int(layer["before"]), int(layer["after"])
        name, op = name_cell(str(layer["node"])), text(layer.get("op", ""))
        rows.append((name, op, f"{before:,}", f"{after:,}", percent(after, before)))
    return html_table(("layer", "op", "before>", "after>", "kept>"), rows)


def details(title: str, inside: str) -> str:
    """Return a card that opens on a click, or nothing if it would be empty."""
    return f"<section><details><summary>{text(title)}</summary>{inside}</details></section>" if inside else ""


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
