"""From parsed options to `Settings`: the checks that concern several options at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bsfind.errors import UsageError
from bsfind.search.variants import why_pointless
from bsfind.settings import DeviceChoice, SearchLimits, Settings, Workload
from bsfind.simulation.gpus.catalogue import DEFAULT_GPU, CatalogueGpu, find_gpu
from bsfind.units import Headroom, format_bytes


def settings_from(options: Mapping[str, Any], given: Collection[str] = ()) -> Settings:
    """Return the settings that a command line asks for.

    Args:
        options: the parsed options of `run` or `check`, by parameter name.
        given: those of them that were given, and are not at their default for want of it.

    Raises:
        UsageError: options that exclude each other, or limits that leave nothing to search.
    """
    inputs = (*(options["input_shape"] or ()), *(options["input"] or ()))
    if options["batch_fn"] and inputs:
        raise UsageError(
            "`--batch-fn` makes the inputs: `--input-shape` and `--input` go without it"
        )
    if not options["batch_fn"] and not inputs:
        raise UsageError(
            "the model's inputs are not known",
            hint="pass `--input-shape 3,224,224` (without the batch dimension), "
            "`--input input_ids=128:int64:0..30522`, or `--batch-fn pkg.mod:fn`",
        )
    names = [spec.name for spec in inputs if spec.name is not None]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"`--input {min(twice)}=…` is given twice")
    for option in ("model_arg", "optimizer_arg"):
        keys = [key for key, _ in options[option] or ()]
        if len(set(keys)) < len(keys):
            raise UsageError(f"`--{option.replace('_', '-')}` sets the same key twice")
    if _text(options["mode"]) == "infer":
        for option in ("step", "grad_checkpoint"):
            if options[option]:
                raise UsageError(
                    f"`--{option.replace('_', '-')}` has no meaning with `--mode infer`"
                )
    if options.get("global_batch") is not None and options["grad_accum"] > 1:
        raise UsageError(
            "`--global-batch` finds the accumulation steps: `--grad-accum` goes without it"
        )
    if options.get("world_size", 1) > 1 and options["global_batch"] is None:
        raise UsageError("`--world-size` has a meaning with `--global-batch` only")
    workload = Workload(
        target=options["target"],
        model_args=tuple(options["model_arg"] or ()),
        app_dir=options["app_dir"],
        inputs=inputs,
        batch_fn=options["batch_fn"],
        mode=_text(options["mode"]),
        loss=options["loss"],
        optimizer=options["optimizer"],
        optimizer_args=tuple(options["optimizer_arg"] or ()),
        step=options["step"],
        grad_checkpoint=options["grad_checkpoint"],
        channels_last=options["channels_last"],
        compile=options["compile"],
        grad_accum=options["grad_accum"],
    )
    compare = options.get("compare") or ()
    for remedy in compare:
        why_not = why_pointless(workload, remedy)
        if why_not is not None:
            raise UsageError(why_not)
    return Settings(
        workload=workload,
        precisions=options["precision"],
        limits=_limits(options),
        device=_device(options),
        batch_size=options.get("batch_size"),
        compare=compare,
        given=frozenset(given),
    )


def _device(options: Mapping[str, Any]) -> DeviceChoice:
    device, gpu = options["device"], options["gpu"]
    if gpu is not None and device == "auto":
        device = "sim"
    if gpu is None and device == "sim":
        gpu = DEFAULT_GPU
    try:
        choice = DeviceChoice(
            device=device,
            gpu=gpu,
            memory_limit_bytes=options["memory_limit"],
            context_memory_bytes=options["context_memory"],
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    if choice.gpu is not None:
        _check_simulated(find_gpu(choice.gpu), choice)
    return choice


def _check_simulated(gpu: CatalogueGpu, choice: DeviceChoice) -> None:
    """Make sure that there is something to simulate.

    Raises:
        UsageError: not CUDA, no memory that is known, or none that is left.
    """
    if gpu.capability is None:
        raise UsageError(
            f"{gpu.name} is no CUDA GPU: bsfind predicts what CUDA does",
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


def _limits(options: Mapping[str, Any]) -> SearchLimits:
    common = {"steps": options["steps"], "trial_timeout_s": options["trial_timeout"]}
    if "batch_size" in options:  # `check` searches nothing and keeps nothing free
        return SearchLimits(headroom=Headroom(bytes=0), **common)
    most = options["max_batch_size"]
    if most is not None and (options["fail_under"] or 0) > most:
        raise UsageError(
            f"`--fail-under {options['fail_under']}` is above `--max-batch-size {most}`"
        )
    try:
        return SearchLimits(
            min_batch_size=options["min_batch_size"],
            multiple_of=options["multiple_of"],
            tolerance=options["tolerance"],
            headroom=options["headroom"],
            objective=_text(options["objective"]),
            confirm_steps=options["confirm_steps"],
            global_batch=options["global_batch"],
            world_size=options["world_size"],
            time_budget_s=options["time_budget"],
            **common,
            **({} if most is None else {"max_batch_size": most}),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _text(choice: Any) -> Any:
    """Return the text of a choice: an Enum, or a plain text in older versions of Typer."""
    return getattr(choice, "value", choice)
