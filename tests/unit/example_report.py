"""One report, made by hand, that all reporters are tested with (the figures are invented)."""

from __future__ import annotations

import dataclasses

from bsfind.inputs import InputSpec
from bsfind.records import (
    Accuracy,
    Assumption,
    DeviceInfo,
    ErrorBound,
    GpuProcess,
    ModelInfo,
    Prediction,
    ReportWarning,
)
from bsfind.results import ExpandableSegments, GlobalBatch, PrecisionResult, Recommendation, Report
from bsfind.settings import DeviceChoice, SearchLimits, Settings, Workload
from bsfind.trial import Trial
from bsfind.units import GIB, MIB

__all__ = [
    "SETTINGS",
    "compared_report",
    "example_report",
    "ok",
    "out_of_memory",
    "predicted_report",
]

TOTAL = 24080 * MIB
CAPACITY = 23456 * MIB
HEADROOM = int(CAPACITY * 0.05)

SETTINGS = Settings(
    workload=Workload(
        target="mypkg.models:Net",
        model_args=(("width", "64"),),
        inputs=(
            InputSpec(shape=(3, 224, 224)),
            InputSpec(name="labels", shape=(), dtype="int64", low=0, high=1000),
        ),
    ),
    limits=SearchLimits(multiple_of=8),
    device=DeviceChoice(),
)


def ok(batch_size: int, allocated: int, reserved: int, step_time_s: float | None) -> Trial:
    return Trial(
        batch_size=batch_size,
        status="ok",
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        resident_bytes=400 * MIB,
        activation_bytes=allocated - 600 * MIB,
        steps=3,
        step_time_s=step_time_s,
        samples_per_s=batch_size / step_time_s if step_time_s else None,
    )


def confirmed(batch_size: int, allocated: int, reserved: int, step_time_s: float) -> Trial:
    """The fresh process: the first step has no optimizer state yet."""
    trial = ok(batch_size, allocated, reserved, step_time_s)
    peaks = (allocated - 195 * MIB, *(19 * [allocated]))
    return dataclasses.replace(trial, steps=20, peaks_by_step=peaks)


def out_of_memory(batch_size: int) -> Trial:
    return Trial(
        batch_size=batch_size,
        status="oom",
        num_alloc_retries=1,
        steps=1,
        message="CUDA out of memory. Tried to allocate 112.00 MiB",
    )


def _fp32() -> PrecisionResult:
    confirmation = confirmed(200, 20889 * MIB, 22118 * MIB, 0.5)
    return PrecisionResult(
        precision="fp32",
        status="ok",
        max_batch_size=215,
        recommended_batch_size=200,
        is_maximum_proven=True,
        peak_allocated_bytes=confirmation.peak_allocated_bytes,
        peak_reserved_bytes=confirmation.peak_reserved_bytes,
        fragmentation_bytes=1229 * MIB,
        peak_fraction=22118 * MIB / TOTAL,
        samples_per_s=confirmation.samples_per_s,
        step_time_s=confirmation.step_time_s,
        verified=True,
        smallest_failed_batch_size=216,
        confirmation=confirmation,
        saturation_batch_size=200,
        trials=(
            ok(5, 1012 * MIB, 1100 * MIB, 0.02),
            ok(215, 22400 * MIB, 23300 * MIB, 0.535),
            out_of_memory(216),
            confirmation,
        ),
    )


def _amp() -> PrecisionResult:
    confirmation = confirmed(392, 20582 * MIB, 22221 * MIB, 0.392)
    return PrecisionResult(
        precision="amp-bf16",
        status="ok",
        max_batch_size=419,
        recommended_batch_size=392,
        is_maximum_proven=True,
        peak_allocated_bytes=confirmation.peak_allocated_bytes,
        peak_reserved_bytes=confirmation.peak_reserved_bytes,
        fragmentation_bytes=1639 * MIB,
        peak_fraction=22221 * MIB / TOTAL,
        samples_per_s=confirmation.samples_per_s,
        step_time_s=confirmation.step_time_s,
        verified=True,
        smallest_failed_batch_size=420,
        confirmation=confirmation,
        saturation_batch_size=256,
        trials=(
            ok(5, 812 * MIB, 900 * MIB, 0.01),
            ok(419, 22300 * MIB, 23400 * MIB, None),
            out_of_memory(420),
            confirmation,
        ),
        timings=(ok(256, 13600 * MIB, 14700 * MIB, 0.2575),),
    )


def example_report() -> Report:
    """Two precisions, trials that ran and that did not, a warning."""
    return Report(
        bsfind_version="1.2.3",
        status="complete",
        command=("bsfind", "run", "mypkg.models:Net"),
        reproduce="bsfind run mypkg.models:Net --model-arg width=64 --input-shape 3,224,224 "
        "--input labels=:int64:0..1000 --multiple-of 8",
        device=DeviceInfo(
            name="NVIDIA GeForce RTX 4090",
            index=0,
            compute_capability="8.9",
            total_bytes=TOTAL,
            free_bytes=CAPACITY,
            capacity_bytes=CAPACITY,
            context_bytes=386 * MIB,
            context_source="measured",
            others_bytes=238 * MIB,
            driver="570.86.10",
            torch_version="2.13.0",
            cuda_version="12.8",
            other_processes=(GpuProcess(pid=4242, name="Xorg", used_bytes=GIB // 4),),
        ),
        budget_bytes=CAPACITY - HEADROOM,
        model=ModelInfo(
            class_name="Net",
            parameters=25_557_032,
            optimizer="AdamW",
            model_bytes=98 * MIB,
            kind="convolutional",
        ),
        workload=SETTINGS.workload.to_json(),
        search={
            **SETTINGS.limits.to_json(),
            "world_size": 1,
            **SETTINGS.device.to_json(),
            "headroom_bytes": HEADROOM,
            "precisions": list(SETTINGS.precisions),
            "seq_lens": [],
            "compare": [],
            "batch_size": None,
        },
        results=(_fp32(), _amp()),
        recommendation=Recommendation(
            batch_size=392,
            precision="amp-bf16",
            reason="the largest batch that leaves the headroom free; "
            "2.5 x the samples per second of fp32",
            check="bsfind check mypkg.models:Net --precision amp-bf16 --batch-size 392",
        ),
        assumptions=(
            Assumption(
                what="loss",
                value="cross-entropy on the output (N, 1000)",
                why="the output is class scores",
            ),
            Assumption(
                what="optimizer",
                value="AdamW",
                why="no optimizer was named, and most models are trained with this one; "
                "`--optimizer` names another",
            ),
            Assumption(
                what="dtype of input 1",
                value="float32",
                why="no dtype was given; write one behind the shape: `128:int64`",
            ),
        ),
        warnings=(
            ReportWarning(
                code="other_processes",
                message="other processes use this GPU: Xorg (PID 4242, 256.0 MiB)",
                hint="the answer holds for the memory that they leave free now",
            ),
        ),
        environment={
            "python": "3.11.7",
            "platform": "Linux-6.8.0-x86_64-with-glibc2.39",
            "torch": "2.13.0",
            "cuda": "12.8",
            "variables": {"CUDA_VISIBLE_DEVICES": "0"},
        },
        duration_s=41.5,
    )


def compared_report() -> Report:
    """With a global batch, remedies that were compared, and fragmentation."""
    report = example_report()
    fp32, amp = report.results
    parts = GlobalBatch(
        asked=4000, reached=4000, micro_batch_size=250, accumulation_steps=8, world_size=2
    )
    assert report.recommendation is not None
    amp = dataclasses.replace(
        amp,
        global_batch=parts,
        expandable_segments=ExpandableSegments(
            batch_size=424, peak_allocated_bytes=22000 * MIB, peak_reserved_bytes=22250 * MIB
        ),
    )
    checkpointing = dataclasses.replace(
        amp,
        remedy="checkpointing",
        max_batch_size=1190,
        recommended_batch_size=1104,
        samples_per_s=760.0,
        global_batch=None,
        expandable_segments=None,
    )
    compiled = PrecisionResult(
        precision="amp-bf16", remedy="compile", status="error", message="no compiler"
    )
    return dataclasses.replace(
        report,
        search={**report.search, "compare": ["checkpointing", "compile"]},
        results=(fp32, amp, checkpointing, compiled),
        recommendation=dataclasses.replace(report.recommendation, global_batch=parts),
    )


def _untimed(trial: Trial) -> Trial:
    return dataclasses.replace(trial, step_time_s=None, samples_per_s=None)


def _predicted(result: PrecisionResult) -> PrecisionResult:
    return dataclasses.replace(
        result,
        samples_per_s=None,
        step_time_s=None,
        verified=False,
        confirmation=None,
        saturation_batch_size=None,
        timings=(),
        trials=tuple(_untimed(trial) for trial in result.trials),
    )


def predicted_report() -> Report:
    """The same as a prediction for a GPU that is not there."""
    report = example_report()
    device = DeviceInfo(
        kind="simulated",
        name="NVIDIA GeForce RTX 4090",
        index=0,
        compute_capability="8.9",
        total_bytes=TOTAL,
        free_bytes=TOTAL - 442 * MIB,
        capacity_bytes=TOTAL - 442 * MIB,
        context_bytes=442 * MIB,
        context_source="modelled",
        torch_version="2.13.0",
    )
    settings = dataclasses.replace(SETTINGS, device=DeviceChoice(device="sim", gpu="rtx-4090"))
    return dataclasses.replace(
        report,
        reproduce=f"{report.reproduce} --gpu rtx-4090",
        device=device,
        budget_bytes=int(device.capacity_bytes * 0.95),
        prediction=Prediction(
            torch_version="2.13.0",
            allocator={"expandable_segments": True},
            model_kind="convolutional",
            accuracy=Accuracy(
                runs=60,
                against="torch 2.13.0+cu130 on a fake NVIDIA H100",
                allocated=ErrorBound(median=0.0, p95=0.012),
                reserved=ErrorBound(median=0.004, p95=0.05),
            ),
        ),
        search={**report.search, **settings.device.to_json()},
        results=tuple(_predicted(result) for result in report.results),
        recommendation=Recommendation(
            batch_size=392,
            precision="amp-bf16",
            reason="the largest batch that leaves the headroom free; the largest of 2 precisions",
        ),
        warnings=(
            ReportWarning(
                code="coarse_estimate",
                message="the workspace of `my_lib::fused` is not known",
                hint="keep more headroom",
            ),
        ),
        environment={**report.environment, "cuda": None},
    )
