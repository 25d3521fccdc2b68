"""Kernels of bitsandbytes: 8-bit optimizers, and weights of 4 and 8 bits.

They get pointers, and memory of their outputs alone (bitsandbytes/backends/cuda/ops.py, 0.50). What
`gemm_4bit` takes besides is in trace/cuda_paths/quantised_weights.py.
"""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, allocates
from bsfind.simulation.kernels.layouts import reads_contiguous


@allocates(
    "bitsandbytes::optimizer_update_8bit_blockwise",
    "bitsandbytes::optimizer_update_32bit",
    "bitsandbytes::dequantize_4bit",
)
def outputs_alone(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Optimizers change their state in place."""
    trace.outputs()


allocates(
    "bitsandbytes::quantize_4bit",
    "bitsandbytes::quantize_blockwise",
    "bitsandbytes::dequantize_blockwise",
)(reads_contiguous("A", copies_first=True))
