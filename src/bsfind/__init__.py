"""Find the batch size that a PyTorch model should train with on a GPU."""

__version__ = "0.1.0"

__all__ = ["__version__"]
