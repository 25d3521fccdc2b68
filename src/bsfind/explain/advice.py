"""What to do about an error: remedies in order, with what to type."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bsfind.explain.breakdown import Breakdown, Figures
from bsfind.explain.cause import Cause, CauseKind
from bsfind.explain.texts import Kind
from bsfind.units import GIB


@dataclass(frozen=True)
class Advice:
    """A remedy; `command` is a line of a shell or of Python, None where there is none."""

    text: str
    command: str | None = None


_AMP = Advice(
    "mixed precision: about half the memory of activations",
    "with torch.autocast('cuda', dtype=torch.bfloat16): loss = model(inputs)",
)
_CHECKPOINTING = Advice(
    "activation checkpointing: less memory for about a third more time",
    "x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)",
)
_ACCUMULATION = Advice(
    "a smaller batch with gradient accumulation trains like the large one",
    "(loss / n).backward()  # optimizer.step() after every n batches",
)
_OPTIMIZER = Advice(
    "an optimizer with less state: AdamW keeps 8 bytes per parameter, SGD without momentum none",
    "optimizer = torch.optim.SGD(model.parameters(), lr=lr)",
)
_SHARDING = Advice(
    "shard parameters, gradients and optimizer state over several GPUs",
    "torch.distributed.fsdp.fully_shard(model)",
)
_NO_GRAD = Advice(
    "evaluate without keeping activations",
    "with torch.inference_mode(): outputs = model(inputs)",
)
_DETACH = Advice(
    "keep numbers, not tensors with their graph",
    "total += loss.item()  # not: total += loss",
)
_WATCH = Advice(
    "see who holds what: record the allocations, open the file at pytorch.org/memory_viz",
    "torch.cuda.memory._record_memory_history(); torch.cuda.memory._dump_snapshot('mem.pickle')",
)
_WHO = Advice("see who uses the card, and end what is not needed", "bsfind gpus")
_KILLER = Advice("see what the kernel killed", "dmesg | grep -i -E 'oom|killed process'")
_RAY = Advice("see what Ray killed, and what held the memory", "ray logs raylet.out")
_LOADER = Advice(
    "less host memory: fewer DataLoader workers, no data set held as a Python list in each of them",
    "DataLoader(dataset, num_workers=2)",
)
_SHAPES = Advice(
    "print the shapes before the line that failed: one has a dimension that is negative, not initialised "
    "or too large for 64 bits"
)
_PARTS = Advice("read the data in parts instead of at once", "numpy.load(file, mmap_mode='r')")
_SMALLER = Advice("a smaller batch, or shorter sequences")
_CLOSE = Advice("close other programs: the GPU shares the host's memory")
_WATERMARK = Advice(
    "allow more than the limit (the system may become slow)",
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 python train.py",
)
_FRACTION = Advice(
    "raise the limit of the process", "torch.cuda.set_per_process_memory_fraction(1.0)"
)
_HALF = Advice("load the model in half precision", "model = model.to(torch.bfloat16)")


def advise(
    kind: Kind, cause: Cause, figures: Figures, breakdown: Breakdown, text: str
) -> tuple[Advice, ...]:
    """Return the remedies for an error, the most telling first.

    Args:
        kind: what ran out.
        cause: why.
        figures: the sizes in the text.
        breakdown: who held the memory, as far as the sizes say.
        text: the message, which shows the version that wrote it.
    """
    find = _find(kind, figures)
    segments = _expandable_segments(kind, text)
    if cause.kind is CauseKind.OVERFLOWED_SHAPE:
        return (_SHAPES,)
    if kind is Kind.HOST_OOM_KILL:
        killer = _RAY if "Ray's" in cause.reason else _KILLER
        return (killer, _LOADER, Advice("ask for more memory for the job or the container"))
    if kind is Kind.CPU_OOM:
        return (_PARTS, _LOADER, Advice("see how much memory is left", "free -h"))
    if kind is Kind.OTHER_FRAMEWORK_OOM:
        return (_WHO, Advice("a smaller batch, context or model; see the framework's own settings"))
    if kind is Kind.MPS_OOM:
        return (_SMALLER,) if figures.allowed_bytes is None else (_SMALLER, _CLOSE, _WATERMARK)
    remedies = {
        CauseKind.BATCH_TOO_LARGE: (find, _AMP, _CHECKPOINTING, _ACCUMULATION, segments),
        CauseKind.MODEL_TOO_LARGE: (_OPTIMIZER, _HALF, _SHARDING, find),
        CauseKind.FRAGMENTATION: (segments, find, _AMP),
        CauseKind.OTHER_PROCESS: (*_end(breakdown), _WHO, find),
        CauseKind.LEAK: (_DETACH, segments, _WATCH, find),
        CauseKind.EVAL_WITHOUT_NO_GRAD: (_NO_GRAD, find),
        CauseKind.MEMORY_LIMIT: (_FRACTION, find, _AMP),
        CauseKind.UNKNOWN: (_WHO, find, segments, _AMP),
    }
    return remedies.get(cause.kind, (_WHO, find))


def _find(kind: Kind, figures: Figures) -> Advice:
    limit = ""
    total = figures.allowed_bytes or figures.total_bytes
    if total is not None and total >= GIB and kind is Kind.CUDA_OOM:
        limit = f" --memory-limit {int(total / GIB * 10) / 10:g}GiB"
    return Advice(
        "find the batch size that fits, in fp32 and in mixed precision",
        f"bsfind run mypkg.models:Net --input-shape 3,224,224{limit}",
    )


def _expandable_segments(kind: Kind, text: str) -> Advice:
    if kind is Kind.XPU_OOM:
        return Advice("give unused cached memory back", "torch.xpu.empty_cache()")
    named = re.search(r"PYTORCH_(CUDA_|HIP_)?ALLOC_CONF", text)
    default = "PYTORCH_HIP_ALLOC_CONF" if kind is Kind.HIP_OOM else "PYTORCH_ALLOC_CONF"
    variable = named[0] if named else default
    if "total capacity;" in text or "iB cached)" in text:  # torch 2.0 and before
        old = variable.replace("PYTORCH_ALLOC", "PYTORCH_CUDA_ALLOC")
        return Advice(
            "let the allocator split less (expandable segments came with torch 2.1)",
            f"{old}=max_split_size_mb:128 python train.py",
        )
    return Advice(
        "let segments grow, against fragmentation",
        f"{variable}=expandable_segments:True python train.py",
    )


def _end(breakdown: Breakdown) -> tuple[Advice, ...]:
    if not breakdown.other_processes:
        return ()
    largest = max(breakdown.other_processes, key=lambda process: process.used_bytes)
    return (Advice("end the other process, if it is yours", f"kill {largest.pid}"),)
