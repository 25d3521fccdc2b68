"""A list of GPUs: which they are, the smallest that is large enough, and what people and scripts read."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable

import jsonschema
import pytest
from command_line import command_line, options_of
from example_report import predicted_report
from rich.console import Console

from bsfind import option_types as types
from bsfind.cli.compared_gpus import below_minimum
from bsfind.cli.session import exit_code, run_session
from bsfind.errors import ExitCode, InternalError, TargetError, UsageError
from bsfind.records import ReportWarning
from bsfind.report.compared_gpus import (
    answer,
    compared_to_csv,
    compared_to_markdown,
    print_compared,
    reasons,
)
from bsfind.report.github import annotation, outputs
from bsfind.report.json import gpus_schema, read_report, to_json
from bsfind.results import GlobalBatch, PrecisionResult, Report
from bsfind.search.compared_gpus import ComparedGpus, GpuReport
from bsfind.search.request import settings_of_each_gpu
from bsfind.simulation.gpus.catalogue import different_gpus, find_gpu, known_gpus

RUN = ("run", "a:b", "--input-shape", "3")


def on(gpu: str, size: int, **changes: object) -> GpuReport:
    """Return a report in which `size` samples are recommended in amp-bf16, and half of them in fp32."""
    report, card = predicted_report(), find_gpu(gpu)
    assert report.device is not None
    assert report.recommendation is not None
    assert card.total_bytes is not None
    device = dataclasses.replace(report.device, name=card.name, total_bytes=card.total_bytes)
    sized = [size // 2, size]
    results = tuple(
        dataclasses.replace(result, max_batch_size=n + 9, recommended_batch_size=n)
        for result, n in zip(report.results, sized, strict=True)
    )
    chosen = dataclasses.replace(report.recommendation, batch_size=size)
    report = dataclasses.replace(report, device=device, results=results, recommendation=chosen)
    return GpuReport(gpu=gpu, report=dataclasses.replace(report, **changes))  # type: ignore[arg-type]


def failed(gpu: str) -> GpuReport:
    result = PrecisionResult(precision="fp32", status="error", message="it wants a newer GPU")
    report = on(gpu, 2).report
    report = dataclasses.replace(
        report, results=(result,), recommendation=None, status="failed", warnings=()
    )
    return GpuReport(gpu=gpu, report=report, errors=(TargetError("it wants a newer GPU"),))


def compared(*cards: GpuReport, fail_under: int | None = None, **more: object) -> ComparedGpus:
    return ComparedGpus(
        command=("bsfind", "run", "a:b"),
        reproduce="bsfind run a:b --gpu x,y",
        cards=cards,
        fail_under=fail_under,
        **{"not_tried": (), "stopped_by": None, "duration_s": 1.0, **more},  # type: ignore[arg-type]
    )


THREE = compared(failed("t4"), on("a10g", 200), on("rtx-4090", 392))


def printed(report: ComparedGpus, width: int) -> str:
    stream = io.StringIO()
    print_compared(report, Console(file=stream, width=width, highlight=False, markup=False))
    return stream.getvalue()


# ------------------------------------------------------------------------------- which GPUs


def test_names_in_any_spelling_each_once() -> None:
    found = options_of(*RUN, "--gpu", "RTX 4090, a10g,24GiB,4090")["gpu"]
    assert found == ("rtx-4090", "a10g", str(24 << 30))
    assert types.GPUS.write(found) == f"rtx-4090,a10g,{24 << 30}"
    assert types.GPUS.read(["a10g", 24 << 30]) == ("a10g", str(24 << 30))


def test_all_are_those_that_can_be_told_apart() -> None:
    found = options_of(*RUN, "--gpu", "all")["gpu"]
    assert types.GPUS.write(found) == "all"
    assert found == tuple(gpu.key for gpu in different_gpus())
    left_out = [gpu for gpu in known_gpus() if gpu.key not in found]
    assert {"mi300x", "gh200-144gb", "l40s"} <= {gpu.key for gpu in left_out}
    for gpu in left_out:
        if gpu.capability and gpu.total_bytes:
            assert any(
                (other.compute_capability, other.sm_count) == (gpu.compute_capability, gpu.sm_count)
                and abs((other.total_bytes or 0) - gpu.total_bytes) <= gpu.total_bytes / 100
                for other in different_gpus()
            )


@pytest.mark.parametrize(
    ("gpus", "told"),
    [
        ("a10g,rtx-4091", "`rtx-4091` is not a GPU that bsfind knows"),
        ("a10g,", "`` is not a GPU that bsfind knows"),
        ("a10g,a100", "`a100` can be several GPUs"),
    ],
)
def test_a_name_that_is_wrong_is_named(gpus: str, told: str) -> None:
    outcome = command_line(*RUN, "--gpu", gpus)
    assert outcome.code == ExitCode.USAGE
    assert told in outcome.stderr


def refusal(*argv: str) -> UsageError:
    """Return what a command says of its options before it starts anything."""
    with pytest.raises(UsageError) as caught:
        run_session(options_of(*argv), ())
    return caught.value


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        ("mi300x", "AMD Instinct MI300X is not a CUDA GPU; predictions are CUDA-only"),
        ("gh200-144gb", "the memory of NVIDIA GH200 144G HBM3e as PyTorch sees it is not known"),
    ],
)
def test_one_that_cannot_be_simulated_is_named(gpu: str, told: str) -> None:
    assert refusal(*RUN, "--gpu", f"a10g,{gpu}").message == told


def test_an_empty_list_is_none() -> None:
    with pytest.raises(ValueError, match="no GPU is named"):
        types.GPUS.read([])


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "a:b", "-b", "3", "--gpu", "a10g,l4"),
        ("launch", "--gpu", "a10g,l4", "--", "python", "train.py", "{batch_size}"),
    ],
)
def test_other_commands_take_one(arguments: tuple[str, ...]) -> None:
    outcome = command_line(*arguments)
    assert outcome.code == ExitCode.USAGE
    assert (
        "error: `--gpu` names 2 GPUs, and this takes one\nhint: `bsfind run` compares several"
        in (outcome.stderr)
    )


def test_so_does_check() -> None:
    error = refusal("check", "a:b", "-b", "3", "--gpu", "a10g,l4")
    assert error.message == "`--gpu` names 2 GPUs, and this takes one"


@pytest.mark.parametrize("more", [("--plot",), ("--export", "x.svg"), ("--export", "x.png")])
def test_there_is_no_picture_of_compared(more: tuple[str, ...]) -> None:
    told = refusal(*RUN, "--gpu", "a10g,l4", *more).message
    assert told == f"`{' '.join(more)}` draws the search on one GPU, and `--gpu` names 2"


def test_they_are_searched_from_the_smallest_on() -> None:
    options = {"gpu": ("rtx-4090", "h200", str(1 << 30), "t4"), "batch_size": None}
    found = [settings.device.gpu for settings in settings_of_each_gpu("a:b", options)]
    assert found == [str(1 << 30), "t4", "rtx-4090", "h200"]
    with pytest.raises(UsageError, match="context-memory"):
        settings_of_each_gpu("a:b", {**options, "context_memory": 2 << 30})


# ------------------------------------------------------------------------------- the answer


def test_the_smallest_that_is_large_enough() -> None:
    assert THREE.smallest is not None
    assert THREE.smallest.gpu == "a10g"
    assert answer(THREE) == (
        "Smallest GPU with a recommended batch size: a10g (NVIDIA A10G), batch size 200 in amp-bf16."
    )
    least = dataclasses.replace(THREE, fail_under=201)
    told = answer(least) or ""
    assert told.startswith("Smallest GPU with batch size 201 or more: rtx-4090 (")
    assert below_minimum(least, 201) is None
    most = dataclasses.replace(THREE, fail_under=393)
    assert (most.smallest, answer(most)) == (None, None)
    error = below_minimum(most, 393)
    assert error is not None
    assert error.message == "the largest recommended batch size, 392, is below `--fail-under 393`"


def test_the_smallest_without_accumulation() -> None:
    def reaching(gpu: str, size: int, steps: int) -> GpuReport:
        parts = GlobalBatch(
            asked=400,
            reached=400,
            micro_batch_size=size,
            accumulation_steps=steps,
            world_size=1,
        )
        card = on(gpu, size)
        assert card.report.recommendation is not None
        chosen = dataclasses.replace(card.report.recommendation, global_batch=parts)
        report = dataclasses.replace(card.report, recommendation=chosen)
        return dataclasses.replace(card, report=report)

    found = compared(reaching("t4", 100, 4), reaching("a10g", 200, 2), reaching("l40", 400, 1))
    told = printed(found, 400)
    assert "Smallest GPU with a recommended batch size: t4 (Tesla T4), batch size 100 in" in told
    assert "Global batch 400: micro-batch 100 x 4 accumulation steps x 1 GPU." in told
    assert "Smallest GPU without accumulation: l40 (NVIDIA L40), batch size 400 in" in told
    assert compared(*found.cards[:2]).smallest_without_accumulation is None


@pytest.mark.parametrize(
    ("report", "errors", "code"),
    [
        (THREE, [], ExitCode.OK),
        (dataclasses.replace(THREE, fail_under=393), [], ExitCode.DOES_NOT_FIT),
        (compared(failed("t4")), [TargetError("no")], ExitCode.TARGET_FAILED),
        (THREE, [InternalError("a bug")], ExitCode.INTERNAL),
        (compared(on("t4", 9), not_tried=("a10g",)), [], ExitCode.STOPPED_EARLY),
        (compared(failed("t4"), on("l4", 9, recommendation=None)), [], ExitCode.DOES_NOT_FIT),
    ],
)
def test_exit_codes(report: ComparedGpus, errors: list[TargetError], code: int) -> None:
    assert exit_code(report, errors) == code


def test_status() -> None:
    assert (THREE.status, THREE.message) == ("complete", None)
    assert compared(failed("t4"), failed("l4")).status == "failed"
    stopped = compared(on("t4", 9), not_tried=("a10g",), stopped_by="interrupted")
    assert (stopped.status, stopped.message) == ("partial", "interrupted")
    assert "Not tried: a10g." in printed(stopped, 80)
    partly = on("t4", 9, status="partial", message="a trial took too long")
    assert compared(partly, on("l4", 9)).message == "a trial took too long"


def test_warnings_that_differ_in_numbers_are_told_once() -> None:
    def warned(gpu: str, *messages: str) -> GpuReport:
        return on(gpu, 9, warnings=tuple(ReportWarning(code="c", message=m) for m in messages))

    report = compared(
        warned("t4", "it is coarse", "fp32: 5 retries"),
        warned("l4", "it is coarse", "fp32: 7 retries", "bf16: 7 retries"),
        warned("l40", "it is coarse", "fp32: 12 retries"),
    )
    assert [warning.message for warning in report.warnings] == [
        "it is coarse",
        "t4: fp32: 5 retries; likewise on l4, l40",
        "l4: bf16: 7 retries",
    ]


def test_reasons_that_differ_in_numbers_are_told_once() -> None:
    def full(gpu: str, tried: str) -> GpuReport:
        message = f"batch size 1 does not run: it needs 219.7 GiB; nor do {tried}"
        result = PrecisionResult(precision="fp32", status="nothing_fits", message=message)
        return on(gpu, 2, results=(result,), recommendation=None)

    few = compared(full("t4", "2, 5"), full("l4", "2, 5"), full("l40", "2, 5, 40"), on("h200", 9))
    said = "fp32: batch size 1 does not run: it needs 219.7 GiB; nor do 2, 5"
    assert reasons(few) == [f"t4, l4: {said}; likewise on l40"]
    many = compared(*(full(gpu.key, "2, 5") for gpu in different_gpus()[:20]), on("h200", 9))
    (told,) = reasons(many)
    assert told.endswith(f" and 15 others: {said}")


# ------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table(width: int, golden: Callable[[str, str], None]) -> None:
    golden(f"compared-gpus-{width}.txt", printed(THREE, width))


def test_markdown(golden: Callable[[str, str], None]) -> None:
    golden("compared-gpus.md", compared_to_markdown(THREE))


def test_a_narrow_screen_has_every_figure() -> None:
    told = printed(THREE, 20).splitlines()
    assert [line for line in told if line.startswith("GPU: ")] == [
        f"GPU: {gpu}" for gpu in ("t4", "a10g", "rtx-4090")
    ]
    assert "recommended: 392" in told


def test_nothing_is_shown_where_all_failed() -> None:
    assert printed(compared(failed("t4"), failed("l4")), 80) == ""


def test_csv_names_the_gpu_of_each_trial() -> None:
    rows = list(csv.DictReader(io.StringIO(compared_to_csv(THREE))))
    assert {row["gpu"] for row in rows} == {"a10g", "rtx-4090"}
    trials = sum(len(r.trials) for card in THREE.cards for r in card.report.results)
    assert len(rows) == trials


def test_json_has_the_report_of_each() -> None:
    document = json.loads(to_json(THREE))
    jsonschema.Draft202012Validator(gpus_schema()).validate(document)
    assert document["smallest"] == "a10g"
    assert [card.pop("gpu") for card in document["cards"]] == ["t4", "a10g", "rtx-4090"]
    for card, found in zip(document["cards"], THREE.cards, strict=True):
        assert read_report(json.dumps(card).encode()) == Report.from_json(found.report.to_json())
    with pytest.raises(ValueError, match="it compares GPUs: each of its `cards` is a report"):
        read_report(to_json(THREE).encode())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(gpus_schema()).validate({**document, "cards": [{}]})


def test_github_gets_the_smallest() -> None:
    assert outputs(THREE) == "batch_size=200\nprecision=amp-bf16\ngpu=a10g\n"
    none = compared(failed("t4"))
    assert outputs(none) == "batch_size=\nprecision=\ngpu=\n"
    told = annotation(ExitCode.TARGET_FAILED, none, "") or ""
    assert told.endswith("%0Afp32: it wants a newer GPU\n")
