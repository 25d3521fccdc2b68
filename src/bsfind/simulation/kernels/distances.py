"""Distances between rows, and reductions of segments (torch 2.13)."""

from __future__ import annotations

from bsfind.simulation.kernels import cub
from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, allocates
from bsfind.simulation.kernels.matmul import cublas_workspace


@allocates("aten::_cdist_backward")
def cdist_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """A gradient for each pair of rows, which are summed then (cuda/DistanceKernel.cu)."""
    steps.outputs()
    gradient = call.tensor("grad")
    steps.scratch(gradient.numel * call.tensor("x1").shape[-1] * gradient.element_size)


@allocates("aten::_pdist_backward")
def pdist_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """As for two sets of rows."""
    steps.outputs()
    spec = call.tensor("self")
    steps.scratch(spec.nbytes * (spec.shape[0] - 1))


@allocates("aten::_euclidean_dist")
def euclidean_dist(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """A product of rows that hold their norms too (`_euclidean_dist` of native/Distance.cpp)."""
    first, second = call.tensor("x1"), call.tensor("x2")
    rows = [spec.numel // max(spec.shape[-1], 1) * spec.element_size for spec in (first, second)]
    norms = []
    for spec, nbytes in zip((first, second), rows, strict=True):
        squares = steps.scratch(spec.nbytes)
        norm = steps.scratch(nbytes)
        steps.free(squares)
        norms += [norm, steps.scratch(nbytes)]
    scaled = steps.scratch(first.nbytes)
    steps.scratch(first.nbytes + 2 * rows[0])
    steps.free(norms[1], norms[0], scaled)
    steps.scratch(second.nbytes + 2 * rows[1])
    steps.free(norms[2], norms[3])
    steps.outputs()
    cublas_workspace(gpu, steps)


@allocates("aten::segment_reduce", "aten::_segment_reduce_backward")
def segment_reduce(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Offsets from lengths (cuda/SegmentReduce.cu)."""
    steps.outputs()
    lengths = call.maybe_tensor("lengths")
    if lengths is None:
        return
    count = lengths.shape[-1]
    zero = steps.scratch(lengths.element_size)
    steps.scratch((lengths.numel + lengths.numel // max(count, 1)) * lengths.element_size)
    steps.free(zero)
    steps.free(steps.scratch(cub.scan(count, lengths.element_size)))
