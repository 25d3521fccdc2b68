"""Models that work on several CUDA streams."""

from __future__ import annotations

import torch
from tests.simulation.corpus.case import case
from torch import nn
from torch.nn import functional as F  # noqa: N812


class SideStreams(nn.Module):
    """Branches on streams of their own; a backward pass follows each.

    Args:
        makes_streams: each pass makes a stream, too.
    """

    def __init__(self, makes_streams: bool = True) -> None:
        super().__init__()
        self.makes_streams = makes_streams
        self.first, self.second, self.third = (nn.Linear(256, 2048) for _ in range(3))
        self.last = nn.Linear(2048, 256)
        self.stream: torch.cuda.Stream | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stream is None:
            self.stream = torch.cuda.Stream(priority=-1)
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            y = F.gelu(self.first(x))
            assert torch.cuda.current_stream() == self.stream != here
        other = torch.cuda.Stream() if self.makes_streams else self.stream
        with other:
            z = F.gelu(self.second(x)) * 2
        h = F.gelu(self.third(x)) ** 2
        here.wait_stream(self.stream)
        here.wait_event(other.record_event())
        torch.cuda.set_stream(self.stream)
        y = self.last(F.gelu(y + z) + h)
        torch.cuda.set_stream(here)
        return y


CASES = (case("streams", __name__, "side_streams", "SideStreams", "256", batch_sizes=(700, 3000)),)
