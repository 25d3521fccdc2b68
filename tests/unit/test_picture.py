"""The picture of memory: its data, the files, and the terminal."""

from __future__ import annotations

import dataclasses
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from example_report import compared_report, example_report, ok, out_of_memory, predicted_report
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import bsfind
from bsfind.errors import UsageError
from bsfind.report.export import check_writable
from bsfind.report.plot import check_can_draw, picture_of, to_png, to_svg
from bsfind.report.terminal_plot import print_plot
from bsfind.results import PrecisionResult, Report
from bsfind.settings import REMEDIES
from bsfind.trial import Trial
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
                remedy=None if i % 3 == 0 else list(REMEDIES)[i % len(REMEDIES)],
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
    assert [(t.batch_size, (t.peak_reserved_bytes or 0) // MIB) for t in amp.ran] == [
        *((5, 900), (256, 14700), (392, 22221), (419, 23400)),
    ]
    assert [trial.batch_size for trial in amp.failed] == [420]
    assert picture.reasons == "out of memory"
    assert amp.recommended is amp.ran[2]
    assert list(picture.limits) == ["22.9 GiB capacity", "21.8 GiB budget"]
    assert picture.batch_size_high > 420
    assert picture.memory_high > 23456 * MIB
    assert picture.ceiling_bytes == 23456 * MIB


def test_variants_are_series_of_their_own() -> None:
    names = [series.name for series in picture_of(compared_report()).series]
    assert names == ["fp32", "amp-bf16", "amp-bf16 + checkpointing"]  # compile never ran


def test_of_a_size_that_ran_twice_the_confirmation_counts() -> None:
    twice = (ok(64, GIB, 3 * GIB, None), ok(64, GIB, 2 * GIB, None))
    result = dataclasses.replace(example_report().results[0], trials=twice)
    picture = picture_of(dataclasses.replace(example_report(), results=(result,)))
    assert [trial.peak_reserved_bytes for trial in picture.series[0].ran] == [2 * GIB]


def test_a_check_recommends_nothing_and_keeps_nothing_free() -> None:
    picture = picture_of(checked())
    assert picture.series[0].recommended is None
    assert picture.series[0].summary == "64 fits"
    assert len(picture.limits) == 1


def test_before_anything_is_known() -> None:
    picture = picture_of(nothing_known())
    assert (picture.series, picture.limits, picture.reasons) == ((), {}, "")
    assert picture.batch_size_high >= 1
    assert picture.memory_high >= 1


# ------------------------------------------------------------------------------------ SVG and PNG

NAMESPACE = "{http://www.w3.org/2000/svg}"


def parsed(report: Report) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(report))


def texts(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{NAMESPACE}text")]


@pytest.mark.parametrize(
    "report",
    [
        *(example_report(), predicted_report(), compared_report(), checked()),
        *(nothing_fits(), nothing_known()),
    ],
    ids=["run", "predicted", "compared", "check", "nothing fits", "nothing known"],
)
def test_the_texts_of_a_picture(report: Report) -> None:
    picture = picture_of(report)
    shown = texts(parsed(report))
    assert {*picture.limits, "batch size", "Peak memory against batch size"} <= set(shown)
    for series in picture.series:
        assert f"{series.name}: {series.summary}" in shown
    key = next((text for text in shown if text.startswith("solid: reserved")), "")
    assert ("ring: recommended" in key) == any(s.recommended for s in picture.series)
    assert ("cross: " in key) == (picture.reasons != "")
    assert ("no trial has ended" in shown) == (picture.series == ())
    for words in picture.subject.split(" · "):
        assert words.split()[0] in " ".join(shown)


@settings(max_examples=10, deadline=None)
@given(report=reports())
def test_any_report_can_be_drawn(report: Report) -> None:
    root = parsed(report)
    assert root.get("viewBox") == "0 0 576 360"
    told = [title.text or "" for title in root.iter(f"{NAMESPACE}title")][1:]
    series = picture_of(report).series
    assert len(told) == sum(len(one.ran) + len(one.failed) for one in series)


def test_every_trial_has_a_tooltip() -> None:
    told = [title.text or "" for title in parsed(example_report()).iter(f"{NAMESPACE}title")][1:]
    trials = [t for r in example_report().results for t in (*r.timings, *r.trials)]
    assert len(told) == len(trials)
    assert "fp32, batch size 200: 21.6 GiB reserved, 20.4 GiB allocated" in told
    assert "amp-bf16, batch size 420: out of memory" in told


def test_more_memory_is_higher_and_larger_batches_are_to_the_right() -> None:
    (capacity,) = (
        float(group.findall(f".//{NAMESPACE}text")[0].get("y", ""))
        for group in parsed(example_report()).iter(f"{NAMESPACE}g")
        if [text.text for text in group.findall(f"{NAMESPACE}text")] == ["22.9 GiB capacity"]
    )
    marks = [
        (float(use.get("x", "")), float(use.get("y", "")))
        for group in parsed(example_report()).iter(f"{NAMESPACE}g")
        if group.get("id", "").startswith("trial-1-")
        for use in group.iter(f"{NAMESPACE}use")
    ]
    assert len(marks) == 5  # four that ran, and the one that did not, last
    assert [x for x, _ in marks] == sorted(x for x, _ in marks)
    assert [y for _, y in marks] == sorted((y for _, y in marks), reverse=True)
    assert capacity < marks[0][1]


def test_the_labels_of_two_limits_are_apart() -> None:
    report = example_report()
    assert report.device is not None
    near = dataclasses.replace(report, budget_bytes=report.device.capacity_bytes - MIB)
    heights = [
        float(text.get("y", ""))
        for text in parsed(near).iter(f"{NAMESPACE}text")
        if (text.text or "").endswith((" capacity", " budget"))
    ]
    assert abs(heights[0] - heights[1]) >= 8  # the size of the letters


def test_svg_tells_those_who_do_not_see_it() -> None:
    root = parsed(predicted_report())
    assert root.get("role") == "img"
    assert root[0].tag == f"{NAMESPACE}title"
    assert (root[0].text or "").startswith("Peak memory against batch size: ")
    assert "simulated NVIDIA GeForce RTX 4090" in (root[0].text or "")


def test_svg_is_readable_in_the_dark_and_stands_alone() -> None:
    text = to_svg(compared_report())
    dark = text[text.index("@media (prefers-color-scheme: dark)") : text.index("</style>")]
    used = set(re.findall(r"(fill|stroke): (#[0-9a-f]{6})", text[text.index("</style>") :]))
    assert ("fill", "#ffffff") in used
    for name, colour in used:
        assert f'[style*="{name}: {colour}"]' in dark
    for outside in ("url(http", "@import", "<script", "<image", "<?xml"):
        assert outside not in text
    assert text == to_svg(compared_report())


@pytest.mark.parametrize("name", ["a<b>&\"c'", "net\x00\x1b[31m", "\ud800", "]]>", "a$b$:網"])
def test_names_that_xml_or_formulas_do_not_like(name: str) -> None:
    report = example_report()
    shown = "".join(
        texts(parsed(dataclasses.replace(report, workload={**report.workload, "target": name})))
    )
    assert all(character in shown for character in name if character.isprintable())


def test_png() -> None:
    image = pytest.importorskip("PIL.Image")
    for drawn in (example_report(), nothing_fits(), nothing_known(), checked()):
        content = to_png(drawn)
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        with image.open(io.BytesIO(content)) as picture:
            assert picture.size == (1200, 750)
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 2
    check_can_draw()


def test_a_picture_has_the_colours_of_its_series() -> None:
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
    with pytest.raises(UsageError):
        check_writable(Path("memory.svg"))
    with pytest.raises(UsageError):
        bsfind.Report.of(example_report()).plot()


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
