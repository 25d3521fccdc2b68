"""Batches of a trial: random tensors of the given shapes, or what the user's function returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bsfind.import_path import resolve_function
from bsfind.inputs import DTYPES, InputSpec
from bsfind.workload.user_errors import stands_for_torch


@dataclass
class Batch:
    """The arguments of one call of the model.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        placement: which tensors were moved to the device, as text for error messages.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    placement: str = ""

    def describe(self) -> str:
        """Return the arguments as text: `float32[4, 3, 224, 224], labels=int64[4]`."""
        parts = [_describe(value) for value in self.args]
        parts += [f"{name}={_describe(value)}" for name, value in self.kwargs.items()]
        described = ", ".join(parts)
        return f"{described} ({self.placement})" if self.placement else described

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors among the arguments, in tuples, lists and dicts too."""
        found: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            found.append(tensor)
            return tensor

        self.map_tensors(keep)
        return found

    def map_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Return a batch whose tensors are changed, in tuples, lists and dicts too."""
        return Batch(
            args=tuple(_map(value, change) for value in self.args),
            kwargs={name: _map(value, change) for name, value in self.kwargs.items()},
            placement=self.placement,
        )


BatchMaker = Callable[[int], Batch]
"""Makes a batch of a given size on the device."""


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _map(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_map(item, change) for item in value)
    if type(value) is dict:
        return {name: _map(item, change) for name, item in value.items()}
    return value


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


def batch_maker(
    specs: tuple[InputSpec, ...],
    batch_fn: str | None,
    *,
    device: torch.device,
    float_dtype: torch.dtype | None,
    channels_last: bool,
) -> BatchMaker:
    """Return the function that makes the batches of a trial.

    Args:
        specs: synthetic inputs, positional (`name` is None) and keyword ones.
        batch_fn: `pkg.mod:fn`, called as `fn(batch_size, device)` instead.
        device: the device of the tensors.
        float_dtype: dtype that floating inputs are cast to; None: they are not cast.
        channels_last: 4-D inputs in channels_last, 5-D ones in channels_last_3d.

    Raises:
        TargetError: `batch_fn` does not exist or is not callable.
    """
    make = _from_function(batch_fn, device) if batch_fn else _from_specs(specs, device)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if float_dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(float_dtype)
        if channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        elif channels_last and tensor.dim() == 5:
            tensor = tensor.contiguous(memory_format=torch.channels_last_3d)
        return tensor

    if float_dtype is None and not channels_last:
        return make
    return lambda batch_size: make(batch_size).map_tensors(change)


def _from_specs(specs: tuple[InputSpec, ...], device: torch.device) -> BatchMaker:
    def make(batch_size: int) -> Batch:
        batch = Batch()
        for spec in specs:
            tensor = random_tensor(spec, batch_size, device)
            if spec.name is None:
                batch.args += (tensor,)
            else:
                batch.kwargs[spec.name] = tensor
        return batch

    return make


def _from_function(name: str, device: torch.device) -> BatchMaker:
    function = resolve_function(name)

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
    tensors = [*_tensors(batch.args), *_tensors(batch.kwargs)]
    elsewhere = [tensor for tensor in tensors if tensor.device.type != device.type]
    if not elsewhere:
        return batch
    if len(elsewhere) < len(tensors):
        batch.placement = "those that `--batch-fn` left on the CPU stay there"
        return batch
    batch = batch.map_tensors(lambda tensor: tensor.to(device))
    batch.placement = (
        "all moved to the GPU, as `--batch-fn` made none there; where it makes some on `device`, "
        "the others stay on the CPU"
    )
    return batch


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):  # a PackedSequence is one
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def _as_batch(made: Any) -> Batch:
    """Return the batch from what a batch function returned: tensor, tuple, dict, or `(args, kwargs)`."""
    if isinstance(made, Mapping):
        return Batch(kwargs=dict(made))
    if isinstance(made, (tuple, list)):
        if len(made) == 2 and isinstance(made[0], (tuple, list)) and isinstance(made[1], Mapping):
            return Batch(args=tuple(made[0]), kwargs=dict(made[1]))
        return Batch(args=tuple(made))
    return Batch(args=(made,))
