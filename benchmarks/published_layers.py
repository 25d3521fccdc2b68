"""Small models of published measurements."""

from __future__ import annotations

from torch import nn

__all__ = ["convolution", "linear", "linears"]


def linear() -> nn.Module:
    """A linear layer of pytorch/pytorch issue 104604."""
    return nn.Linear(1024, 1024, bias=False)


def convolution() -> nn.Module:
    """A 3-D convolution of pytorch/pytorch issue 132300."""
    return nn.Conv3d(3, 128, 3, padding=1)


def linears() -> nn.Module:
    """Twenty linear layers of PyTorch's recipe for ZeroRedundancyOptimizer."""
    return nn.Sequential(*(nn.Linear(2000, 2000) for _ in range(20)))
