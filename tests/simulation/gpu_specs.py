"""The GPUs that the fake GPU can be, as the rules of kernels take them."""

from __future__ import annotations

from bsfind.simulation.kernels.call import GpuSpec

GPU_SPECS = {
    "h100": GpuSpec(capability=(9, 0), sm_count=132, max_threads_per_sm=2048, torch_version=(2, 13)),
    "a100": GpuSpec(capability=(8, 0), sm_count=108, max_threads_per_sm=2048, torch_version=(2, 13)),
    "rtx3090": GpuSpec(capability=(8, 6), sm_count=82, max_threads_per_sm=1536, torch_version=(2, 13)),
    "rtx4090": GpuSpec(capability=(8, 9), sm_count=128, max_threads_per_sm=1536, torch_version=(2, 13)),
    "t4": GpuSpec(capability=(7, 5), sm_count=40, max_threads_per_sm=1024, torch_version=(2, 13)),
}  # fmt: skip
