"""From option values to `Settings`: the checks that concern several options at once.

The command line and the Python functions both ask this way; messages name options as the command line does.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bsfind.errors import UsageError
from bsfind.inputs import LARGEST_TENSOR_BYTES, InputSpec, check_together
from bsfind.launch.placeholders import check
from bsfind.option_fields import SETTINGS
from bsfind.parallel import Parallel
from bsfind.settings import (
    REMEDIES,
    Axis,
    DeviceChoice,
    Launch,
    SearchLimits,
    Settings,
    Workload,
)
from bsfind.simulation.gpus.catalogue import DEFAULT_GPU, CatalogueGpu, find_gpu
from bsfind.units import Headroom, brief, format_bytes

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
    for name in ("batch_size", "min_batch_size", "multiple_of"):
        _check_batch(inputs, name, options.get(name) or 1)
    parts: dict[str, dict[str, Any]] = {
        part: {} for part in ("", "workload", "parallel", "limits", "device")
    }
    for name, setting in SETTINGS.items():
        value = options.get(name)
        if value is not None and setting.part in parts:
            parts[setting.part][setting.field] = tuple(value) if setting.kind.repeats else value
    parts["workload"]["inputs"] = inputs
    if len(seq_lens := parts[""].get("seq_lens", ())) == 1:
        (parts["workload"]["seq_len"],) = seq_lens
    parts["workload"]["axis"] = axis = _axis_of(options, inputs, given)
    if axis is not None:
        del parts[""]["batch_size"]
    nproc = parts["parallel"].get("nproc_per_node") or ""
    if nproc.isdigit() and "world_size" not in given:
        parts["parallel"]["world_size"] = int(nproc)
    try:
        parallel = Parallel(**parts["parallel"])
        if parallel.is_auto and not parallel.is_used:
            parallel = dataclasses.replace(parallel, strategy="fsdp")
    except ValueError as error:
        raise UsageError(str(error)) from None
    workload = Workload(target=target, parallel=parallel, **parts["workload"])
    for name in ("seq_len", "image_size"):
        if options.get(name) and inputs:
            raise UsageError(
                f"`--{name.replace('_', '-')}` is for inputs that follow from the model: it has no meaning "
                "with `--input-shape` or `--input`"
            )
    _check_workload(workload)
    if "batch_size" in parts[""]:  # `check` searches nothing and keeps nothing free
        parts["limits"]["headroom"] = Headroom(bytes=0)
    _check_limits(parts["limits"], workload, options.get("fail_under"))
    _check_parallel(workload, parts, given)
    for remedy in options.get("compare") or ():
        why_not = why_pointless(workload, remedy)
        if why_not is not None:
            raise UsageError(why_not)
    try:
        limits = SearchLimits(**parts["limits"])
        device = DeviceChoice(**_which_gpu(parts["device"]), communicators=parallel.communicators)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if device.gpu is not None:
        _check_simulated(find_gpu(device.gpu), device)
    return Settings(
        workload=workload, limits=limits, device=device, given=frozenset(given), **parts[""]
    )


def settings_of_each_gpu(
    target: str, options: Mapping[str, Any], given: Collection[str] = ()
) -> list[Settings]:
    """Return the settings that options with a list of GPUs ask for: of the GPU with the least memory first.

    Raises:
        UsageError: as `settings_from` does.
    """
    gpus = sorted(options["gpu"], key=lambda gpu: (find_gpu(gpu).total_bytes or 0, gpu))
    return [settings_from(target, {**options, "gpu": (gpu,)}, given) for gpu in gpus]


def launch_settings_from(
    command: Sequence[str], options: Mapping[str, Any], given: Collection[str] = ()
) -> Settings:
    """Return the settings that the options of `launch` ask for.

    Args:
        command: the command that trains, with placeholders.
        options: see `settings_from`.
        given: see `settings_from`.

    Raises:
        UsageError: a command without placeholders, or limits that leave nothing to search.
    """
    settings = settings_from(shlex.join(command) or "-", options, given)
    launch = Launch(
        command=tuple(command),
        set_env=tuple(options.get("set_env") or ()),
        substitute=tuple(options.get("substitute") or ()),
        variants=tuple(options.get("variant") or ()),
        listen=options.get("listen"),
    )
    check(launch)
    return dataclasses.replace(settings, launch=launch)


def _axis_of(
    options: Mapping[str, Any], inputs: tuple[InputSpec, ...], given: Collection[str]
) -> Axis | None:
    """Return what is searched instead of the batch size; None: the batch size is.

    Raises:
        UsageError: a dimension with a name has no number, or options have no meaning with or without it.
    """
    name, batch_size = options.get("axis"), options.get("batch_size")
    for spec in inputs:
        for other in spec.names:
            if other not in (None, name):
                raise UsageError(
                    f"`{brief(other)}` in `{brief(spec)}` is not a number",
                    hint=f"`bsfind run … --axis {other} --batch-size N` searches it"
                    + ("" if spec.name is None else "; a constant is written with `==`")
                    + "; shapes have no batch dimension",
                )
    if name is None:
        if "axis" in options and batch_size is not None:
            raise UsageError(
                "`--batch-size` is what `run` searches",
                hint="`bsfind check` tries one size; with `--axis NAME` the batch size is fixed",
            )
        for other in {"min_size", "max_size"} & set(given):
            flag = other.removesuffix("_size")
            raise UsageError(
                f"`--{flag}-size` is for `--axis`", hint=f"batch sizes have `--{flag}-batch-size`"
            )
        return None
    if batch_size is None:
        raise UsageError(f"`--axis {name}` requires `--batch-size`: the samples of each batch")
    axis = Axis(name=name, batch_size=batch_size)
    if axis.option is None and not any(name in spec.names for spec in inputs):
        raise UsageError(
            f"`--axis {name}`: no shape has a dimension of this name",
            hint=f"write it in place of a number: `--input ids={name}:int64:0..50257`; `seq-len` and "
            "`image-size` are sizes of inputs that follow from the model or from `--batch-fn`",
        )
    if axis.option is not None and inputs:
        raise UsageError(
            f"`--axis {name}` is for inputs that follow from the model or from `--batch-fn`",
            hint="name the dimension in the shape: `--input ids=L:int64:0..50257 --axis L`",
        )
    if axis.option in given:
        raise UsageError(
            f"`--{name}` and `--axis {name}` exclude each other",
            hint="`--min-size` and `--max-size` bound what is searched",
        )
    if len(options.get("seq_len") or ()) > 1:
        raise UsageError("`--seq-len` takes one length with `--axis`")
    for other in ("min_batch_size", "max_batch_size"):
        if other in given:
            raise UsageError(
                f"`--{other.replace('_', '-')}` has no meaning with `--axis`",
                hint=f"`--{other.replace('_batch', '').replace('_', '-')}` bounds what is searched",
            )
    if options.get("with_eval") or options.get("eval_batch_size"):
        raise UsageError(
            "`--with-eval` cannot be combined with `--axis`",
            hint="`bsfind check … --with-eval` tries the size that is found",
        )
    for other in ("global_batch", "objective"):
        if other in given and options[other] != SETTINGS[other].default:
            raise UsageError(
                f"`--{other.replace('_', '-')}` has no meaning with `--axis`: the batch size is fixed"
            )
    return axis


def _check_inputs(inputs: tuple[InputSpec, ...], batch_fn: str | None) -> None:
    if batch_fn and inputs:
        raise UsageError("`--batch-fn` cannot be combined with `--input-shape` or `--input`")
    try:
        check_together(inputs)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check_batch(inputs: Collection[InputSpec], name: str, batch_size: int) -> None:
    for spec in inputs:
        if spec.nbytes(batch_size) > LARGEST_TENSOR_BYTES:
            raise UsageError(
                f"`--{name.replace('_', '-')} {batch_size}`: so many samples of the input `{brief(spec)}` "
                "are larger than a tensor can be, 2^63 bytes"
            )


def _check_workload(workload: Workload) -> None:
    if workload.batch_args and workload.batch_fn is None:
        raise UsageError("`--batch-arg` requires `--batch-fn`")
    if workload.eval_batch_size is not None and not workload.with_eval:
        raise UsageError("`--eval-batch-size` requires `--with-eval`")
    for flag, pairs in (
        ("--model-arg", workload.model_args),
        ("--batch-arg", workload.batch_args),
        ("--optimizer-arg", workload.optimizer_args),
    ):
        if len(dict(pairs)) < len(pairs):
            raise UsageError(f"`{flag}` sets the same key twice")
    if workload.mode == "infer":
        for flag, value in (
            ("--step", workload.step),
            ("--grad-checkpoint", workload.grad_checkpoint),
            ("--with-eval", workload.with_eval),
        ):
            if value:
                raise UsageError(f"`{flag}` has no meaning with `--mode infer`")


def _check_limits(limits: Mapping[str, Any], workload: Workload, fail_under: int | None) -> None:
    if "global_batch" in limits and workload.grad_accum > 1:
        raise UsageError(
            "`--global-batch` sets the accumulation steps: it cannot be combined with `--grad-accum`"
        )
    asked, ranks = limits.get("global_batch"), workload.parallel.world_size
    if asked is not None and asked < ranks:
        raise UsageError(
            f"`--global-batch {asked}` leaves nothing for some of the {ranks} GPUs (`--world-size`)"
        )
    for name in ("max_batch_size", "max_size"):
        most = limits.get(name)
        if most is not None and fail_under is not None and fail_under > most:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"`--fail-under {fail_under}` is above `{flag} {most}`")


def _check_parallel(
    workload: Workload, parts: dict[str, dict[str, Any]], given: Collection[str]
) -> None:
    """Check what concerns several GPUs; set the precisions in which a sharded model is tried by default.

    Raises:
        UsageError: options that exclude each other.
    """
    parallel, precisions = workload.parallel, parts[""].get("precisions")
    if parallel.is_auto and ("batch_size" in parts[""] or workload.axis is not None):
        raise UsageError("`--world-size auto` is for a search of the batch size")
    if not parallel.is_used:
        if parallel.world_size > 1 and "global_batch" not in parts["limits"]:
            raise UsageError(
                "`--world-size` requires `--parallel` or `--global-batch`",
                hint="`--parallel ddp` or `--parallel fsdp` says how the GPUs share the training",
            )
        if "nccl_memory_bytes" in parts["device"]:
            raise UsageError("`--nccl-memory` requires `--parallel`")
    if parallel.nproc_per_node is not None:
        _check_all_ranks(workload, parts, given)
    if "mp-bf16" in (precisions or ()) and not parallel.shards:
        raise UsageError(
            "the precision `mp-bf16` is FSDP2's mixed-precision policy: it requires `--parallel fsdp` or "
            "`--parallel hsdp`",
            hint="`--precision amp` is autocast",
        )
    if not parallel.is_used:
        return
    if parallel.shards and "precision" not in given:
        parts[""]["precisions"] = ("fp32", "mp-bf16")
    for flag, value in (
        ("--mode infer", workload.mode == "infer"),
        ("--compile", workload.compile),
        ("--compare", bool(parts[""].get("compare"))),
    ):
        if value:
            raise UsageError(f"`{flag}` cannot be combined with `--parallel`")


def _check_all_ranks(
    workload: Workload, parts: Mapping[str, Mapping[str, Any]], given: Collection[str]
) -> None:
    """Check what concerns the ranks of this machine.

    Raises:
        UsageError: options that have no meaning where every rank runs.
    """
    parallel = workload.parallel
    if "world_size" in given and str(parallel.world_size) != parallel.nproc_per_node:
        raise UsageError(
            f"`--nproc-per-node {parallel.nproc_per_node}` runs all ranks on this machine: `--world-size` "
            "follows from it",
            hint="training on several machines: `bsfind launch --listen HOST -- srun torchrun …`",
        )
    for flag, value in (
        ("--gpu", parts["device"].get("gpu")),
        ("--device", "device" in given),
        ("--nccl-memory", "nccl_memory_bytes" in parts["device"]),
        ("--with-eval", workload.with_eval),
        ("--axis", workload.axis),
        ("--objective fastest", parts["limits"].get("objective") == "fastest"),
    ):
        if value:
            raise UsageError(f"`{flag}` cannot be combined with `--nproc-per-node`")


def why_pointless(workload: Workload, remedy: str) -> str | None:
    """Return why a remedy changes nothing of a workload; None if it may."""
    if workload.mode == "infer" and remedy in _TRAINING_ONLY:
        return f"`--compare {remedy}` has no meaning with `--mode infer`"
    changes = REMEDIES[remedy]
    if changes and all(getattr(workload, name) == value for name, value in changes.items()):
        return f"`--compare {remedy}` changes nothing: the options ask for it already"
    return None


def _which_gpu(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the device: `--gpu` alone means a simulated one, and the reverse.

    Raises:
        UsageError: several GPUs are named.
    """
    gpus = fields.get("gpu") or (None,)
    if len(gpus) > 1:
        raise UsageError(
            f"`--gpu` names {len(gpus)} GPUs, and this takes one",
            hint="`bsfind run` compares several, and `--fail-under N` asks on which of them N samples fit",
        )
    device, gpu = fields.get("device", "auto"), gpus[0]
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
