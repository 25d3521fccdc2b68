"""What was found: trials, results per precision, and the report. Frozen, JSON ⇄ (see DESIGN §4).

Sizes are bytes, times seconds; None (JSON null) is unknown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

SCHEMA_VERSION = "1.0"

TrialStatus = Literal["ok", "oom", "error", "timeout"]
ErrorKind = Literal["kernel_limit", "refused", "batch_norm", "leak"]
ResultStatus = Literal["ok", "nothing_fits", "error", "unsupported", "unfinished"]
ReportStatus = Literal["complete", "partial", "failed"]
DeviceKind = Literal["cuda", "simulated"]
ContextSource = Literal["measured", "modelled", "given"]
ModelKind = Literal["convolutional", "attention", "recurrent", "other"]


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """Another process that holds memory of the GPU."""

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """The device that answered.

    Attributes:
        kind: `cuda`: measured; `simulated`: predicted.
        name: as torch names it.
        index: as torch counts it (after CUDA_VISIBLE_DEVICES).
        compute_capability: such as `8.9`; None where there is no such thing (ROCm).
        total_bytes: `total_memory` of the device's properties.
        free_bytes: what PyTorch could use when the worker started: other processes and the CUDA
            context are taken off.
        capacity_bytes: what the search may use: `free_bytes`, or `--memory-limit`.
        context_bytes: what the process holds of the device outside PyTorch's allocator: the CUDA
            context and the kernels and libraries that are loaded; None if it is not known.
        others_bytes: what other processes (and a display, the driver) held when it was opened; None
            if it is not known.
        context_source: where that figure comes from: `measured` when the device was opened,
            `modelled`, or `given` by `--context-memory`.
        supports_bf16: bfloat16 in hardware.
        supports_tf32: TF32 in hardware.
        driver: version of the NVIDIA driver.
        torch_version: of the worker.
        cuda_version: that torch was built for.
        other_processes: processes besides ours that hold memory on it.
    """

    kind: DeviceKind = "cuda"
    name: str
    index: int
    compute_capability: str | None
    total_bytes: int
    free_bytes: int
    capacity_bytes: int
    context_bytes: int | None = None
    context_source: ContextSource | None = None
    others_bytes: int | None = None
    supports_bf16: bool = True
    supports_tf32: bool = True
    driver: str | None = None
    torch_version: str | None = None
    cuda_version: str | None = None
    other_processes: tuple[GpuProcess, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DeviceInfo:
        """Return the device that `dataclasses.asdict` wrote."""
        others = tuple(GpuProcess(**process) for process in data["other_processes"])
        return cls(**{**data, "other_processes": others})


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The model as it was loaded.

    Attributes:
        class_name: class of the model; None in reports of older versions.
        parameters: number of parameters, shared ones once.
        optimizer: the optimizer's class, or None in inference.
        model_bytes: allocated on the device after loading.
        kind: what most of the operators of its traced step are, of those that predictions differ by
            in how exact they are; None: not traced.
        weights_dtype: see `PrecisionResult`.
    """

    class_name: str | None = None
    parameters: int
    optimizer: str | None
    model_bytes: int
    kind: ModelKind | None = None
    weights_dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Memory that grows from step to step: no batch size lasts.

    Attributes:
        bytes_per_step: what each step leaves behind.
        lasts_steps: after how many steps the device is full, at the batch size of the trial.
    """

    bytes_per_step: int
    lasts_steps: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One batch size tried in one precision.

    Attributes:
        batch_size: samples in a (micro-)batch.
        status: `ok`, `oom` (out of memory), `error` (see `error_kind`), `timeout`.
        peak_allocated_bytes: `torch.cuda.max_memory_allocated()` over the trial; None unless ok.
        peak_reserved_bytes: `torch.cuda.max_memory_reserved()` over the trial; None unless ok.
        resident_bytes: allocated between two steps: parameters, buffers, optimizer state.
        activation_bytes: what the forward pass leaves allocated for the backward pass.
        num_alloc_retries: how often the allocator had to flush its cache to go on.
        steady_alloc_retries: how often of these in the second half of the steps, when the allocator
            had time to settle: so it would go on.
        peaks_by_step: peak allocated of each step, in their order.
        error_kind: what the status `error` means: `kernel_limit` (too large for a kernel, for another
            reason than memory), `refused` (the model's code raised, which other sizes may not make it do),
            `batch_norm` (it refuses a batch of one in training), `leak`; None with any other status.
        leak: memory grew with every step.
        steps: optimizer steps that ran.
        step_time_s: mean time of a step after the first (warm-up), synchronised.
        samples_per_s: samples per second of these steps.
        message: why it is not ok.
    """

    batch_size: int
    status: TrialStatus
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    resident_bytes: int | None = None
    activation_bytes: int | None = None
    num_alloc_retries: int = 0
    steady_alloc_retries: int = 0
    peaks_by_step: tuple[int, ...] = ()
    error_kind: ErrorKind | None = None
    leak: Leak | None = None
    steps: int = 0
    step_time_s: float | None = None
    samples_per_s: float | None = None
    message: str | None = None

    @property
    def is_refused(self) -> bool:
        """Whether the model does not accept this size, whatever the memory."""
        return self.error_kind in ("refused", "batch_norm")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {**asdict(self), "peaks_by_step": list(self.peaks_by_step)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trial:
        """Return the trial that `to_json` wrote."""
        leak = data["leak"]
        return cls(
            **{
                **data,
                "peaks_by_step": tuple(data["peaks_by_step"]),
                "leak": Leak(**leak) if leak else None,
            }
        )


@dataclass(frozen=True, kw_only=True)
class RefusedSizes:
    """Batch sizes at which the model's own code raised, though others run.

    Attributes:
        batch_sizes: that were tried and refused, in ascending order.
        error: what the code said at the first of them.
        multiple_of: what every size that was tried afterwards is a multiple of; None if no such number
            was found.
        accepted: which sizes run, as far as was found out: `multiples of 4`, `powers of two`; None if no
            form was found.
    """

    batch_sizes: tuple[int, ...]
    error: str
    multiple_of: int | None
    accepted: str | None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RefusedSizes:
        """Return the sizes that `dataclasses.asdict` wrote."""
        return cls(**{**data, "batch_sizes": tuple(data["batch_sizes"])})


@dataclass(frozen=True, kw_only=True)
class ErrorBound:
    """How far predicted peaks were from real ones, as a part of the real one (0.01 is 1 %).

    Attributes:
        median: of the absolute errors.
        p95: their 95th percentile.
    """

    median: float
    p95: float


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What a comparison of predictions with real runs came to, for one kind of model.

    Attributes:
        runs: how many were compared.
        against: what ran: torch's version, the GPU, and what was not real about it.
        allocated: errors of the peak allocated.
        reserved: errors of the peak reserved.
    """

    runs: int
    against: str
    allocated: ErrorBound
    reserved: ErrorBound

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Accuracy:
        """Return the accuracy that `dataclasses.asdict` wrote."""
        bounds = {name: ErrorBound(**data[name]) for name in ("allocated", "reserved")}
        return cls(**{**data, **bounds})


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a predicted report rests on.

    Attributes:
        torch_version: the torch whose allocator and kernels are modelled.
        allocator: options of the caching allocator that differ from PyTorch's defaults, by name.
        model_kind: which models `accuracy` is about, by the operators of the step; None before a step
            was traced.
        accuracy: how exact predictions for such models were found to be with this version of torch;
            None: not measured.
        no_accuracy_because: why there is none, after the words "Error bound:"; None if there is one, or
            no step was traced.
    """

    torch_version: str
    allocator: dict[str, Any]
    model_kind: ModelKind | None
    accuracy: Accuracy | None
    no_accuracy_because: str | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Prediction:
        """Return the prediction that `dataclasses.asdict` wrote."""
        accuracy = data["accuracy"]
        return cls(**{**data, "accuracy": Accuracy.from_json(accuracy) if accuracy else None})


@dataclass(frozen=True, kw_only=True)
class PredictedPeaks:
    """What was predicted before the search on a real GPU; the peaks are at its recommended size."""

    max_batch_size: int
    recommended_batch_size: int | None
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class ExpandableSegments:
    """What `PYTORCH_ALLOC_CONF=expandable_segments:True` buys against fragmentation.

    Attributes:
        batch_size: the largest that ran with it within the budget, in a fresh process.
        peak_allocated_bytes: at that batch size.
        peak_reserved_bytes: at that batch size.
    """

    batch_size: int
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """How to reach a global batch: micro-batch x accumulation steps x GPUs.

    Attributes:
        asked: samples for each optimizer step that were asked for.
        reached: samples that the three factors make; the nearest where `asked` cannot be met.
        micro_batch_size: samples in a forward pass on one GPU.
        accumulation_steps: micro-batches for each optimizer step.
        world_size: GPUs.
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
        precision: as run (never `amp`).
        remedy: what `--compare` changed for this row; None in a row of `--precision`.
        status: `ok`; `nothing_fits`; `error` (the user's code failed); `unsupported` by the
            device; `unfinished` (stopped before there was an answer).
        max_batch_size: the largest that ran, headroom not counted.
        recommended_batch_size: the largest that leaves the headroom free.
        is_maximum_proven: the next size within the tolerance did not run, or was not allowed.
        fragmentation_bytes: peak reserved less peak allocated: what the allocator holds and cannot use.
        peak_fraction: peak reserved as a part of the device's total memory.
        verified: the recommended size ran in a process of its own; never where nothing runs.
        smallest_failed_batch_size: the smallest above the maximum that did not run.
        confirmation: the trial of the recommended size in a fresh process.
        saturation_batch_size: the smallest of the sizes that were timed whose samples/s is within 2 %
            of the best; None if nothing was timed.
        expandable_segments: what that setting of the allocator buys; None if it was not tried.
        global_batch: how `--global-batch` is reached with the recommended size.
        leak: why there is no recommended size: memory grows with every step.
        refused_sizes: batch sizes at which the model's own code raised; None if there were none.
        trials: of the search, in the order in which they ran, and the confirmed one.
        timings: trials of smaller sizes that ran for their speed alone.
        predicted: what was expected before anything ran; None if nothing was, or nothing runs.
        message: why it is not ok.
        weights_dtype: of the floating parameters, where they are not all float32 and the precision does
            not convert them: `bfloat16`, `mixed bfloat16/float32`.
    """

    precision: str
    remedy: str | None = None
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

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PrecisionResult:
        """Return the result that `to_json` wrote."""
        confirmation, refused = data["confirmation"], data.get("refused_sizes")
        parts: dict[str, type] = {
            "predicted": PredictedPeaks,
            "expandable_segments": ExpandableSegments,
            "global_batch": GlobalBatch,
            "leak": Leak,
        }
        return cls(
            **{
                **data,
                **{name: part(**data[name]) for name, part in parts.items() if data[name]},
                "confirmation": Trial.from_json(confirmation) if confirmation else None,
                "refused_sizes": RefusedSizes.from_json(refused) if refused else None,
                "trials": tuple(Trial.from_json(trial) for trial in data["trials"]),
                "timings": tuple(Trial.from_json(trial) for trial in data["timings"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The answer: this batch size, in this precision, because.

    With `--global-batch` the batch size is that of a micro-batch.

    Attributes:
        batch_size: samples in a (micro-)batch.
        precision: to train in.
        reason: why this one.
        global_batch: how `--global-batch` is reached with it.
        check: the command that tries it again.
    """

    batch_size: int
    precision: str
    reason: str
    global_batch: GlobalBatch | None = None
    check: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportWarning:
    """Something that the reader of the answer must know.

    Attributes:
        code: stable, for scripts.
        message: one sentence, no full stop.
        hint: what to do about it.
    """

    code: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, kw_only=True)
class OutputMemory:
    """What the model returns in a training step of bsfind's.

    Attributes:
        bytes_per_sample: of its tensors, divided by the batch size.
        is_stand_in: whether its mean stands in for a loss that is not known.
    """

    bytes_per_sample: int
    is_stand_in: bool


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """Something about the step that the user did not say, and that bears on the answer.

    Attributes:
        what: it is about: `loss`, `optimizer`, an input, the GPU.
        value: that bsfind chose.
        why: it chose that, or which option says otherwise; no full stop.
    """

    what: str
    value: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one `run` or `check` found out. `to_json` is the public document."""

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
    message: str | None = None

    @property
    def simulated(self) -> bool:
        """Whether the figures are predicted: nothing ran."""
        return self.device is not None and self.device.kind == "simulated"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document (schema version `SCHEMA_VERSION`)."""
        device = None
        if self.device is not None:
            device = {**asdict(self.device), "budget_bytes": self.budget_bytes}
        return {
            "schema_version": SCHEMA_VERSION,
            "bsfind_version": self.bsfind_version,
            "status": self.status,
            "simulated": self.simulated,
            "prediction": asdict(self.prediction) if self.prediction else None,
            "command": list(self.command),
            "reproduce": self.reproduce,
            "device": device,
            "model": _model_json(self.model) if self.model else None,
            "workload": {
                **self.workload,
                "assumptions": [asdict(assumption) for assumption in self.assumptions],
            },
            "search": self.search,
            "results": [result.to_json() for result in self.results],
            "recommendation": asdict(self.recommendation) if self.recommendation else None,
            "warnings": [asdict(warning) for warning in self.warnings],
            "message": self.message,
            "environment": self.environment,
            "duration_s": round(self.duration_s, 3),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Return the report that `to_json` wrote.

        Raises:
            ValueError: the document has another schema version.
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {data.get('schema_version')}, not {SCHEMA_VERSION}")
        values = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        device = dict(data["device"]) if data["device"] else None
        budget = device.pop("budget_bytes") if device else None
        recommendation, prediction = data["recommendation"], data.get("prediction")
        workload = dict(data["workload"])
        assumptions = workload.pop("assumptions", [])  # reports of older versions have none
        return cls(
            **{
                **values,
                "command": tuple(data["command"]),
                "device": DeviceInfo.from_json(device) if device else None,
                "budget_bytes": budget,
                "workload": workload,
                "assumptions": tuple(Assumption(**assumption) for assumption in assumptions),
                "model": ModelInfo(**data["model"]) if data["model"] else None,
                "prediction": Prediction.from_json(prediction) if prediction else None,
                "results": tuple(PrecisionResult.from_json(r) for r in data["results"]),
                "recommendation": _recommendation(recommendation) if recommendation else None,
                "warnings": tuple(ReportWarning(**w) for w in data["warnings"]),
            }
        )


def _model_json(model: ModelInfo) -> dict[str, Any]:
    """Return the model without the dtype of its weights, which each result has for its precision."""
    data = asdict(model)
    del data["weights_dtype"]
    return data


def _recommendation(data: dict[str, Any]) -> Recommendation:
    split = data["global_batch"]
    return Recommendation(**{**data, "global_batch": GlobalBatch(**split) if split else None})
