"""Loads all rules."""

from __future__ import annotations

from importlib import import_module

_MODULES = (
    "arithmetic",
    "attention",
    "batch_norm",
    "convolution",
    "copies",
    "distances",
    "embedding",
    "foreach",
    "fourier",
    "grid_sampler",
    "indexing",
    "linear_algebra",
    "losses",
    "matmul",
    "normalization",
    "pooling",
    "random_numbers",
    "recurrent",
    "reduction_operators",
    "softmax",
    "sorting",
    "sparse",
    "upsampling",
)


def load_rules() -> None:
    """Import every module of rules, which registers them."""
    for module in _MODULES:
        import_module(f"bsfind.simulation.kernels.{module}")
