"""The picture of memory: its data, and the three that draw it."""

from __future__ import annotations

import dataclasses
import io
import itertools
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from example_report import compared_report, example_report, ok, out_of_memory, predicted_report
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bsfind.errors import UsageError
from bsfind.records import PrecisionResult, Report, Trial
from bsfind.report.picture import picture_of
from bsfind.report.png import check_can_draw, to_png
from bsfind.report.svg import to_svg
from bsfind.report.terminal_plot import print_plot
from bsfind.search.variants import REMEDIES
from bsfind.units import GIB, MIB

Golden = Callable[[str, str], None]


def nothing_known() -> Report:
    return dataclasses.replace(
        example_report(),
        device=None,
        budget_bytes=None,
        model=None,
        results=(),
        recommendation=None,
    )


def nothing_fits() -> Report:
    result = PrecisionResult(precision="fp32", status="nothing_fits", trials=(out_of_memory(8),))
    return dataclasses.replace(example_report(), results=(result,), recommendation=None)


def checked() -> Report:
    report = example_report()
    result = PrecisionResult(
        precision="fp32",
        status="ok",
        max_batch_size=64,
        recommended_batch_size=64,
        trials=(ok(64, 6 * GIB, 7 * GIB, None),),
    )
    assert report.device is not None
    return dataclasses.replace(
        report,
        results=(result,),
        search={**report.search, "batch_size": 64},
        budget_bytes=report.device.capacity_bytes,
    )


@st.composite
def reports(draw: st.DrawFn) -> Report:
    """Any sizes, any names, any trials."""
    sizes, memory = st.integers(1, 2**31 - 1), st.integers(0, 1 << 45)
    results = []
    for i in range(draw(st.integers(0, 6))):
        ran = [
            ok(draw(sizes), draw(memory), draw(memory), None)
            for _ in range(draw(st.integers(0, 4)))
        ]
        failed = [
            Trial(batch_size=draw(sizes), status=status)
            for status in draw(st.lists(st.sampled_from(("oom", "timeout", "error")), max_size=3))
        ]
        recommended = draw(st.sampled_from([None, *(trial.batch_size for trial in ran)]))
        results.append(
            PrecisionResult(
                precision="fp32" if i < 3 else "amp-bf16",
                remedy=None if i % 3 == 0 else REMEDIES[i % len(REMEDIES)],
                status="ok" if ran else "nothing_fits",
                max_batch_size=max((trial.batch_size for trial in ran), default=None),
                recommended_batch_size=recommended,
                trials=(*ran, *failed),
            )
        )
    report = example_report()
    assert report.device is not None
    capacity = draw(st.integers(1, 1 << 45))
    target = draw(st.text(min_size=1, max_size=300))
    return dataclasses.replace(
        report,
        results=tuple(results),
        recommendation=None,
        workload={**report.workload, "target": target},
        device=dataclasses.replace(report.device, capacity_bytes=capacity),
        budget_bytes=draw(st.integers(0, capacity)),
    )


# ------------------------------------------------------------------------------------------ data


def test_what_is_drawn() -> None:
    picture = picture_of(example_report())
    fp32, amp = picture.series
    assert (fp32.name, fp32.summary) == ("fp32", "215 at most, 200 recommended")
    assert [(p.batch_size, p.reserved_bytes // MIB) for p in amp.points] == [
        *((5, 900), (256, 14700), (392, 22221), (419, 23400)),
    ]
    assert [miss.text for miss in amp.misses] == ["batch size 420: out of memory"]
    assert amp.recommended is amp.points[2]
    assert [limit.text for limit in picture.limits] == ["22.9 GiB capacity", "21.8 GiB budget"]
    assert picture.batch_size_high > 420
    assert picture.memory_high > 23456 * MIB
    assert picture.ceiling_bytes == 23456 * MIB
    assert "amp-bf16: 419 at most, 392 recommended" in picture.description


def test_remedies_are_series_of_their_own() -> None:
    names = [series.name for series in picture_of(compared_report()).series]
    assert names == ["fp32", "amp-bf16", "amp-bf16 + checkpointing"]  # compile never ran


def test_of_a_size_that_ran_twice_the_confirmation_counts() -> None:
    twice = (ok(64, GIB, 3 * GIB, None), ok(64, GIB, 2 * GIB, None))
    result = dataclasses.replace(example_report().results[0], trials=twice)
    picture = picture_of(dataclasses.replace(example_report(), results=(result,)))
    assert [point.reserved_bytes for point in picture.series[0].points] == [2 * GIB]


def test_a_check_recommends_nothing_and_keeps_nothing_free() -> None:
    picture = picture_of(checked())
    assert picture.series[0].recommended is None
    assert picture.series[0].summary == "64 fits"
    assert len(picture.limits) == 1


def test_before_anything_is_known() -> None:
    picture = picture_of(nothing_known())
    assert (picture.series, picture.limits, picture.reasons) == ((), (), ())
    assert picture.batch_size_high >= 1
    assert picture.memory_high >= 1


# ------------------------------------------------------------------------------------------- SVG

NAMESPACE = "{http://www.w3.org/2000/svg}"
EM = 0.64
"""Advance of a digit in DejaVu Sans and Verdana, which are wide; their letters are 0.6 on average."""

Box = tuple[float, float, float, float]


def parsed(report: Report) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(report))


def box_of(text: ElementTree.Element) -> Box:
    """Return what a text covers: left, top, right, bottom."""
    size, x, y = (float(text.get(name, "")) for name in ("font-size", "x", "y"))
    # Characters that are two cells wide are an em; the estimate is for those that are one.
    width = sum(size * (1.0 if ord(c) > 0x1100 else EM) for c in text.text or "")
    left = x - width * {"end": 1.0, "middle": 0.5}.get(text.get("text-anchor", ""), 0.0)
    return left, y - 0.75 * size, left + width, y + 0.25 * size


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def check_layout(root: ElementTree.Element, *, is_plain: bool = True) -> None:
    _, _, width, height = (float(number) for number in root.get("viewBox", "").split())
    texts = list(root.iter(f"{NAMESPACE}text"))
    boxes = [box_of(text) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        if is_plain or text.get("class") != "quiet" or text.get("font-size") != "12":
            assert box[0] >= 0, text.text
            assert box[2] <= width, text.text
        assert box[1] >= 0, text.text
        assert box[3] <= height, text.text
    for (one, a), (other, b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert not overlap(a, b), (one.text, other.text)
    for element in root.iter():
        for name in ("x1", "x2", "cx"):
            assert 0 <= float(element.get(name, 0)) <= width
        for name in ("y1", "y2", "cy"):
            assert 0 <= float(element.get(name, 0)) <= height


def test_svg(golden: Golden) -> None:
    golden("picture.svg", to_svg(example_report()))


@pytest.mark.parametrize(
    "report",
    [
        *(example_report(), predicted_report(), compared_report(), checked()),
        *(nothing_fits(), nothing_known()),
    ],
    ids=["run", "predicted", "compared", "check", "nothing fits", "nothing known"],
)
def test_svg_cuts_and_overlaps_nothing(report: Report) -> None:
    check_layout(parsed(report))


@given(report=reports())
def test_svg_of_any_report(report: Report) -> None:
    # The estimate of widths is for names that are made of letters: others may be wider.
    check_layout(parsed(report), is_plain=False)


@pytest.mark.parametrize("digits", range(1, 10))
def test_svg_has_room_for_the_labels_of_any_axis(digits: int) -> None:
    for first in range(1, 10):
        trial = ok(first * 10 ** (digits - 1), GIB, 2 * GIB, None)
        result = dataclasses.replace(example_report().results[0], trials=(trial,))
        check_layout(parsed(dataclasses.replace(example_report(), results=(result,))))


def test_svg_has_the_trials() -> None:
    root = parsed(example_report())
    told = [title.text or "" for title in root.iter(f"{NAMESPACE}title")][1:]
    trials = [t for r in example_report().results for t in (*r.timings, *r.trials)]
    assert len(told) == len(trials)
    assert "fp32, batch size 200: 21.6 GiB reserved, 20.4 GiB allocated" in told
    assert "amp-bf16, batch size 420: out of memory" in told


def test_svg_puts_more_memory_higher_and_larger_batches_to_the_right() -> None:
    root = parsed(example_report())
    lines = [line.get("points", "") for line in root.iter(f"{NAMESPACE}polyline")]
    assert len(lines) == 4  # reserved and allocated, of two precisions
    for line in lines:
        points = [tuple(float(v) for v in point.split(",")) for point in line.split()]
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    # The capacity is above every point that fits below it.
    (capacity,) = (
        float(line.get("y1", ""))
        for line in root.iter(f"{NAMESPACE}line")
        if line.get("class") == "limit" and line.get("stroke-dasharray") is None
    )
    heights = [float(p.split(",")[1]) for line in lines for p in line.split()]
    assert capacity < min(heights)


def test_svg_tells_those_who_do_not_see_it() -> None:
    root = parsed(predicted_report())
    title, description = root[0], root[1]
    assert root.get("role") == "img"
    assert title.tag == f"{NAMESPACE}title"
    assert "Peak memory against batch size" in (title.text or "")
    assert description.tag == f"{NAMESPACE}desc"
    assert "simulated NVIDIA GeForce RTX 4090" in (description.text or "")


def test_svg_is_readable_in_the_dark_and_stands_alone() -> None:
    text = to_svg(example_report())
    light, _, dark = text.partition("@media (prefers-color-scheme: dark)")
    for rule in (".paper", ".s0", ".s1", "text {"):
        assert rule in light
        assert rule in dark
    for outside in ("href", "url(", "@import", "<script", "<image"):
        assert outside not in text


@pytest.mark.parametrize("name", ["a<b>&\"c'", "net\x00\x1b[31m", "\ud800", "]]>"])
def test_svg_of_names_that_xml_does_not_like(name: str) -> None:
    report = example_report()
    root = parsed(dataclasses.replace(report, workload={**report.workload, "target": name}))
    shown = "".join(text.text or "" for text in root.iter(f"{NAMESPACE}text"))
    assert all(character in shown for character in name if character.isprintable())


# ------------------------------------------------------------------------------------------- PNG


def test_png() -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    report = example_report()
    named = dataclasses.replace(report, workload={**report.workload, "target": "a$b$:網"})
    for drawn in (report, named, nothing_fits(), nothing_known(), checked()):
        content = to_png(drawn)
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        with image.open(io.BytesIO(content)) as picture:
            assert picture.size == (1200, 750)
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 2
    check_can_draw()


def test_png_has_the_colours_of_its_series() -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(to_png(example_report()))) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0x0B, 0x63, 0xC5), (0xC2, 0x41, 0x0C)} <= colours
    assert (0x15, 0x80, 0x3D) not in colours  # that of a third series


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError) as failure:
        check_can_draw()
    assert "pip install 'bsfind[plot]'" in failure.value.hint


# -------------------------------------------------------------------------------------- terminal


def plotted(report: Report, width: int, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    print_plot(report, Console(file=stream, width=width, highlight=False, markup=False))
    stream.seek(0)
    return stream.read()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_plot(width: int, golden: Golden) -> None:
    golden(f"plot-{width}.txt", plotted(example_report(), width))


def test_plot_without_utf8(golden: Golden) -> None:
    golden("plot-ascii.txt", plotted(example_report(), 60, "ascii"))


@given(report=reports(), width=st.integers(32, 140))
def test_a_plot_is_as_wide_as_the_terminal(report: Report, width: int) -> None:
    report = dataclasses.replace(report, workload=example_report().workload)
    text = plotted(report, width)
    picture = picture_of(report)
    if not picture.series:
        assert text == ""
        return
    lines = text.splitlines()
    rows = [line for line in lines if "│" in line or "└" in line]
    assert len(rows) >= 10
    assert {len(row) for row in rows} == {width}
    below = lines[lines.index(rows[-1]) + 1]
    assert len(below) <= width
    assert "…" not in text
    for series in picture.series:
        assert any(series.summary in line for line in lines)


def test_a_plot_shows_marks_for_each_series_and_what_is_recommended() -> None:
    drawing = plotted(example_report(), 80)
    rows = "\n".join(line for line in drawing.splitlines() if "│" in line)
    assert rows.count("○") == rows.count("□") == 1
    assert "●" in rows
    assert "■" in rows
    assert "×" in rows


def test_where_there_is_no_room_a_plot_says_so() -> None:
    assert plotted(example_report(), 20) == "The plot needs 32 columns.\n"
    assert plotted(nothing_known(), 80) == ""
