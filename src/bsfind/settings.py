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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from bsfind import option_types as types
from bsfind.inputs import InputSpec
from bsfind.option_types import OptionType
from bsfind.units import Headroom

LARGEST_BATCH_SIZE = 2**31 - 1
"""Where the search ends if memory does not end it: CUDA kernels index samples with int32."""

PRECISIONS = ("fp32", "tf32", "amp-fp16", "amp-bf16", "bf16")
"""The precisions that a step can run in."""

REQUESTABLE_PRECISIONS = (*PRECISIONS, "amp")
"""What may be asked for: `amp` becomes amp-bf16 or amp-fp16 once the GPU is known."""

LOSSES = ("auto", "cross-entropy", "mse", "mean")
"""The losses that have a name."""

REMEDIES: Mapping[str, Mapping[str, Any]] = {
    "checkpointing": {"grad_checkpoint": True},
    "channels-last": {"channels_last": True},
    "compile": {"compile": True},
    "expandable-segments": {},
    "sgd": {"optimizer": "sgd", "optimizer_args": ()},
}
"""What `--compare` can try, by name: the fields of the workload that each changes."""

Mode = Literal["train", "infer"]
Objective = Literal["largest", "fastest"]

_MODE = types.choice(*get_args(Mode))
_PRECISIONS = types.names(
    REQUESTABLE_PRECISIONS, "`{}` is not a precision", none="no precision is named"
)
_COMPARE = types.names(tuple(REMEDIES), "unknown comparison `{}`")
_OBJECTIVE = types.choice(*get_args(Objective))

_LAST = (
    *("compare", "time_budget", "steps", "trial_timeout"),
    *("device", "gpu", "context_memory", "memory_limit"),
)
"""The options that a reproducing command line names behind the others, in this order."""


def _option(kind: OptionType, name: str = "") -> dict[str, Any]:
    """Return the metadata of a field that an option sets.

    Args:
        kind: how its values are read and written.
        name: of the option, as a Python identifier; "": that of the field.
    """
    return {"kind": kind, "option": name}


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
    model_args: tuple[tuple[str, str], ...] = field(
        default=(), metadata=_option(types.KEY_VALUE, "model_arg")
    )
    app_dir: str = field(default=".", metadata=_option(types.TEXT))
    inputs: tuple[InputSpec, ...] = field(default=(), metadata=_option(types.INPUT, "input"))
    batch_fn: str | None = field(default=None, metadata=_option(types.IMPORT_PATH))
    mode: Mode = field(default="train", metadata=_option(_MODE))
    loss: str = field(default="auto", metadata=_option(types.function_or(LOSSES)))
    optimizer: str = field(default="adamw", metadata=_option(types.OPTIMIZER))
    optimizer_args: tuple[tuple[str, str], ...] = field(
        default=(), metadata=_option(types.KEY_VALUE, "optimizer_arg")
    )
    step: str | None = field(default=None, metadata=_option(types.IMPORT_PATH))
    grad_checkpoint: bool = field(default=False, metadata=_option(types.FLAG))
    channels_last: bool = field(default=False, metadata=_option(types.FLAG))
    compile: bool = field(default=False, metadata=_option(types.FLAG))
    grad_accum: int = field(default=1, metadata=_option(types.COUNT))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "model_args": dict(self.model_args),
            "inputs": [spec.to_json() for spec in self.inputs],
            "optimizer_args": dict(self.optimizer_args),
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

    min_batch_size: int = field(default=1, metadata=_option(types.COUNT))
    max_batch_size: int = field(default=LARGEST_BATCH_SIZE, metadata=_option(types.COUNT))
    multiple_of: int = field(default=1, metadata=_option(types.COUNT))
    tolerance: float = field(default=0.005, metadata=_option(types.FRACTION))
    headroom: Headroom = field(default=Headroom(fraction=0.05), metadata=_option(types.HEADROOM))
    objective: Objective = field(default="largest", metadata=_option(_OBJECTIVE))
    steps: int = field(default=3, metadata=_option(types.COUNT))
    confirm_steps: int = field(default=20, metadata=_option(types.COUNT))
    global_batch: int | None = field(default=None, metadata=_option(types.COUNT))
    world_size: int = field(default=1, metadata=_option(types.COUNT))
    trial_timeout_s: float = field(default=600.0, metadata=_option(types.DURATION, "trial_timeout"))
    time_budget_s: float | None = field(
        default=None, metadata=_option(types.DURATION, "time_budget")
    )

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
            **asdict(self),
            "max_batch_size": None if unlimited else self.max_batch_size,
            "headroom": str(self.headroom),
        }


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cuda(:[0-9]+)?|sim", text):
        raise ValueError(f"`{text}` is not a device, write `auto`, `cuda`, `cuda:1` or `sim`")
    return text


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

    device: str = field(default="auto", metadata=_option(OptionType(_device)))
    gpu: str | None = field(default=None, metadata=_option(types.GPU))
    memory_limit_bytes: int | None = field(
        default=None, metadata=_option(types.SIZE, "memory_limit")
    )
    context_memory_bytes: int | None = field(
        default=None, metadata=_option(types.SIZE, "context_memory")
    )

    def __post_init__(self) -> None:
        """Check the device's name, and that a GPU is named where one is simulated.

        Raises:
            ValueError: not a device that bsfind knows, or options that do not go together.
        """
        _device(self.device)
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
        compare: names in `REMEDIES` to try besides, in the recommended precision.
        remedy: the one that these settings are with; it is in the workload already.
        given: names of the options that the user gave (`optimizer`), whatever their values.
    """

    workload: Workload
    precisions: tuple[str, ...] = field(
        default=("fp32", "amp"), metadata=_option(_PRECISIONS, "precision")
    )
    limits: SearchLimits = field(default_factory=SearchLimits)
    device: DeviceChoice = field(default_factory=DeviceChoice)
    batch_size: int | None = field(default=None, metadata=_option(types.COUNT))
    compare: tuple[str, ...] = field(default=(), metadata=_option(_COMPARE))
    remedy: str | None = None
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def to_argv(self) -> list[str]:
        """Return the shortest command line (after `bsfind`) that asks for the same again."""
        is_check = self.batch_size is not None
        written = [
            (name, setting.arguments(self))
            for name, setting in SETTINGS.items()
            if not (is_check and setting.is_of_search)
            and not (name == "device" and self.device.is_simulated)  # `--gpu` says so
        ]
        written.sort(key=lambda item: _LAST.index(item[0]) if item[0] in _LAST else -1)
        arguments = [argument for _, found in written for argument in found]
        return ["check" if is_check else "run", self.workload.target, *arguments]


@dataclass(frozen=True)
class Setting:
    """A field of the settings that an option sets.

    Attributes:
        option: the option, as a Python identifier: `trial_timeout` for `--trial-timeout`.
        part: the attribute of `Settings` that has the field; "": `Settings` itself.
        field: the name of the field.
        default: its default.
        kind: how its values are read and written.
    """

    option: str
    part: str
    field: str
    default: Any
    kind: OptionType

    @property
    def shown_default(self) -> Any:
        """The default as help and signatures show it: a number, a flag, or a text."""
        if self.default == LARGEST_BATCH_SIZE:  # memory is the limit
            return None
        return self.kind.shown(self.default)

    @property
    def is_of_search(self) -> bool:
        """Whether a `check`, which tries one size, goes without it."""
        is_limit = self.part == "limits" or self.option == "compare"
        return is_limit and self.option not in ("steps", "trial_timeout")

    def arguments(self, settings: Settings) -> list[str]:
        """Return the arguments of the command line for it; [] where it has its default."""
        value = getattr(getattr(settings, self.part) if self.part else settings, self.field)
        if value == self.default:
            return []
        if value is True:
            return [self._flag(value)]
        values = value if self.kind.repeats else (value,)
        return [argument for one in values for argument in (self._flag(one), self.kind.write(one))]

    def _flag(self, value: Any) -> str:
        if isinstance(value, InputSpec) and value.name is None:
            return "--input-shape"
        return f"--{self.option.replace('_', '-')}"


def _settings_of(cls: type, part: str) -> Iterator[Setting]:
    for found in fields(cls):
        if "kind" in found.metadata:
            option = found.metadata["option"] or found.name
            yield Setting(option, part, found.name, found.default, found.metadata["kind"])


SETTINGS: Mapping[str, Setting] = {
    setting.option: setting
    for cls, part in (
        *((Workload, "workload"), (Settings, "")),
        *((SearchLimits, "limits"), (DeviceChoice, "device")),
    )
    for setting in _settings_of(cls, part)
}
"""The fields that options set, by the options' names."""
