"""Sparse tensors (aten/src/ATen/native/sparse/cuda/SparseCUDATensor.cu, torch 2.13).

Their outputs are indices and values.
"""

from __future__ import annotations

from bsfind.simulation.kernels import cub
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, allocates
from bsfind.simulation.kernels.layouts import output_of_bytes


@allocates("aten::_coalesce")
def coalesce(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Flat indices are sorted, then made unique (`coalesce_sparse_cuda`); `self` are the indices.

    With one sparse dimension the flat indices are the result, in a storage for all of them.
    """
    dims, count = call.tensor("self").shape
    nbytes = 8 * count
    flat = None
    if dims == 1:
        output_of_bytes(trace, 0, nbytes)
    else:
        flat = trace.scratch(nbytes)
    origins, offsets = trace.scratch(nbytes), trace.scratch(nbytes)
    trace.free(trace.scratch(cub.merge_sort(count, 8, 8)))
    trace.free(trace.scratch(cub.unique_by_key(count, 8, gpu)))
    trace.output(1)
    trace.output(0)
    trace.free(offsets, origins, flat)
