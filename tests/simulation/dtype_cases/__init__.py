"""Operators x dtypes x autocast: what CUDA's kernels accept, and what they refuse."""

from tests.simulation.dtype_cases import arithmetic, layers, losses, products
from tests.simulation.dtype_cases.case import Question, answer, questions

__all__ = ["Question", "answer", "arithmetic", "layers", "losses", "products", "questions"]
