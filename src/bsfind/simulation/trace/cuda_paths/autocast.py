"""CUDA's autocast for meta tensors: the same operators, the same casts, the same cache.

`torch.autocast("cuda")` works by kernels of the dispatch key AutocastCUDA, which cast only tensors
that are on CUDA (`is_eligible` in aten/src/ATen/autocast_mode.h, torch 2.6-2.13). Here the same key
gets kernels that cast meta tensors, by the lists of the torch that is installed: its own header.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from bsfind.simulation import torch_releases
from bsfind.simulation.torch_releases import release_of
from bsfind.simulation.trace.calls import Args, Kwargs
from bsfind.simulation.trace.torch_private import (
    AUTOCAST_CUDA,
    AUTOCAST_CUDA_KEYS,
    ExcludedKeys,
    TorchFunctionOff,
    WeakTensor,
    address_of,
    include_key,
    is_view,
    operator_named,
    override,
    schema_of,
    unload,
    unsupported_torch,
)
from bsfind.workload.user_errors import stands_for_torch

_LISTS = ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE")


def operator_lists() -> dict[str, tuple[str, ...]]:
    """Return CUDA's autocast lists: `LOWER_PRECISION_FP`, `FP32`, `FP32_SET_OPT_DTYPE`, `PROMOTE`.

    They are the macros `AT_FORALL_*` of include/ATen/autocast_mode.h, which the wheels ship.

    Raises:
        UntraceableError: this torch comes without that header.
    """
    header = Path("include", "ATen", "autocast_mode.h")
    lists = {}
    try:
        source = (Path(torch.__file__).parent / header).read_text(encoding="utf-8")
    except OSError:
        source = ""
    for name in _LISTS:
        macro = re.search(rf"#define AT_FORALL_{name}\(_\)((?:.*\\\n)*.*\n)", source)
        if macro is None:
            raise unsupported_torch([str(header)])
        entries = re.findall(r"_\((\w+)(?:,\s*(\w+))?\)", macro.group(1))
        lists[name] = tuple(f"{op}.{overload}" if overload else op for op, overload in entries)
    return lists


def _lists_of(release: tuple[int, int]) -> dict[str, tuple[str, ...]]:
    """Return the lists of another release of torch than the one that is installed."""
    lists = operator_lists()
    changed = torch_releases.AUTOCAST_TO_FP32
    same = (name for name in lists["FP32"] if name not in changed)
    added = (name for name, since in changed.items() if release >= since)
    return {**lists, "FP32": (*same, *added)}


class AutocastCuda:
    """The kernels, and the cache of cast weights.

    Args:
        on_cast: called with each weight that goes to the cache, and its cast.
        release: (major, minor) of the torch whose autocast it is; None: the one that is installed.
    """

    def __init__(
        self,
        on_cast: Callable[[torch.Tensor, torch.Tensor], None] = lambda _weight, _cast: None,
        release: tuple[int, int] | None = None,
    ) -> None:
        self._on_cast = on_cast
        self._release = None if release == release_of(torch.__version__) else release
        # By the address of the C++ tensor, which the weak reference keeps from being used again.
        self._cache: dict[int, tuple[Any, torch.Tensor]] = {}
        if self._release is None:
            self._differentiable_casts = _caches_differentiable_casts(torch.no_grad)
            self._casts_for_inference = not _caches_differentiable_casts(torch.inference_mode)
        else:
            self._differentiable_casts = self._release >= torch_releases.AUTOCAST_KEEPS_GRADIENTS
            self._casts_for_inference = not self._differentiable_casts

    def clear_cache(self) -> None:
        """Forget the cast weights, as leaving the outermost autocast does."""
        self._cache.clear()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make `torch.autocast("cuda")` cast meta tensors while inside."""
        library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        lists = operator_lists() if self._release is None else _lists_of(self._release)
        makers = (self._lower, self._fp32, self._set_dtype, self._promote)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of each kernel that it replaces
            for key, make in zip(_LISTS, makers, strict=True):
                for name in lists[key]:
                    op = operator_named(name)
                    if op is not None:
                        override(library, name, make(op), "AutocastCUDA")
            for name in ("norm.Scalar", "norm.ScalarOpt_dim"):
                override(library, name, self._norm(name), "AutocastCUDA")
        include_key(AUTOCAST_CUDA, True)
        try:
            yield
        finally:
            include_key(AUTOCAST_CUDA, False)
            unload(library)
            self.clear_cache()

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Cast a tensor, or those of a list, as `cached_cast` of autocast_mode.cpp does."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.cast(item, dtype) for item in value)
        if not _is_eligible(value) or value.dtype == dtype:
            return value
        if (
            value.dtype == torch.float32
            and value.requires_grad
            and value.is_leaf
            and not is_view(value)
            and dtype == torch.get_autocast_dtype("cuda")
            and torch.is_autocast_cache_enabled()
            and (self._casts_for_inference or not torch.is_inference_mode_enabled())
        ):
            known = self._cache.get(address_of(value))
            if known is None:
                with torch.set_grad_enabled(self._differentiable_casts or torch.is_grad_enabled()):
                    reference = WeakTensor(value)
                    known = (reference, value.to(dtype))
                self._cache[address_of(value)] = known
                self._on_cast(value, known[1])
            return known[1]
        return value.to(dtype)

    def _casting(
        self, op: Any, dtype_of: Callable[[Args, Kwargs], torch.dtype]
    ) -> Callable[..., Any]:
        """Return a kernel that casts all arguments to the dtype that `dtype_of` returns for them."""

        @stands_for_torch
        def kernel(*args: Any, **kwargs: Any) -> Any:
            with ExcludedKeys(AUTOCAST_CUDA_KEYS):
                dtype = dtype_of(args, kwargs)
                # C++ leaves the order of evaluation of arguments open; gcc, which builds the Linux
                # wheels, goes from the right to the left.
                cast_kwargs = {
                    name: self.cast(value, dtype) for name, value in reversed(kwargs.items())
                }
                cast = [self.cast(value, dtype) for value in reversed(args)][::-1]
                return op(*cast, **cast_kwargs)

        return kernel

    def _lower(self, op: Any) -> Callable[..., Any]:
        return self._casting(op, lambda _args, _kwargs: torch.get_autocast_dtype("cuda"))

    def _fp32(self, op: Any) -> Callable[..., Any]:
        return self._casting(op, lambda _args, _kwargs: torch.float32)

    def _set_dtype(self, op: Any) -> Callable[..., Any]:
        arguments = schema_of(op).arguments
        position = next(i for i, argument in enumerate(arguments) if argument.name == "dtype")

        @stands_for_torch
        def kernel(*args: Any, **kwargs: Any) -> Any:
            with ExcludedKeys(AUTOCAST_CUDA_KEYS):
                given = args[position] if len(args) > position else kwargs.get("dtype")
                if given is None and _is_eligible(args[0]):
                    if len(args) > position:
                        args = (*args[:position], torch.float32, *args[position + 1 :])
                    else:
                        kwargs["dtype"] = torch.float32
                return op(*args, **kwargs)

        return kernel

    def _promote(self, op: Any) -> Callable[..., Any]:
        # `promote_type` does not look at optional tensors, though they are cast with the others.
        counted = {
            name
            for position, argument in enumerate(schema_of(op).arguments)
            if str(argument.type) in ("Tensor", "List[Tensor]")
            for name in (position, argument.name)
        }

        def widest(args: Args, kwargs: Kwargs) -> torch.dtype:
            given = (*enumerate(args), *kwargs.items())
            return _promoted(value for name, value in given if name in counted)

        return self._casting(op, widest)

    def _norm(self, name: str) -> Callable[..., Any]:
        op = operator_named(name)
        with_dtype = torch.ops.aten.norm.ScalarOpt_dtype
        with_dim_dtype = torch.ops.aten.norm.ScalarOpt_dim_dtype

        @stands_for_torch
        def kernel(*args: Any, **kwargs: Any) -> Any:
            with ExcludedKeys(AUTOCAST_CUDA_KEYS):
                if not _is_eligible(args[0]):
                    return op(*args, **kwargs)
                if name == "norm.Scalar":
                    p = args[1] if len(args) > 1 else kwargs.get("p", 2)
                    return with_dtype(args[0], p, dtype=torch.float32)
                kwargs.setdefault("keepdim", False)
                names = ("self", "p", "dim", "keepdim")
                given = {**kwargs, **dict(zip(names, args, strict=False))}
                return with_dim_dtype(*(given[n] for n in names), dtype=torch.float32)

        return kernel


def _caches_differentiable_casts(
    mode: Callable[[], contextlib.AbstractContextManager[Any]],
) -> bool:
    """Tell whether a weight that was cast in a mode without gradients gets gradients afterwards.

    Up to torch 2.9 the cache kept what such a mode had cast, and the weight lost its gradients.
    Later versions cast with gradients under `no_grad`, and do not cache in inference mode. They do
    the same on the CPU, where this can be tried.
    """
    weight, x = torch.ones(1, 1, requires_grad=True), torch.ones(1, 1)
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        with mode():
            torch.mm(weight, x)
        return torch.mm(weight, x).requires_grad


def _is_eligible(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
        and is_meta(value)
    )


def is_meta(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is simulated, whatever its `device` claims to the user's code."""
    with TorchFunctionOff():
        return tensor.is_meta


def _eligible(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _eligible(value)
        elif _is_eligible(value):
            yield value


@stands_for_torch
def _promoted(values: Iterable[Any]) -> torch.dtype:
    """Return the widest dtype of autocast's two (`prioritize` of autocast_mode.h).

    Raises:
        RuntimeError: a tensor has neither of them, and comes before any of float32.
    """
    lower = torch.get_autocast_dtype("cuda")
    for tensor in _eligible(values):
        if tensor.dtype == torch.float32:
            return torch.float32
        if tensor.dtype != lower:
            raise RuntimeError("Unexpected floating ScalarType in at::autocast::prioritize")
    return lower
