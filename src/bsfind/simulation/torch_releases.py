"""What changed between releases of PyTorch, from 2.6 to 2.14: the facts that rules ask a release for.

A constant is the first release, (major, minor), that has it. They hold for the wheels on PyPI, whose versions
of CUDA decide some of them. Releases that were compared with the rules are those of docs/accuracy.md.
"""

from __future__ import annotations

NEWEST = (2, 14)
"""The newest release that the rules were compared with.

Not modelled of it: memory-efficient attention makes its seed and offset on the GPU, two blocks of 512 bytes.
"""

# ------------------------------------------------------------------------- autocast

AUTOCAST_KEEPS_GRADIENTS = (2, 11)
"""Weights are cast with gradients under `no_grad`, and their casts are not cached in inference mode.

So it is in 2.11, and not in 2.9 (autocast_mode.cpp, `cached_cast`).
"""

AUTOCAST_TO_FP32 = {"rms_norm": (2, 13)}
"""Operators that autocast runs in float32 since these releases (not in 2.11; ATen/autocast_mode.h)."""

# ------------------------------------------------------------------ matrix products

KEPT_LT_WORKSPACE = (2, 8)
"""cuBLASLt's workspace is kept for the thread (it is in 2.9); before, a product allocates and frees one.

The setting that came with it, TORCH_CUBLASLT_UNIFIED_WORKSPACE, is not in 2.7.
"""

SHARED_LT_WORKSPACE = (2, 12)
"""cuBLASLt uses cuBLAS's workspace; before, it has one of 1 MiB besides (cuda/CublasHandlePool.cpp)."""

LARGE_BLACKWELL_WORKSPACE = (2, 13)
"""cuBLAS's workspace has 32 MiB on Blackwell too, not on Hopper alone."""

# ------------------------------------------------------------------------ attention

CUDNN_ATTENTION_FIRST = (2, 11)
"""Hopper and data centre Blackwell prefer cuDNN's attention, in builds with cuDNN 9.15.1 or later."""

CUDNN_ATTENTION_DROPOUT = (2, 12)
"""cuDNN's attention is not used for a dropout that is no multiple of 1/16."""

FLASH_STATE_ON_GPU = (2, 7)
"""Flash attention has the state of its generator on the GPU; before, on the host (the limit is assumed)."""

# ------------------------------------------------------------- normalization, embeddings

SUMS_OF_ROWS_IN_TWO_STEPS = (2, 7)
"""The gradients of layer norm's parameters are summed in two steps where there are many short rows."""

FLOAT_GROUP_STATISTICS = (2, 13)
"""Group norm's statistics are in float32 for 16-bit inputs; before, they have the input's type."""

GROUP_NORM_TAKES_STRIDES = (2, 14)
"""Group norm itself makes what it reads contiguous; before, `group_norm` does it first.

Its backward pass needs no sums where a channel has one element.
"""

EMBEDDING_ATOMICS = (2, 11)
"""Gradients of few embeddings that are used often are added by atomics (its kernel is not in 2.10)."""

EMBEDDING_SORTS_FEWER_BITS = (2, 13)
"""The backward pass of embeddings sorts by as many bits as their number has; before, by all."""

# ---------------------------------------------------------------- sorting, reductions

CUDA_13 = (2, 11)
"""The wheels are built with CUDA 13, and its CUB."""

FOREACH_MAX_OUTPUTS_FIRST = (2, 11)
"""`_foreach_max` makes its results before its scratch memory (it does not in 2.9)."""

TOPK_KEEPS_MASKS = (2, 7)
"""`topk` of several blocks keeps two digits for each row (it does in 2.9, not in 2.6)."""

TOPK_COUNTS_LAST = (2, 11)
"""`topk` of several blocks: a counter for each row and digit; before, a semaphore for each row (in 2.9)."""

BOTH_EXTREMES_AT_ONCE = (2, 13)
"""Minimum and maximum of an index, or of what `bincount` counts, come from one kernel; before, from two."""

# ------------------------------------------------------------------------- allocator

PLAIN_ALLOC_CONF = (2, 9)
"""`PYTORCH_ALLOC_CONF` is read."""

TIES_BY_BLOCK = (2, 12)
"""Of free blocks of one size the one that was created first is taken; before, the lowest address."""

TIES_BY_SEGMENT = (2, 13)
"""Of free blocks of one size the one whose segment was created first is taken, then the lowest address."""


# ---------------------------------------------------------------------- the libraries

_WHEELS = {
    (2, 6): ("12.4", 90100),
    (2, 7): ("12.6", 90501),
    (2, 8): ("12.8", 91002),
    (2, 11): ("13.0", 91900),
    (2, 12): ("13.0", 92000),
    (2, 14): ("13.0", 92400),
}
"""CUDA and cuDNN of the wheels on PyPI, from these releases on."""


def release_of(version: str) -> tuple[int, int]:
    """Return the release of a version: (2, 13) of `2.13.0+cu130`."""
    major, minor = version.partition("+")[0].split(".")[:2]
    return int(major), int(minor)


def cudnn_release(version: int) -> str:
    """Return the release of a version of cuDNN as cudnnGetVersion() returns it: `9.20` of 92000."""
    return f"{version // 10000}.{version // 100 % 100}"


def cuda_and_cudnn(release: tuple[int, int]) -> tuple[str, int]:
    """Return the versions of CUDA and cuDNN that a release's wheel on PyPI comes with: ("13.0", 92000).

    Args:
        release: (major, minor); one that is newer than all that are known is taken to be like the newest.
    """
    since = max((known for known in _WHEELS if known <= release), default=min(_WHEELS))
    return _WHEELS[since]
