"""The reporters, on one report made by hand: reviewed texts, the schema, and files."""

from __future__ import annotations

import csv
import dataclasses
import errno
import html
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import jsonschema
import pytest
from example_report import (
    SETTINGS,
    compared_report,
    example_report,
    ok,
    out_of_memory,
    predicted_report,
)
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bsfind import records, results
from bsfind.errors import UsageError
from bsfind.inputs import DTYPES, InputSpec
from bsfind.records import DeviceInfo, ReportWarning
from bsfind.report import export, wording
from bsfind.report.columns import cells_of
from bsfind.report.csv import to_csv
from bsfind.report.export import EXPORT_FORMATS
from bsfind.report.json import schema, to_json
from bsfind.report.markup import to_html, to_markdown
from bsfind.report.plot import to_svg
from bsfind.report.sentences import accuracy, sentences
from bsfind.report.table import print_check, print_report
from bsfind.results import PrecisionResult, Report
from bsfind.search.finder import Finder
from bsfind.settings import (
    PRECISIONS,
    REMEDIES,
    REQUESTABLE_PRECISIONS,
    Axis,
    Launch,
    SearchLimits,
    Workload,
)
from bsfind.trial import (
    BatchVariation,
    Evaluation,
    Leak,
    RankMemory,
    RefusedSizes,
    Trial,
    TrialStatus,
)
from bsfind.units import GIB, MIB

Golden = Callable[[str, str], None]


def printed(
    report: Report, width: int, print_it: Callable[[Report, Console], None] = print_report
) -> str:
    stream = io.StringIO()
    print_it(report, Console(file=stream, width=width, highlight=False, markup=False))
    return stream.getvalue()


def nothing_fits() -> Report:
    report = example_report()
    result = PrecisionResult(
        precision="fp32",
        status="nothing_fits",
        trials=(out_of_memory(5), out_of_memory(2), out_of_memory(1)),
        message="batch size 1 does not run: CUDA out of memory. Tried to allocate 112.00 MiB",
    )
    return dataclasses.replace(report, results=(result,), recommendation=None, warnings=())


def stopped_early() -> Report:
    fp32, amp = example_report().results
    amp = PrecisionResult(
        precision="amp-bf16",
        status="unfinished",
        max_batch_size=5,
        trials=amp.trials[:1],
    )
    return dataclasses.replace(
        example_report(),
        status="partial",
        results=(fp32, amp),
        recommendation=results.Recommendation(batch_size=200, precision="fp32", reason="because"),
        message="the time budget of 1 min is spent",
    )


# ---------------------------------------------------------------------------------------- table


def test_a_maximum_that_did_not_last_is_that_of_its_steps() -> None:
    report = example_report()
    warning = ReportWarning(code="confirmation_failed", message="batch size 200 ran out of memory")
    (evidence, *_) = sentences(report)
    (lasting, *_) = sentences(dataclasses.replace(report, warnings=(warning,)))
    maximum = wording.recommended(report).max_batch_size  # type: ignore[union-attr]
    assert f"{maximum:,} ran, " in evidence
    assert f"{maximum:,} ran for 3 steps, " in lasting


@pytest.mark.parametrize("width", [120, 80, 60, 40, 30])
def test_table(width: int, golden: Golden) -> None:
    golden(f"report-{width}.txt", printed(example_report(), width))


@pytest.mark.parametrize("width", [120, 60, 30])
def test_table_of_a_prediction(width: int, golden: Golden) -> None:
    golden(f"predicted-{width}.txt", printed(predicted_report(), width))


@pytest.mark.parametrize("width", [120, 80, 60])
def test_table_of_a_comparison(width: int, golden: Golden) -> None:
    golden(f"compared-{width}.txt", printed(compared_report(), width))


def test_a_prediction_has_no_columns_of_times() -> None:
    for width in range(30, 140, 10):
        text = printed(predicted_report(), width)
        assert "samples/s" not in text
        assert "vs fp32" not in text
        assert "Confirmed" not in text
        assert " ran" not in text.replace("not run", "")


def test_an_error_that_was_not_measured_is_not_invented() -> None:
    report = predicted_report()
    assert report.prediction is not None
    unknown = dataclasses.replace(
        report.prediction, accuracy=None, no_accuracy_because="not measured for torch 2.9"
    )
    text = printed(dataclasses.replace(report, prediction=unknown), 120)
    assert "Error bound: not measured for torch 2.9." in text
    assert "95th" not in text


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "cuDNN 9.20, asked",
            "Workspaces of convolutions: cuDNN 9.20, asked; the error bound was measured with fitted "
            "trees instead.",
        ),
        ("fitted trees of cuDNN 9.20", "Workspaces of convolutions: fitted trees of cuDNN 9.20."),
    ],
)
def test_a_prediction_says_what_its_workspaces_rest_on(source: str, told: str) -> None:
    report = predicted_report()
    assert report.prediction is not None
    assert "Workspaces of convolutions" not in printed(report, 120)
    known = dataclasses.replace(report.prediction, convolution_workspaces=source)
    text = " ".join(printed(dataclasses.replace(report, prediction=known), 120).split())
    assert told in text


def test_a_bound_of_predictions_that_ask_cudnn_is_not_of_trees() -> None:
    report = predicted_report()
    assert report.prediction is not None
    assert report.prediction.accuracy is not None
    known = dataclasses.replace(
        report.prediction,
        convolution_workspaces="cuDNN 9.20, asked",
        accuracy=dataclasses.replace(report.prediction.accuracy, asks_cudnn=True),
    )
    text = " ".join(printed(dataclasses.replace(report, prediction=known), 120).split())
    assert "Workspaces of convolutions: cuDNN 9.20, asked." in text


def test_what_was_measured_names_no_error_bound() -> None:
    assert accuracy(example_report()) is None
    assert "redicted" not in printed(example_report(), 120)


def test_nothing_is_said_about_a_context_that_is_not_known() -> None:
    report = example_report()
    assert report.device is not None
    device = dataclasses.replace(report.device, context_bytes=None, context_source=None)
    assert "context" not in printed(dataclasses.replace(report, device=device), 120)


def test_table_when_nothing_fits(golden: Golden) -> None:
    golden("nothing-fits.txt", printed(nothing_fits(), 80))


def test_table_of_a_search_that_was_stopped(golden: Golden) -> None:
    golden("stopped-early.txt", printed(stopped_early(), 80))


def test_nothing_is_printed_of_a_search_that_failed() -> None:
    report = dataclasses.replace(example_report(), status="failed", results=(), message="no GPU")
    assert printed(report, 80) == ""


def test_without_utf8_there_is_no_bar() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    print_report(example_report(), Console(file=stream, width=120, highlight=False, markup=False))
    stream.seek(0)
    text = stream.read()
    assert "92%" in text
    assert "?92%" not in text.replace(" ", "")


def rows_of(text: str, report: Report) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Yield the words of each row of the table, and the cells that it is made of."""
    table = text.split("\n\n")[1].splitlines()
    for result in report.results:
        (row,) = (line for line in table if re.match(rf"{result.precision}\s", line))
        yield row.split(), cells_of(result, report)


OPTIONAL = ("max batch", "peak allocated", "of the card", "samples/s", "speed-up")
FIGURES = st.integers(1, 2**31 - 1)
SIZES = st.integers(0, 1 << 47)


@st.composite
def any_results(draw: st.DrawFn, precision: str) -> PrecisionResult:
    trial = ok(
        draw(FIGURES), draw(SIZES) + GIB, draw(SIZES), draw(st.none() | st.floats(1e-4, 1e4))
    )
    return dataclasses.replace(
        example_report().results[0],
        precision=precision,
        max_batch_size=draw(FIGURES),
        recommended_batch_size=trial.batch_size,
        peak_allocated_bytes=trial.peak_allocated_bytes,
        peak_reserved_bytes=trial.peak_reserved_bytes,
        peak_fraction=draw(st.none() | st.floats(0, 1)),
        samples_per_s=trial.samples_per_s,
    )


@given(
    found=st.tuples(any_results("fp32"), any_results("amp-bf16"))
    | st.tuples(any_results("amp-fp16")),
    width=st.integers(40, 140),
)
def test_figures_are_never_cut(found: tuple[PrecisionResult, ...], width: int) -> None:
    report = dataclasses.replace(example_report(), results=found, recommendation=None, warnings=())
    text = printed(report, width)
    assert "…" not in text
    lines = text.splitlines()
    if "─" not in text:  # not even the narrowest table is narrow enough: a line for each figure
        assert width < 60
        for result in found:
            for name, cell in cells_of(result, report).items():
                assert f"{name}: {cell}" in lines or not cell
        return
    assert all(len(line) <= width for line in text.split("\n\n")[1].splitlines())
    for words, cells in rows_of(text, report):
        shown = " ".join(word for word in words if not re.fullmatch("[▏▎▍▌▋▊▉█]+", word))
        # Whole cells, in their order, and nothing else; some columns go where there is no room.
        optional = () if width >= 100 else OPTIONAL
        assert shown in {
            " ".join(cell for name, cell in cells.items() if cell and name not in gone)
            for n in range(len(optional) + 1)
            for gone in itertools.combinations(optional, n)
        }


def test_cells_are_written_for_people() -> None:
    result = dataclasses.replace(
        example_report().results[1],
        max_batch_size=1_234_567,
        peak_fraction=0.004,
        samples_per_s=12_345.6,
    )
    assert cells_of(result, example_report()) == {
        "precision": "amp-bf16",
        "max batch": "1,234,567",
        "recommended": "392",
        "peak allocated": "20.1 GiB",
        "peak reserved": "21.7 GiB",
        "of the card": "<1%",
        "samples/s": "12,346",
        "speed-up": "30.9 x",
    }
    unknown = PrecisionResult(precision="bf16", status="unsupported")
    cells = cells_of(unknown, example_report())
    assert set(cells.values()) == {"bf16", "–", ""}


# ---------------------------------------------------------------------------------------- check


def checked(*, fits: bool) -> Report:
    trial = ok(64, 6 * GIB, 7 * GIB, 0.064) if fits else out_of_memory(64)
    result = PrecisionResult(
        precision="fp32",
        status="ok" if fits else "nothing_fits",
        max_batch_size=64 if fits else None,
        recommended_batch_size=64 if fits else None,
        trials=(trial,),
        message=None if fits else f"batch size 64 does not run: {trial.message}",
    )
    amp = dataclasses.replace(result, precision="amp-bf16")
    report = example_report()
    return dataclasses.replace(
        report,
        results=(result, amp),
        search={**report.search, "batch_size": 64},
        recommendation=report.recommendation if fits else None,
    )


@pytest.mark.parametrize("fits", [True, False])
def test_check(fits: bool, golden: Golden) -> None:
    name = "check-fits.txt" if fits else "check-does-not-fit.txt"
    golden(name, printed(checked(fits=fits), 80, print_check))


@pytest.mark.parametrize("fits", [True, False])
def test_check_of_a_prediction(fits: bool, golden: Golden) -> None:
    report, predicted = checked(fits=fits), predicted_report()
    results = tuple(
        dataclasses.replace(
            result,
            trials=tuple(dataclasses.replace(t, samples_per_s=None) for t in result.trials),
        )
        for result in report.results
    )
    report = dataclasses.replace(
        predicted, results=results, search={**predicted.search, "batch_size": 64}
    )
    name = f"check-predicted-{'fits' if fits else 'does-not-fit'}.txt"
    golden(name, printed(report, 80, print_check))


# ------------------------------------------------------------------------------- other formats


def test_markdown_of_a_prediction(golden: Golden) -> None:
    golden("predicted.md", to_markdown(predicted_report()))


@pytest.mark.parametrize(
    ("traced", "said"),
    [
        (20, "20 steps, replayed within the budget."),
        (3, "3 steps were traced and the last was repeated, up to 20, within the budget."),
        (0, "steps of other sizes were traced and the last was repeated, up to 20, within the"),
    ],
)
def test_a_prediction_says_how_many_steps_were_traced(traced: int, said: str) -> None:
    report = predicted_report()
    results = [
        dataclasses.replace(
            result,
            trials=tuple(
                dataclasses.replace(trial, steps=20, traced_steps=traced) for trial in result.trials
            ),
        )
        for result in report.results
    ]
    report = dataclasses.replace(report, results=tuple(results))
    assert sentences(report)[0].startswith(f"Predicted, not run: {said}")


def test_a_prediction_says_where_all_steps_were_traced() -> None:
    report = predicted_report()
    recommended = report.recommendation
    assert recommended is not None
    results = [
        dataclasses.replace(
            result,
            trials=tuple(
                dataclasses.replace(
                    trial,
                    steps=20,
                    traced_steps=3 if result.precision == recommended.precision else 20,
                )
                for trial in result.trials
            ),
        )
        for result in report.results
    ]
    assert len(results) == 2
    said = sentences(dataclasses.replace(report, results=tuple(results)))[0]
    assert (
        "3 steps were traced and the last was repeated, up to 20 (all of them were traced" in said
    )


def test_json_of_a_prediction(golden: Golden) -> None:
    golden("predicted.json", to_json(predicted_report()))


def test_markdown(golden: Golden) -> None:
    golden("report.md", to_markdown(example_report()))


def test_markdown_says_that_a_search_was_stopped() -> None:
    assert "**partial**: the time budget of 1 min is spent" in to_markdown(stopped_early())


HOSTILE = "[red]x[/red]|<b>`a` $y$ :x: %0A &amp;"


def hostile_report() -> Report:
    """Return a report whose texts look like markup of every format."""
    report = example_report()
    return dataclasses.replace(
        report,
        status="partial",
        message=f"{HOSTILE}\n| - not a row\x1b[2J",
        workload={**report.workload, "target": HOSTILE},
        reproduce=f"bsfind run '{HOSTILE}'",
        warnings=(ReportWarning(code="coarse", message=HOSTILE, hint=HOSTILE),),
    )


@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_shows_names_and_messages_as_they_are(width: int) -> None:
    text = printed(hostile_report(), width)
    assert "".join(HOSTILE.split()) in "".join(text.split())
    assert "\x1b" not in text


def test_markdown_shows_names_and_messages_as_they_are() -> None:
    text = to_markdown(hostile_report())
    escaped = r"\[red\]x\[/red\]\|\<b\>\`a\` \$y\$ :x: %0A \&amp;"
    assert text.count(escaped) == 3
    assert f"**partial**: {escaped} \\| - not a row" in text
    assert text.splitlines()[-1] == f"`` bsfind run '{HOSTILE}' ``"


def test_html_and_svg_show_names_and_messages_as_they_are() -> None:
    page = to_html(hostile_report())
    assert "<b>" not in page
    assert HOSTILE in html.unescape(page)
    drawn = "".join(ElementTree.fromstring(to_svg(hostile_report())).itertext())
    assert HOSTILE in drawn


def test_markdown_escapes_what_the_user_named() -> None:
    report = example_report()
    report = dataclasses.replace(
        report,
        workload={**report.workload, "target": r"my_pkg\x:*Net|<b>"},
        warnings=(ReportWarning(code="x", message="a_b*c"),),
    )
    text = to_markdown(report)
    assert r"my\_pkg\\x:\*Net\|\<b\>" in text
    assert r"- warning: a\_b\*c" in text


@pytest.mark.parametrize(
    ("target", "model_args", "class_name", "shown"),
    [
        ("zoo:resnet50", {}, "ResNet", "zoo:resnet50"),
        ("nanogpt.py:GPT", {}, "GPT", "nanogpt.py:GPT"),
        ("timm:create_model", {"model_name": "resnet50"}, "ResNet", "resnet50 (timm:create_model)"),
        ("train.py:make_model", {"width": "64"}, "WideNet", "WideNet (train.py:make_model)"),
        ("train.py:net", {"model": "pkg.mod:fn()"}, "Sequential", "train.py:net"),
        ("train.py:net", {}, None, "train.py:net"),
    ],
)
def test_the_model_s_name(
    target: str, model_args: dict[str, str], class_name: str | None, shown: str
) -> None:
    workload = {"target": target, "model_args": model_args}
    assert wording.model_name(workload, class_name) == shown


def test_csv(golden: Golden) -> None:
    golden("report.csv", to_csv(example_report()))


def test_csv_has_a_row_for_each_trial() -> None:
    report = example_report()
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    trials = [t for result in report.results for t in (*result.trials, *result.timings)]
    assert [int(row["batch_size"]) for row in rows] == [trial.batch_size for trial in trials]
    assert [row["batch_size"] for row in rows if row["is_recommended"] == "1"] == ["200", "392"]
    assert [row["batch_size"] for row in rows if row["is_maximum"] == "1"] == ["215", "419"]
    assert {row["peak_reserved_bytes"] for row in rows if row["status"] == "oom"} == {""}
    assert {row["simulated"] for row in rows} == {"0"}


def test_csv_says_what_is_predicted() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(predicted_report()))))
    assert {row["simulated"] for row in rows} == {"1"}
    assert {row["samples_per_s"] for row in rows} == {""}


def test_json(golden: Golden) -> None:
    golden("report.json", to_json(example_report()))


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(dataclasses.replace(example_report(), duration_s=float("nan")))


# --------------------------------------------------------------------------------------- schema


def validate(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema()).validate(document)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize(
    "report",
    [
        *(example_report(), nothing_fits(), stopped_early(), checked(fits=True)),
        *(checked(fits=False), predicted_report()),
    ],
    ids=["complete", "nothing fits", "stopped early", "fits", "does not fit", "predicted"],
)
def test_reports_are_valid(report: Report) -> None:
    validate(json.loads(to_json(report)))


@pytest.mark.parametrize("batch_size", [None, 64])
def test_what_the_finder_makes_is_valid_before_it_knows_anything(batch_size: int | None) -> None:
    settings = dataclasses.replace(
        SETTINGS,
        batch_size=batch_size,
        limits=SearchLimits(max_batch_size=96, tolerance=0.0, time_budget_s=60.0),
    )
    validate(json.loads(to_json(Finder(settings, command=["bsfind", "run"]).report)))


def objects(node: Any, path: str = "report") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every subschema that describes an object with fixed keys."""
    if isinstance(node, dict):
        if "properties" in node:
            yield path, node
        for key, value in node.items():
            yield from objects(value, f"{path}.{key}")


def test_the_schema_is_strict_and_explains_everything() -> None:
    found = dict(objects(schema()))
    assert len(found) == 29
    for path, node in found.items():
        assert node["additionalProperties"] is False, path
        assert node["required"] == list(node["properties"]), path
        assert node["description"], path
        for name, field in node["properties"].items():
            description = field["description"]
            assert description.endswith("."), f"{path}.{name}"
            if name.endswith("_bytes") and name != "budget_bytes":
                assert "bytes" in description, f"{path}.{name}"
            if name.endswith("_s") and name != "samples_per_s":
                assert "seconds" in description, f"{path}.{name}"


@pytest.mark.parametrize(
    ("name", "cls", "more"),
    [
        ("trial", Trial, set()),
        ("result", PrecisionResult, {"variant"}),
        ("process", records.GpuProcess, set()),
        ("device", DeviceInfo, {"budget_bytes"}),
        ("model", records.ModelInfo, set()),
        ("prediction", records.Prediction, set()),
        ("accuracy", records.Accuracy, set()),
        ("error_bound", records.ErrorBound, set()),
        ("recommendation", results.Recommendation, {"variant"}),
        ("warning", ReportWarning, set()),
        ("leak", Leak, set()),
        ("axis", Axis, set()),
        ("predicted_peaks", results.PredictedPeaks, set()),
        ("refused_sizes", RefusedSizes, set()),
        ("batches", BatchVariation, set()),
        ("evaluation", Evaluation, set()),
        ("rank_memory", RankMemory, set()),
        ("expandable_segments", results.ExpandableSegments, set()),
        ("neighbours", results.Neighbours, set()),
        ("global_batch", results.GlobalBatch, set()),
        ("assumption", records.Assumption, set()),
        ("gpus_needed", results.GpusNeeded, set()),
        ("workload", Workload, {"assumptions"}),
        ("launch", Launch, {"assumptions", "variables", "logs"}),
        ("input", InputSpec, set()),
    ],
)
def test_the_schema_has_the_fields_of_the_records(name: str, cls: type, more: set[str]) -> None:
    fields = {field.name for field in dataclasses.fields(cls)}
    if cls is InputSpec:
        fields -= {"assumed", "names"}  # among the assumptions, and in the shape
    if cls is Workload:
        fields -= {"parallel"}  # apart
    if cls is records.ModelInfo:
        # Each result has weights of its own; `prediction` has the workspaces.
        fields -= {"weights_dtype", "convolution_workspaces"}
    assert set(schema()["$defs"][name]["properties"]) == fields | more


def test_the_schema_has_the_values_of_the_records() -> None:
    document = schema()
    define = document["$defs"]

    def values(where: str, field: str) -> tuple[str, ...]:
        return tuple(define[where]["properties"][field]["enum"])

    assert values("trial", "status") == get_args(TrialStatus)
    assert values("result", "status") == get_args(results.ResultStatus)
    assert values("result", "precision") == (*PRECISIONS, results.LAUNCHED)
    assert values("recommendation", "precision") == (*PRECISIONS, results.LAUNCHED)
    assert values("input", "dtype") == tuple(DTYPES)
    assert values("device", "kind") == get_args(records.DeviceKind)
    assert values("device", "context_source") == (*get_args(records.ContextSource), None)
    assert values("model", "kind") == (*get_args(records.ModelKind), None)
    assert values("prediction", "model_kind") == (*get_args(records.ModelKind), None)
    precisions = define["search"]["properties"]["precisions"]["items"]["enum"]
    assert tuple(precisions) == (*REQUESTABLE_PRECISIONS, results.LAUNCHED)
    assert values("result", "remedy") == (*REMEDIES, None)
    assert tuple(define["search"]["properties"]["compare"]["items"]["enum"]) == tuple(REMEDIES)
    assert tuple(document["properties"]["status"]["enum"]) == get_args(results.ReportStatus)
    assert document["properties"]["schema_version"]["const"] == results.SCHEMA_VERSION


def _set(document: dict[str, Any], path: str, value: object) -> None:
    *outer, last = path.split(".")
    place: Any = document
    for key in outer:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema_version", "1.1"),
        ("status", "done"),
        ("extra", 1),
        ("device.total_bytes", -1),
        ("device.kind", "cpu"),
        ("device.context_source", "guessed"),
        ("search.device", "gpu"),
        ("device.total_bytes", "N/A"),
        ("device.extra", 1),
        ("results.0.peak_reserved_bytes", 1.5),
        ("results.0.precision", "amp"),
        ("results.0.trials.0.status", "crashed"),
        ("results.0.trials.0.batch_size", 0),
        ("recommendation.batch_size", None),
        ("search.tolerance", 1),
        ("search.precisions", ["fp8"]),
        ("workload.inputs.0.shape", [0]),
        ("workload.model_args.width", 64),
        ("environment.variables.X", None),
    ],
)
def test_the_schema_refuses(path: str, value: object) -> None:
    document = json.loads(to_json(example_report()))
    validate(document)
    _set(document, path, value)
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


# ---------------------------------------------------------------------------------------- files


TEXT_FORMATS = {".json": to_json, ".md": to_markdown, ".csv": to_csv, ".svg": to_svg}


def test_all_formats_but_pictures_of_dots_are_text() -> None:
    assert {*TEXT_FORMATS, ".png"} == set(EXPORT_FORMATS)


@pytest.mark.parametrize("suffix", [*TEXT_FORMATS, ".JSON"])
def test_exports_are_what_the_reporters_write(suffix: str, tmp_path: Path) -> None:
    write = TEXT_FORMATS[suffix.lower()]
    path = tmp_path / f"report{suffix}"
    export.write_report(example_report(), path)
    assert path.read_text(encoding="utf-8") == write(example_report())
    export.write_report(nothing_fits(), path)
    assert path.read_text(encoding="utf-8") == write(nothing_fits())
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_have_the_usual_mode_and_old_ones_keep_theirs(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    before = os.umask(0o027)
    try:
        export.write_report(example_report(), path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    export.write_report(example_report(), path)
    assert path.stat().st_mode & 0o777 == 0o604


def test_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "run-17.json", tmp_path / "latest.json"
    target.write_text("old")
    link.symlink_to(target)
    export.write_report(example_report(), link)
    assert link.is_symlink()
    assert json.loads(target.read_text())["status"] == "complete"


class FullDisk(io.BytesIO):
    """A file on a disk that has no room left."""

    def __init__(self, handle: int, *_args: object, **_more: object) -> None:
        super().__init__()
        self._handle = handle

    def write(self, content: Any) -> int:
        os.write(self._handle, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


def no_room(*_args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("old", ["the old report", None])
@pytest.mark.parametrize(
    ("owner", "name", "replacement"), [(os, "fdopen", FullDisk), (Path, "replace", no_room)]
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    old: str | None,
    owner: object,
    name: str,
    replacement: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "report.json"
    if old is not None:
        path.write_text(old)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, replacement)
        with pytest.raises(UsageError) as failure:
            export.write_report(example_report(), path)
    assert failure.value.message == f"cannot write `{path}`: No space left on device"
    assert list(tmp_path.iterdir()) == ([path] if old is not None else [])
    if old is not None:
        assert path.read_text() == old


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        export.write_report(example_report(), path)
        received = os.read(reader, MIB)
    finally:
        os.close(reader)
    assert json.loads(received)["status"] == "complete"
    assert path.is_fifo()


def test_folders_without_permission_are_found_out_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export.check_writable(tmp_path / "new.json")
    asked = []

    def access(path: Path, mode: int) -> bool:
        asked.append((path, mode))
        return False

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(UsageError, match=r"new\.json`: no permission"):
        export.check_writable(tmp_path / "new.json")
    assert asked == [(tmp_path, os.W_OK)]
