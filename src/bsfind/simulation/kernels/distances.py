"""Distances between rows, and reductions of segments (torch 2.13)."""

from __future__ import annotations

from bsfind.simulation.kernels import cub
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, allocates
from bsfind.simulation.kernels.matmul import cublas_workspace


@allocates("aten::_cdist_backward")
def cdist_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A gradient for each pair of rows, which are summed then (cuda/DistanceKernel.cu)."""
    trace.outputs()
    gradient = call.tensor("grad")
    trace.scratch(gradient.numel * call.tensor("x1").shape[-1] * gradient.element_size)


@allocates("aten::_pdist_backward")
def pdist_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """As for two sets of rows."""
    trace.outputs()
    spec = call.tensor("self")
    trace.scratch(spec.nbytes * (spec.shape[0] - 1))


@allocates("aten::_euclidean_dist")
def euclidean_dist(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A product of rows that hold their norms too (`_euclidean_dist` of native/Distance.cpp)."""
    first, second = call.tensor("x1"), call.tensor("x2")
    rows = [spec.numel // max(spec.shape[-1], 1) * spec.element_size for spec in (first, second)]
    norms = []
    for spec, nbytes in zip((first, second), rows, strict=True):
        squares = trace.scratch(spec.nbytes)
        norm = trace.scratch(nbytes)
        trace.free(squares)
        norms += [norm, trace.scratch(nbytes)]
    scaled = trace.scratch(first.nbytes)
    trace.scratch(first.nbytes + 2 * rows[0])
    trace.free(norms[1], norms[0], scaled)
    trace.scratch(second.nbytes + 2 * rows[1])
    trace.free(norms[2], norms[3])
    trace.outputs()
    cublas_workspace(gpu, trace)


@allocates("aten::segment_reduce", "aten::_segment_reduce_backward")
def segment_reduce(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Offsets from lengths (cuda/SegmentReduce.cu)."""
    trace.outputs()
    lengths = call.maybe_tensor("lengths")
    if lengths is None:
        return
    count = lengths.shape[-1]
    zero = trace.scratch(lengths.element_size)
    trace.scratch((lengths.numel + lengths.numel // max(count, 1)) * lengths.element_size)
    trace.free(zero)
    trace.free(trace.scratch(cub.scan(count, lengths.element_size)))
