"""Data-parallel training on several GPUs, as it is asked for: the strategies and their arguments.

Nothing here knows torch. `workload/parallel.py` wraps the model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bsfind import option_types as types
from bsfind.import_path import is_import_path
from bsfind.units import brief

GRAD_ACCUM = "BSFIND_GRAD_ACCUM"
"""The variable that tells ranks another number of micro-batches than their request has."""

STRATEGIES = ("none", "ddp", "fsdp", "hsdp", "zero1")
"""The strategies that have a name."""

NAMES: Mapping[str, str] = {
    "ddp": "DDP",
    "fsdp": "FSDP2",
    "hsdp": "HSDP",
    "zero1": "DDP and ZeRO-1",
}
"""What people call a strategy."""

_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("fsdp1", "fullyshardeddataparallel"),
        "FSDP1 frees memory at times that depend on the GPU; `fsdp` is FSDP2 (`fully_shard`)",
    ),
    **dict.fromkeys(("pp", "pipeline"), "pipeline parallelism cannot be predicted"),
    **dict.fromkeys(("cp", "context"), "context parallelism cannot be predicted"),
    **dict.fromkeys(("ep", "expert"), "expert parallelism cannot be predicted"),
    **dict.fromkeys(
        ("deepspeed", "zero", "zero2", "zero3"), "DeepSpeed's engine cannot be predicted"
    ),
    **dict.fromkeys(
        ("tp", "tensor"),
        "tensor parallelism needs a plan for the layers: pass `pkg.mod:fn`, called as `fn(model, mesh)`",
    ),
}
"""What is refused by name, and why."""


def _flag(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise ValueError("write `true` or `false`") from None


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("write a number of MB") from None
    if not 0 < number <= 1e6:
        raise ValueError("write a number of MB above 0")
    return number


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text):
        raise ValueError("write a number")
    return int(text)


def _reshard(text: str) -> bool | int:
    return _count(text) if text.isdigit() else _flag(text)


def _dtype(text: str) -> str:
    name = text.removeprefix("torch.")
    if name not in ("float32", "float16", "bfloat16"):
        raise ValueError("write `float32`, `float16` or `bfloat16`")
    return name


_DDP: Mapping[str, Callable[[str], Any]] = {
    "bucket_cap_mb": _number,
    "gradient_as_bucket_view": _flag,
    "static_graph": _flag,
    "find_unused_parameters": _flag,
    "broadcast_buffers": _flag,
    "sync_batchnorm": _flag,
}
_FSDP: Mapping[str, Callable[[str], Any]] = {
    "reshard_after_forward": _reshard,
    "param_dtype": _dtype,
    "reduce_dtype": _dtype,
    "prefetch": _count,
}
ARGUMENTS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "ddp": _DDP,
    "zero1": _DDP,
    "fsdp": _FSDP,
    "hsdp": _FSDP,
}
"""The arguments of `--parallel-arg` that each strategy takes, and how their values are read."""


def _strategy(text: str) -> str:
    if text.lower() in _REFUSED:
        raise ValueError(
            f"`{text}`: {_REFUSED[text.lower()]}; `bsfind launch -- torchrun …` measures any training script"
        )
    if text in STRATEGIES:
        return text
    if is_import_path(text):
        return str(types.IMPORT_PATH.read(text))
    raise ValueError(f"`{brief(text)}` is not one of {', '.join(STRATEGIES)}, nor `pkg.mod:fn`")


def _ranks(text: str) -> str:
    if text != "gpu" and not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise ValueError(
            f"`{brief(text)}` is neither a number of GPUs nor `gpu`: all of this machine"
        )
    return text


def _classes(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or not all(re.fullmatch(r"[\w.]+", name) for name in names):
        raise ValueError(f"`{brief(text)}` is not `auto` or names of classes: `Block,Embedding`")
    return () if names == ("auto",) else names


_AUTO = 0
"""The world size that is to be found."""

_WORLD_SIZE = dataclasses.replace(
    types.COUNT,
    read=lambda value: _AUTO if value == "auto" else types.COUNT.read(value),
    write=lambda value: "auto" if value == _AUTO else types.COUNT.write(value),
)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How several GPUs share the training of one model.

    Attributes:
        strategy: one of `STRATEGIES`, or `pkg.mod:fn`, called as `fn(model, mesh)`, which returns the model
            to train.
        world_size: number of ranks, each with a GPU of its own; 0: the smallest on which the model trains.
        replicas: of HSDP: how many groups of ranks have a whole model each.
        shard_by: of FSDP2: names of the classes of modules that are wrapped before the root; (): chosen.
        arguments: of the strategy, as (name, text) pairs.
        nproc_per_node: how many ranks this machine runs, each on a GPU: a number, or `gpu`: on all; None: at
            most one.
        rank: which rank stands for all, where the others are absent; None: the one that needs most memory.
    """

    strategy: str = field(
        default="none",
        metadata={
            "kind": types.of_text(_strategy, choices=STRATEGIES),
            "option": "parallel",
        },
    )
    world_size: int = field(default=1, metadata={"kind": _WORLD_SIZE, "option": ""})
    replicas: int | None = field(default=None, metadata={"kind": types.COUNT, "option": ""})
    shard_by: tuple[str, ...] = field(
        default=(),
        metadata={
            "kind": types.of_text(_classes, lambda names: ",".join(names) or "auto"),
            "option": "",
        },
    )
    arguments: tuple[tuple[str, str], ...] = field(
        default=(), metadata={"kind": types.KEY_VALUE, "option": "parallel_arg"}
    )
    nproc_per_node: str | None = field(
        default=None, metadata={"kind": types.of_text(_ranks), "option": ""}
    )
    rank: int | None = None

    def __post_init__(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: options that do not go with the strategy; names them.
        """
        if self.is_auto and self.strategy not in ("none", "fsdp"):
            raise ValueError(
                "`--world-size auto` is for `--parallel fsdp`: others make little room with more GPUs"
            )
        if not self.is_used:
            for flag, value in (
                ("--replicas", self.replicas),
                ("--shard-by", self.shard_by),
                ("--parallel-arg", self.arguments),
                ("--nproc-per-node", self.nproc_per_node),
            ):
                if value:
                    raise ValueError(f"`{flag}` requires `--parallel`")
            return
        if self.replicas is not None and self.strategy != "hsdp":
            raise ValueError("`--replicas` is for `--parallel hsdp`")
        if (
            self.strategy == "hsdp" and self.nproc_per_node != "gpu"
        ):  # then, the number is not known
            groups = self.groups
            if groups < 2 or self.world_size % groups or self.world_size == groups:
                raise ValueError(
                    f"`--parallel hsdp` with {groups} replicas on {self.world_size} GPUs: `--replicas` has "
                    "to divide `--world-size` into at least two groups of at least two"
                )
        if self.shard_by and not self.shards:
            raise ValueError("`--shard-by` is for `--parallel fsdp` and `--parallel hsdp`")
        if len(dict(self.arguments)) < len(self.arguments):
            raise ValueError("`--parallel-arg` sets the same key twice")
        _ = self.options  # raises

    @property
    def is_used(self) -> bool:
        """Whether the model is wrapped."""
        return self.strategy != "none"

    @property
    def is_auto(self) -> bool:
        """Whether the number of ranks is to be found."""
        return self.world_size == _AUTO

    @property
    def shards(self) -> bool:
        """Whether parameters are sharded (FSDP2)."""
        return self.strategy in ("fsdp", "hsdp")

    @property
    def has_subgroups(self) -> bool:
        """Whether ranks talk in groups besides the one of all."""
        return self.strategy not in ("ddp", "zero1", "fsdp")

    @property
    def groups(self) -> int:
        """Groups of ranks that have a whole model each."""
        return (self.replicas or 2) if self.strategy == "hsdp" else 1

    @property
    def communicators(self) -> tuple[int, ...]:
        """The ranks in each NCCL communicator that training would make on a GPU; none where NCCL runs."""
        if not self.is_used or self.world_size <= 1 or self.nproc_per_node is not None:
            return ()
        if self.strategy == "hsdp":
            return self.world_size // self.groups, self.groups
        return (self.world_size,)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the strategy with the values that their texts stand for.

        Raises:
            ValueError: an unknown argument, or a value that it does not take.
        """
        known = ARGUMENTS.get(self.strategy)
        if known is None:
            return dict(self.arguments)
        values: dict[str, Any] = {}
        for name, text in self.arguments:
            if name == "parameters_as_bucket_view":
                raise ValueError(
                    "`--parallel-arg parameters_as_bucket_view`: its memory cannot be predicted"
                )
            if name not in known:
                raise ValueError(
                    f"`--parallel {self.strategy}` has no argument `{brief(name)}`, it has "
                    f"{', '.join(known)}"
                )
            try:
                values[name] = known[name](text)
            except ValueError as error:
                raise ValueError(f"`--parallel-arg {name}={brief(text)}`: {error}") from None
        return values

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            **vars(self),
            "shard_by": list(self.shard_by),
            "arguments": dict(self.arguments),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parallel:
        """Return what `to_json` wrote."""
        return cls(
            **{
                **data,
                "shard_by": tuple(data["shard_by"]),
                "arguments": tuple(data["arguments"].items()),
            }
        )
