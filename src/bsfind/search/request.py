"""From option values to `Settings`: the checks that concern several options at once.

The command line and the Python functions both ask this way; messages name options as the command line does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bsfind.errors import UsageError
from bsfind.inputs import InputSpec
from bsfind.settings import (
    REMEDIES,
    SETTINGS,
    DeviceChoice,
    SearchLimits,
    Settings,
    Workload,
)
from bsfind.simulation.gpus.catalogue import DEFAULT_GPU, CatalogueGpu, find_gpu
from bsfind.units import Headroom, format_bytes

_TRAINING_ONLY = ("checkpointing", "sgd")
"""Remedies that change nothing of a forward pass."""


def settings_from(target: str, options: Mapping[str, Any], given: Collection[str] = ()) -> Settings:
    """Return the settings that options ask for.

    Args:
        target: the import path of the model.
        options: values as their types read them, by the option's name as a Python identifier. What is
            not there, or is None, has its default; what is not a setting is ignored.
        given: the names of the options that the user gave, whatever their values.

    Raises:
        UsageError: options that exclude each other, or limits that leave nothing to search.
    """
    inputs = (*(options.get("input_shape") or ()), *(options.get("input") or ()))
    _check_inputs(inputs, options.get("batch_fn"))
    parts: dict[str, dict[str, Any]] = {"": {}, "workload": {}, "limits": {}, "device": {}}
    for name, setting in SETTINGS.items():
        value = options.get(name)
        if value is not None:
            parts[setting.part][setting.field] = tuple(value) if setting.kind.repeats else value
    parts["workload"]["inputs"] = inputs
    workload = Workload(target=target, **parts["workload"])
    _check_workload(workload)
    if "batch_size" in parts[""]:  # `check` searches nothing and keeps nothing free
        parts["limits"]["headroom"] = Headroom(bytes=0)
    _check_limits(parts["limits"], workload, options.get("fail_under"))
    for remedy in options.get("compare") or ():
        why_not = why_pointless(workload, remedy)
        if why_not is not None:
            raise UsageError(why_not)
    try:
        limits = SearchLimits(**parts["limits"])
        device = DeviceChoice(**_which_gpu(parts["device"]))
    except ValueError as error:
        raise UsageError(str(error)) from None
    if device.gpu is not None:
        _check_simulated(find_gpu(device.gpu), device)
    return Settings(
        workload=workload, limits=limits, device=device, given=frozenset(given), **parts[""]
    )


def _check_inputs(inputs: Collection[InputSpec], batch_fn: str | None) -> None:
    if batch_fn and inputs:
        raise UsageError("`--batch-fn` cannot be combined with `--input-shape` or `--input`")
    if not batch_fn and not inputs:
        raise UsageError(
            "the model's inputs are not known",
            hint="pass `--input-shape 3,224,224` (without the batch dimension), "
            "`--input input_ids=128:int64:0..30522`, or `--batch-fn pkg.mod:fn`",
        )
    names = [spec.name for spec in inputs if spec.name is not None]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"`--input {min(twice)}=…` is given twice")


def _check_workload(workload: Workload) -> None:
    for flag, pairs in (
        ("--model-arg", workload.model_args),
        ("--optimizer-arg", workload.optimizer_args),
    ):
        if len(dict(pairs)) < len(pairs):
            raise UsageError(f"`{flag}` sets the same key twice")
    if workload.mode == "infer":
        for flag, value in (
            ("--step", workload.step),
            ("--grad-checkpoint", workload.grad_checkpoint),
        ):
            if value:
                raise UsageError(f"`{flag}` has no meaning with `--mode infer`")


def _check_limits(limits: Mapping[str, Any], workload: Workload, fail_under: int | None) -> None:
    if "global_batch" in limits and workload.grad_accum > 1:
        raise UsageError(
            "`--global-batch` sets the accumulation steps: it cannot be combined with `--grad-accum`"
        )
    if limits.get("world_size", 1) > 1 and "global_batch" not in limits:
        raise UsageError("`--world-size` requires `--global-batch`")
    most = limits.get("max_batch_size")
    if most is not None and fail_under is not None and fail_under > most:
        raise UsageError(f"`--fail-under {fail_under}` is above `--max-batch-size {most}`")


def why_pointless(workload: Workload, remedy: str) -> str | None:
    """Return why a remedy changes nothing of a workload; None if it may."""
    if workload.mode == "infer" and remedy in _TRAINING_ONLY:
        return f"`--compare {remedy}` has no meaning with `--mode infer`"
    changes = REMEDIES[remedy]
    if changes and all(getattr(workload, name) == value for name, value in changes.items()):
        return f"`--compare {remedy}` changes nothing: the options ask for it already"
    return None


def _which_gpu(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the device: `--gpu` alone means a simulated one, and the reverse."""
    device, gpu = fields.get("device", "auto"), fields.get("gpu")
    if gpu is not None and device == "auto":
        device = "sim"
    if gpu is None and device == "sim":
        gpu = DEFAULT_GPU
    return {**fields, "device": device, "gpu": gpu}


def _check_simulated(gpu: CatalogueGpu, choice: DeviceChoice) -> None:
    """Make sure that there is something to simulate.

    Raises:
        UsageError: the GPU has no CUDA, its memory is not known, or nothing of its memory is left.
    """
    if gpu.capability is None:
        raise UsageError(
            f"{gpu.name} is not a CUDA GPU; predictions are CUDA-only",
            hint="`bsfind gpus` lists the GPUs; CUDA's have a compute capability such as 8.9",
        )
    if gpu.total_bytes is None and choice.memory_limit_bytes is None:
        raise UsageError(
            f"the memory of {gpu.name} as PyTorch sees it is not known",
            hint="pass what the allocator may reserve: `--memory-limit 270GiB`",
        )
    context, limit = choice.context_memory_bytes or 0, choice.memory_limit_bytes
    if gpu.total_bytes is not None and limit is None and context >= gpu.total_bytes:
        raise UsageError(
            f"`--context-memory` of {format_bytes(context)} leaves nothing of the "
            f"{format_bytes(gpu.total_bytes)} of {gpu.name}"
        )
