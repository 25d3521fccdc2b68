"""`SyncBatchNorm`: statistics of the samples of all ranks (torch/nn/modules/_functions.py, torch 2.6-2.13).

Its kernels are those of aten/src/ATen/native/cuda/Normalization.cu; what they allocate besides their
outputs, kernels/normalization.py says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsfind.simulation.kernels.normalization import is_channels_last
from bsfind.simulation.trace.calls import Args, Kwargs, spec_of
from bsfind.simulation.trace.torch_private import (
    SynchronizedBatchNorm,
    override,
    replacing,
    suggested_format,
    unload,
)

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler, OperatorFacts


class SynchronizedStatistics:
    """Lets batch normalisation find that every rank has samples: it reads how many each has."""

    def __init__(self) -> None:
        self._is_inside = False

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of its operators."""
        return {"aten::ge.Scalar": self._at_least}

    def _at_least(
        self, dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs
    ) -> Any:
        out = dispatcher.run(facts, args, kwargs)
        if self._is_inside and not dispatcher.is_known(out):
            dispatcher.values.set_count(out, out.numel())
        return out

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let batch normalisation of several ranks run while inside."""
        own = SynchronizedBatchNorm.forward

        def forward(*args: Any) -> Any:
            before, self._is_inside = self._is_inside, True
            try:
                return own(*args)
            finally:
                self._is_inside = before

        library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        for name, kernel in _META_KERNELS.items():
            override(library, name, kernel, "Meta")
        try:
            with replacing("forward", SynchronizedBatchNorm)(staticmethod(forward)):
                yield
        finally:
            unload(library)


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _statistics(x: Tensor, _epsilon: float) -> tuple[Tensor, Tensor]:
    dtype = _accumulated(x.dtype)
    return x.new_empty(x.shape[1], dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


def _of_all(_x: Tensor, mean: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = _accumulated(mean.dtype)
    return mean.new_empty(mean.shape[1], dtype=dtype), mean.new_empty(mean.shape[1], dtype=dtype)


def _normalised(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=suggested_format(x))


def _sums(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    _invstd: Tensor,
    weight: Tensor | None,
    wants_x: bool,
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[Tensor | None, ...]:
    channels = x.shape[1]
    sums = [mean.new_empty(channels), mean.new_empty(channels)]
    if is_channels_last(spec_of(grad)) and is_channels_last(spec_of(x)):
        if weight is None:
            return (*sums, mean.new_empty(0), mean.new_empty(0))
        return (*sums, weight.new_empty(channels), weight.new_empty(channels))
    like = mean if weight is None else weight
    return (
        *(sums if wants_x else (None, None)),
        *(like.new_empty(channels) if wants else None for wants in (wants_weight, wants_bias)),
    )


def _gradient(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    if is_channels_last(spec_of(grad)):
        return torch.empty_like(x, memory_format=suggested_format(x))
    return x.new_empty(x.shape)


_META_KERNELS: dict[str, Callable[..., Any]] = {
    "batch_norm_stats": _statistics,
    "batch_norm_gather_stats_with_counts": _of_all,
    "batch_norm_elemt": _normalised,
    "batch_norm_backward_reduce": _sums,
    "batch_norm_backward_elemt": _gradient,
}
