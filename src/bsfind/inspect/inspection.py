"""The records of `bsfind inspect`: the composition of memory at one batch size. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from bsfind.records import Assumption, DeviceInfo, ReportWarning

Category = Literal[
    "parameters",
    "sharded_parameters",
    "unsharded_parameters",
    "gradients",
    "unsharded_gradients",
    "gradient_buckets",
    "optimizer_state",
    "activations",
    "outputs",
    "weight_casts",
    "inputs",
    "temporaries",
    "all_gather_buffers",
    "reduce_scatter_buffers",
    "workspace",
    "kept",
]

CATEGORIES: tuple[Category, ...] = get_args(Category)
"""In the order in which they are shown. Each allocated byte is in exactly one category:

* `parameters`: parameters and buffers.
* `sharded_parameters`: the shards of parameters that this rank holds.
* `unsharded_parameters`: parameters that FSDP2 has gathered.
* `gradients`: tensors that are, or become, the `.grad` of a parameter, or of its shard.
* `unsharded_gradients`: gradients of gathered parameters, until ranks reduce and scatter them.
* `gradient_buckets`: copies of gradients that DistributedDataParallel sums over the ranks.
* `optimizer_state`: tensors of the optimizer's state, and others that `optimizer.step` leaves allocated.
* `activations`: tensors that a forward pass, or a recomputation, leaves allocated for the backward pass.
* `outputs`: tensors that a forward pass leaves allocated in inference.
* `weight_casts`: autocast's copies of parameters in lower precision.
* `inputs`: the batch and the targets.
* `temporaries`: tensors that are freed in the pass in which they were allocated, gradients of
  activations among them.
* `all_gather_buffers`: flat tensors from which, and to which, FSDP2 gathers parameters.
* `reduce_scatter_buffers`: flat copies of gradients that FSDP2 reduces and scatters.
* `workspace`: memory of kernels and libraries (cuBLAS, cuDNN) besides tensors.
* `kept`: other tensors that outlive the step.
"""


@dataclass(frozen=True, kw_only=True)
class ModuleShare:
    """The memory of one module without its children's.

    Attributes:
        path: the name in `named_modules`; `""`: the model itself; None: outside the model (loss,
            optimizer, inputs).
        class_name: class of the module; None outside the model.
        categories: bytes by category; zeros are left out.
    """

    path: str | None
    class_name: str | None
    categories: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """The sum of all categories."""
        return sum(self.categories.values())


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The memory that is allocated at one moment.

    Attributes:
        at: `forward_end`, `peak`, `failure` or `step_end`, of the step of the peak.
        allocated_bytes: the sum of all categories.
        categories: bytes by category; zeros are left out.
    """

    at: Literal["forward_end", "peak", "failure", "step_end"]
    allocated_bytes: int
    categories: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class FailedRequest:
    """The request that did not fit.

    Attributes:
        tried_bytes: the requested size.
        category: the category of the block.
        message: the text of PyTorch's error.
    """

    tried_bytes: int
    category: Category
    message: str


@dataclass(frozen=True, kw_only=True)
class Composition:
    """The composition of memory at the peak, or at the failure.

    Attributes:
        step: number of the step in the trial, from 1 on; 0: while the model is loaded.
        phase: `load`, `inputs`, `forward`, `recompute` (activation checkpointing), `backward`,
            `optimizer`, or `setup` (between them).
        module: the module of the request that makes the peak, or that failed; see `ModuleShare.path`.
        operator: the operator of that request.
        allocated_bytes: the sum of `categories`, and of `modules`.
        reserved_bytes: memory that the allocator has reserved at that moment.
        peak_reserved_bytes: peak reserved of the trial.
        categories: bytes by category; zeros are left out.
        modules: the shares of the modules, the largest first.
        timeline: the moments of that step, in order.
        failed: the request that did not fit; None: all fitted.
    """

    step: int
    phase: str
    module: str | None
    operator: str
    allocated_bytes: int
    reserved_bytes: int
    peak_reserved_bytes: int
    categories: Mapping[str, int]
    modules: tuple[ModuleShare, ...]
    timeline: tuple[Moment, ...] = ()
    failed: FailedRequest | None = None

    @property
    def cache_bytes(self) -> int:
        """Bytes that are reserved and not allocated: the allocator's cache, fragments included."""
        return self.reserved_bytes - self.allocated_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types, with sums that follow from them."""
        data = asdict(self)
        data["cache_bytes"] = self.cache_bytes
        for share, entry in zip(self.modules, data["modules"], strict=True):
            entry["total_bytes"] = share.total_bytes
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Composition:
        """Return the composition that `to_json` wrote."""
        fields = {name: value for name, value in data.items() if name != "cache_bytes"}
        fields["modules"] = tuple(
            ModuleShare(**{name: value for name, value in entry.items() if name != "total_bytes"})
            for entry in data["modules"]
        )
        fields["timeline"] = tuple(Moment(**entry) for entry in data["timeline"])
        failed = data["failed"]
        fields["failed"] = FailedRequest(**failed) if failed else None
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class PrecisionInspection:
    """The answer in one precision.

    Attributes:
        precision: `fp32` or another one.
        weights_dtype: dtype of the floating parameters, as in `results.PrecisionResult`.
        status: `fits`, `does_not_fit`, `refused` (the step refuses this batch size, as batch
            normalisation refuses a single sample), or `unsupported` by the GPU.
        message: why there is no composition, or what did not fit.
        parameters: number of parameters; None if the model was not loaded.
        optimizer: class of the optimizer; None in inference.
        composition: the composition of memory; None if the step did not run.
    """

    precision: str
    weights_dtype: str | None = None
    status: Literal["fits", "does_not_fit", "refused", "unsupported"]
    message: str | None = None
    parameters: int | None = None
    optimizer: str | None = None
    composition: Composition | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        found = self.composition
        return {**vars(self), "composition": found.to_json() if found else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PrecisionInspection:
        """Return the answer that `to_json` wrote."""
        found = data["composition"]
        return cls(**{**data, "composition": Composition.from_json(found) if found else None})


@dataclass(frozen=True, kw_only=True)
class InspectionReport:
    """The report of `bsfind inspect`.

    Attributes:
        bsfind_version: version that wrote the report.
        command: the command line.
        reproduce: a command line that gives the same report.
        device: the simulated GPU.
        stands_for: name of the GPU of this machine that it replaces; None: `--gpu` named it.
        workload: what is trained.
        class_name: class of the model; None if it was not loaded.
        batch_size: samples in a (micro-)batch.
        steps: optimizer steps of the trial.
        results: the answer in each precision.
        assumptions: what bsfind chose for the step.
        warnings: warnings for the reader.
    """

    SCHEMA_VERSION: ClassVar[str] = "1.0"

    bsfind_version: str
    command: tuple[str, ...]
    reproduce: str
    device: DeviceInfo
    stands_for: str | None
    workload: Mapping[str, Any]
    class_name: str | None
    batch_size: int
    steps: int
    results: tuple[PrecisionInspection, ...]
    assumptions: tuple[Assumption, ...] = ()
    warnings: tuple[ReportWarning, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the batch size fits in every precision that the GPU has."""
        tried = [result for result in self.results if result.status != "unsupported"]
        return bool(tried) and all(result.status == "fits" for result in tried)

    def to_json(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        device = asdict(self.device)
        del device["other_processes"]  # a simulated GPU has none
        return {
            "schema_version": self.SCHEMA_VERSION,
            "kind": "inspection",
            "bsfind_version": self.bsfind_version,
            "simulated": True,
            "command": list(self.command),
            "reproduce": self.reproduce,
            "device": device,
            "stands_for": self.stands_for,
            "workload": {
                **self.workload,
                "assumptions": [asdict(assumption) for assumption in self.assumptions],
            },
            "class_name": self.class_name,
            "batch_size": self.batch_size,
            "steps": self.steps,
            "results": [result.to_json() for result in self.results],
            "warnings": [asdict(warning) for warning in self.warnings],
        }
