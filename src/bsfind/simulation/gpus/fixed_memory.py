"""The memory of a training step that no batch size changes: weights, gradients, optimizer state."""

from __future__ import annotations

from dataclasses import dataclass

from bsfind.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class FixedMemory:
    """Bytes as the program asks for them.

    Attributes:
        parameter_bytes: parameters and buffers.
        gradient_bytes: gradients of all parameters; 0 in inference.
        optimizer_bytes: state of the optimizer after its first step; None: unknown.
        optimizer: its class; None in inference.
    """

    parameter_bytes: int
    gradient_bytes: int = 0
    optimizer_bytes: int | None = None
    optimizer: str | None = None

    @property
    def total_bytes(self) -> int:
        """The sum of what is known."""
        return self.parameter_bytes + self.gradient_bytes + (self.optimizer_bytes or 0)

    def against(self, capacity_bytes: int) -> str:
        """Return the sum in words, beside what the allocator may reserve."""
        terms = [f"parameters {format_bytes(self.parameter_bytes)}"]
        if self.gradient_bytes:
            terms.append(f"gradients {format_bytes(self.gradient_bytes)}")
        if self.optimizer_bytes:
            terms.append(f"optimizer state ({self.optimizer}) {format_bytes(self.optimizer_bytes)}")
        total = f" = {format_bytes(self.total_bytes)}" if len(terms) > 1 else ""
        return f"{' + '.join(terms)}{total}, and the card has {format_bytes(capacity_bytes)} for it"
