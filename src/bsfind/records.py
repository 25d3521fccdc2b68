"""What was found of the device, the model and the step, to JSON (`asdict`) and back (`record_of`).

Sizes are bytes, times seconds; None (JSON null) is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

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
        name, index: as torch has them (after CUDA_VISIBLE_DEVICES).
        compute_capability: such as `8.9`; None on ROCm, which has none.
        total_bytes: `total_memory` of the device's properties.
        free_bytes: what PyTorch could use when the worker started, without what other processes and the
            CUDA context held.
        capacity_bytes: what the search may use: `free_bytes`, or `--memory-limit`.
        context_bytes: context memory: what the process holds outside PyTorch's allocator, for the CUDA
            context and loaded kernels and libraries; None: unknown.
        nccl_bytes: NCCL memory: what its communicators take of each device in training on several; None on
            one.
        nccl_source: `measured` around the first collective, `modelled`, or `given` by `--nccl-memory`.
        context_source: where `context_bytes` comes from: `measured` when the device was opened,
            `modelled`, or `given` by `--context-memory`.
        others_bytes: what other processes, a display and the driver held when the device was opened;
            None: unknown.
        torch_version: the torch that measures, or whose allocator and kernels are modelled.
        traced_by: the torch that is installed and traces the step, where another release is modelled.
        cuda_version: of the build of `torch_version`.
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
    nccl_bytes: int | None = None
    nccl_source: ContextSource | None = None
    others_bytes: int | None = None
    supports_bf16: bool = True
    supports_tf32: bool = True
    driver: str | None = None
    torch_version: str | None = None
    traced_by: str | None = None
    cuda_version: str | None = None
    other_processes: tuple[GpuProcess, ...] = ()

    @property
    def installed_torch(self) -> str | None:
        """The version of torch in the worker's process."""
        return self.traced_by or self.torch_version


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The model as it was loaded.

    Attributes:
        parameters: number of parameters, shared ones once.
        model_bytes: bytes that are allocated on the device after loading.
        gradient_bytes: bytes of the gradients of all parameters that are trained, those of a rank where they
            are sharded; None: not known.
        kind: which operators most of the traced step consists of; predictions for the kinds differ in how
            exact they are; None: not traced.
        convolution_workspaces: what the workspaces of traced convolutions rest on; None: there were none.
    """

    class_name: str | None = None  # in reports of older versions
    parameters: int
    optimizer: str | None
    model_bytes: int
    kind: ModelKind | None = None
    weights_dtype: str | None = None
    gradient_bytes: int | None = None
    convolution_workspaces: str | None = None


@dataclass(frozen=True, kw_only=True)
class ErrorBound:
    """Absolute errors of predicted peaks, as parts of the real ones (0.01 is 1 %)."""

    median: float
    p95: float


ALL_ASKED = ", asked"
"""How `convolution_workspaces` ends where cuDNN was asked for all of them."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Result of a comparison of predictions with real runs, for one kind of model.

    Attributes:
        runs: number of runs that were compared.
        against: what ran: torch's version, the GPU, and what was not real about it.
        allocated, reserved: errors of the peak allocated and reserved.
        asks_cudnn: whether predictions asked cuDNN for the workspaces of convolutions.
    """

    runs: int
    against: str
    allocated: ErrorBound
    reserved: ErrorBound
    asks_cudnn: bool = False


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a predicted report rests on.

    Attributes:
        torch_version: the torch whose allocator and kernels are modelled.
        allocator: options of the caching allocator that differ from PyTorch's defaults, by name.
        model_kind: the kind of model that `accuracy` is about; None before a step was traced.
        accuracy: how exact predictions for such models are with this version of torch; None: not measured.
        no_accuracy_because: why `accuracy` is None, to follow the words "Error bound:"; None if it is not,
            or no step was traced.
        convolution_workspaces: what the workspaces of convolutions rest on, such as "cuDNN 9.20, asked";
            None: cuDNN ran none.
    """

    torch_version: str
    allocator: dict[str, Any]
    model_kind: ModelKind | None
    accuracy: Accuracy | None
    no_accuracy_because: str | None = None
    convolution_workspaces: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportWarning:
    """Something that the reader of the answer must know.

    Attributes:
        code: stable name, for scripts.
        message: one sentence without a full stop.
    """

    code: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, kw_only=True)
class OutputMemory:
    """What the model returns in a training step; `is_stand_in`: its mean is trained, no loss being known."""

    bytes_per_sample: int
    is_stand_in: bool


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """Something about the step that the user did not say: bsfind chose `value`; `why` names an option."""

    what: str
    value: str
    why: str


def record_of(kind: type[Record], data: Mapping[str, Any]) -> Record:
    """Return the record that `dataclasses.asdict` wrote as JSON.

    Raises:
        TypeError: a field that the record does not have, a missing one that has no default, or a value of
            another type.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"a {kind.__name__} is no object but {type(data).__name__}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints.get(name), value) for name, value in data.items()})


def _value(hint: Any, value: Any) -> Any:
    """Return the value of a field, given its type.

    Raises:
        TypeError: it is of another type.
    """
    origin, choices = get_origin(hint), get_args(hint)
    if hint is None or hint is Any:
        return value
    if origin in (Union, UnionType):
        rest = [choice for choice in choices if choice is not NoneType]
        return None if value is None and len(rest) < len(choices) else _value(rest[0], value)
    if hasattr(hint, "__dataclass_fields__"):
        return record_of(hint, value)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(choices[0], part) for part in value)
    if origin is Literal:
        is_right = value in choices
    elif hint is float:
        is_right = isinstance(value, (int, float)) and not isinstance(value, bool)
    elif hint is int:
        is_right = isinstance(value, int) and not isinstance(value, bool)
    else:
        is_right = isinstance(value, origin or hint)
    if not is_right:
        raise TypeError(f"{value!r:.100} is no {getattr(hint, '__name__', hint)}")
    return value
