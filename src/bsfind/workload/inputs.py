"""Batches of a trial: random tensors of the given shapes, or what the user's function returns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn.utils.rnn import PackedSequence

from bsfind.errors import ShortBatchError, TargetError, UsageError
from bsfind.import_path import parse_value, resolve_function
from bsfind.inputs import DTYPES, InputSpec
from bsfind.settings import FIRST_SIZE_OF_AXIS, Workload
from bsfind.workload.containers import mapped
from bsfind.workload.user_errors import stands_for_torch


@dataclass
class Batch:
    """The arguments of one call of the model.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        placement: which tensors were moved to the device, as text for error messages.
        size: the number of samples that was asked for; 0: it is not known.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    placement: str = ""
    size: int = 0

    def describe(self) -> str:
        """Return the arguments as text: `float32[4, 3, 224, 224], labels=int64[4]`."""
        parts = [_describe(value) for value in self.args]
        parts += [f"{name}={_describe(value)}" for name, value in self.kwargs.items()]
        described = ", ".join(parts)
        return f"{described} ({self.placement})" if self.placement else described

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors among the arguments, in containers and objects too."""
        found: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            found.append(tensor)
            return tensor

        self.map_tensors(keep)
        return found

    def map_tensors(
        self,
        change: Callable[[torch.Tensor], torch.Tensor],
        move: Callable[[Any], Any] | None = None,
    ) -> Batch:
        """Return a batch whose tensors are changed, in containers and objects too (see `mapped`)."""
        return Batch(
            args=tuple(mapped(value, change, move) for value in self.args),
            kwargs={name: mapped(value, change, move) for name, value in self.kwargs.items()},
            placement=self.placement,
        )


@dataclass(frozen=True, kw_only=True)
class BatchForm:
    """How `training_step` takes its batch.

    Attributes:
        kind: `sequence`: it takes it apart or asks for an item by number; `mapping`: it asks for an item by
            name; `whole`: neither, or that is not known.
        parts: the number of parts that it is taken apart into; None: unknown.
        name: an item that it asks for.
    """

    kind: str = "whole"
    parts: int | None = None
    name: str = ""

    def of(self, batch: Batch, *, is_described: bool) -> Any:
        """Return a batch in this form: a list, a dict, or a tensor as it is.

        Args:
            batch: the inputs.
            is_described: whether the inputs were described one by one, and so can be made to fit.

        Raises:
            TargetError: it has another number of parts, or parts without names.
        """
        parts = [*batch.args, *batch.kwargs.values()]
        if self.kind == "sequence":
            is_whole = len(parts) == 1 and self.parts != 1 and isinstance(parts[0], (list, tuple))
            if is_whole and not is_described:
                return parts[0]  # `--batch-fn` returned the batch as one argument
            if is_described and self.parts is not None and self.parts != len(parts):
                missing = (
                    "describe all that a batch of the data loader has, in its order, labels too: "
                    "`--input-shape 3,64,64 --input-shape :int64:0..10`"
                )
                nested = (
                    "a batch with tuples in it, such as `(view, other), labels`, is that of "
                    "`--batch-fn pkg.mod:fn`, which returns it as the data loader does"
                )
                raise TargetError(
                    f"`training_step` takes its batch apart into {self.parts}, and the inputs are "
                    f"{len(parts)}: {batch.describe()}",
                    hint=missing if len(parts) < self.parts else nested,
                )
            return parts
        if self.kind == "mapping" and batch.args and is_described:
            raise TargetError(
                f"`training_step` asks its batch for the item {self.name!r}, and "
                f"{len(batch.args)} of the inputs have no name: {batch.describe()}",
                hint=f"name them as the items of a batch: `--input {self.name}=3,64,64`",
            )
        if not batch.args:
            return dict(batch.kwargs)
        return parts[0] if len(parts) == 1 else parts


BatchMaker = Callable[[int], Batch]
"""Makes a batch of a given size on the device."""


class SizedMaker(Protocol):
    """Makes a batch on the device."""

    def __call__(self, size: int, samples: int | None = None, /) -> Batch:
        """Return a batch.

        Args:
            size: the number that the search is about: samples, or the size of an axis.
            samples: of an axis: samples in the batch; None: as many as are asked for.
        """
        ...


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_describe(item)}" for key, item in value.items()) + "}"
    if type(value) in (list, tuple) and value:
        return f"[{_describe(value[0])}{', …' if len(value) > 1 else ''}]"
    return repr(value) if value is None or isinstance(value, (bool, int)) else type(value).__name__


def random_tensor(spec: InputSpec, batch_size: int, device: torch.device) -> torch.Tensor:
    """Return one synthetic input of shape (batch_size, *spec.shape), made on the device."""
    shape = (batch_size, *spec.shape)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    kind = DTYPES[spec.dtype]
    if kind == "int":
        low, high = spec.low or 0, 2 if spec.high is None else spec.high
        return torch.randint(low, high, shape, device=device, dtype=dtype)
    if kind == "bool":
        return torch.ones(shape, device=device, dtype=dtype)
    return torch.randn(shape, device=device, dtype=dtype)


def sized_maker(
    workload: Workload,
    described_at: Callable[[int], Workload],
    *,
    taken_by: Callable[..., Any] | None,
    device: torch.device,
    float_dtype: torch.dtype | None,
    channels_last: bool,
) -> SizedMaker:
    """Return the function that makes the batches of a trial, given the number that the search is about.

    Args:
        workload: what is trained, with its inputs.
        described_at: the same with inputs in which the axis has a size.
        taken_by: see `batch_maker`.
        device: see `batch_maker`.
        float_dtype: see `batch_maker`.
        channels_last: see `batch_maker`.

    Raises:
        UsageError: the user's function does not take an argument that an option sets.
    """
    make = functools.partial(
        batch_maker,
        device=device,
        float_dtype=float_dtype,
        channels_last=channels_last,
        taken_by=taken_by,
    )
    if (axis := workload.axis) is None:
        one = make(workload.inputs, batch_function(workload))
        return lambda size, _=None: one(size)
    batch_function(workload.at(FIRST_SIZE_OF_AXIS))

    def made(size: int, samples: int | None = None) -> Batch:
        try:
            sized = described_at(size)
        except UsageError as error:  # a limit of the model's
            raise ShortBatchError(error.message, delivered=error.limit, hint=error.hint) from None
        try:
            return make(sized.inputs, batch_function(sized))(samples or axis.batch_size)
        except ShortBatchError as error:
            raise TargetError(error.message, hint=error.hint) from None

    return made


def batch_maker(
    specs: tuple[InputSpec, ...],
    batch_fn: Callable[..., Any] | None,
    *,
    device: torch.device,
    float_dtype: torch.dtype | None,
    channels_last: bool,
    taken_by: Callable[..., Any] | None = None,
) -> BatchMaker:
    """Return the function that makes the batches of a trial.

    Args:
        specs: synthetic inputs, positional (`name` is None) and keyword ones.
        batch_fn: called as `fn(batch_size, device)` instead (see `batch_function`).
        device: the device of the tensors.
        float_dtype: dtype that floating inputs are cast to; None: they are not cast.
        channels_last: 4-D inputs in channels_last, 5-D ones in channels_last_3d.
        taken_by: what the batch is passed to: where it takes one argument, that is the whole batch.
    """

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if float_dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(float_dtype)
        if channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        elif channels_last and tensor.dim() == 5:
            tensor = tensor.contiguous(memory_format=torch.channels_last_3d)
        return tensor

    if batch_fn is None:
        make = _from_specs(specs, device, change)
    else:
        made = _from_function(batch_fn, device)
        is_as_made = float_dtype is None and not channels_last
        make = made if is_as_made else lambda batch_size: made(batch_size).map_tensors(change)
    if taken_by is None:
        return make
    return lambda batch_size: _as_taken(make(batch_size), taken_by)


def _as_taken(batch: Batch, function: Callable[..., Any]) -> Batch:
    """Return the batch as a function takes it: whole, or its parts.

    `forward(self, batch)` gets the dict, `step(model, batch)` the dict or the tuple. A model that gets
    more positional inputs than it takes says so. `forward(self, x, edge_index)` gets what an object, as
    the batch of a graph network is one, has under these names.
    """
    is_model = isinstance(getattr(function, "__self__", None), torch.nn.Module)
    is_object = len(batch.args) == 1 and not isinstance(batch.args[0], (torch.Tensor, Sequence))
    if bool(batch.args) == bool(batch.kwargs) or (batch.args and is_model and not is_object):
        return batch
    try:
        takes = inspect.signature(function)
    except (TypeError, ValueError):
        return batch
    if is_object and not _binds(takes, *batch.args):
        fields = {name: getattr(batch.args[0], name, None) for name in takes.parameters}
        fields = {name: v for name, v in fields.items() if v is not None and not callable(v)}
        if not _binds(takes, **fields):
            return batch
        names = ", ".join(f"`{name}`" for name in fields)
        kind = type(batch.args[0]).__name__
        return Batch(kwargs=fields, placement=f"{names} of the {kind}")
    if batch.args and is_model:
        return batch
    if _binds(takes, *batch.args, **batch.kwargs) or not batch.kwargs.keys().isdisjoint(
        takes.parameters
    ):
        return batch
    whole = batch.kwargs or batch.args
    if not _binds(takes, whole):
        return batch
    name = next(iter(takes.parameters))
    return Batch(args=(whole,), placement=f"passed whole, as the argument `{name}`")


def _binds(signature: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _from_specs(
    specs: tuple[InputSpec, ...],
    device: torch.device,
    change: Callable[[torch.Tensor], torch.Tensor],
) -> BatchMaker:
    constants = {s.name: parse_value(s.constant) for s in specs if s.constant is not None}

    def make(batch_size: int) -> Batch:
        made: dict[str | None, Any] = dict(constants)
        args: list[torch.Tensor] = []
        for spec in specs:
            if spec.is_tensor:
                tensor = change(random_tensor(spec, batch_size, device))
                if spec.name is None:
                    args.append(tensor)
                made[spec.name or str(len(args))] = tensor
        kwargs: dict[str, Any] = {}
        for spec in specs:
            if spec.name is not None:
                *outer, key = spec.name.split(".")
                inside = kwargs
                for name in outer:
                    inside = inside.setdefault(name, {})
                inside[key] = made[spec.same_as or spec.name]
        return Batch(args=tuple(args), kwargs=kwargs)

    return make


def batch_function(workload: Workload) -> Callable[..., Any] | None:
    """Return what makes the batches of a workload, with its arguments; None: its inputs do.

    Raises:
        TargetError: it does not exist or is not callable.
        UsageError: it does not take an argument that an option sets.
    """
    if workload.batch_fn is None:
        return None
    function = resolve_function(workload.batch_fn)
    sizes = {"seq_len": workload.seq_len, "image_size": workload.image_size}
    given = {name: size for name, size in sizes.items() if size is not None}
    arguments = {name: parse_value(text) for name, text in workload.batch_args} | given
    takes = inspect.signature(function).parameters if arguments else {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    for name in arguments:
        if name not in takes and not takes_any:
            flag = f"--{name.replace('_', '-')}" if name in given else f"--batch-arg {name}=…"
            known = ", ".join(f"`{other}`" for other in list(takes)[2:])
            raise UsageError(
                f"`{flag}`: `{workload.batch_fn}` has no argument `{name}`",
                hint=f"it has {known}" if known else "",
            )

    @stands_for_torch
    def make(batch_size: int, device: torch.device) -> Any:
        try:
            return function(batch_size, device, **arguments)
        except StopIteration:
            raise ShortBatchError(
                f"`--batch-fn {workload.batch_fn}` was asked for {batch_size:,} samples and raised "
                "StopIteration: its iterator has no such batch",
                hint="a loader with `drop_last=True` has no batch that is larger than its data set; an "
                "iterator that is at its end can begin anew (`itertools.cycle`)",
            ) from None

    return make


def _from_function(function: Callable[..., Any], device: torch.device) -> BatchMaker:
    @stands_for_torch
    def make(batch_size: int) -> Batch:
        return _placed(_as_batch(function(batch_size, device)), device)

    return make


def _placed(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a user's batch to the device if none of them is there.

    A function that makes some tensors on the device leaves the others on the CPU on purpose, as lengths
    for `pack_padded_sequence`. One that makes all of them on the CPU ignores the device, as a data loader
    does.
    """
    tensors = batch.tensors()
    elsewhere = [tensor for tensor in tensors if tensor.device.type != device.type]
    if not elsewhere:
        return batch
    if len(elsewhere) < len(tensors):
        batch.placement = "those that `--batch-fn` left on the CPU stay there"
        return batch
    batch = batch.map_tensors(lambda tensor: tensor.to(device), lambda value: value.to(device))
    batch.placement = (
        "all moved to the GPU, as `--batch-fn` made none there; where it makes some on `device`, "
        "the others stay on the CPU"
    )
    return batch


def _as_batch(made: Any) -> Batch:
    """Return the batch from what a batch function returned: tensor, tuple, dict, or `(args, kwargs)`."""
    if isinstance(made, Mapping):
        return Batch(kwargs=dict(made))
    if isinstance(made, (tuple, list)) and not isinstance(made, PackedSequence):
        if len(made) == 2 and isinstance(made[0], (tuple, list)) and isinstance(made[1], Mapping):
            return Batch(args=tuple(made[0]), kwargs=dict(made[1]))
        return Batch(args=tuple(made))
    return Batch(args=(made,))
