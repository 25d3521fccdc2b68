"""A GPU as cuDNN has it described to plan without one (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION).

cuDNN insists on all of these properties. The catalogue knows the compute capability, the number of
multiprocessors and their threads; the rest is derived:

- Registers, blocks and threads are those of the compute capability (CUDA C++ Programming Guide, "Technical
  Specifications per Compute Capability").
- Clocks are those of an H100 SXM, the level-2 cache is 50 MiB, for every GPU.
- The GPU's memory is 80 GiB: cuDNN is asked for a size, and the replay tells whether there is room for it.

cuDNN 9.20 ranks its engines by the compute capability: of 400 random convolutions on compute capability 8.6
and 9.0, none had another workspace with half the multiprocessors, or with another cache, memory, or amount of
shared memory. Other clocks changed none on 8.6, and on 9.0 2 of 400 (multiprocessors at 1.3 GHz) and 5 of 400
(memory at 1.2 GHz): so H100 PCIe and H200 can differ from H100 SXM in about one convolution of a hundred.
"""

from __future__ import annotations

import json

_KIB = 1 << 10

_SHARED_MEMORY = {
    (6, 0): 48, (6, 1): 48, (7, 0): 96, (7, 2): 96, (7, 5): 64, (8, 0): 163, (8, 6): 99,
    (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227,
    (12, 0): 99, (12, 1): 99,
}  # fmt: skip
"""KiB that a block may have on demand, by compute capability."""

_BLOCKS = {(7, 5): 16, (8, 6): 16, (8, 7): 16, (8, 9): 24, (12, 0): 24, (12, 1): 24}
"""Resident blocks of a multiprocessor, where they are not 32."""


def device_json(
    capability: tuple[int, int], sm_count: int, max_threads_per_sm: int, cuda_version: int = 13000
) -> str:
    """Return the description of a GPU.

    Args:
        capability: compute capability, such as (9, 0).
        sm_count: number of multiprocessors.
        max_threads_per_sm: largest number of resident threads of a multiprocessor.
        cuda_version: of the driver, as cuDriverGetVersion() returns it.
    """
    major, minor = capability
    return json.dumps(
        {
            "deviceName": f"compute capability {major}.{minor}",
            "deviceVer": major * 100 + minor * 10,
            "multiProcessorCount": sm_count,
            "maxThreadsPerSM": max_threads_per_sm,
            "maxSharedMemoryPerBlockOptin": _SHARED_MEMORY.get(capability, 99) * _KIB,
            "maxCtasPerSM": _BLOCKS.get(capability, 32),
            "maxGridSize": [2**31 - 1, 65535, 65535],
            "maxBlockSize": [1024, 1024, 64],
            "maxThreadsPerBlock": 1024,
            "regsPerBlock": 65536,
            "maxRegistersPerSM": 65536,
            "maxSharedMemoryPerBlock": 48 * _KIB,
            "reservedSharedMemoryPerBlock": _KIB if major >= 8 else 0,
            "warpSize": 32,
            "smClockRateKHz": 1_980_000,
            "memClockRateKHz": 2_619_000,
            "l2CacheSize": 50 << 20,
            "totalGlobalMem": 80 << 30,
            "driverVer": cuda_version,
            "supportCoopLaunch": 1,
            "isTccDriver": 0,
            "pciDeviceId": 0,
            "cudaDeviceId": 0,
        },
        separators=(",", ":"),
    )
