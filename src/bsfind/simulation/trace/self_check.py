"""Checks that the installed torch behaves as the tracer expects.

Four things are checked: that the private names of torch exist that the tracer uses; and, on a graph
of a few operators each, that allocations and frees are seen when they happen, that the autograd
engine's sums of gradients are recognized, and that CUDA's autocast applies to simulated tensors.
Where a check fails, nothing is traced, or the prediction says that it is an estimate.

The rules of operators, the composites that the tracer replaces, and the allocator are not checked:
they are written after the sources of torch, and a version that differs there is not noticed here.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.trace.cuda_paths.autocast import AutocastCuda
from bsfind.simulation.trace.cuda_paths.backward import GradientSums
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.program import program_of
from bsfind.simulation.trace.recorder import Recorder
from bsfind.simulation.trace.torch_private import missing, replacing
from bsfind.workload.late_imports import postpone_imports

_GPU = GpuSpec(capability=(8, 0), sm_count=108, max_threads_per_sm=2048, torch_version=(2, 13))


def problems() -> list[str]:
    """Return what does not behave as expected, one sentence each; empty if all is well.

    To be called while no tracer is open.
    """
    postpone_imports()
    found = [f"there is no `{name}` (torch {torch.__version__})" for name in missing()]
    if found:
        return found
    for check in (_lifetimes, _sums_of_gradients, _autocast):
        try:
            problem = check()
        except Exception as error:  # whatever torch changed: the check has failed, and says how
            problem = f"{check.__name__[1:]}: {type(error).__name__}: {error}"
        if problem:
            found.append(f"{problem} (torch {torch.__version__})")
    return found


@contextlib.contextmanager
def _recording(handlers: dict[str, Any] | None = None) -> Any:
    recorder = Recorder()
    with Dispatcher(recorder, handlers).active():
        yield recorder


def _lifetimes() -> str | None:
    """Allocations and releases are seen when they happen."""
    with _recording() as recorder:
        x = torch.empty(4, 4, device="meta", requires_grad=True)
        y = x.relu()
        view = y.view(16)
        z = view.sin()
        del y, view
        z.sum().backward()  # type: ignore[no-untyped-call]
        del z
    events = program_of(recorder.entries, (), _GPU).load_events
    allocated = [event for event in events if event >= 0]
    # x, relu, sin, sum; ones_like, cos, its product, the gradient of relu
    if allocated != [64, 64, 64, 4, 4, 64, 64, 64]:
        return f"a small step allocates {allocated}"
    if len(events) - len(allocated) != 6:  # all but x and its gradient
        return "releases are not seen when they happen"
    return None


def _sums_of_gradients() -> str | None:
    """The engine's sums of gradients are told from others."""
    sums = GradientSums()
    with _recording({"aten::add.Tensor": sums.handle}) as recorder:
        if not sums.calibrate():
            return "a gradient that only the engine holds looks like any other"
        before = recorder.count
        h = torch.empty(4, 4, device="meta", requires_grad=True) * 1
        total = (h * 2) + (h * 3) + (h * 4)
        total.sum().backward()  # type: ignore[no-untyped-call]
        # leaf, h, three products, two sums, the loss; its gradient, three products' gradients, h's
        made = recorder.count - before
    return None if made == 13 else f"sums of gradients are not made in place ({made})"


def _autocast() -> str | None:
    """CUDA's autocast applies to simulated tensors."""
    import torch.cuda.amp.common as common

    cuda = AutocastCuda()
    available = replacing("amp_definitely_not_available", common)
    with available(lambda: False), cuda.active(), _recording():
        weight = torch.empty(4, 4, device="meta", requires_grad=True)
        x = torch.empty(4, 4, device="meta")
        with torch.autocast("cuda", dtype=torch.float16):
            product = x @ weight
            exact = product.exp()
    if product.dtype != torch.float16 or exact.dtype != torch.float32:
        return "autocast leaves simulated tensors as they are"
    return None
