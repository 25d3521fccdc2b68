"""Kernels that are compiled for some dtypes only, by the operand that they dispatch on."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.cuda_checks.check import FLOATING, checks, dispatches

_COMPLEX = frozenset({torch.complex64, torch.complex128})
_INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})

# Operators, the name of their kernel in its message, the operand, the dtypes (all floating, unless
# they are given), and operands that are read as the first one's dtype.
_KERNELS: tuple[tuple[str, str, str, frozenset[torch.dtype], tuple[str, ...]], ...] = (
    ("aten::gelu", "GeluCUDAKernelImpl", "self", FLOATING, ()),
    ("aten::silu", "silu_cuda", "self", FLOATING | _COMPLEX, ()),
    ("aten::mish", "mish_cuda", "self", FLOATING, ()),
    ("aten::elu", "elu_cuda", "self", FLOATING, ()),
    ("aten::celu", "elu_cuda", "self", FLOATING, ()),
    ("aten::_prelu_kernel", "prelu_cuda", "self", FLOATING, ()),
    ("aten::glu", "glu_cuda", "self", FLOATING, ()),
    ("aten::leaky_relu", "leaky_relu_cuda", "self", FLOATING, ()),
    ("aten::softplus", "softplus_cuda", "self", FLOATING, ()),
    ("aten::hardswish", "hardswish_cuda", "self", FLOATING, ()),
    ("aten::hardsigmoid", "hardsigmoid_cuda", "self", FLOATING, ()),
    ("aten::hardshrink", "hardshrink_cuda", "self", FLOATING, ()),
    ("aten::softshrink", "softshrink_check", "self", FLOATING, ()),
    ("aten::log_sigmoid_forward", "log_sigmoid_forward_cuda", "self", FLOATING, ()),
    ("aten::native_dropout", "fused_dropout", "input", FLOATING, ()),
    ("aten::_softmax", "host_softmax", "self", FLOATING, ()),
    ("aten::_safe_softmax", "host_softmax", "self", FLOATING, ()),
    ("aten::_log_softmax", "host_softmax", "self", FLOATING, ()),
    ("aten::grid_sampler_2d", "grid_sampler_2d_cuda", "input", FLOATING, ("grid",)),
    ("aten::grid_sampler_3d", "grid_sampler_3d_cuda", "input", FLOATING, ("grid",)),
    ("aten::max_pool2d_with_indices", "max_pool2d_with_indices_out_cuda_frame", "self", FLOATING, ()),
    ("aten::max_pool3d_with_indices", "max_pool3d_with_indices_out_frame", "self", FLOATING, ()),
    ("aten::avg_pool2d", "avg_pool2d_out_cuda_frame", "self", FLOATING, ()),
    ("aten::avg_pool3d", "avg_pool3d_out_cuda", "self", FLOATING, ()),
    ("aten::_adaptive_avg_pool2d", "adaptive_avg_pool2d_cuda", "self", FLOATING, ()),
    ("aten::adaptive_max_pool2d", "adaptive_max_pool2d_cuda", "self", FLOATING, ()),
    ("aten::upsample_bilinear2d", "upsample_bilinear2d_out_frame", "self", FLOATING, ()),
    ("aten::upsample_bicubic2d", "upsample_bicubic2d_out_frame", "self", FLOATING, ()),
    ("aten::upsample_nearest2d", "upsample_nearest2d_out_frame", "self", FLOATING | {torch.uint8}, ()),
    ("aten::_upsample_nearest_exact2d", "upsample_nearest2d_out_frame", "self", FLOATING | {torch.uint8}, ()),
    ("aten::reflection_pad2d", "reflection_pad2d_out_template", "self", FLOATING | _COMPLEX | _INTEGERS, ()),
    ("aten::replication_pad2d", "replication_pad2d_cuda", "self", FLOATING | _COMPLEX | _INTEGERS, ()),
    ("aten::im2col", "im2col_out_cuda", "self", FLOATING | _COMPLEX | {torch.bool}, ()),
    ("aten::col2im", "col2im_out_cuda", "self", FLOATING | _COMPLEX | {torch.bool}, ()),
)  # fmt: skip

for _operator, _kernel, _argument, _dtypes, _others in _KERNELS:
    checks(_operator)(dispatches(_kernel, _argument, _dtypes, *_others))
