"""Refuses tensors that were left in the host's memory, as CUDA's operators do.

Operators with a CUDA kernel first compare the devices of all their tensors
(`check_and_update_common_device` of ATen/core/op_registration/adaption.h, which code from torchgen
calls), unless their schema says `device_check: NoCheck`. Those of them that work element by element
take single values from the host (`TensorIteratorBase::compute_types` of
aten/src/ATen/TensorIterator.cpp).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bsfind.simulation.kernels.call import Call

# Composites of element-by-element operators, which compare the devices.
_COMPARED_BY_KERNELS = frozenset(
    {
        *("mse_loss", "smooth_l1_loss", "soft_margin_loss", "binary_cross_entropy", "index_fill"),
        "binary_cross_entropy_with_logits",
    }
)

# Composites: the operator whose wrapper compares the devices, and the names of the arguments there.
_COMPARED_BY_WRAPPERS: dict[str, tuple[str, dict[str, str]]] = {
    "embedding": ("index_select.default", {"indices": "index"}),
    "stack": ("cat.default", {}),
    "mv": ("addmv_.default", {"self": "mat"}),
    "complex": ("complex.out", {}),
    "masked_scatter": ("masked_scatter_.default", {}),
    "_trilinear": ("bmm.default", {"i1": "self", "i2": "mat2", "i3": "mat2"}),
}

_GPU = "cuda:0"
_HOST = "cpu"


def check_devices(call: Call, is_pointwise: bool) -> None:
    """Refuse a call whose tensors are on two devices.

    Args:
        call: the call of the operator.
        is_pointwise: whether the operator works element by element.

    Raises:
        RuntimeError: the operator refuses it; the text is PyTorch's.
    """
    tensors = list(call.tensors())
    if call.operator == "aten::mv":  # the result, with which the others are compared, is like `vec`
        tensors.reverse()
    first = tensors[0][1]
    name, tensor = next((n, t) for n, t in tensors if t.on_gpu != first.on_gpu)
    operator = call.operator.partition("::")[2]
    called, names = _COMPARED_BY_WRAPPERS.get(operator, (f"{operator}.{call.overload}", {}))
    name = names.get(name, name)
    wrapper = _wrappers().get(called)
    if wrapper is not None:
        there, here = (_GPU if t.on_gpu else _HOST for t in (tensor, first))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got {name} is on {there}, "
            f"different from other tensors on {here} (when checking argument in method {wrapper})"
        )
    if operator.startswith("masked_fill"):
        _check_mask(call)
        return
    is_pointwise = is_pointwise or operator in _COMPARED_BY_KERNELS
    if is_pointwise and any(not t.on_gpu and t.dim > 0 for _, t in tensors):
        raise RuntimeError(
            "Expected all tensors to be on the same device, "
            f"but found at least two devices, {_GPU} and {_HOST}!"
        )


def _check_mask(call: Call) -> None:
    """`masked_fill__cuda` of native/cuda/Indexing.cu: the value may be on the host."""
    x, mask, value = call.tensor("self"), call.tensor("mask"), call.maybe_tensor("value")
    if not x.on_gpu and value is not None and value.on_gpu:
        raise RuntimeError("masked_fill_: Expected inputs to be on same device")
    if x.on_gpu != mask.on_gpu:
        where = {True: _GPU, False: _HOST}
        raise RuntimeError(
            "expected self and mask to be on the same device, "
            f"but got mask on {where[mask.on_gpu]} and self on {where[x.on_gpu]}"
        )


@dataclass(frozen=True)
class _Function:
    name: str
    overload: str
    delegate: str | None
    is_structured: bool
    is_checked: bool
    has_kernel: bool


@functools.cache
def _wrappers() -> dict[str, str]:
    """Return the names of the wrappers that compare devices, by `name.overload` of the operator.

    They are read from torchgen's native_functions.yaml, a file of torch; without it there are none.
    """
    source = _native_functions()
    functions = {}
    for entry in re.split(r"^- func: ", source, flags=re.MULTILINE)[1:]:
        signature = re.match(r"(\w+)(?:\.(\w+))?\(", entry)
        if signature is None:
            continue
        delegate = re.search(r"^  structured_delegate: (\S+)", entry, re.MULTILINE)
        functions[f"{signature[1]}.{signature[2] or 'default'}"] = _Function(
            name=signature[1],
            overload=signature[2] or "",
            delegate=None if delegate is None else delegate[1],
            is_structured=delegate is not None or "\n  structured: True" in entry,
            is_checked="device_check: NoCheck" not in entry,
            has_kernel=re.search(r"^    [\w, ]*\bCUDA\b[\w, ]*:", entry, re.MULTILINE) is not None,
        )
    wrappers = {}
    for key, function in functions.items():
        kernel = functions.get(function.delegate or "", function)
        if not function.is_checked or not kernel.has_kernel:
            continue
        if function.is_structured:
            name = "_".join(filter(None, (function.name, function.overload)))
        else:
            name = f"{function.overload}_{function.name}"
        if function.overload == "out":  # named after its kernel
            name = f"out_{function.name}_out"
        wrappers[key] = f"wrapper_CUDA_{name}"
    return wrappers


def _native_functions() -> str:
    spec = find_spec("torchgen")
    if spec is None or not spec.submodule_search_locations:
        return ""
    folder = Path(spec.submodule_search_locations[0])
    try:
        file = folder / "packaged" / "ATen" / "native" / "native_functions.yaml"
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
