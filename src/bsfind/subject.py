"""What the trials were about: the device that answered, and the model as it was loaded. JSON ⇄.

Sizes are bytes; None (JSON null) is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["ContextSource", "DeviceInfo", "DeviceKind", "GpuProcess", "ModelInfo", "ModelKind"]

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
