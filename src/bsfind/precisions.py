"""The names of the precisions."""

from __future__ import annotations

__all__ = ["PRECISIONS", "REQUESTABLE_PRECISIONS"]

PRECISIONS = ("fp32", "tf32", "amp-fp16", "amp-bf16", "bf16")
"""The precisions that a step can run in."""

REQUESTABLE_PRECISIONS = (*PRECISIONS, "amp")
"""What may be asked for: `amp` becomes amp-bf16 or amp-fp16 once the GPU is known."""
