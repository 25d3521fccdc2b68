"""Records what each operator allocates on a GPU, real or fake: `operator_probe.py [--every=N] [GROUP...]`.

Prints a JSON line for every operator that the cases of operator_cases/ call, forward and backward:
the call as shapes, and the allocations and frees of its CUDA kernel in their order. Calls that have
been seen before are left out.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.trace.calls import call_of, flat_tensors


def encoded(value: Any) -> Any:
    """Make a value JSON."""
    if isinstance(value, TensorSpec):
        name = str(value.dtype).removeprefix("torch.")
        return {"t": [value.shape, value.stride, name, value.on_gpu]}
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, complex):
        return {"complex": repr(value)}
    return {"other": str(value)}


def decoded(value: Any) -> Any:
    """Undo `encoded`; lists come back as lists, or as tuples where they hold tensors."""
    if isinstance(value, list):
        items = [decoded(item) for item in value]
        return tuple(items) if any(isinstance(item, TensorSpec) for item in items) else items
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "t":
            shape, stride, dtype, on_gpu = content
            return TensorSpec(tuple(shape), tuple(stride), getattr(torch, dtype), on_gpu)
        if kind == "dtype":
            return getattr(torch, content)
        if kind in ("float", "complex"):
            return {"float": float, "complex": complex}[kind](content)
        return content
    return value


def call_from(record: dict[str, Any]) -> Call:
    """Return the call of a record."""
    return Call(
        operator=record["operator"],
        overload=record["overload"],
        arguments={name: decoded(value) for name, value in record["arguments"].items()},
        outputs=tuple(decoded(output) for output in record["outputs"]),
    )


class Recorder(TorchDispatchMode):
    """Prints what the operators that are called under it allocate."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show
        self._seen: set[str] = set()
        self._threads: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = {
            tensor.untyped_storage().data_ptr()
            for tensor in flat_tensors([args, list(kwargs.values())])
            if tensor is not None and tensor.layout is torch.strided
        }
        torch.cuda.memory._record_memory_history(enabled=None)
        torch.cuda.memory._record_memory_history(max_entries=100000, context=None)
        result = func(*args, **kwargs)
        trace = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        outputs = flat_tensors(result)
        if any(t is not None and t.layout is not torch.strided for t in outputs):
            return result
        call = call_of(func, args, kwargs, outputs)
        places: dict[int, int] = {}
        for index, output in enumerate(outputs):
            if output is not None and output.is_cuda:
                places.setdefault(output.untyped_storage().data_ptr(), index)
        record: dict[str, Any] = {
            "operator": call.operator,
            "overload": call.overload,
            "arguments": {name: encoded(value) for name, value in call.arguments.items()},
            "outputs": [encoded(output) for output in call.outputs],
            "events": _events(trace, places),
            "views": [
                output is not None
                and (
                    output.untyped_storage().data_ptr() in inputs
                    or places.get(output.untyped_storage().data_ptr(), index) != index
                )
                for index, output in enumerate(outputs)
            ],
            "thread": self._threads.setdefault(threading.get_ident(), len(self._threads)),
        }
        line = json.dumps(record)
        if line not in self._seen:
            self._seen.add(line)
            self._show(line)
        return result


def _events(trace: Iterable[dict[str, Any]], places: dict[int, int]) -> list[str]:
    """Name events: `+o0:512` an output, `+k:512` scratch memory k, `-k` its release; bytes asked for."""
    alive: dict[int, tuple[int, int]] = {}  # address -> (position in events, number)
    events: list[str] = []
    count = 0
    for entry in trace:
        if entry["action"] == "alloc":
            alive[entry["addr"]] = (len(events), count)
            events.append(f"+{count}:{entry['size']}")
            count += 1
        elif entry["action"] == "free_completed" and entry["addr"] in alive:
            # else it is garbage of an earlier call
            events.append(f"-{alive.pop(entry['addr'])[1]}")
    for address, (position, _) in alive.items():
        if address in places:
            events[position] = f"+o{places[address]}:{events[position].split(':')[1]}"
    return events


def main(arguments: list[str]) -> None:
    """Run the cases of the groups, or of all; `--every=N` leaves out all but each Nth."""
    groups = [name for name in arguments if not name.startswith("--")]
    every = next((int(name.split("=")[1]) for name in arguments if name.startswith("--every=")), 1)
    import operator_cases

    gc.disable()  # so that no tensor of an earlier case is freed in a later one
    torch.manual_seed(0)
    torch.cuda.init()
    for name, cases in operator_cases.GROUPS.items():
        if groups and name not in groups:
            continue
        with Recorder(print):
            for number, case in enumerate(cases()):
                if number % every:
                    continue
                try:
                    case()
                except (
                    RuntimeError,
                    NotImplementedError,
                    IndexError,
                    TypeError,
                    ValueError,
                ) as error:
                    print(f"{name}: {error}"[:300], file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the threads of autograd outlive the interpreter otherwise, and abort it
