"""What `bsfind inspect` shows and writes, from a report made by hand."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from typing import get_args

import jsonschema
import pytest
from rich.console import Console

from bsfind.inspect.compose import Origin
from bsfind.inspect.inspection import (
    CATEGORIES,
    Category,
    Composition,
    FailedRequest,
    InspectionReport,
    ModuleShare,
    Moment,
    PrecisionInspection,
)
from bsfind.inspect.screen import print_inspection
from bsfind.records import Assumption, DeviceInfo, ReportWarning
from bsfind.report.json import inspection_schema, schema, to_json
from bsfind.units import GIB, MIB, format_bytes

SIZES = {
    "parameters": 98 * MIB,
    "gradients": 41 * MIB,
    "optimizer_state": 195 * MIB,
    "activations": 5 * GIB + 812 * MIB,
    "weight_casts": 49 * MIB,
    "inputs": 37 * MIB,
    "temporaries": 1023 * MIB,
    "workspace": 72 * MIB,
}
FORWARD_END = {**SIZES, "activations": 6 * GIB}
del FORWARD_END["gradients"], FORWARD_END["temporaries"]
PATHS = (
    *("layer1.0.conv2", "layer1.0.bn2", "stem.0"),
    "encoder.transformer.layers.11.attention.output.dense.projection",
    *(f"layer2.{index}.conv1" for index in range(7)),
)


def modules(categories: dict[str, int]) -> tuple[ModuleShare, ...]:
    """Share categories out, in ever smaller parts."""
    rest, shares = dict(categories), []
    for path in PATHS:
        part = {name: nbytes // 3 for name, nbytes in rest.items() if nbytes // 3}
        rest = {name: nbytes - part.get(name, 0) for name, nbytes in rest.items()}
        shares.append(ModuleShare(path=path, class_name="Conv2d", categories=part))
    shares.append(ModuleShare(path=None, class_name=None, categories=rest))
    shares.append(ModuleShare(path="", class_name="ResNet", categories={"kept": 512}))
    return tuple(sorted(shares, key=lambda share: -share.total_bytes))


def moment(at: str, categories: dict[str, int]) -> Moment:
    total = sum(categories.values())
    return Moment(at=at, allocated_bytes=total, categories=categories)  # type: ignore[arg-type]


FITS = Composition(
    step=2,
    phase="backward",
    module="layer1.0.conv2",
    operator="aten::convolution_backward",
    allocated_bytes=sum(SIZES.values()) + 512,
    reserved_bytes=8 * GIB,
    peak_reserved_bytes=8 * GIB + 20 * MIB,
    categories={**SIZES, "kept": 512},
    modules=modules(SIZES),
    timeline=(
        moment("forward_end", FORWARD_END),
        moment("peak", {**SIZES, "kept": 512}),
        moment("step_end", {name: SIZES[name] for name in ("parameters", "optimizer_state")}),
    ),
)
FAILS = dataclasses.replace(
    FITS,
    step=1,
    phase="forward",
    operator="aten::convolution",
    timeline=(moment("failure", {**SIZES, "kept": 512}),),
    failed=FailedRequest(
        tried_bytes=784 * MIB, category="activations", message="out of memory: tried …"
    ),
)
REPORT = InspectionReport(
    bsfind_version="0.1.0",
    command=("bsfind", "inspect", "zoo:resnet50"),
    reproduce="bsfind inspect zoo:resnet50 --batch-size 64",
    device=DeviceInfo(
        kind="simulated",
        name="NVIDIA GeForce RTX 3090",
        index=0,
        compute_capability="8.6",
        total_bytes=23 * GIB + 600 * MIB,
        free_bytes=23 * GIB,
        capacity_bytes=23 * GIB,
        context_bytes=600 * MIB,
        context_source="modelled",
        torch_version="2.13.0+cpu",
    ),
    stands_for=None,
    workload={"target": "zoo:resnet50", "mode": "train"},
    class_name="ResNet",
    batch_size=64,
    steps=3,
    assumptions=(
        Assumption(
            what="loss",
            value="cross-entropy on the output (N, 1000)",
            why="the output is class scores",
        ),
    ),
    results=(
        PrecisionInspection(
            precision="fp32",
            status="fits",
            parameters=25_557_032,
            optimizer="AdamW",
            composition=FITS,
        ),
        PrecisionInspection(
            precision="amp-bf16",
            status="does_not_fit",
            parameters=25_557_032,
            optimizer="AdamW",
            composition=FAILS,
            message="out of memory: tried …",
        ),
        PrecisionInspection(precision="tf32", status="unsupported", message="it has no TF32"),
    ),
    warnings=(ReportWarning(code="estimate", message="an operator is modelled coarsely"),),
)


def screen(width: int, report: InspectionReport = REPORT, top: int = 10) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, markup=False)
    print_inspection(report, console, top=top)
    return "".join(line.rstrip() + "\n" for line in stream.getvalue().splitlines())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_screens(width: int, golden: Callable[[str, str], None]) -> None:
    golden(f"inspect-{width}.txt", screen(width))


@pytest.mark.parametrize("width", [20, 35, 50, 60, 70, 80, 100, 120, 200])
def test_no_number_is_cut(width: int) -> None:
    text = screen(width)
    assert "…" not in re.sub(r"…\S*\.", "", text).replace("tried …", "")  # paths alone are
    assert len(re.findall(re.escape(format_bytes(FITS.allocated_bytes)), text)) >= 4
    for nbytes in SIZES.values():
        assert format_bytes(nbytes) in text
    for share in [share for share in FITS.modules if share.path is not None][:10]:
        assert format_bytes(share.total_bytes) in text
    if width >= 60:
        tables = [
            line
            for line in text.splitlines()
            if "iB" in line and " in step " not in line and " · " not in line
        ]
        assert all(len(line) <= width for line in tables)


def test_top() -> None:
    assert screen(120).count("2 others") == 2
    assert screen(120, top=1).count("11 others") == 2
    assert "other" not in screen(120, top=12).replace("other ", "").replace("otherwise", "")
    everything = screen(200, top=0)
    assert "other" not in everything.replace("other ", "").replace("otherwise", "")
    assert all(path in everything for path in PATHS)
    assert "outside the model" in everything
    assert "the model itself" in everything


def test_it_says_which_gpu_it_stands_for() -> None:
    counterpart = dataclasses.replace(REPORT, stands_for="NVIDIA GeForce RTX 3090")
    assert "stands for the NVIDIA GeForce RTX 3090 of this machine" in screen(120, counterpart)


def test_the_document_passes_its_schema() -> None:
    schema = inspection_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    document = json.loads(to_json(REPORT))
    validator.validate(document)
    assert not validator.is_valid({**document, "kind": "report"})
    assert not validator.is_valid({k: v for k, v in document.items() if k != "results"})
    fits, fails, _ = document["results"]
    assert (
        sum(entry["total_bytes"] for entry in fits["composition"]["modules"])
        == (fits["composition"]["allocated_bytes"])
    )
    assert fails["composition"]["failed"]["tried_bytes"] == 784 * MIB
    for result in REPORT.results:
        assert PrecisionInspection.from_json(result.to_json()) == result


def test_the_schema_knows_every_category_and_phase() -> None:
    assert set(CATEGORIES) == set(get_args(Category))
    known = inspection_schema()["$defs"]
    assert tuple(known["categories"]["properties"]) == CATEGORIES
    composition = known["composition"]["properties"]
    failed, _ = composition["failed"]["anyOf"]
    assert tuple(failed["properties"]["category"]["enum"]) == CATEGORIES
    assert set(composition["phase"]["enum"]) == set(get_args(Origin))


def test_the_schema_knows_every_precision_of_a_prediction() -> None:
    of_report = schema()["$defs"]["result"]["properties"]["precision"]["enum"]
    known = inspection_schema()["$defs"]["result"]["properties"]["precision"]["enum"]
    assert {*known, "launched"} == set(of_report)


def test_what_several_gpus_need_is_listed_where_it_occurs() -> None:
    sizes = {category: (number + 1) * MIB for number, category in enumerate(CATEGORIES)}
    total = sum(sizes.values())
    shared = dataclasses.replace(
        FITS,
        allocated_bytes=total,
        categories=sizes,
        modules=(ModuleShare(path="block", class_name="FSDPBlock", categories=sizes),),
        timeline=(moment("peak", sizes),),
    )
    result = dataclasses.replace(REPORT.results[0], composition=shared)
    device = dataclasses.replace(REPORT.device, nccl_bytes=700 * MIB, nccl_source="modelled")
    text = screen(120, dataclasses.replace(REPORT, device=device, results=(result,)))
    assert " · NCCL 700.0 MiB (modelled)\n" in text
    assert re.search(r"\nNCCL +700\.0 MiB\n", text)
    assert "NCCL" not in screen(120)
    for title in _OF_SEVERAL_GPUS:
        assert title not in screen(120)
        assert f"\n{title} " in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("block ")]
    # Parameters are 1, 2 and 3 MiB, gradients 4 and 5, the optimizer's state 7, activations 8 and 9.
    assert row[1:12:2] == [
        f"{total / MIB:.1f}",
        "6.0",
        "9.0",
        "7.0",
        "17.0",
        f"{total / MIB - 39:.1f}",
    ]


_OF_SEVERAL_GPUS = (
    *("sharded parameters", "unsharded parameters", "unsharded gradients", "gradient buckets"),
    *("all-gather buffers", "reduce-scatter buffers"),
)


def test_what_counts_as_fitting() -> None:
    fits, fails, unsupported = REPORT.results
    refused = dataclasses.replace(fails, status="refused", composition=None)

    def answer(*results: PrecisionInspection) -> bool:
        return dataclasses.replace(REPORT, results=results).fits

    assert answer(fits, unsupported)
    assert not answer(fits, fails)
    assert not answer(fits, refused)
    assert not answer(unsupported)
