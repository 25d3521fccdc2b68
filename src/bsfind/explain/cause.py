"""The likely cause of an error, with the arithmetic that supports it.

A message tells how full the card was, not why. What can be computed is computed; where two causes
are left, the sentence says so and the cause is marked unsure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from bsfind.explain.breakdown import Breakdown, Figures
from bsfind.explain.texts import Kind
from bsfind.units import GIB, format_bytes


class CauseKind(str, Enum):
    """Why memory ran out."""

    BATCH_TOO_LARGE = "batch_too_large"
    MODEL_TOO_LARGE = "model_too_large"
    FRAGMENTATION = "fragmentation"
    OTHER_PROCESS = "other_process"
    LEAK = "leak"
    EVAL_WITHOUT_NO_GRAD = "eval_without_no_grad"
    MEMORY_LIMIT = "memory_limit"
    OVERFLOWED_SHAPE = "overflowed_shape"
    HOST_MEMORY = "host_memory"
    NOT_MEMORY = "not_memory"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Cause:
    """A cause, whether it is likely enough to act upon, and why."""

    kind: CauseKind
    likely: bool
    reason: str


_OPTIMIZER = re.compile(
    r"in _init_group\b|exp_avg|optimizer\.step\(|torch/optim/\w+\.py|in (_single|_multi)_tensor_"
)
_LOADING = re.compile(
    r"\.to\((device|\"cuda|'cuda|self\.device|torch\.device)|model\.(cuda|to)\(|in _apply\b|from_pretrained"
    r"|load_state_dict|load_(model|checkpoint|weights)\b|in convert\b|_load_from_state_dict"
    r"|loading checkpoint shards"
)
_EVALUATING = re.compile(
    r"\bin (\w*_)?(validat\w*|eval\w*|test_epoch|test|predict\w*)$", re.MULTILINE
)
_NO_GRAD = re.compile(r"in decorate_context|no_grad|inference_mode")
_TRAINING = re.compile(
    r"\.backward\(|in backward\b|_engine_run_backward|in training_step|in train\w*$", re.M
)
_OVERFLOWED = re.compile(
    r"more than 1 ?EB\b|(?:allocat\w+|of size|bytes of) \d{16,20}\b", re.IGNORECASE
)
_RAY = re.compile(r"node running low on memory|\(raylet\)|\(tasks / actors\)", re.IGNORECASE)
_PREEMPTIVE = re.compile(r"would exceed per_process_memory_fraction limit")
_COMPARED = (
    *("tried_bytes", "allowed_bytes", "allocated_bytes", "reserved_bytes"),
    "reserved_unallocated_bytes",
)
_MANY_STEPS = 20


def find_cause(
    kind: Kind,
    figures: Figures,
    breakdown: Breakdown,
    *,
    message: str,
    is_proven: bool,
    traceback: str,
    step: int | None,
) -> Cause:
    """Return the likely cause of an out-of-memory error.

    Args:
        kind: what ran out.
        figures: the sizes in its text.
        breakdown: who held the memory, as far as the sizes say.
        message: the text itself.
        is_proven: False for a text that stands for lack of memory only most likely.
        traceback: the last one around it; empty if the log holds none.
        step: the last step that the log names before it.
    """
    if kind in (Kind.CPU_OOM, Kind.HOST_OOM_KILL):
        return _host(kind, figures, message, is_proven=is_proven)
    return (
        _impossible_size(kind, figures, message)
        or _mps_limit(figures, breakdown)
        or _larger_than_the_gpu(figures)
        or _limit(figures, message)
        or _other_process(figures, breakdown)
        or _fragmentation(figures, breakdown)
        or _free_after_all(figures)
        or _from_traceback(traceback, step)
        or _full(figures, breakdown)
        or _not_known(kind, figures)
    )


def _host(kind: Kind, figures: Figures, message: str, *, is_proven: bool) -> Cause:
    if not is_proven:
        reason = (
            "A process was killed by SIGKILL. Most likely this was the kernel's out-of-memory killer: the "
            "host's memory (RAM, or the limit of the job or the container) ran out. A scheduler, a "
            "launcher that ends its workers, or a user can send that signal too; the kernel's log tells."
        )
    elif kind is Kind.HOST_OOM_KILL:
        held = figures.this_process_bytes
        by = " by Ray's memory monitor" if _RAY.search(message) else ""
        size = f" It held {format_bytes(held)} then." if held is not None else ""
        reason = (
            "The host's memory (RAM, or the job's limit on it) ran out, and a process was killed"
            f"{by}.{size}"
        )
    else:
        tried = (
            f"{format_bytes(figures.tried_bytes)} of " if figures.tried_bytes is not None else ""
        )
        reason = f"{tried}the host's memory could not be allocated."
    reason += " The GPU's memory has no part in this."
    return Cause(CauseKind.HOST_MEMORY, True, reason[0].upper() + reason[1:])


def _impossible_size(kind: Kind, figures: Figures, message: str) -> Cause | None:
    if _OVERFLOWED.search(message) is not None:
        reason = (
            "The size that was asked for is larger than the memory of any machine: a shape overflowed, is "
            "negative, or was read from memory that holds no number. It does not depend on the batch size."
        )
        return Cause(CauseKind.OVERFLOWED_SHAPE, True, reason)
    if kind is Kind.MPS_OOM and "invalid buffer size" in message.lower():
        reason = (
            f"One buffer of {format_bytes(figures.tried_bytes)} is larger than Metal allows "
            "(MTLDevice.maxBufferLength), however much memory is free: the input is too large (batch, "
            "sequence length, resolution)."
        )
        return Cause(CauseKind.BATCH_TOO_LARGE, True, reason)
    return None


def _mps_limit(figures: Figures, breakdown: Breakdown) -> Cause | None:
    """Return the cause where most of what MPS's limit counts is not in PyTorch's allocator."""
    outside, allowed, tried = breakdown.outside_bytes, figures.allowed_bytes, figures.tried_bytes
    allocated = figures.allocated_bytes
    if figures.other_allocations_bytes is None or None in (outside, allowed, tried, allocated):
        return None
    if (outside or 0) <= (allocated or 0):
        return None
    reason = (
        f"MPS allows this process {format_bytes(allowed)}. PyTorch's allocator holds "
        f"{format_bytes(allocated)}; {format_bytes(outside)} are this process's own too, but outside that "
        f"allocator (Metal, MPSGraph). {format_bytes(tried)} were asked for."
    )
    return Cause(CauseKind.MEMORY_LIMIT, False, reason)


def _larger_than_the_gpu(figures: Figures) -> Cause | None:
    tried, total = figures.tried_bytes, figures.total_bytes
    if not tried or not total or tried <= total:
        return None
    reason = (
        f"One allocation of {format_bytes(tried)} is larger than the whole card ({format_bytes(total)}): "
        "the input is too large (batch, sequence length, resolution), or a shape is not what it should be."
    )
    return Cause(CauseKind.BATCH_TOO_LARGE, True, reason)


def _limit(figures: Figures, message: str) -> Cause | None:
    tried, allowed, total = figures.tried_bytes, figures.allowed_bytes, figures.total_bytes
    if allowed is None and _PREEMPTIVE.search(message):
        asked = f": {format_bytes(tried)} were asked for" if tried is not None else ""
        reason = (
            "The process may use only a fraction of the card (set_per_process_memory_fraction), and the "
            f"allocation would have exceeded it{asked}."
        )
        return Cause(CauseKind.MEMORY_LIMIT, True, reason)
    if allowed is None or tried is None:
        return None
    free, reserved = figures.free_bytes, figures.reserved_bytes
    # The figures were rounded to be printed: the limit may be reached although their sum is below it.
    if reserved is not None and reserved + tried <= allowed - figures.rounding(*_COMPARED):
        return None
    if (free is None and reserved is None) or (free is not None and free < tried):
        return None
    of = f" of {format_bytes(total)}" if total is not None else ""
    held, rest = "", ""
    if reserved is not None:
        held = f"{format_bytes(reserved)} were reserved and "
        if reserved + tried <= allowed:
            rest = ", which is the limit within the rounding of these figures"
    rest += f". {format_bytes(free)} of the card were free." if free is not None else "."
    reason = (
        f"The process may use {format_bytes(allowed)}{of} (set_per_process_memory_fraction, or a "
        f"framework's setting): {held}{format_bytes(tried)} were asked for{rest}"
    )
    return Cause(CauseKind.MEMORY_LIMIT, True, reason)


def _other_process(figures: Figures, breakdown: Breakdown) -> Cause | None:
    tried, total, free = figures.tried_bytes, breakdown.total_bytes, figures.free_bytes
    if total is None or tried is None:
        return None
    others, is_likely = breakdown.others_bytes, True
    if others is None and breakdown.unattributed_bytes is not None:
        # This process's own context is in it.
        others, is_likely = max(0, breakdown.unattributed_bytes - GIB), False
    if others is None or others < max(GIB // 2, total // 10):
        return None
    available = (free or 0) + (figures.reserved_unallocated_bytes or 0)
    if others + available < tried or available >= tried:
        return None
    own = figures.reserved_bytes or 0
    if others < own // 3:  # a small user beside a process that fills the card does not decide
        return None
    if breakdown.other_processes:
        pids = ", ".join(str(process.pid) for process in breakdown.other_processes[:4])
        who = f"Other processes ({pids}) hold"
    elif is_likely:
        who = "Others than this process hold"
    else:
        who = "Beyond this process's allocator and its context (about 1 GiB), others hold"
    reason = (
        f"{who} {format_bytes(others)} of the card's {format_bytes(total)}; PyTorch had reserved "
        f"{format_bytes(own)} here. {format_bytes(tried)} were asked for and {format_bytes(available)} were "
        "available: with the card to itself it would have fitted."
    )
    return Cause(CauseKind.OTHER_PROCESS, is_likely, reason)


def _fragmentation(figures: Figures, breakdown: Breakdown) -> Cause | None:
    tried, cached, free = figures.tried_bytes, breakdown.cached_bytes, figures.free_bytes
    reserved = figures.reserved_bytes
    if tried is None or cached is None or not reserved:
        return None
    if cached < tried // 4 or cached < reserved // 10 or cached + (free or 0) < tried:
        return None
    if free is not None and free >= tried:
        return None
    also = "" if cached >= tried else f", with {format_bytes(free)} free on the card"
    reason = (
        f"{format_bytes(cached)} are reserved by PyTorch and in no tensor{also}, and "
        f"{format_bytes(tried)} were asked for: there is enough, but not in one piece."
    )
    return Cause(CauseKind.FRAGMENTATION, cached >= tried, reason)


def _free_after_all(figures: Figures) -> Cause | None:
    tried, free = figures.tried_bytes, figures.free_bytes
    if tried is None or free is None or free < tried:
        return None
    reason = (
        f"{format_bytes(tried)} were asked for and {format_bytes(free)} are called free: memory is not "
        "what was missing when this was written. Another process may have just ended, the driver may "
        "refuse (WSL, a limit of the container or the job), or the host's memory may be short."
    )
    return Cause(CauseKind.UNKNOWN, False, reason)


def _from_traceback(traceback: str, step: int | None) -> Cause | None:
    if not traceback:
        return None
    is_training = _TRAINING.search(traceback) is not None
    if _EVALUATING.search(traceback) and not _NO_GRAD.search(traceback) and not is_training:
        reason = (
            "It failed in an evaluation, and the traceback shows no `torch.no_grad()`: without it the "
            "activations of every layer are kept. If it is there, the evaluation batch is too large."
        )
        return Cause(CauseKind.EVAL_WITHOUT_NO_GRAD, False, reason)
    if _OPTIMIZER.search(traceback) and (step is None or step < _MANY_STEPS):
        reason = (
            "It failed in the optimizer, whose state is made in the first step: parameters, gradients "
            "and state do not fit together with what the batch left."
        )
        return Cause(CauseKind.MODEL_TOO_LARGE, True, reason)
    if _LOADING.search(traceback) and not is_training:
        reason = (
            "It failed while the model was loaded or moved to the GPU, before any batch: the "
            "parameters alone do not fit."
        )
        return Cause(CauseKind.MODEL_TOO_LARGE, True, reason)
    if step is not None and step >= _MANY_STEPS:
        reason = (
            f"It had run for {step:,} steps: the same step fitted before. Either memory grows from step "
            "to step (tensors kept with their graph, such as a sum of losses), or this batch is larger "
            "than those before it (longer sequences)."
        )
        return Cause(CauseKind.LEAK, False, reason)
    return None


def _full(figures: Figures, breakdown: Breakdown) -> Cause | None:
    total, tried, allocated = breakdown.total_bytes, figures.tried_bytes, figures.allocated_bytes
    if not total or allocated is None or allocated < total // 2:
        return None
    asked = f", and {format_bytes(tried)} more were asked for" if tried is not None else ""
    held = f"fill {format_bytes(allocated)} of {format_bytes(total)} ({allocated / total:.0%})"
    if allocated > total:
        held = f"hold {format_bytes(allocated)}, more than the card's {format_bytes(total)}"
    is_activation = tried is not None and tried >= total // 100
    why = (
        "the card is simply full. The message does not tell activations, which grow with the batch, from "
        "weights and optimizer state: if batch size 1 fails too, the model is too large."
    )
    if is_activation:
        why = (
            "an allocation of that size is an activation, which grows with the batch. (If batch size 1 "
            "fails too, the model is too large.)"
        )
    return Cause(CauseKind.BATCH_TOO_LARGE, is_activation, f"Tensors {held}{asked}: {why}")


def _not_known(kind: Kind, figures: Figures) -> Cause:
    if kind in (Kind.CUDNN_ALLOC, Kind.CUBLAS_ALLOC):
        name = "cuDNN" if kind is Kind.CUDNN_ALLOC else "cuBLAS"
        reason = (
            f"{name} (or a library like it) could not allocate memory of its own, outside PyTorch's "
            "allocator: the card is most likely full. The text has no figures, and an index out of "
            "range or a wrong installation can show the same way."
        )
    elif figures.tried_bytes is not None:
        reason = (
            f"{format_bytes(figures.tried_bytes)} were asked for, and the text does not say enough about "
            "who holds the rest of the card."
        )
    elif figures.allocated_bytes is not None:
        reason = "The text does not say enough."
    else:
        reason = "The text has no figures: it does not say who filled the card."
    return Cause(CauseKind.UNKNOWN, False, reason)
