"""The answer of a search: a row for each precision, the recommendation, and the report, to JSON and back.

Sizes are bytes, times seconds; None (JSON null) is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from bsfind.records import (
    Assumption,
    DeviceInfo,
    ModelInfo,
    Prediction,
    ReportWarning,
    record_of,
)
from bsfind.trial import Leak, RefusedSizes, Trial

SCHEMA_VERSION = "1.0"

LAUNCHED = "launched"
"""What stands for the precision of a launched command, which bsfind does not know."""

ResultStatus = Literal["ok", "nothing_fits", "error", "unsupported", "unfinished"]

ReportStatus = Literal["complete", "partial", "failed"]


@dataclass(frozen=True, kw_only=True)
class PredictedPeaks:
    """What was predicted before the search on a real GPU; the peaks are at the recommended size."""

    max_batch_size: int
    recommended_batch_size: int | None
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    max_axis_size: int | None = None
    recommended_axis_size: int | None = None

    @property
    def max_size(self) -> int:
        """The largest batch size, or size of the axis."""
        return self.max_axis_size or self.max_batch_size

    @property
    def recommended_size(self) -> int | None:
        """The recommended batch size, or size of the axis."""
        return self.recommended_axis_size or self.recommended_batch_size


@dataclass(frozen=True, kw_only=True)
class ExpandableSegments:
    """What `PYTORCH_ALLOC_CONF=expandable_segments:True` gains against fragmentation.

    The peaks are at `batch_size`: the largest that ran with it within the budget, in a fresh process.
    """

    batch_size: int
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Whether the sizes just below the recommended one run too: near the limit, some do not.

    They are batch sizes, or sizes of the axis where one is searched, and have the same budget as the
    recommended one.

    Attributes:
        ran: sizes below the recommended one that ran, or were replayed.
        estimated: those that did not run, of which a replay of recorded allocations says that they would.
        failed: sizes below the one in `moved_from` (or the recommended one) that did not run.
        moved_from: the size that would be recommended if none below it had failed; None if it is.
        all_tried: whether every size ran that had to; False: there was no time for it, or a size below the
            recommended one failed, and none was found without that.
    """

    ran: tuple[int, ...]
    estimated: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    moved_from: int | None = None
    all_tried: bool = True


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """How to reach a global batch: micro-batch x accumulation steps x GPUs.

    Attributes:
        asked: samples for each optimizer step that were asked for.
        reached: product of the three factors; the nearest where `asked` cannot be met.
    """

    asked: int
    reached: int
    micro_batch_size: int
    accumulation_steps: int
    world_size: int


@dataclass(frozen=True, kw_only=True)
class PrecisionResult:
    """What was found in one precision.

    `peak_*` and the times are those of the trial at `recommended_batch_size`.

    Attributes:
        precision: the precision that ran (never `amp`); of a launched command, the name of the variant.
        remedy: what `--compare` changed for this row; None in a row of `--precision`.
        seq_len: which of several `--seq-len` this row is at, tokens; None where there are not several.
        status: `ok`; `nothing_fits`; `error` (the user's code failed); `unsupported` by the
            device; `unfinished` (stopped before there was an answer).
        max_batch_size: the largest that ran within the capacity.
        recommended_batch_size: the largest that leaves the headroom free.
        is_maximum_proven: whether the next size within the tolerance did not run, or was not allowed.
        fragmentation_bytes: peak reserved minus peak allocated.
        peak_fraction: peak reserved as a part of the total memory of the device; of several ranks, of the
            limiting rank's.
        verified: whether the recommended size ran in a process of its own; False if it is predicted.
        smallest_failed_batch_size: the smallest above the maximum that did not run.
        confirmation: trial of the recommended size in a fresh process.
        saturation_batch_size: the smallest of the timed sizes whose samples/s is within 2 % of the best;
            None if nothing was timed.
        expandable_segments: what that setting of the allocator gains; None if it was not tried.
        trials: trials of the search, in their order, and that of the recommended size.
        timings: trials of smaller sizes that ran for their speed alone.
        predicted: what was predicted before anything ran; None without a prediction.
        message: why the status is not `ok`, or nothing is recommended.
        weights_dtype: dtype of the floating-point parameters, where they are not all float32 and the
            precision does not convert them: `bfloat16`, `mixed bfloat16/float32`.
        max_axis_size, recommended_axis_size, smallest_failed_axis_size: the same of an axis that is
            searched; the fields with `batch_size` have the batch size then.
        global_batch_size: samples of all ranks in each optimizer step, at the recommended size; None where
            one GPU trains.
        neighbours: whether the sizes just below the recommended one run too; None where that was not tried.
    """

    precision: str
    remedy: str | None = None
    seq_len: int | None = None
    status: ResultStatus
    max_batch_size: int | None = None
    recommended_batch_size: int | None = None
    is_maximum_proven: bool = False
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    fragmentation_bytes: int | None = None
    peak_fraction: float | None = None
    samples_per_s: float | None = None
    step_time_s: float | None = None
    verified: bool = False
    smallest_failed_batch_size: int | None = None
    confirmation: Trial | None = None
    saturation_batch_size: int | None = None
    expandable_segments: ExpandableSegments | None = None
    global_batch: GlobalBatch | None = None
    leak: Leak | None = None
    refused_sizes: RefusedSizes | None = None
    trials: tuple[Trial, ...] = ()
    timings: tuple[Trial, ...] = ()
    predicted: PredictedPeaks | None = None
    message: str | None = None
    weights_dtype: str | None = None
    max_axis_size: int | None = None
    recommended_axis_size: int | None = None
    smallest_failed_axis_size: int | None = None
    global_batch_size: int | None = None
    neighbours: Neighbours | None = None

    @property
    def max_size(self) -> int | None:
        """The largest batch size that ran, or size of the axis."""
        return self.max_axis_size or self.max_batch_size

    @property
    def recommended_size(self) -> int | None:
        """The recommended batch size, or size of the axis."""
        return self.recommended_axis_size or self.recommended_batch_size

    @property
    def smallest_failed_size(self) -> int | None:
        """The smallest size above the maximum that did not run, of the batch or the axis."""
        return self.smallest_failed_axis_size or self.smallest_failed_batch_size


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The batch size and the precision to train with.

    Attributes:
        batch_size: samples in a batch; in a micro-batch with `--global-batch`.
        seq_len: the longest of several `--seq-len`, which it is for, tokens; else None.
        check: the command that tries it again.
        axis_size: size of the axis, where one is searched at this batch size.
    """

    batch_size: int
    precision: str
    seq_len: int | None = None
    reason: str
    global_batch: GlobalBatch | None = None
    check: str | None = None
    axis_size: int | None = None

    @property
    def size(self) -> int:
        """The number that was searched: the batch size, or the size of the axis."""
        return self.batch_size if self.axis_size is None else self.axis_size


@dataclass(frozen=True, kw_only=True)
class GpusNeeded:
    """The smallest number of GPUs on which a model trains, and what one of them holds, bytes.

    Attributes:
        world_size: the number.
        strategy: `fsdp`.
        precision: precision of the step.
        batch_size: samples on each GPU.
        parameter_bytes, gradient_bytes, optimizer_bytes: the shards of a rank.
        activation_bytes: what the peak allocated has besides: activations, and parameters that are gathered.
        peak_reserved_bytes: peak reserved on each GPU.
        capacity_bytes: what the allocator may reserve there, the headroom left free.
    """

    world_size: int
    strategy: str
    precision: str
    batch_size: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    peak_reserved_bytes: int
    capacity_bytes: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one `run`, `check` or `launch` found out. `to_json` returns the public document.

    Attributes:
        workload: what one step is; {} of a launched command, which says it itself.
        parallel: how several GPUs share the training; None where there is one.
        gpus_needed: how many GPUs it takes where nothing fits on one; None where that was not looked for.
        launch: the command, its placeholders, and the folder of its logs; None where bsfind trains.
    """

    bsfind_version: str
    status: ReportStatus
    command: tuple[str, ...]
    reproduce: str
    device: DeviceInfo | None
    budget_bytes: int | None
    model: ModelInfo | None
    workload: dict[str, Any]
    search: dict[str, Any]
    results: tuple[PrecisionResult, ...]
    recommendation: Recommendation | None
    assumptions: tuple[Assumption, ...] = ()
    warnings: tuple[ReportWarning, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0
    prediction: Prediction | None = None
    parallel: dict[str, Any] | None = None
    gpus_needed: GpusNeeded | None = None
    launch: dict[str, Any] | None = None
    message: str | None = None

    @property
    def simulated(self) -> bool:
        """Whether the figures are predicted: nothing ran."""
        return self.device is not None and self.device.kind == "simulated"

    @property
    def axis(self) -> str | None:
        """The name of what was searched instead of the batch size; None: the batch size was."""
        axis = self.workload.get("axis")  # reports of older versions have none
        return str(axis["name"]) if axis else None

    @property
    def searched(self) -> str:
        """The name of the number that was searched."""
        return self.axis or "batch size"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document (schema version `SCHEMA_VERSION`)."""
        device = None
        if self.device is not None:
            device = {**asdict(self.device), "budget_bytes": self.budget_bytes}
        model = None
        if self.model is not None:
            model = asdict(self.model)
            del model["weights_dtype"]  # each result has that of its precision
            del model["convolution_workspaces"]  # `prediction` has it
        assumptions = [asdict(assumption) for assumption in self.assumptions]
        return {
            "schema_version": SCHEMA_VERSION,
            "bsfind_version": self.bsfind_version,
            "status": self.status,
            "simulated": self.simulated,
            "prediction": asdict(self.prediction) if self.prediction else None,
            "command": list(self.command),
            "reproduce": self.reproduce,
            "device": device,
            "model": model,
            "workload": {**self.workload, "assumptions": assumptions} if self.workload else None,
            "parallel": self.parallel,
            "gpus_needed": asdict(self.gpus_needed) if self.gpus_needed else None,
            "launch": {**self.launch, "assumptions": assumptions} if self.launch else None,
            "search": self.search,
            "results": [self._row(result) for result in self.results],
            "recommendation": self._row(self.recommendation) if self.recommendation else None,
            "warnings": [asdict(warning) for warning in self.warnings],
            "message": self.message,
            "environment": self.environment,
            "duration_s": round(self.duration_s, 3),
        }

    def _row(self, record: PrecisionResult | Recommendation) -> dict[str, Any]:
        """Return a row as JSON: one of a launched command has the name of a variant for its precision."""
        row: dict[str, Any] = {}
        for name, value in asdict(record).items():
            row[name] = value
            if name == "precision":
                row["variant"] = None
                if self.launch is not None:
                    row |= {"precision": LAUNCHED, "variant": value}
        return row

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Return the report that `to_json` wrote.

        Raises:
            ValueError: the document has another schema version.
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {data.get('schema_version')}, not {SCHEMA_VERSION}")
        device = dict(data["device"]) if data["device"] else None
        budget = device.pop("budget_bytes") if device else None
        workload = dict(data["workload"] or {})
        launch = dict(data["launch"]) if data.get("launch") else None
        # Reports of older versions have none.
        assumptions = (workload if launch is None else launch).pop("assumptions", [])
        recommendation = data.get("recommendation")
        own = {
            **{"device": device, "workload": workload, "launch": launch},
            "assumptions": assumptions,
            "results": [_named(row) for row in data["results"]],
            "recommendation": _named(recommendation) if recommendation else None,
        }
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        return record_of(cls, {**values, **own, "budget_bytes": budget})


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the name of its variant, if it has one, for its precision."""
    fields = {name: value for name, value in row.items() if name != "variant"}
    return {**fields, "precision": row.get("variant") or row["precision"]}
