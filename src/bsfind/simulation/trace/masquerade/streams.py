"""The classes and functions of `torch.cuda` that make, choose and compare streams, and their events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bsfind.simulation.trace.streams import DEFAULT, Streams

_DEVICE_TYPE = 1
"""CUDA, in c10/core/DeviceType.h."""


class _Waits:
    """A stream, or an event, on which nothing ever waits."""

    device = torch.device("cuda", 0)
    device_index = 0
    device_type = _DEVICE_TYPE

    def query(self) -> bool:
        return True

    def _nothing(self, *_: object, **__: object) -> None:
        pass

    record = wait = wait_event = wait_stream = synchronize = _nothing


class Event(_Waits):
    """An event, which has happened."""

    cuda_event = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def elapsed_time(self, _end: object) -> float:
        """Return the time until another event, in milliseconds."""
        return 0.0


class Stream(_Waits):
    """A stream of the simulated GPU.

    Args:
        stream_id: which one it is.
        choose: lets a stream be the current one, and returns a function that undoes it.
    """

    def __init__(self, stream_id: int, choose: Callable[[int], Callable[[], None]]) -> None:
        self.stream_id = self.cuda_stream = stream_id
        self._choose = choose
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Stream:
        self._undo.append(self._choose(self.stream_id))
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.pop()()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.stream_id == self.stream_id

    def __hash__(self) -> int:
        return hash(self.stream_id)

    def is_capturing(self) -> bool:
        """Tell whether a graph is captured: never."""
        return False

    def record_event(self, event: Any = None) -> Any:
        """Return an event, a new one if none is given."""
        return event or Event()


def stream_functions(streams: Streams, next_block: Callable[[], int]) -> dict[str, Any]:
    """Return what stands for the streams of `torch.cuda`, by name.

    Args:
        streams: the streams of the program.
        next_block: returns the number of the recorder's next block.
    """

    def choose(stream_id: int) -> Callable[[], None]:
        before = streams.current
        streams.choose(stream_id)
        return lambda: streams.choose(before)

    class CudaStream(Stream):
        """`torch.cuda.Stream`."""

        def __init__(
            self, _device: Any = None, priority: int = 0, stream_id: int | None = None, **_: object
        ) -> None:
            if stream_id is None:
                stream_id = streams.make(next_block(), has_priority=priority < 0)
            super().__init__(stream_id, choose)

    class ExternalStream(CudaStream):
        """`torch.cuda.ExternalStream`: one of another library, which the program has made."""

        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()

    class StreamContext:
        """`torch.cuda.StreamContext`; None leaves the stream as it is."""

        def __init__(self, stream: Stream | None) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            if self.stream is not None:
                self.stream.__enter__()

        def __exit__(self, *_: object) -> None:
            if self.stream is not None:
                self.stream.__exit__()

    def choose_for_good(stream: Stream | None) -> None:
        if stream is not None:
            choose(stream.stream_id)

    return {
        "Stream": CudaStream,
        "ExternalStream": ExternalStream,
        "Event": Event,
        "current_stream": lambda *_, **__: CudaStream(stream_id=streams.current),
        "default_stream": lambda *_, **__: CudaStream(stream_id=DEFAULT),
        "stream": lambda stream: StreamContext(stream),
        "StreamContext": StreamContext,
        "set_stream": choose_for_good,
    }
