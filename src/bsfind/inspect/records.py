"""What memory is made of at one batch size: the records of `bsfind inspect`. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from bsfind.records import Assumption, DeviceInfo, ReportWarning

Category = Literal[
    "parameters",
    "gradients",
    "optimizer_state",
    "activations",
    "outputs",
    "weight_casts",
    "inputs",
    "temporaries",
    "workspace",
    "kept",
]

CATEGORIES: tuple[Category, ...] = get_args(Category)
"""In the order in which they are shown. Each allocated byte is in exactly one:

* `parameters`: parameters and buffers.
* `gradients`: what is, or becomes, the `.grad` of a parameter.
* `optimizer_state`: what `optimizer.step` leaves behind.
* `activations`: what a forward pass leaves behind for the backward pass, or a recomputation in it.
* `outputs`: what a forward pass leaves behind in inference.
* `weight_casts`: autocast's copies of parameters in lower precision.
* `inputs`: the batch and the targets.
* `temporaries`: tensors that die within the pass in which they were made, gradients of activations
  among them.
* `workspace`: what kernels and libraries (cuBLAS, cuDNN) take besides tensors.
* `kept`: whatever else outlives the step.
"""


@dataclass(frozen=True, kw_only=True)
class ModuleShare:
    """What one module holds, its children's not included.

    Attributes:
        path: as `named_modules` names it, `""` the model itself; None: outside the model (loss,
            optimizer, inputs).
        class_name: of the module; None outside of the model.
        categories: bytes by category, those that are not zero.
    """

    path: str | None
    class_name: str | None
    categories: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """All that it holds."""
        return sum(self.categories.values())


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What was allocated at one moment.

    Attributes:
        at: `forward_end`, `peak`, `failure` or `step_end`, of the step of the peak.
        allocated_bytes: in all.
        categories: bytes by category, those that are not zero.
    """

    at: Literal["forward_end", "peak", "failure", "step_end"]
    allocated_bytes: int
    categories: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class FailedRequest:
    """What could not be allocated any more.

    Attributes:
        tried_bytes: as requested.
        category: what it would have been.
        message: as PyTorch would put it.
    """

    tried_bytes: int
    category: Category
    message: str


@dataclass(frozen=True, kw_only=True)
class Composition:
    """What the memory is made of at the moment of the peak, or of the failure.

    Attributes:
        step: which step of the trial, from 1 on; 0: before the first, while the model is loaded.
        phase: `load`, `inputs`, `forward`, `recompute` (activation checkpointing), `backward`,
            `optimizer`, or `setup` (between them).
        module: whose allocation it is that makes the peak, or that failed; see `ModuleShare.path`.
        operator: that makes it.
        allocated_bytes: the sum of `categories`, and of `modules`.
        reserved_bytes: what the allocator holds of the device at that moment.
        peak_reserved_bytes: the most that it holds in the trial.
        categories: bytes by category, those that are not zero.
        modules: the largest first.
        timeline: the moments of that step, in order.
        failed: what did not fit; None: everything did.
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
        """Reserved and not allocated: the allocator's cache, fragments included."""
        return self.reserved_bytes - self.allocated_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types, with what follows from them."""
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
        precision: such as `fp32`.
        status: `fits`, `does_not_fit`, `refused` (the step refuses this batch size, as batch
            normalisation does a single sample), or `unsupported` by the GPU.
        parameters: number of parameters; None if the model was not loaded.
        optimizer: its class; None in inference.
        composition: None if there is none to tell.
        message: why there is none, or what did not fit.
        weights_dtype: of the floating parameters, as in `records.PrecisionResult`.
    """

    precision: str
    status: Literal["fits", "does_not_fit", "refused", "unsupported"]
    parameters: int | None = None
    optimizer: str | None = None
    composition: Composition | None = None
    message: str | None = None
    weights_dtype: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "precision": self.precision,
            "weights_dtype": self.weights_dtype,
            "status": self.status,
            "message": self.message,
            "parameters": self.parameters,
            "optimizer": self.optimizer,
            "composition": self.composition.to_json() if self.composition else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PrecisionInspection:
        """Return the answer that `to_json` wrote."""
        found = data["composition"]
        return cls(**{**data, "composition": Composition.from_json(found) if found else None})


@dataclass(frozen=True, kw_only=True)
class InspectionReport:
    """All that `bsfind inspect` found out.

    Attributes:
        bsfind_version: that wrote it.
        command: the command line.
        reproduce: a command line that asks for the same again.
        device: the simulated GPU.
        stands_for: name of the GPU of this machine that it stands for; None: it was asked for.
        workload: what is trained.
        class_name: class of the model; None if it was not loaded.
        batch_size: samples in a (micro-)batch.
        steps: optimizer steps of the trial.
        results: an answer for each precision.
        assumptions: what the user did not say about the step, and bsfind chose.
        warnings: what the reader must know.
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
