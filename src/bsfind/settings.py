"""What was asked for: frozen, checked, and convertible to JSON and back.

    Settings
    ├── Workload       what one training (or inference) step is
    ├── precisions     which precisions to try it in
    ├── SearchLimits   how far and how finely to search
    └── DeviceChoice   on which device, with how much memory

Nothing here knows torch: the parent process handles settings without importing it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bsfind.inputs import InputSpec
from bsfind.units import Headroom, exact_size, plain_number

LARGEST_BATCH_SIZE = 2**31 - 1
"""Where the search ends if memory does not end it: CUDA kernels index samples with int32."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything that makes one step, except its batch size and its precision.

    Attributes:
        target: `package.module:attr` or `path/file.py:attr`.
        model_args: keyword arguments of the class or factory, as (name, text) pairs.
        app_dir: folder put first on `sys.path`.
        inputs: synthetic inputs; empty if `batch_fn` makes them.
        batch_fn: `pkg.mod:fn`, called as `fn(batch_size, device)`.
        mode: train, or infer (forward only, no gradients).
        loss: `auto`, `cross-entropy`, `mse`, `mean` or `pkg.mod:fn`, called as `fn(output)`.
        optimizer: `adamw`, any name of torch.optim, or `pkg.mod:fn`, called with the parameters.
        optimizer_args: keyword arguments of the optimizer, as (name, text) pairs.
        step: `pkg.mod:fn`, called as `fn(model, *args, **kwargs)` inside autocast; the loss.
        grad_checkpoint: recompute activations in the backward pass.
        channels_last: model and image inputs in channels_last memory format.
        compile: run the model through torch.compile.
        grad_accum: micro-batches for each optimizer step.
    """

    target: str
    model_args: tuple[tuple[str, str], ...] = ()
    app_dir: str = "."
    inputs: tuple[InputSpec, ...] = ()
    batch_fn: str | None = None
    mode: Literal["train", "infer"] = "train"
    loss: str = "auto"
    optimizer: str = "adamw"
    optimizer_args: tuple[tuple[str, str], ...] = ()
    step: str | None = None
    grad_checkpoint: bool = False
    channels_last: bool = False
    compile: bool = False
    grad_accum: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "target": self.target,
            "model_args": dict(self.model_args),
            "app_dir": self.app_dir,
            "inputs": [spec.to_json() for spec in self.inputs],
            "batch_fn": self.batch_fn,
            "mode": self.mode,
            "loss": self.loss,
            "optimizer": self.optimizer,
            "optimizer_args": dict(self.optimizer_args),
            "step": self.step,
            "grad_checkpoint": self.grad_checkpoint,
            "channels_last": self.channels_last,
            "compile": self.compile,
            "grad_accum": self.grad_accum,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        """Return the workload that `to_json` wrote."""
        return cls(
            **{
                **data,
                "model_args": tuple(data["model_args"].items()),
                "optimizer_args": tuple(data["optimizer_args"].items()),
                "inputs": tuple(InputSpec.from_json(spec) for spec in data["inputs"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class SearchLimits:
    """How far and how finely to search.

    Attributes:
        min_batch_size: smallest size that is worth an answer.
        max_batch_size: largest size to try.
        multiple_of: every size that is tried is a multiple of this.
        tolerance: stop when the gap between the largest that ran and the smallest that did not is
            at most this part of the former, or 1; 0 is exact.
        headroom: memory that the recommended size leaves free.
        objective: `largest`: the most samples that fit; `fastest`: the smallest size whose
            samples/s is within 2 % of the best seen.
        steps: optimizer steps of a trial.
        confirm_steps: optimizer steps of the confirmation of the recommended size.
        global_batch: samples for each optimizer step, over all GPUs, that the recommended size is to
            reach with accumulation; None: no such aim.
        world_size: GPUs that share the global batch.
        trial_timeout_s: longest time for one trial, seconds.
        time_budget_s: longest time for the whole search, seconds; None: no limit.
    """

    min_batch_size: int = 1
    max_batch_size: int = LARGEST_BATCH_SIZE
    multiple_of: int = 1
    tolerance: float = 0.005
    headroom: Headroom = field(default_factory=lambda: Headroom(fraction=0.05))
    objective: Literal["largest", "fastest"] = "largest"
    steps: int = 3
    confirm_steps: int = 20
    global_batch: int | None = None
    world_size: int = 1
    trial_timeout_s: float = 600.0
    time_budget_s: float | None = None

    def __post_init__(self) -> None:
        """Check the limits against each other.

        Raises:
            ValueError: they leave nothing to search; names the options.
        """
        if self.min_batch_size > self.max_batch_size:
            raise ValueError(
                f"`--min-batch-size {self.min_batch_size}` is above "
                f"`--max-batch-size {self.max_batch_size}`"
            )
        if self.max_batch_size < self.multiple_of:
            raise ValueError(
                f"no multiple of {self.multiple_of} (`--multiple-of`) is at most "
                f"`--max-batch-size {self.max_batch_size}`"
            )
        if self.max_batch_size - self.max_batch_size % self.multiple_of < self.min_batch_size:
            raise ValueError(
                f"no multiple of {self.multiple_of} (`--multiple-of`) lies between `--min-batch-size "
                f"{self.min_batch_size}` and `--max-batch-size {self.max_batch_size}`"
            )
        if self.global_batch is not None and self.global_batch < self.world_size:
            raise ValueError(
                f"`--global-batch {self.global_batch}` leaves nothing for some of the "
                f"{self.world_size} GPUs (`--world-size`)"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types; `max_batch_size` is null where memory is the limit."""
        unlimited = self.max_batch_size == LARGEST_BATCH_SIZE
        return {
            "min_batch_size": self.min_batch_size,
            "max_batch_size": None if unlimited else self.max_batch_size,
            "multiple_of": self.multiple_of,
            "tolerance": self.tolerance,
            "headroom": str(self.headroom),
            "objective": self.objective,
            "steps": self.steps,
            "confirm_steps": self.confirm_steps,
            "global_batch": self.global_batch,
            "world_size": self.world_size,
            "trial_timeout_s": self.trial_timeout_s,
            "time_budget_s": self.time_budget_s,
        }


@dataclass(frozen=True, kw_only=True)
class DeviceChoice:
    """On which device to run.

    Attributes:
        device: `auto` (a real GPU), `cuda`, `cuda:N`, or `sim`: one that need not be there.
        gpu: the simulated GPU: a key of the catalogue or a size in bytes; None for a real one.
        memory_limit_bytes: what PyTorch's allocator may reserve; None: what is free.
        context_memory_bytes: what the process holds outside the allocator's pool on a simulated
            GPU; None: as modelled.
    """

    device: str = "auto"
    gpu: str | None = None
    memory_limit_bytes: int | None = None
    context_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check the device's name, and that a GPU is named where one is simulated.

        Raises:
            ValueError: not a device that bsfind knows, or options that do not go together.
        """
        if not re.fullmatch(r"auto|cuda(:[0-9]+)?|sim", self.device):
            raise ValueError(
                f"`{self.device}` is not a device, write `auto`, `cuda`, `cuda:1` or `sim`"
            )
        if self.gpu is not None and not self.is_simulated:
            raise ValueError(f"`--gpu` names a simulated GPU, `--device {self.device}` a real one")
        if self.is_simulated and self.gpu is None:
            raise ValueError("`--device sim` without a GPU to simulate")
        if self.context_memory_bytes is not None and self.device.startswith("cuda"):
            raise ValueError(
                "`--context-memory` is for a simulated GPU: on a real one it is measured"
            )

    @property
    def is_simulated(self) -> bool:
        """Whether the answer is to be predicted for a GPU that need not be there."""
        return self.device == "sim"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DeviceChoice:
        """Return the choice that `to_json` wrote."""
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One invocation of `run` or `check`.

    Attributes:
        workload: what one step is.
        precisions: of `REQUESTABLE_PRECISIONS`, in the order of the table.
        limits: how to search.
        device: where.
        batch_size: `check`: the only size to try; None for a search.
        compare: remedies to try besides, in the recommended precision (see `remedies`).
        remedy: the one that these settings are with; it is in the workload already.
        given: names of the options that the user gave (`optimizer`), whatever their values.
    """

    workload: Workload
    precisions: tuple[str, ...] = ("fp32", "amp")
    limits: SearchLimits = field(default_factory=SearchLimits)
    device: DeviceChoice = field(default_factory=DeviceChoice)
    batch_size: int | None = None
    compare: tuple[str, ...] = ()
    remedy: str | None = None
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def to_argv(self) -> list[str]:
        """Return the shortest command line (after `bsfind`) that asks for the same again."""
        work, limits, default = self.workload, self.limits, SearchLimits()
        argv = ["run" if self.batch_size is None else "check", work.target]

        def add(option: str, value: object, default_value: object = None) -> None:
            if value != default_value:
                argv.extend([option, str(value)])

        for name, text in work.model_args:
            add("--model-arg", f"{name}={text}")
        add("--app-dir", work.app_dir, ".")
        for spec in work.inputs:
            add("--input-shape" if spec.name is None else "--input", spec)
        add("--batch-fn", work.batch_fn)
        add("--mode", work.mode, "train")
        add("--loss", work.loss, "auto")
        add("--optimizer", work.optimizer, "adamw")
        for name, text in work.optimizer_args:
            add("--optimizer-arg", f"{name}={text}")
        add("--step", work.step)
        for flag, on in (
            ("--grad-checkpoint", work.grad_checkpoint),
            ("--channels-last", work.channels_last),
            ("--compile", work.compile),
        ):
            if on:
                argv.append(flag)
        add("--grad-accum", work.grad_accum, 1)
        add("--precision", ",".join(self.precisions), "fp32,amp")
        if self.batch_size is not None:
            add("--batch-size", self.batch_size)
        else:
            add("--min-batch-size", limits.min_batch_size, default.min_batch_size)
            add("--max-batch-size", limits.max_batch_size, default.max_batch_size)
            add("--multiple-of", limits.multiple_of, default.multiple_of)
            add("--tolerance", _percent(limits.tolerance), _percent(default.tolerance))
            add("--headroom", limits.headroom, default.headroom)
            add("--objective", limits.objective, default.objective)
            add("--confirm-steps", limits.confirm_steps, default.confirm_steps)
            add("--global-batch", limits.global_batch)
            add("--world-size", limits.world_size, default.world_size)
            add("--compare", ",".join(self.compare), "")
            add("--time-budget", _seconds(limits.time_budget_s))
        add("--steps", limits.steps, default.steps)
        add("--trial-timeout", _seconds(limits.trial_timeout_s), _seconds(default.trial_timeout_s))
        if not self.device.is_simulated:
            add("--device", self.device.device, "auto")
        add("--gpu", self.device.gpu)
        add("--context-memory", _size(self.device.context_memory_bytes))
        add("--memory-limit", _size(self.device.memory_limit_bytes))
        return argv


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{plain_number(value)}s"


def _size(nbytes: int | None) -> str | None:
    return None if nbytes is None else exact_size(nbytes)


def _percent(value: float) -> str:
    return f"{plain_number(value * 100)}%"


PRECISIONS = ("fp32", "tf32", "amp-fp16", "amp-bf16", "bf16")
"""The precisions that a step can run in."""

REQUESTABLE_PRECISIONS = (*PRECISIONS, "amp")
"""What may be asked for: `amp` becomes amp-bf16 or amp-fp16 once the GPU is known."""
