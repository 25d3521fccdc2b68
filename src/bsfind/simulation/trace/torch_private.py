"""Every private name of torch that the tracer uses, looked up once.

torch promises none of them. `missing` says which a version of torch does not have; with any of them
missing, nothing is traced. No other module of the tracer names one (a test reads the sources).
Checked with torch 2.6-2.13.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.autograd.graph
import torch.utils.checkpoint
import torch.utils.data._utils.pin_memory

from bsfind.errors import UntraceableError

_checks: dict[str, Callable[[], Any]] = {}
"""By name, a function that raises AttributeError where torch does not have it."""


class _Missing:
    """Stands for a name that this torch does not have; raises on its first use."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: object, **__: object) -> Any:
        raise unsupported_torch([self.name])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise unsupported_torch([self.name])


def _found(path: str) -> Any:
    """Return what a dotted path names; raises AttributeError where there is no such thing."""
    found: Any = torch
    at = "torch"
    for name in path.split(".")[1:]:
        at = f"{at}.{name}"
        try:
            found = getattr(found, name)
        except AttributeError:
            try:
                found = importlib.import_module(at)
            except ImportError:
                raise AttributeError(at) from None
    return found


def _named(path: str, find: Callable[[], Any] | None = None) -> Any:
    """Look a name up, by `find` if it is given."""
    look_up = _checks[path] = find or functools.partial(_found, path)
    try:
        return look_up()
    except AttributeError:
        return _Missing(path)


def _optional(path: str) -> Any:
    """Look a name up that the tracer can do without; returns None where it is missing."""
    try:
        return _found(path)
    except AttributeError:
        return None


def _attribute(owner: str, name: str, example: Any) -> Any:
    """Return a function that reads a private attribute; `example` is an object that has it."""
    reads = operator.attrgetter(name)
    _checks[f"{owner}.{name}"] = lambda: reads(example)
    return reads


def _method(path: str) -> Any:
    """Return a function that calls a private method of a class without arguments."""
    _checks[path] = functools.partial(_found, path)
    return operator.methodcaller(path.rpartition(".")[2])


def replacing(name: str, *owners: Any) -> Callable[[Any], AbstractContextManager[None]]:
    """Return a function whose context puts its argument in the place of an attribute of `owners`."""

    @contextlib.contextmanager
    def replaced(value: Any) -> Iterator[None]:
        originals = [getattr(owner, name) for owner in owners]
        for owner in owners:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for owner, original in zip(owners, originals, strict=True):
                setattr(owner, name, original)

    return replaced


def missing() -> list[str]:
    """Return the private names that the tracer cannot do without and this torch does not have."""
    names = []
    for name, check in _checks.items():
        try:
            check()
        except AttributeError:
            names.append(name)
    return names


def check_torch() -> None:
    """Refuse a torch that lacks private names.

    Raises:
        UntraceableError: names them, and the version of torch.
    """
    if names := missing():
        raise unsupported_torch(names)


def unsupported_torch(names: list[str]) -> UntraceableError:
    """Return the error for a torch that lacks what the tracer needs."""
    listed = ", ".join(f"`{name}`" for name in names)
    return UntraceableError(
        f"torch {torch.__version__} cannot be traced without a GPU: it has no {listed}",
        detail="A prediction relies on internal names of PyTorch, which differ between versions.",
        hint="install another version of PyTorch (2.6 to 2.14 are known to work), or measure on a "
        "GPU with `--device cuda`",
    )


native_module: Any = torch._C
"""PyTorch's C++, as Python sees it."""

# ---------------------------------------------------------------------- keys of the dispatcher

_parse_key = _named("torch._C._parse_dispatch_key")
_KeySet = _named("torch._C.DispatchKeySet")
ExcludedKeys = _named("torch._C._ExcludeDispatchKeyGuard")
"""`with ExcludedKeys(keys):` operators skip these keys."""
BelowAutograd = _named("torch._C._AutoDispatchBelowAutograd")
include_key = _named("torch._C._dispatch_tls_set_dispatch_key_included")
AUTOCAST_CUDA = _named("torch._C.DispatchKey.AutocastCUDA")
COMPOSITE_IMPLICIT = _named("torch._C.DispatchKey.CompositeImplicitAutograd")
META = _named("torch._C.DispatchKey.Meta")


_FAKE = "torch._C.DispatchKey.Fake"


def _fake_key() -> Any:
    """Return the key of out-of-tree fake tensors, which torch reserves (c10/core/DispatchKey.h)."""
    try:
        return _parse_key("Fake")
    except (RuntimeError, UntraceableError):
        raise AttributeError(_FAKE) from None


def _key_set(key: Any) -> Any:
    return key if isinstance(key, _Missing) else _KeySet(key)


FAKE: Any = _named(_FAKE, _fake_key)
_FAKE_KEYS = _key_set(FAKE)
AUTOCAST_CUDA_KEYS = _key_set(AUTOCAST_CUDA)


def without_fake() -> Any:
    """Return what is entered so that operators do not come to the dispatcher of the trace."""
    return ExcludedKeys(_FAKE_KEYS)


PYTHON_KEYS = _key_set(_named("torch._C.DispatchKey.Python"))
_keys_after = _named("torch._C._dispatch_keyset_full_after")
BELOW_FAKE = FAKE if isinstance(FAKE, _Missing) else _keys_after(FAKE)
"""The keys to which an operator goes after the dispatcher of the trace."""
_has_kernel = _named("torch._C._dispatch_has_kernel_for_dispatch_key")
operator_names = _named("torch._C._dispatch_get_all_op_names")
dispatch_modes = _named("torch._C._len_torch_dispatch_stack")
FakeTensor = _named("torch._subclasses.fake_tensor.FakeTensor")
FakeTensorMode = _named("torch._subclasses.fake_tensor.FakeTensorMode")


def has_fake_kernel(name: str) -> bool:
    """Tell whether an operator has a kernel of its own for the dispatcher's key."""
    return bool(_has_kernel(name, "Fake"))


unload = _method("torch.library.Library._destroy")
copy_on_write = _named("torch._lazy_clone")
schema_of = _attribute("torch._ops.OpOverload", "_schema", torch.ops.aten.add.Tensor)
_registered: set[str] | None = (
    None
    if "allow_override" in inspect.signature(torch.library.Library.impl).parameters
    else _named("torch.library._impls")
)
"""Kernels that Python registered; None where `Library.impl` can replace them (since torch 2.8)."""
_registered_by = operator.attrgetter("_op_impls")
"""Returns those of a library that lives, in such a torch."""


def override(
    library: torch.library.Library, name: str, kernel: Callable[..., Any], key: str
) -> None:
    """Register a Python kernel of an operator for a dispatch key, whatever is there already.

    Args:
        library: the library that owns the registration: it ends with the library.
        name: name of the operator and its overload, without `aten::`.
        kernel: function that is called with the operator's arguments.
        key: name of the dispatch key.
    """
    if _registered is None:
        library.impl(name, kernel, key, allow_override=True)  # type: ignore[no-untyped-call]
        return
    # `Library.impl` refuses where Python registered a kernel before, which it looks up in a set
    # (torch/library.py, 2.6-2.7); the dispatcher itself stacks kernels, and goes back to the last.
    registration = f"{library.ns}/{name}/{key}"
    was_known = registration in _registered
    _registered.discard(registration)
    library.impl(name, kernel, key)  # type: ignore[no-untyped-call]
    if was_known:  # the first kernel stays when the library goes
        _registered_by(library).discard(registration)


def operator_named(name: str) -> Any:
    """Return the operator of `name` or `name.overload`; None: this torch does not have it."""
    packet, _, overload = name.partition(".")
    try:
        return getattr(getattr(torch.ops.aten, packet), overload or "default")
    except AttributeError:
        return None


_OPERATORS = (
    *("_chunk_cat", "_cudnn_init_dropout_state", "_cudnn_rnn", "_ctc_loss"),
    "_gather_sparse_backward",
    *("_index_put_impl_", "_local_scalar_dense", "_log_softmax", "_safe_softmax", "_softmax"),
    "_to_copy",
    *("_scaled_dot_product_attention_math", "_scaled_dot_product_cudnn_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention"),
    *("_thnn_fused_gru_cell", "_thnn_fused_lstm_cell", "_weight_norm_interface_backward"),
)
"""Of `torch.ops.aten`: these are called as `aten.NAME`, which looks the same for all operators."""
for _operator in _OPERATORS:
    _checks[f"torch.ops.aten.{_operator}"] = functools.partial(getattr, torch.ops.aten, _operator)

# ---------------------------------------------------------------- calls of the Python interface

TorchFunctionOff = _named("torch._C.DisableTorchFunction")
"""`with TorchFunctionOff():` no mode and no subclass sees the calls."""
disabled_torch_function = _named("torch._C._disabled_torch_function_impl")
torch_function_modes = _named("torch._C._len_torch_function_stack")
has_torch_function = _named("torch._C._has_torch_function")
is_traceable_wrapper_subclass = _named("torch.utils._python_dispatch.is_traceable_wrapper_subclass")
register_scripted = _named("torch.jit._builtins._register_builtin")
"""Says which operator TorchScript compiles a Python function to."""
parse_to = _named("torch._C._nn._parse_to")

# ------------------------------------------------------------------------- tensors and storages

address_of = _attribute("torch.UntypedStorage", "_cdata", torch.empty(0).untyped_storage())
"""Of a storage or a tensor: the address of the C++ object."""
is_view = _method("torch.Tensor._is_view")
indices_of = _method("torch.Tensor._indices")
values_of = _method("torch.Tensor._values")
WeakTensor = _named("torch._C._WeakTensorRef")
tensor_uses = operator.methodcaller("_use_count")
"""The use count of a tensor; AttributeError where torch does not tell."""
_storage_use_count = _optional("torch._C._storage_Use_Count")
SynchronizedBatchNorm = _named("torch.nn.modules._functions.SyncBatchNorm")
suggested_format = _named("torch._prims_common.suggest_memory_format")
groups_of_tensors = _named("torch._C._group_tensors_by_device_and_dtype")
replacing_groups_of_tensors = replacing("_group_tensors_by_device_and_dtype", torch._C)
reduced_tensor = _named("torch.Tensor._reduce_ex_internal")
"""Returns what pickle writes of a tensor."""
replacing_reduced_tensor = replacing("_reduce_ex_internal", torch.Tensor)
rebuild_buckets = _optional("torch.distributed.Reducer._rebuild_buckets")
"""Makes the buckets of DistributedDataParallel anew."""
replacing_rebuild_buckets = replacing(
    "_rebuild_buckets", getattr(torch.distributed, "Reducer", None)
)


def replacing_chunks(value: Callable[..., Any]) -> AbstractContextManager[None]:
    """Put a function in the place of what FSDP2 takes parameters apart with, `_chunk_with_empty`.

    Where this torch has no such function, nothing is replaced.
    """
    parameters = _optional("torch.distributed.fsdp._fully_shard._fsdp_param")
    if not hasattr(parameters, "_chunk_with_empty"):
        return contextlib.nullcontext()
    return replacing("_chunk_with_empty", parameters)(value)


replacing_pinning = replacing("pin_memory", torch.utils.data._utils.pin_memory)
"""The function that loaders call with each batch."""


def storage_uses(storage: Any) -> int:
    """Return the use count of a storage.

    Raises:
        AttributeError: this torch does not tell.
    """
    if _storage_use_count is None:
        raise AttributeError("_storage_Use_Count")
    return int(_storage_use_count(address_of(storage)))


# ------------------------------------------------------------------------------------- autograd

_NODE = torch.empty(1, requires_grad=True).view(1).grad_fn
current_backward = _named("torch._C._current_graph_task_id")
"""The number of the backward pass that runs in this thread; -1: none."""
current_node = _named("torch._C._current_autograd_node")
sequence_number = operator.methodcaller("_sequence_nr")
_checks["torch.autograd.graph.Node._sequence_nr"] = lambda: sequence_number(_NODE)
next_sequence_number = _named("torch.autograd._get_sequence_nr")
backward_engine = _named("torch.autograd.graph._engine_run_backward")
replacing_backward_engine = replacing("_engine_run_backward", torch.autograd, torch.autograd.graph)
checkpoint_frames = _optional("torch.utils.checkpoint._CheckpointFrame")
checkpoint_checks: dict[str, Any] = (
    _optional("torch.utils.checkpoint._allowed_determinism_checks_to_fns") or {}
)

# ------------------------------------------------------------------------------------ attention

is_math_attention_enabled = _named("torch._C._get_math_sdp_enabled")
is_cudnn_attention_enabled = _named("torch._C._get_cudnn_sdp_enabled")
is_flash_attention_enabled = _named("torch._C._get_flash_sdp_enabled")
is_efficient_attention_enabled = _named("torch._C._get_mem_efficient_sdp_enabled")
is_reduced_math_attention_allowed = _named("torch._C._get_math_sdp_allow_fp16_bf16_reduction")
sdp_priorities = _named("torch._C._get_sdp_priority_order")

# -------------------------------------------------------------------------------------- modules

_MODULE = torch.nn.Module()
_RECURRENT = torch.nn.RNN(1, 1, device="meta")

parameters_of = _attribute("torch.nn.Module", "_parameters", _MODULE)
"""Of a module, without its submodules', by name; None for those that were not registered."""
buffers_of = _attribute("torch.nn.Module", "_buffers", _MODULE)
flat_weights = _attribute("torch.nn.RNNBase", "_flat_weights", _RECURRENT)
flat_weights_names = _attribute("torch.nn.RNNBase", "_flat_weights_names", _RECURRENT)


def allows_tf32_convolutions() -> bool:
    """Tell whether convolutions may compute in TF32, as the user's code has set it."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # the user's code has set `fp32_precision` instead, torch 2.9 and later
        return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]
