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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from bsfind import option_types as types
from bsfind.inputs import InputSpec
from bsfind.option_types import OptionType
from bsfind.parallel import Parallel
from bsfind.units import Headroom, brief

LARGEST_BATCH_SIZE = types.LARGEST_BATCH_SIZE
"""The largest batch size that any option takes."""

PRECISIONS = ("fp32", "tf32", "amp-fp16", "amp-bf16", "bf16", "mp-bf16")
"""The precisions that a step can run in."""

FIRST_SIZE_OF_AXIS = 128
"""Where a search of an axis begins: tokens, or pixels of an image, that nearly all models take."""

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


def _option(kind: OptionType, name: str = "") -> dict[str, Any]:
    """Return the metadata of a field that an option sets.

    Args:
        kind: how its values are read and written.
        name: of the option, as a Python identifier; "": that of the field.
    """
    return {"kind": kind, "option": name}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is searched instead of the batch size.

    Attributes:
        name: `seq-len`, `image-size`, or the name of a dimension in the shapes of the inputs.
        batch_size: samples in each (micro-)batch.
    """

    name: str
    batch_size: int

    @property
    def option(self) -> str | None:
        """The field of the workload that has the size; None where a dimension of the inputs has it."""
        return {"seq-len": "seq_len", "image-size": "image_size"}.get(self.name)


def _axis_name(text: str) -> str:
    if text not in ("seq-len", "image-size") and not re.fullmatch(r"[A-Za-z_]\w*", text):
        raise ValueError(
            f"`{brief(text)}` is not a name of a dimension: `seq-len`, `image-size`, or one that a shape "
            "has in place of a number"
        )
    return text


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything that makes one step, except its batch size and its precision.

    Attributes:
        target: `package.module:attr`, `path/file.py:attr`, `timm:NAME`, `torchvision:NAME` or `hf:NAME`.
        model_args: keyword arguments of the class or factory, as (name, text) pairs.
        app_dir: folder put first on `sys.path`.
        inputs: synthetic inputs; empty if `batch_fn` makes them, or if they follow from the model.
        seq_len: tokens of the sequences that follow from the model, or that `batch_fn` makes; None: its own,
            or one of `Settings.seq_lens` at a time.
        image_size: height and width of images, pixels, likewise.
        axis: what is searched instead of the batch size; None: the batch size is.
        batch_fn: `pkg.mod:fn`, called as `fn(batch_size, device)`.
        batch_args: keyword arguments of that function, as (name, text) pairs.
        mode: train, or infer (forward only, no gradients).
        loss: `auto`, `cross-entropy`, `mse`, `mean` or `pkg.mod:fn`, called as `fn(output)`.
        optimizer: `adamw`, any name of torch.optim, or `pkg.mod:fn`, called with the parameters.
        optimizer_args: keyword arguments of the optimizer, as (name, text) pairs.
        step: `pkg.mod:fn`, called as `fn(model, *args, **kwargs)` inside autocast; returns the loss, or None
            if it has stepped its own optimizers.
        grad_checkpoint: recompute activations in the backward pass.
        channels_last: model and image inputs in channels_last memory format.
        compile: run the model through torch.compile.
        grad_accum: micro-batches for each optimizer step.
        with_eval: an evaluation pass follows the steps of a trial.
        eval_batch_size: samples in a batch of that pass; None: as many as in training.
        parallel: how several GPUs share the training.
    """

    target: str
    model_args: tuple[tuple[str, str], ...] = field(
        default=(), metadata=_option(types.KEY_VALUE, "model_arg")
    )
    app_dir: str = field(default=".", metadata=_option(types.TEXT))
    inputs: tuple[InputSpec, ...] = field(default=(), metadata=_option(types.INPUT, "input"))
    seq_len: int | None = None
    image_size: int | None = field(default=None, metadata=_option(types.COUNT))
    axis: Axis | None = field(
        default=None,
        metadata=_option(
            types.of_text(_axis_name, lambda axis: axis if isinstance(axis, str) else axis.name)
        ),
    )
    batch_fn: str | None = field(default=None, metadata=_option(types.IMPORT_PATH))
    batch_args: tuple[tuple[str, str], ...] = field(
        default=(), metadata=_option(types.KEY_VALUE, "batch_arg")
    )
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
    with_eval: bool = field(default=False, metadata=_option(types.FLAG))
    eval_batch_size: int | None = field(default=None, metadata=_option(types.BATCH_SIZE))
    parallel: Parallel = field(default_factory=Parallel)

    def evaluated(self, batch_size: int) -> int:
        """Return the samples in a batch of the evaluation pass, given those of training."""
        return self.eval_batch_size or batch_size

    @property
    def searched(self) -> str:
        """The name of the number that a search is about."""
        return "batch size" if self.axis is None else self.axis.name

    def samples(self, size: int) -> int:
        """Return the samples in a batch, given the number that a search is about."""
        return size if self.axis is None else self.axis.batch_size

    def at(self, size: int) -> Workload:
        """Return the workload in which the axis has a size."""
        if self.axis is None:
            return self
        if self.axis.option == "seq_len":
            return replace(self, axis=None, seq_len=size)
        if self.axis.option == "image_size":
            return replace(self, axis=None, image_size=size)
        return replace(
            self, axis=None, inputs=tuple(spec.at(self.axis.name, size) for spec in self.inputs)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types, without `parallel`, which reports have apart."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        del plain["parallel"]
        return {
            **plain,
            "axis": None if self.axis is None else asdict(self.axis),
            "model_args": dict(self.model_args),
            "inputs": [spec.to_json() for spec in self.inputs],
            "batch_args": dict(self.batch_args),
            "optimizer_args": dict(self.optimizer_args),
        }

    def to_message(self) -> dict[str, Any]:
        """Return everything as JSON types, for a worker."""
        return {**self.to_json(), "parallel": self.parallel.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        """Return the workload that `to_message` wrote."""
        return cls(
            **{
                **data,
                "axis": None if data["axis"] is None else Axis(**data["axis"]),
                "model_args": tuple(data["model_args"].items()),
                "batch_args": tuple(data["batch_args"].items()),
                "optimizer_args": tuple(data["optimizer_args"].items()),
                "inputs": tuple(InputSpec.from_json(spec) for spec in data["inputs"]),
                "parallel": Parallel.from_json(data["parallel"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class SearchLimits:
    """How far and how finely to search.

    Attributes:
        min_batch_size: smallest size that is worth an answer.
        max_batch_size: largest size to try; hardly anyone trains with more samples than its default.
        min_size: the same of the axis; None: 1.
        max_size: the same of the axis; None: no other than for batch sizes.
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
        trial_timeout_s: longest time for one trial, seconds.
        time_budget_s: longest time for the whole search, seconds; None: no limit.
    """

    min_batch_size: int = field(default=1, metadata=_option(types.BATCH_SIZE))
    max_batch_size: int = field(default=1 << 20, metadata=_option(types.BATCH_SIZE))
    min_size: int | None = field(default=None, metadata=_option(types.BATCH_SIZE))
    max_size: int | None = field(default=None, metadata=_option(types.BATCH_SIZE))
    multiple_of: int = field(default=1, metadata=_option(types.BATCH_SIZE))
    tolerance: float = field(default=0.005, metadata=_option(types.FRACTION))
    headroom: Headroom = field(default=Headroom(fraction=0.05), metadata=_option(types.HEADROOM))
    objective: Objective = field(default="largest", metadata=_option(_OBJECTIVE))
    steps: int = field(default=3, metadata=_option(types.COUNT))
    confirm_steps: int = field(default=20, metadata=_option(types.COUNT))
    global_batch: int | None = field(default=None, metadata=_option(types.BATCH_SIZE))
    trial_timeout_s: float = field(default=600.0, metadata=_option(types.DURATION, "trial_timeout"))
    time_budget_s: float | None = field(
        default=None, metadata=_option(types.DURATION, "time_budget")
    )

    def __post_init__(self) -> None:
        """Check the limits against each other.

        Raises:
            ValueError: they leave nothing to search; names the options.
        """
        minimum, maximum = "--min-batch-size", "--max-batch-size"
        if self.min_size is not None or self.max_size is not None:
            minimum, maximum = "--min-size", "--max-size"
        if self.least > self.most:
            raise ValueError(f"`{minimum} {self.least}` is above `{maximum} {self.most}`")
        if self.most < self.multiple_of:
            raise ValueError(
                f"no multiple of {self.multiple_of} (`--multiple-of`) is at most "
                f"`{maximum} {self.most}`"
            )
        if self.most - self.most % self.multiple_of < self.least:
            raise ValueError(
                f"no multiple of {self.multiple_of} (`--multiple-of`) lies between `{minimum} "
                f"{self.least}` and `{maximum} {self.most}`"
            )

    @property
    def least(self) -> int:
        """The smallest size that is worth an answer, of the batch or the axis."""
        return self.min_size or self.min_batch_size

    @property
    def most(self) -> int:
        """The largest size to try, of the batch or the axis."""
        return self.max_size or self.max_batch_size

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {**asdict(self), "headroom": str(self.headroom)}


BATCH_SIZE_PLACEHOLDER = "{batch_size}"
VARIANT_PLACEHOLDER = "{variant}"
"""What stands in a launched command for the batch size, and for the arguments of a variant."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A training command of the user's, whose batch size is to be found.

    Attributes:
        command: the program and its arguments, with placeholders.
        set_env: environment variables of the command, as (name, text) pairs; placeholders are filled in.
        substitute: files with placeholders, of which the command gets filled copies.
        variants: names and arguments to compare, which stand for `{variant}`.
        listen: host and port (0: any) of this machine that ranks on others reach; None: all are on this one.
    """

    command: tuple[str, ...]
    set_env: tuple[tuple[str, str], ...] = field(default=(), metadata=_option(types.KEY_VALUE))
    substitute: tuple[str, ...] = field(default=(), metadata=_option(types.FILES))
    variants: tuple[tuple[str, str], ...] = field(
        default=(), metadata=_option(types.VARIANT, "variant")
    )
    listen: tuple[str, int] | None = field(default=None, metadata=_option(types.ADDRESS))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "command": list(self.command),
            "set_env": dict(self.set_env),
            "substitute": list(self.substitute),
            "variants": dict(self.variants),
            "listen": self.listen and types.format_address(self.listen),
        }


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cuda(:[0-9]{1,4})?|sim", text):
        raise ValueError(
            f"`{brief(text)}` is not a device, write `auto`, `cuda`, `cuda:1` or `sim`"
        )
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
        nccl_memory_bytes: what NCCL takes of the GPU in training on several, where it does not run; None: as
            modelled.
        torch_version: the release of torch to predict for, such as `2.9`; None: the one that is installed.
        communicators: the ranks in each of its communicators.
    """

    device: str = field(default="auto", metadata=_option(types.of_text(_device)))
    gpu: str | None = field(default=None, metadata=_option(types.GPUS))
    memory_limit_bytes: int | None = field(
        default=None, metadata=_option(types.MEMORY, "memory_limit")
    )
    context_memory_bytes: int | None = field(
        default=None, metadata=_option(types.SIZE, "context_memory")
    )
    nccl_memory_bytes: int | None = field(default=None, metadata=_option(types.SIZE, "nccl_memory"))
    torch_version: str | None = field(default=None, metadata=_option(types.RELEASE))
    communicators: tuple[int, ...] = ()

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
        if self.torch_version is not None and not self.is_simulated:
            raise ValueError(
                "`--torch-version` is for predictions (`--gpu`): what is measured has the torch that runs"
            )

    @property
    def is_simulated(self) -> bool:
        """Whether the answer is to be predicted for a GPU that need not be there."""
        return self.device == "sim"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types, without `communicators`, which follow from `parallel`."""
        return {name: value for name, value in asdict(self).items() if name != "communicators"}

    def to_message(self) -> dict[str, Any]:
        """Return everything as JSON types, for a worker."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DeviceChoice:
        """Return the choice that `to_message` wrote."""
        return cls(**{**data, "communicators": tuple(data["communicators"])})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One invocation of `run`, `check` or `launch`.

    Attributes:
        workload: what one step is; of `launch`, the command is its target, and says the rest itself.
        launch: the command that trains; None where bsfind does.
        precisions: of `REQUESTABLE_PRECISIONS`, in the order of the table.
        limits: how to search.
        device: where.
        batch_size: `check`: the only size to try; None for a search.
        seq_lens: lengths of sequences to search at, tokens; one is in the workload already.
        compare: names in `REMEDIES` to try besides, in the recommended precision.
        remedy: the one that these settings are with; it is in the workload already.
        seq_len: the one of several lengths that these settings are with; likewise.
        given: names of the options that the user gave (`optimizer`), whatever their values.
    """

    workload: Workload
    precisions: tuple[str, ...] = field(
        default=("fp32", "amp"), metadata=_option(_PRECISIONS, "precision")
    )
    limits: SearchLimits = field(default_factory=SearchLimits)
    device: DeviceChoice = field(default_factory=DeviceChoice)
    batch_size: int | None = field(default=None, metadata=_option(types.BATCH_SIZE))
    seq_lens: tuple[int, ...] = field(default=(), metadata=_option(types.COUNTS, "seq_len"))
    compare: tuple[str, ...] = field(default=(), metadata=_option(_COMPARE))
    remedy: str | None = None
    seq_len: int | None = None
    given: frozenset[str] = field(default=frozenset(), compare=False)
    launch: Launch | None = None

    @property
    def parallel(self) -> Parallel:
        """How several GPUs share the training."""
        return self.workload.parallel

    @property
    def is_launched(self) -> bool:
        """Whether every trial starts a command: the user's, or torchrun with bsfind's own step."""
        return self.launch is not None or self.parallel.nproc_per_node is not None
