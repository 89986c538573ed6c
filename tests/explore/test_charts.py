"""Charts: whatever the counts and the names, well-formed pictures whose numbers are the ones given."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from vila_data.core.readable import many, share, short, size_text
from vila_data.explore.charts import WIDTH, Marker, above, bars, curve, histogram, shares, ticks
from vila_data.explore.flow import Stage, flow, stages
from vila_data.explore.rows import ShareRow, share_rows

COUNTS = st.lists(st.integers(0, 10**15) | st.sampled_from([0, 0, 1]), min_size=1, max_size=40)
NAMES = st.text(max_size=80) | st.sampled_from(
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&amp;", "\x00\x1b[31m"]
)
FINITE = st.floats(-1e12, 1e12, allow_nan=False)


def parsed(chart: Markup) -> ElementTree.Element:
    """The chart as XML, with nothing in it but what charts draw."""
    root = ElementTree.fromstring(str(chart))
    names = {element.tag for element in root.iter()}
    assert names <= {
        "figure",
        "figcaption",
        "svg",
        "g",
        "rect",
        "text",
        "tspan",
        "line",
        "path",
        "polyline",
        "circle",
        "title",
        "details",
        "summary",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "span",
        "ul",
        "li",
        "bdi",
        "p",
    }, names
    for element in root.iter():
        assert not {key for key in element.attrib if key.startswith("on") or key in ("style", "href", "src")}
        for key in ("x", "y", "width", "height", "x1", "x2", "y1", "y2", "cx", "cy", "r"):
            assert math.isfinite(float(element.get(key, "0"))), (element.tag, key, element.get(key))
        for key in ("width", "height"):
            assert float(element.get(key, "0")) >= 0
    picture = root.find("svg")
    assert picture is not None and picture.get("role") == "img" and picture.get("aria-label")
    return root


def table(root: ElementTree.Element) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in root.findall(".//tbody/tr")]


def number(text: str) -> int:
    return int(text.replace(",", ""))


@given(COUNTS, st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.booleans(), NAMES, FINITE)
def test_histograms(counts: list[int], first: float, step: float, endless: bool, name: str, at: float) -> None:
    edges = [first + step * index for index in range(len(counts) + 1)]
    if endless:
        edges[-1] = math.inf
    kept = [count // 2 for count in counts]
    root = parsed(histogram(edges, counts, title=name, unit=name, marker=Marker(name, at), kept=kept, of="images"))
    rows = table(root)
    assert [number(row[1]) for row in rows] == counts and [number(row[2]) for row in rows] == kept
    for rect in root.findall("svg/rect"):
        assert 0 <= float(rect.get("x", "")) <= WIDTH


def test_edges_that_do_not_rise_are_refused() -> None:
    for edges, counts in (([0, 1, 1], [1, 2]), ([0, 1], [1, 2]), ([2, 1], [1])):
        with pytest.raises(ValueError, match="between edges"):
            histogram(edges, counts, title="t", unit="u")


@given(st.lists(st.tuples(NAMES, st.integers(0, 10**15)), max_size=30), NAMES)
def test_bars(rows: list[tuple[str, int]], name: str) -> None:
    root = parsed(bars(rows, title=name, of="images"))
    assert [number(row[1]) for row in table(root)] == [count for _, count in rows]
    assert all(float(rect.get("width", "")) <= WIDTH for rect in root.findall("svg/g/rect"))


@given(st.data(), st.integers(0, 30))
def test_curves(data: st.DataObject, points: int) -> None:
    xs = data.draw(st.lists(FINITE, min_size=points, max_size=points))
    values = st.lists(FINITE | st.just(math.nan), min_size=points, max_size=points)
    series = data.draw(st.dictionaries(NAMES, values, max_size=10))
    root = parsed(curve(xs, series, title="t", x_unit="x", y_unit="y", marker=data.draw(FINITE)))
    known = sum(math.isfinite(value) for line in series.values() for value in line)
    assert len(root.findall(".//circle")) == known
    assert len(table(root)) == points


def test_a_mark_lies_between_what_it_parts() -> None:
    root = parsed(histogram([0, 1, 2, 4, 8], [1, 1, 1, 1], title="t", unit="u", marker=Marker("least", 4)))
    line = root.find("svg/line[@class='mark']")
    assert line is not None
    rects = list(root.findall("svg/rect"))
    at = float(line.get("x1", ""))
    assert float(rects[2].get("x", "")) < at <= float(rects[3].get("x", ""))


FATES = st.dictionaries(
    st.builds("{}:{}".format, st.sampled_from(["dropped", "failed"]), st.sampled_from([f"r{n}" for n in range(12)])),
    st.integers(1, 10**12),
    max_size=12,
)


@given(st.integers(0, 10**12), FATES, FATES, NAMES)
def test_flows_show_every_fate(kept: int, failed: dict[str, int], dropped: dict[str, int], name: str) -> None:
    middle = kept + sum(dropped.values())
    funnel = {
        "download": {"images": {"kept": middle, **failed}},
        "filter": {"images": {"kept": kept, **dropped}},
    }
    found = stages(funnel, "images")
    assert found[0].went_on == found[1].entered
    root = parsed(flow(found, title=name, unit="images", sets=[("docs", kept, 7)]))
    rows = table(root)
    for stage, fates in (("download", funnel["download"]["images"]), ("filter", funnel["filter"]["images"])):
        shown = {row[1].replace(": ", ":", 1): number(row[2]) for row in rows if row[0] == stage}
        assert shown == fates
    assert f"of {middle + sum(failed.values()):,} images, {kept:,} were kept" in root.find("svg").get("aria-label", "")  # type: ignore[union-attr]


def test_widths_of_a_flow_are_counts() -> None:
    root = parsed(flow([Stage("download", 100, 25, {"failed:dns": 75})], title="t", unit="images"))
    bars_ = [float(rect.get("width", "")) for rect in root.findall("svg/rect[@class='f0']")]
    assert bars_[1] / bars_[0] == pytest.approx(0.25)


SHARE = st.floats(0, 1)
SHARE_ROWS = st.builds(ShareRow, st.integers(0, 3), NAMES, NAMES, st.none() | SHARE, SHARE, SHARE)


@given(st.lists(SHARE_ROWS, max_size=12))
def test_shares(rows: list[ShareRow]) -> None:
    shown = table(parsed(shares(rows, title="t")))
    assert [row[-3:] for row in shown] == [list(row.percents()) for row in rows]


def test_shares_of_runs_of_before_have_no_recipe() -> None:
    source = {"label": "a", "path": "sources.0", "unit": "images", "asked": 0.7, "realised": 0.69}
    inside = source | {"label": "b", "path": "sources.0.blend.sources.0", "asked": 0.5, "realised": 0.5}
    row, nested = share_rows({"sources": [source, inside]})
    assert row.percents(1) == ("", "70.0%", "69.0%") and nested.percents(1) == ("", "35.0%", "34.5%")
    (row,) = share_rows({"sources": [source | {"of_whole": {"recipe": 0.161, "target": 0.7, "actual": 0.69}}]})
    assert row.percents(1) == ("16.1%", "70.0%", "69.0%")


@given(st.floats(-1e15, 1e15), st.floats(1e-9, 1e15))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    high = low + span
    found = ticks(low, high)
    assert len(found) <= 7 and found == sorted(found)
    slack = 1e-6 * max(abs(low), abs(high), 1.0)
    assert all(low - slack <= at <= high + slack for at in found)


@given(st.floats(1e-6, 1e15))
def test_axes_end_above_what_they_show(value: float) -> None:
    assert value <= above(value) * (1 + 1e-9) and above(value) <= value * 2.1
    whole = above(math.ceil(value), whole=True)
    assert whole >= math.ceil(value) * (1 - 1e-9) and whole == int(whole)


def test_numbers_are_short() -> None:
    shown = {
        0: "0",
        0.125: "0.125",
        999: "999",
        1082.4: "1,082",
        12_500: "12.5k",
        3e6: "3M",
        math.inf: "∞",
        -0.25: "-0.25",
    }
    assert {value: short(value) for value in shown} == shown
    assert [size_text(size) for size in (0, 1500, 12_200_000, 3 * 10**15)] == ["0 B", "1.5 kB", "12.2 MB", "3 PB"]


def test_a_name_is_never_markup() -> None:
    hostile = "</text></svg><script>alert(1)</script>"
    text = str(bars([(hostile, 3)], title=hostile)) + str(curve([1], {hostile: [2]}, title="t", x_unit="x", y_unit="y"))
    assert "<script" not in text and "</svg><" not in re.sub(
        r"</svg><(?=details|ul)|</svg> <bdi|</svg></figure", "", text
    )


def test_one_is_one() -> None:
    assert [many(n, noun) for n, noun in ((0, "images"), (1, "images"), (1, "entries"), (2000, "tars"))] == [
        "0 images",
        "1 image",
        "1 entry",
        "2,000 tars",
    ]


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_share_of_all_or_nothing_is_just_that(part: int, more: int) -> None:
    words, whole = share(part, part + more), part + more
    assert (words == "") == (whole == 0)
    assert (words == "0.0%") == (part == 0 and whole > 0)
    assert (words == "100.0%") == (more == 0 and whole > 0)


@given(st.integers(2, 14).flatmap(lambda n: st.lists(st.integers(1, 10**6), min_size=n, max_size=n, unique=True)))
def test_words_of_an_axis_stay_apart_and_inside(edges: list[int]) -> None:
    edges.sort()
    root = parsed(histogram(edges, [1] * (len(edges) - 1), title="t", unit="u"))
    spans = []
    for text in root.iter("text"):
        if text.get("text-anchor") in ("middle", "end") and text.get("class") is None and float(text.get("x", 0)) > 43:
            wide, x = 6.4 * len(text.text or ""), float(text.get("x", 0))
            spans.append((x - wide, x) if text.get("text-anchor") == "end" else (x - wide / 2, x + wide / 2))
    spans.sort()
    assert spans and spans[-1][1] <= WIDTH
    assert all(left[1] <= right[0] for left, right in pairwise(spans))


def test_the_end_of_a_flow_counts_what_the_flow_counts() -> None:
    found = [Stage("filter", 3, 1, {"dropped:min_side_px": 2})]
    for unit, line in (("images", "1 image in set docs"), ("records", "4 samples in set docs")):
        words = "".join(parsed(flow(found, title=unit, unit=unit, sets=[("docs", 1, 4)])).itertext())
        assert line in words and f"1 {unit[:-1]} kept" in words


def test_a_stage_without_words_of_its_own_is_called_by_its_name() -> None:
    funnel = {"select": {"images": {"kept": 9}}, "crops": {"images": {"kept": 4, "dropped:edge": 5}}}
    words = "".join(parsed(flow(stages(funnel, "images"), title="t", unit="images")).itertext())
    assert "images crops" in words and "edge" in words
