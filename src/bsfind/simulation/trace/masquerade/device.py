"""Makes simulated tensors look like CUDA's to the user's Python code.

A `TorchFunctionMode` sees each call of torch's Python API. It turns `device="cuda"` into `meta`, and
answers `x.device`, `x.is_cuda` and their like as they would be answered on the GPU. Code also makes
tensors with old names of types, such as `torch.cuda.FloatTensor(2, 3)`, and asks with `isinstance`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.autograd.graph
import torch.utils.checkpoint
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from bsfind.simulation.trace.building import without_memory
from bsfind.simulation.trace.calls import Args, Kwargs
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.recorder import is_large
from bsfind.simulation.trace.torch_private import (
    TorchFunctionOff,
    backward_engine,
    checkpoint_checks,
    parse_to,
    replacing_backward_engine,
)
from bsfind.workload.user_errors import stands_for_torch

_CUDA = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_META = torch.device("meta")
_to: Callable[..., torch.Tensor] = torch.Tensor.to
"""Past the `to` of a subclass, which has called the masquerade (`Int8Params` of bitsandbytes)."""

_Handler = Callable[[Args, Kwargs], Any]


def _is_cuda(device: Any) -> bool:
    """Tell whether an argument names a CUDA device: `cuda:1`, torch.device, or a number."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.partition(":")[0] == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


class CudaMasquerade(TorchFunctionMode):
    """Mode that is active while the model is built and its step is traced.

    Args:
        dispatcher: knows which meta tensors lie on the GPU.

    Attributes:
        is_off: whether every call is left as it is.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self.is_off = False
        tensor = torch.Tensor
        self._handlers: dict[Any, _Handler] = {
            tensor.device.__get__: lambda args, _: self._device(args[0]),
            tensor.is_cuda.__get__: lambda args, _: self._on_gpu(args[0]),  # type: ignore[attr-defined]
            tensor.is_meta.__get__: lambda _args, _kwargs: False,  # type: ignore[attr-defined]
            tensor.is_cpu.__get__: lambda args, _: not self._on_gpu(args[0]),  # type: ignore[attr-defined]
            tensor.get_device: lambda args, _: 0 if self._on_gpu(args[0]) else -1,
            tensor.data.__set__: self._set_data,  # type: ignore[attr-defined]
            tensor.__getitem__: self._get_item,
            tensor.__setitem__: self._set_item,
            tensor.to: self._to,
            tensor.cuda: self._cuda,
            tensor.cpu: self._cpu,
            tensor.type: self._type,
            tensor.tolist: lambda args, _: self._read(args[0]).tolist(),
            tensor.pin_memory: lambda args, _: args[0],
            tensor.numpy: lambda args, kwargs: _handed_on(self._read(args[0]).numpy, (), kwargs),
            tensor.__array__: self._array,
            tensor.__format__: self._format,
            tensor.new_tensor: self._new_tensor,
            tensor.new: self._new,
            parse_to: self._parse_to,
            **{
                make: functools.partial(self._made_on_host, make)
                for make in (torch.tensor, torch.as_tensor, torch.asarray)
            },
        }

    @stands_for_torch
    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch's Python API (torch.overrides, torch 2.6-2.13)."""
        kwargs = kwargs or {}
        if self.is_off:
            return func(*args, **kwargs)
        handler = self._handlers.get(func)
        if handler is not None:
            return handler(args, kwargs)
        if kwargs and kwargs.get("pin_memory"):  # the host's memory needs a GPU for that
            kwargs = {**kwargs, "pin_memory": False}
        if kwargs and _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _META}
        elif kwargs and kwargs.get("device") in ("meta", _META):
            with self._dispatcher.moving("host"):  # the user's own meta tensors take no memory
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    @contextlib.contextmanager
    def in_backward(self) -> Iterator[None]:
        """Keep the masquerade active in backward passes while inside.

        A mode is off while it handles a call, and a backward pass is one call. User code may run in
        it: `torch.autograd.Function`, hooks, recomputed activations.
        """

        @stands_for_torch
        def masked(*args: Any, **kwargs: Any) -> Any:
            with self:
                return backward_engine(*args, **kwargs)

        with replacing_backward_engine(masked), _comparable_checkpoints():
            yield

    def _on_gpu(self, tensor: torch.Tensor) -> bool:
        with TorchFunctionOff():
            return self._dispatcher.is_on_gpu(tensor)

    def _device(self, tensor: torch.Tensor) -> torch.device:
        with TorchFunctionOff():
            if not tensor.is_meta:
                return tensor.device
        return _CUDA if self._on_gpu(tensor) else _CPU

    def _read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor in the host's memory, with the values that are known."""
        with TorchFunctionOff():
            return tensor.to("cpu") if tensor.is_meta else tensor

    @stands_for_torch
    def _array(self, args: Args, kwargs: Kwargs) -> Any:
        return self._read(args[0]).__array__(*args[1:], **kwargs)  # type: ignore[no-untyped-call]

    @staticmethod
    def _format(args: Args, _kwargs: Kwargs) -> str:
        """Write a tensor of one value as its number, which torch does not do for meta tensors."""
        tensor, form = args
        return format(tensor.item() if tensor.dim() == 0 else str(tensor), form)

    # ------------------------------------------------------------------------------ moving

    @stands_for_torch
    def _to(self, args: Args, kwargs: Kwargs) -> Any:
        """Run `Tensor.to` in any of its forms (`parse_to_conversion` of torch's argument parser)."""
        tensor, *rest = args
        options = self._options_of_to(rest, kwargs)
        if options is None:  # torch says what is wrong
            with TorchFunctionOff():
                return _handed_on(tensor.to, tuple(rest), kwargs)
        device, dtype = options.get("device"), options.get("dtype")
        copy = bool(options.get("copy"))
        memory_format = options.get("memory_format")
        if _is_cuda(device):
            return self._moved(tensor, dtype=dtype, copy=copy, memory_format=memory_format)
        return self._to_elsewhere(tensor, device, dtype, copy=copy, memory_format=memory_format)

    def _options_of_to(self, rest: list[Any], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Return the arguments of `Tensor.to` by name; None if they are not valid."""
        like = rest[0] if rest else kwargs.get("other", kwargs.get("tensor"))
        names = ["device", "dtype", "non_blocking", "copy"]
        if isinstance(like, torch.dtype):
            del names[0]
        elif isinstance(like, torch.Tensor):
            with TorchFunctionOff():
                dtype = like.dtype
            target = {"device": self._device(like), "dtype": dtype}
            others = {name: v for name, v in kwargs.items() if name not in ("other", "tensor")}
            return self._options_of_to([*target.values(), *rest[1:]], others)
        options = dict(zip(names, rest, strict=False))
        if len(rest) > len(names) or any(name in options for name in kwargs):
            return None
        options |= kwargs
        return options if options.keys() <= {*names, "device", "memory_format"} else None

    @stands_for_torch
    def _to_elsewhere(
        self,
        tensor: torch.Tensor,
        device: Any,
        dtype: torch.dtype | None,
        *,
        copy: bool = False,
        memory_format: torch.memory_format | None = None,
    ) -> torch.Tensor:
        """Return a tensor in another dtype, or on another device than the GPU."""
        options: dict[str, Any] = {"copy": copy}
        if memory_format is not None:
            options["memory_format"] = memory_format
        dispatcher = self._dispatcher
        with TorchFunctionOff():
            wanted = dtype or tensor.dtype
            if not tensor.is_meta or not _names_host(device):
                place = tensor.device if device is None else device
                return _to(tensor, place, wanted, **options)
            if dispatcher.host.has(tensor):
                return _to(tensor, wanted, **options)
            if not isinstance(tensor, torch.nn.Parameter) and not is_large(tensor):
                return _to(tensor, device, wanted, **options)
            with dispatcher.moving("host"):
                return _to(tensor, wanted, **{**options, "copy": True})

    def _moved(
        self,
        tensor: torch.Tensor,
        *,
        dtype: torch.dtype | None = None,
        copy: bool = False,
        memory_format: torch.memory_format | None = None,
    ) -> torch.Tensor:
        """Return a tensor on the GPU, as `Tensor.to` does."""
        wanted = dtype or tensor.dtype
        kept = torch.preserve_format if memory_format is None else memory_format
        with TorchFunctionOff():
            if (
                isinstance(tensor, torch.nn.Parameter)
                and not tensor.is_meta
                and not is_lazy(tensor)
            ):
                # `Module.to` replaces a parameter's data where the types of both tensors agree,
                # and the parameter itself where not: tied ones would be parted.
                without_memory(self._dispatcher, tensor)
            if not tensor.is_meta:
                return _to(tensor, _META, wanted, copy=copy, memory_format=kept)
            if not self._dispatcher.host.has(tensor):
                return _to(tensor, wanted, copy=copy, memory_format=kept)
            with self._dispatcher.moving("gpu"):
                return _to(tensor, wanted, copy=True, memory_format=kept)

    @staticmethod
    @stands_for_torch
    def _parse_to(args: Args, kwargs: Kwargs) -> Any:
        """Read the arguments of `Module.to`, which hands the device on to `Tensor.to`."""
        # A number names a GPU, which torch would look for.
        if args and _is_cuda(args[0]):
            args = (_CUDA, *args[1:])
        elif _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _CUDA}
        with TorchFunctionOff():
            return parse_to(*args, **kwargs)

    def _cuda(self, args: Args, kwargs: Kwargs) -> Any:
        return self._moved(args[0], memory_format=kwargs.get("memory_format"))

    def _cpu(self, args: Args, kwargs: Kwargs) -> Any:
        return self._to_elsewhere(args[0], _CPU, None, memory_format=kwargs.get("memory_format"))

    @stands_for_torch
    def _type(self, args: Args, kwargs: Kwargs) -> Any:
        tensor = args[0]
        wanted = args[1] if len(args) > 1 else kwargs.get("dtype")
        if wanted is None:
            name = tensor.type()
            return name.replace("torch.meta.", "torch.cuda." if self._on_gpu(tensor) else "torch.")
        if isinstance(wanted, str) and wanted.startswith("torch.cuda."):
            wanted = TENSOR_TYPES[wanted.removeprefix("torch.cuda.")]
        if isinstance(wanted, TensorType):
            return self._moved(tensor, dtype=wanted.dtype)
        if isinstance(wanted, torch.dtype):
            return self._to_elsewhere(tensor, None, wanted)
        name = wanted if isinstance(wanted, str) else f"{wanted.__module__}.{wanted.__name__}"
        kind = TENSOR_TYPES.get(name.removeprefix("torch."))
        if kind is None:
            return tensor.type(wanted)
        return self._to_elsewhere(tensor, _CPU, kind.dtype)

    @stands_for_torch
    def _set_data(self, args: Args, kwargs: Kwargs) -> None:
        tensor, data = args
        with TorchFunctionOff():
            if tensor.is_meta and not data.is_meta and self._dispatcher.host.has(tensor):
                data = self._dispatcher.as_host_meta(data)
            if data.is_meta and not tensor.is_meta:  # torch would not change the type of a tensor
                data = data.detach().requires_grad_(tensor.requires_grad)
                torch.utils.swap_tensors(tensor, data)  # type: ignore[no-untyped-call]
                return
            tensor.data = data

    @stands_for_torch
    def _set_item(self, args: Args, _kwargs: Kwargs) -> None:
        """Assign to a part of a tensor: a number comes from the host, as for CUDA.

        `THPVariable_setitem` of torch/csrc/autograd/python_variable_indexing.cpp, torch 2.6-2.13.
        """
        tensor, index, value = args
        with TorchFunctionOff():
            if isinstance(value, (bool, int, float, complex)) and tensor.is_meta:
                value = torch.tensor(value, dtype=tensor.dtype)
        tensor[self._with_values(tensor, index)] = value

    @stands_for_torch
    def _get_item(self, args: Args, _kwargs: Kwargs) -> Any:
        tensor, index = args
        return tensor[self._with_values(tensor, index)]

    def _with_values(self, tensor: torch.Tensor, index: Any) -> Any:
        """Return an index whose lists of numbers are tensors with values on the tensor's device.

        torch makes these itself, where no dispatch mode sees it (`sequenceToVariable`, the same file).
        """
        if isinstance(index, tuple):
            return tuple(self._with_values(tensor, part) for part in index)
        is_list = isinstance(index, list) and index and all(isinstance(n, int) for n in index)
        if not is_list or not self._on_gpu(tensor):
            return index
        return self._made_on_host(torch.tensor, (index,), {"device": _CUDA})

    # ------------------------------------------------------------------------------ making

    @stands_for_torch
    def _made_on_host(self, make: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        """Run a function that makes a tensor of Python's values: on the host, then moved."""
        device = kwargs.get("device")
        source = args[0] if args else None
        if isinstance(source, (list, tuple)):
            args = (self._on_host(source), *args[1:])
        if not _is_cuda(device):
            return make(*args, **kwargs)
        if isinstance(source, torch.Tensor):
            return make(*args, **{**kwargs, "device": _META})
        requires_grad = kwargs.pop("requires_grad", False)
        made = make(*args, **{**kwargs, "device": _CPU})
        moved = self._moved(made)
        return moved.requires_grad_() if requires_grad else moved

    def _on_host(self, values: Any) -> Any:
        """Return numbers in lists with the tensors among them in the host's memory, as torch reads them."""
        if isinstance(values, torch.Tensor):
            return self._read(values)
        if isinstance(values, (list, tuple)) and any(
            isinstance(value, (torch.Tensor, list, tuple)) for value in values
        ):
            return [self._on_host(value) for value in values]
        return values

    @stands_for_torch
    def _new(self, args: Args, kwargs: Kwargs) -> Any:
        """Run the old `Tensor.new`, which does not know sparse tensors of the meta device."""
        like, *rest = args
        if like.layout is torch.sparse_coo and len(rest) == 3:
            return torch.sparse_coo_tensor(*rest, check_invariants=False)
        return like.new(*rest, **kwargs)

    @stands_for_torch
    def _new_tensor(self, args: Args, kwargs: Kwargs) -> Any:
        tensor, data = args[0], args[1]
        device = kwargs.pop("device", None) or self._device(tensor)
        with TorchFunctionOff():
            kwargs.setdefault("dtype", tensor.dtype)
        return self._made_on_host(torch.tensor, (data,), {**kwargs, "device": device})


@stands_for_torch
def _handed_on(function: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Call a function of torch as the user's code did."""
    return function(*args, **kwargs)


def _names_host(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cpu"
    return isinstance(value, str) and value.partition(":")[0] == "cpu"


@contextlib.contextmanager
def _comparable_checkpoints() -> Iterator[None]:
    """Let activation checkpointing compare saved with recomputed tensors without the masquerade.

    It compares their devices, and asks in hooks, where the masquerade may be on or off
    (`_default_meta_extractor` in torch/utils/checkpoint.py, torch 2.6-2.13).
    """
    own = checkpoint_checks.get("default")

    def described(tensor: torch.Tensor) -> Any:
        with TorchFunctionOff():
            return own(tensor)  # type: ignore[misc]

    if own is not None:
        checkpoint_checks["default"] = described
    try:
        yield
    finally:
        if own is not None:
            checkpoint_checks["default"] = own


class TensorType(type):
    """The type of such a name: its instances are tensors on the GPU of one dtype."""

    dtype: torch.dtype

    def __instancecheck__(cls, value: object) -> bool:
        """Tell whether a value is a tensor of this dtype on the GPU."""
        return isinstance(value, torch.Tensor) and value.is_cuda and value.dtype == cls.dtype

    def __call__(cls, *args: Any) -> torch.Tensor:
        """Return a tensor of these sizes, or of these values."""
        sizes = args[0] if len(args) == 1 and isinstance(args[0], torch.Size) else args
        if all(isinstance(size, int) for size in sizes):
            return torch.empty(tuple(sizes) or (0,), dtype=cls.dtype, device="cuda")
        return torch.tensor(args[0], dtype=cls.dtype, device="cuda")


def _named(name: str, dtype: torch.dtype) -> TensorType:
    made = TensorType(name, (), {})
    made.dtype = dtype
    return made


TENSOR_TYPES: dict[str, TensorType] = {
    name: _named(name, dtype)
    for name, dtype in {
        "FloatTensor": torch.float32,
        "DoubleTensor": torch.float64,
        "HalfTensor": torch.float16,
        "BFloat16Tensor": torch.bfloat16,
        "LongTensor": torch.int64,
        "IntTensor": torch.int32,
        "ShortTensor": torch.int16,
        "CharTensor": torch.int8,
        "ByteTensor": torch.uint8,
        "BoolTensor": torch.bool,
    }.items()
}
"""By their names in `torch.cuda`."""
