"""Composite operators and layers that choose by device, made to choose as on CUDA."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.trace.cuda_paths import (
    attention_choice,
    backward_choice,
    batch_norm_choice,
    composite_choice,
    grouped_products,
    recurrent,
    recurrent_outputs,
)
from bsfind.simulation.trace.overriding import operator_named, override
from bsfind.simulation.trace.refusals import refusing
from bsfind.simulation.trace.torch_private import (
    TorchFunctionOff,
    unload,
)


class CudaComposites:
    """CUDA's ways through composite operators, and its kernels' outputs.

    Args:
        gpu: the GPU that decides.

    Attributes:
        kernels: by `name` or `name.overload` of the operator. Registered for autograd they are not
            found in inference mode, where tensors have no autograd key.
    """

    def __init__(self, gpu: GpuSpec) -> None:
        self._recurrent = recurrent.RecurrentLayers(gpu)
        self.kernels: dict[str, Callable[..., Any]] = {
            **attention_choice.kernels(gpu),
            **backward_choice.kernels(gpu),
            **batch_norm_choice.kernels(gpu),
            **composite_choice.kernels(gpu),
            **self._recurrent.kernels(),
        }
        self._meta_kernels: dict[str, Callable[..., Any]] = {
            **attention_choice.meta_kernels(gpu),
            **batch_norm_choice.meta_kernels(gpu),
            **composite_choice.meta_kernels(gpu),
            **grouped_products.meta_kernels(),
            **recurrent_outputs.meta_kernels(gpu),
        }

    def forget(self) -> None:
        """Let go of what CUDA keeps from call to call until the process ends."""
        self._recurrent.forget()

    @contextlib.contextmanager
    def active(
        self, is_on_gpu: Callable[[torch.Tensor], bool] = lambda tensor: tensor.is_meta
    ) -> Iterator[None]:
        """Let simulated tensors take CUDA's ways while inside.

        Args:
            is_on_gpu: tells a tensor on the simulated GPU from one of the host.
        """
        library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        layers: Any = torch.nn.RNNBase
        flatten = layers.flatten_parameters

        def flatten_parameters(module: torch.nn.RNNBase) -> None:
            with TorchFunctionOff():
                recurrent.flatten_parameters(module, is_on_gpu)

        kernels = [
            *(
                (name, refusing(operator_named(name), kernel), "AutogradMeta")
                for name, kernel in self.kernels.items()
            ),
            *((name, kernel, "Meta") for name, kernel in self._meta_kernels.items()),
            ("_cudnn_rnn", recurrent.autocast_kernel, "AutocastCUDA"),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of each kernel that is replaced
            for name, kernel, key in kernels:
                override(library, name, kernel, key)
        layers.flatten_parameters = flatten_parameters
        try:
            yield
        finally:
            layers.flatten_parameters = flatten
            unload(library)
