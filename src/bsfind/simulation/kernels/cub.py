"""Temporary storage of CUB's device-wide algorithms, which PyTorch takes from the caching allocator.

Models CCCL as torch 2.11 to 2.14 (CUDA 13.0) are built with it, and that of CUDA 12 where it differs:
`DispatchRadixSort`, `DispatchScan`, `DispatchReduce`, `DispatchSelectIf` and `DispatchUniqueByKey`. Their
tile sizes depend on the compute capability, in groups: 9.0, 8.0, and others, which have the generic tuning.
Newer GPUs than 9.0 are assumed to be like it.
"""

from __future__ import annotations

from bsfind.simulation import torch_releases
from bsfind.simulation.kernels.call import GpuSpec

_ALIGNMENT = 256  # of each part; the whole may have to be aligned too (`AliasTemporaries`)
_WARP_PADDING = 32  # tiles before the first, for look-back


def radix_sort(count: int, key: int, value: int, bits: int, gpu: GpuSpec) -> int:
    """Return bytes to sort pairs by `bits` of the key, out of place ("onesweep").

    Args:
        count: number of pairs.
        key: bytes of a key.
        value: bytes of a value.
        bits: number of bits of the key that are compared.
        gpu: the GPU that runs the kernel.
    """
    if count <= _single_tile(max(key, value)):
        return 1
    tile = _onesweep_tile(key, value, gpu)
    passes = -(-bits // 8)
    histograms = passes * 256 * 8
    look_back = 256 * 4 * -(-count // tile)
    parts = [histograms, look_back, passes * 8]
    if passes > 1:
        parts += [count * key, count * value]
    return _total(*parts)


def _single_tile(widest: int) -> int:
    return 256 * (19 if widest <= 4 else 9)


def _onesweep_tile(key: int, value: int, gpu: GpuSpec) -> int:
    """Return pairs of a tile. Keys of 16 bits before 9.0 take another algorithm: an estimate."""
    if gpu.capability < (8, 0):
        return 256 * 46 if max(key, value) <= 4 else 256 * 11
    if max(key, value) <= 4:
        return 384 * 17
    if gpu.capability < (9, 0):
        return 384 * 8 if key <= 4 else 384 * 10
    if key < 4:
        return 512 * 11
    if key == 4:
        return 384 * 14
    return 384 * 15 if value <= 4 else 384 * 12


def merge_sort(count: int, key: int, value: int) -> int:
    """Return bytes to sort pairs by comparing keys, as Thrust does (`DispatchMergeSort`)."""
    tile = 256 * max(17 * 4 // max(key, 4), 1)
    return _total(8 * (-(-count // tile) + 1), count * key, count * value)


def segmented_sort(count: int, key: int, value: int) -> int:
    """Return bytes to sort pairs within segments: a second copy of both."""
    return _total(count * key, count * value)


def scan(count: int, size: int, gpu: GpuSpec) -> int:
    """Return bytes of a prefix sum of elements of `size` bytes."""
    if size < 4:
        return _total(8 * (-(-count // 3840) + _WARP_PADDING), 1, 1)
    tile, state = (1920, 8) if size == 4 else (896, 16)
    return _with_look_back(state * (-(-count // tile) + _WARP_PADDING), gpu)


def scan_by_key(count: int) -> int:
    """Return bytes of prefix sums of 4-byte elements within runs of equal keys."""
    tiles = -(-count // 1920)
    return _total(8 * (tiles + _WARP_PADDING), 1, 1)


def unique_by_key(count: int, size: int, gpu: GpuSpec) -> int:
    """Return bytes to keep the first pair of each run of equal keys."""
    if gpu.capability >= (9, 0):
        tile = 448 * 11 if size == 8 else 448 * 16
    elif gpu.capability == (8, 0):
        tile = 192 * 7 if size == 8 else 192 * 15
    else:
        tile = 64 * 5 if size == 8 else 64 * 11
    return _with_look_back(16 * (-(-count // tile) + _WARP_PADDING), gpu)


def select_flagged(count: int, gpu: GpuSpec) -> int:
    """Return bytes to select the indices of flags that are set."""
    if gpu.capability >= (9, 0):
        tile = 384 * 11
    elif gpu.capability == (8, 0):
        tile = 256 * 9
    else:
        tile = 128 * 5
    return _with_look_back(8 * (-(-count // tile) + _WARP_PADDING), gpu)


def reduce_sum(count: int, size: int, gpu: GpuSpec) -> int:
    """Return bytes of a sum of elements, of which partial results have `size` bytes."""
    if count <= 256 * 16:
        return 1
    blocks = gpu.sm_count * 5 * (gpu.max_threads_per_sm // 256)
    return _total(blocks * size)


def _with_look_back(nbytes: int, gpu: GpuSpec) -> int:
    """Return bytes of the states of tiles, beside which CUDA 13's CUB has a part for shared memory.

    That is empty, but takes an alignment.
    """
    is_cuda_13 = gpu.torch_version >= torch_releases.CUDA_13
    return _total(nbytes, 1) if is_cuda_13 else _total(nbytes)


def _total(*parts: int) -> int:
    return sum(-(-part // _ALIGNMENT) * _ALIGNMENT for part in parts) + _ALIGNMENT - 1
