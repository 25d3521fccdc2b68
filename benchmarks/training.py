"""The reference training step of bsfind, run by others: by the peers, and by the exact bisections.

Everything that is compared trains the same step on the same inputs: bsfind's own `LoadedWorkload` has
them. The loop around it is written out, as a user would write it: bsfind's `TrainingSteps` refers to
itself, so that it is not released before Python's next garbage collection, and finders that rely on a
prompt release must not suffer from that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bsfind.settings import Workload
from bsfind.workload.model import build_model, keyword_arguments
from bsfind.workload.precision import precision_plan
from bsfind.workload.step import LoadedWorkload

__all__ = ["build", "limit_memory", "load", "train"]


def limit_memory(nbytes: int) -> None:
    """Let PyTorch's allocator reserve at most `nbytes` of the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total))


def build(workload: Workload) -> torch.nn.Module:
    """Return the model, on the CPU."""
    return build_model(workload.target, keyword_arguments(workload.model_args))


def load(
    workload: Workload, precision: str, model: torch.nn.Module | None = None
) -> LoadedWorkload:
    """Return the model on the GPU, with its loss chosen; it is built if it is not given."""
    loaded = LoadedWorkload(workload, precision_plan(precision), torch.device("cuda"), model)
    if loaded.try_labels(batch_size=2):
        loaded.clear_gradients()
        torch.cuda.empty_cache()
    return loaded


def train(
    loaded: LoadedWorkload,
    batch_size: int,
    steps: int,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Run some steps with a fresh optimizer.

    Args:
        loaded: the model.
        batch_size: samples of a step.
        steps: how many.
        after_step: called after each, the device synchronised.
    """
    (optimizer,), loss = loaded.make_optimizers(), loaded.make_loss()
    scaler = torch.amp.GradScaler("cuda", enabled=loaded.plan.grad_scaler)
    for _ in range(steps):
        batch = loaded.make_batch(batch_size)
        loss.make_targets()
        optimizer.zero_grad(set_to_none=True)
        value = loaded.loss_of(batch, loss)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        del value, batch
        loss.release_targets()
        torch.cuda.synchronize()
        after_step()
