"""Sparse tensors (aten/src/ATen/native/sparse/cuda/SparseCUDATensor.cu, torch 2.13).

Their outputs are indices and values.
"""

from __future__ import annotations

from bsfind.simulation.kernels import cub
from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, allocates
from bsfind.simulation.kernels.layouts import output_of_bytes


@allocates("aten::_coalesce")
def coalesce(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Flat indices are sorted, then made unique (`coalesce_sparse_cuda`); `self` are the indices.

    With one sparse dimension the flat indices are the result, in a storage for all of them.
    """
    dims, count = call.tensor("self").shape
    nbytes = 8 * count
    flat = None
    if dims == 1:
        output_of_bytes(steps, 0, nbytes)
    else:
        flat = steps.scratch(nbytes)
    origins, offsets = steps.scratch(nbytes), steps.scratch(nbytes)
    steps.free(steps.scratch(cub.merge_sort(count, 8, 8)))
    steps.free(steps.scratch(cub.unique_by_key(count, 8, gpu)))
    steps.output(1)
    steps.output(0)
    steps.free(offsets, origins, flat)
