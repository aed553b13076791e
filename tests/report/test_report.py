"""Reports as JSON and as pages: the promised keys, self-contained HTML, nothing lost and nothing unescaped."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prunec.errors import BadInput
from prunec.files import RunFolder
from prunec.report.analysis_page import analysis_page, group_colours
from prunec.report.charts import Series, heatmap, kept_bars, line_chart, ticks
from prunec.report.drawing import drawing, flow
from prunec.report.findings import (
    Agreement,
    Analysis,
    Blocked,
    ChannelCounts,
    Cost,
    Group,
    GroupMember,
    Latency,
    LayerChange,
    LayerSummary,
    OutputAgreement,
    PinReport,
    PruneReport,
    Removable,
    Validation,
)
from prunec.report.prune_page import prune_page
from prunec.report.run_page import run_page, write_run_page
from prunec.report.wording import common_folder, percent, readable

_EVIL = '<script>alert("x")</script>&'


class _Checker(HTMLParser):
    """Collects what a page loads, and that every tag is closed."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        sources = [(name, value or "") for name, value in attrs if name in {"src", "href", "xlink:href"}]
        self.loads += [f"{tag} {name}={value}" for name, value in sources if not value.startswith("data:image/png;")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def assert_self_contained(document: str) -> None:
    checker = _Checker()
    checker.feed(document)
    checker.close()
    assert checker.open == []
    assert checker.loads == []
    assert "<script" not in document
    assert "@import" not in document
    assert "url(" not in document


def _analysis() -> Analysis:
    members = (GroupMember("a.weight", 0, 8, "a", "conv"), GroupMember("b.weight", 1, 8, "b", "conv"))
    layers = (
        LayerSummary("a", "conv", 8, 8, 0, 2, 1, 216, 5000, (0,)),
        LayerSummary("b", "conv", 4, 0, 4, 0, 0, 288, 9000, (1,), ("a",), "is an output of the network"),
    )
    return Analysis(
        model=f"net {_EVIL}",
        frontend="fx",
        nodes=3,
        params=504,
        macs=14_000,
        activations=900,
        channels=ChannelCounts(12, 8, 4, 2, 1),
        removable=Removable(3, 170, 4000),
        groups=(Group(0, 8, True, 63.0, 1600.0, members), Group(1, 4, False, 73.0, 2250.0)),
        pins=(PinReport("y", "output", f"is an output {_EVIL}", 4),),
        blocked=(Blocked("gate", "mul", "its gate follows the input", 1),),
        layers=layers,
    )


def _prune_report(validation: Validation | None = None) -> PruneReport:
    return PruneReport(
        model="net",
        before=Cost(504, 14_000, 900, 12),
        after=Cost(300, 9_000, 700, 9),
        removed_channels=3,
        layers=(LayerChange("a", "conv", 8, 5),),
        validation=validation,
    )


def test_an_analysis_has_the_promised_keys() -> None:
    document = _analysis().to_json_dict()
    promised = {
        "model",
        "frontend",
        "nodes",
        "params",
        "macs",
        "activations",
        "channels",
        "removable",
        "groups",
        "pins",
    }
    assert promised <= set(document)
    assert set(document["channels"]) == {"total", "prunable", "pinned", "constant", "dead"}
    assert set(document["removable"]) == {"channels", "params", "macs", "multiples"}
    group = document["groups"][0]
    assert set(group) == {"id", "channels", "prunable", "params_per_channel", "macs_per_channel", "members"}
    assert set(group["members"][0]) == {"param", "axis", "count", "node", "op"}
    assert set(document["pins"][0]) == {"node", "op", "reason", "channels"}
    assert set(document["blocked"][0]) == {"node", "op", "reason", "channels", "layers"}


def test_reports_are_json_both_ways() -> None:
    for document in (_analysis().to_json_dict(), _prune_report(Validation(1.0, 0.5, 1e-4)).to_json_dict()):
        assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_a_prune_report_without_a_check_says_null() -> None:
    assert _prune_report().to_json_dict()["validation"] is None


def test_results_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _analysis().macs = 0  # type: ignore[misc]  # that it is refused is what is tested


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234, "1,234"), (41_200_000, "41.2 M"), (1.5e9, "1.5 G"), (2e12, "2 T")]
)
def test_readable_counts(value: float, text: str) -> None:
    assert readable(value) == text


def test_a_share_of_nothing_is_nothing() -> None:
    assert percent(0, 0) == "0%"
    assert percent(1, 8) == "12.5%"


def test_the_analysis_page_is_self_contained_and_shows_everything() -> None:
    document = analysis_page(_analysis())
    assert_self_contained(document)
    assert "&lt;script&gt;" in document
    for shown in ("its gate follows the input", "is an output of the network", "504", "14,000", "b.weight"):
        assert shown in document


def test_layers_coupled_with_each_other_share_a_colour_and_lone_ones_have_none() -> None:
    assert list(group_colours(_analysis())) == [0]


def test_a_layer_is_drawn_below_all_that_it_reads_and_a_longer_path_stands_for_a_shorter_one() -> None:
    layers = [
        LayerSummary(name, "conv", 1, 1, 0, 0, 0, 1, 1, (), inputs)
        for name, inputs in (("a", ()), ("b", ("a",)), ("c", ("a", "b")), ("d", ("x",)), ("e", ("c", "d")))
    ]
    assert set(flow(layers).edges) == {("a", "b"), ("b", "c"), ("c", "e"), ("d", "e")}
    svg = drawing(layers, {layer.node: "red" for layer in layers})
    tops = {name: float(y) for name, y in re.findall(r"<title>(\w): .*?<rect x=\"\d+\" y=\"(\d+)\"", svg)}
    assert tops["a"] == tops["d"] < tops["b"] < tops["c"] < tops["e"]


def test_what_swings_out_beside_the_boxes_is_within_the_drawing() -> None:
    reads = {"s": (), "p0": (), **{f"p{n}": (f"p{n - 1}",) for n in range(1, 6)}, "z": ("p5", "s")}
    layers = [LayerSummary(name, "conv", 1, 1, 0, 0, 0, 1, 1, (), inputs) for name, inputs in reads.items()]
    svg = drawing(layers, dict.fromkeys(reads, "red"))
    width = float(re.findall(r'svg width="(\d+)"', svg)[0])
    swings = [(float(x), float(far)) for x, far in re.findall(r"M(\d+) \d+C(\d+) ", svg)]
    assert max(far - x for x, far in swings) > 100
    # The middle of a Bezier curve is three quarters of the way to its control points.
    assert all(x + 0.75 * (far - x) <= width for x, far in swings)


def test_the_page_of_a_pruning_is_self_contained_and_tells_what_held_out_inputs_say() -> None:
    found = Agreement(12, (OutputAgreement(f"y {_EVIL}", 0.0314, 0.75, None),), 0.912, 0.873)
    report = dataclasses.replace(
        _prune_report(Validation(1e-3, 0.4, 1e-4, {"data": 0.4}, passed=False)),
        exact=False, reason="removed the channels", agreement=found, notes=(f"7 samples do {_EVIL}",),
        latency=Latency(0.6, 0.583, 10.0, 5.83, "cpu", 3),
    )  # fmt: skip
    document = prune_page(report, "out.onnx")
    assert_self_contained(document)
    for words in ("12 held-out samples", "0.0314", "75.0%", "91.20% before, 87.30% after", "58.3%", "7 samples do",
                  "an approximation", "differs from the original by 0.4", "out.onnx"):  # fmt: skip
        assert words in document, words
    assert _EVIL not in document
    bare = prune_page(dataclasses.replace(report, agreement=None, latency=None, validation=None), "out.onnx")
    assert_self_contained(bare)
    assert "held-out" not in bare
    assert "was not compared with the original" in bare


def _rows(count: int = 30) -> list[dict[str, Any]]:
    phases = ["warmup", "ista", "finetune"]
    return [
        {
            "step": 10 * index,
            "epoch": index / 3,
            "phase": phases[3 * index // count],
            "loss": 2.0 / (index + 1),
            "accuracy": 0.5 + index / 100 if index % 2 == 0 else None,
            "sparsity": index / 100,
            "lasso": 0.1,
            "rho": 0.001,
            "params_if_pruned": 1000 - index,
            "macs_if_pruned": 5000 - index,
            "gamma_histogram": {"edges": [0.0, 0.5, 1.0], "counts": [index, 30 - index]},
        }
        for index in range(count)
    ]


def _summary() -> dict[str, Any]:
    report = _prune_report(Validation(1e-6, 2e-7, 1e-4, {"noise": 2e-7}, latency_a_ms=2.0, latency_b_ms=1.0))
    return {**report.to_json_dict(), "model": _EVIL, "accuracy": {"before": 0.9, "after": 0.88}}


def test_the_run_page_is_self_contained_and_shows_every_section() -> None:
    document = run_page("run-1", {"arch": "digits", "rho": 0.01}, _rows(), _summary())
    assert_self_contained(document)
    for shown in (
        "Channels kept per layer",
        "Loss",
        "Sparsity",
        "Lasso",
        "|γ| over the steps",
        "88.00%",
        "2.00×",
        "−40.5%",
    ):
        assert shown in document
    assert document.count("<polyline") >= 6


def test_the_masks_of_a_segmentation_run_are_shown_under_captions_without_loading_anything() -> None:
    moments = {"before": 0.8, "removed": 0.5, "after": 0.79}
    summary = {**_summary(), "metric": "miou", "miou": moments, "foreground_iou": moments}
    document = run_page("run-1", {}, _rows(), summary, pictures=b"png")
    assert_self_contained(document)
    assert "data:image/png;base64,cG5n" in document
    for shown in ("true mask", "right after removal", "79.00%", "mIoU, from 80.00%", "foreground IoU"):
        assert shown in document
    assert "Masks of test images" not in run_page("run-1", {}, _rows(), summary)


def test_a_run_that_has_not_ended_has_a_page_too() -> None:
    document = run_page("run-1", {"arch": "digits"}, _rows(2), {})
    assert_self_contained(document)
    assert "has not ended" in document
    assert "Channels kept" not in document


@pytest.mark.parametrize(
    "rows", [[], [{"step": 0}], [{"step": 0, "loss": None}], [{"step": 5, "loss": 1.0, "phase": "ista"}]]
)
def test_a_run_that_has_hardly_begun_has_a_page(rows: list[dict[str, Any]]) -> None:
    assert_self_contained(run_page("run-1", {}, rows, {}))


def test_write_run_page_reads_the_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.config.write_text(json.dumps({"arch": "digits"}))
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in _rows()) + '{"step": 1')
    run.summary.write_text(json.dumps(_summary()))
    assert write_run_page(run) == run.report
    assert_self_contained(run.report.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_a_run_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"is not a run folder|there is no folder"):
        write_run_page(RunFolder(tmp_path / name))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.001, 0.0013), (-5, 7), (0, 1e9), (3, 3), (0, 1e-12)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 11
    assert all(low - 1e-9 * abs(low) <= tick <= high + 1e-9 * abs(high) for tick in found)


def test_bars_are_as_high_as_the_channels_they_stand_for() -> None:
    chart = kept_bars("c", ["a", "b"], [10, 20], [5, 20])
    heights = [float(height) for height in re.findall(r'class="now"[^>]*height="([\d.]+)"', chart)]
    assert heights[1] / heights[0] == pytest.approx(4, rel=0.01)


def test_a_line_stays_in_its_frame_and_breaks_at_a_gap() -> None:
    nan = float("nan")
    chart = line_chart("l", [Series("s", "c1", (0, 1, 2, 3, 4), (1, 2, nan, 3, 1))], x_range=(0, 4))
    lines = re.findall(r'<polyline[^>]*points="([^"]*)"', chart)
    assert len(lines) == 2
    points = [tuple(map(float, point.split(","))) for line in lines for point in line.split()]
    assert all(58 <= x <= 454 and 34 <= y <= 198 for x, y in points)


def test_a_long_log_is_thinned_and_keeps_its_ends() -> None:
    steps = tuple(float(index) for index in range(10_000))
    chart = line_chart("l", [Series("s", "c1", steps, steps)], x_range=(0, 9999))
    points = re.search(r'points="([^"]*)"', chart)
    assert points is not None
    assert len(points.group(1).split()) == 400
    assert points.group(1).split()[0].startswith("58.0,")


def test_labels_of_small_numbers_stay_inside_the_chart() -> None:
    chart = line_chart("l", [Series("s", "c1", (0, 1), (0.00025, 0.001))], x_range=(0, 1))
    labels = re.findall(r'<text class="tick" x="([\d.]+)"[^>]*text-anchor="end">([^<]*)<', chart)
    assert ("51", "0.00025") in labels
    # Digits of 11 px are at most 7 px wide.
    assert all(float(x) - 7 * len(shown) >= 0 for x, shown in labels)


def test_the_axes_of_a_run_say_what_they_are() -> None:
    document = run_page(
        "r", {}, [{"step": 0, "phase": "warmup", "loss": 1.0}, {"step": 9, "phase": "ista", "loss": 1.0}], {}
    )
    assert re.findall(r'<text class="phase"[^>]*>([^<]*)<', document) == ["ISTA"]
    assert ">step</text>" in document


def test_long_names_break_and_bars_beside_them_keep_their_width() -> None:
    long = dataclasses.replace(_analysis().layers[0], node="block/" * 40)
    document = analysis_page(dataclasses.replace(_analysis(), layers=(long,)))
    assert re.search(
        r'<td><span class="n">(<span class="chip"[^>]*></span>)?<span>(block/){40}</span></span></td>', document
    )
    assert re.search(r"\.n\{[^}]*overflow-wrap:anywhere", document)
    assert re.search(r"svg\.mini\{[^}]*max-width:none", document)


def test_charts_without_data_are_left_out() -> None:
    assert kept_bars("c", [], [], []) == ""
    assert line_chart("l", [Series("s", "c1", (), ())], x_range=(0, 1)) == ""
    assert heatmap("h", [], [0, 1], []) == ""


def test_what_all_names_begin_with_is_said_once() -> None:
    assert common_folder(["net/block/conv", "net/block/conv_1"]) == "net/block/"
    assert common_folder(["net/conv", "other/conv"]) == common_folder(["conv_1", "conv_2"]) == ""
    assert common_folder(["net/conv", "net/conv"]) == common_folder([]) == "", "one name is left as it is"
