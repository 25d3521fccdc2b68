"""Calls of operators in many shapes, dtypes and layouts, for operator_probe.py.

A group is a function that yields cases; a case is a function without arguments, whose operators,
those of its backward pass included, are recorded.
"""

from operator_cases import arithmetic, images, indices, movement, products, training
from operator_cases.tensors import GROUPS

__all__ = ["GROUPS", "arithmetic", "images", "indices", "movement", "products", "training"]
