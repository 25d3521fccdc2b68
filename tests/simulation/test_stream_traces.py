"""Allocations on several CUDA streams: `simulation/trace/streams.py` and what follows from it.

That they are those of PyTorch's CUDA build, the case `side_streams` of the corpus shows.
"""

from __future__ import annotations

import threading

from tests.simulation.corpus.case import Case, case
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.simulation.allocator.caching_allocator import CachingAllocator
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.trace.program import Program
from bsfind.simulation.trace.repetition import with_more_steps
from bsfind.simulation.trace.streams import Streams
from bsfind.simulation.trace.tracer import Tracer

GPU = GPU_SPECS["a100"]
MODEL = "tests.simulation.corpus.streams"


def of(*, makes_streams: bool) -> Case:
    args = {"makes_streams": makes_streams}
    return case("streams", MODEL, "side_streams", "SideStreams", "256", args=args)


def opened(*, makes_streams: bool) -> Tracer:
    return Tracer(of(makes_streams=makes_streams).workload, "fp32", GPU)


def reserved(program: Program) -> int:
    allocator = CachingAllocator(DeviceMemory(1 << 40))
    return program.replay(allocator, program.load(allocator)).peak_reserved_bytes


def test_other_batch_sizes_have_the_streams_of_those_that_were_traced() -> None:
    with opened(makes_streams=True) as tracer:
        for batch_size in (64, 128, 256):
            tracer.program(batch_size, 3)
        scaled, exact = tracer.program(192, 3), tracer.program(192, 3, exact=True)
    assert scaled.traced_steps == 0
    assert scaled.trial_events == exact.trial_events
    assert scaled.streams == exact.streams
    # The default stream, that of the model, and one that each of three steps makes.
    assert set(exact.streams) == {0, 1, 2, 3, 4}


def test_repeated_steps_have_the_streams_of_the_last() -> None:
    with opened(makes_streams=False) as tracer:
        exact = tracer.program(192, 5, exact=True)
        repeated = with_more_steps(tracer.program(192, 3, exact=True), 5)
    assert repeated is not None
    assert set(exact.streams) == {0, 1}
    assert repeated.streams == exact.streams[: len(repeated.streams)]
    assert reserved(repeated) == reserved(exact)


def test_steps_on_other_streams_are_not_alike() -> None:
    with opened(makes_streams=True) as tracer:
        assert with_more_steps(tracer.program(192, 3), 5) is None


def test_a_stream_does_not_use_the_cache_of_another() -> None:
    program = Program(load_events=[], trial_events=[30 << 20, -1, 30 << 20])
    assert reserved(program) == 30 << 20
    program.streams = [0, 1]
    assert reserved(program) == 60 << 20


def test_a_program_gets_the_first_stream_again_after_all_others() -> None:
    streams = Streams()
    made = [streams.make(0, has_priority=False) for _ in range(33)]
    assert len(set(made)) == 32
    assert made[0] == made[32]
    assert streams.make(0, has_priority=True) not in made


def test_each_thread_has_a_current_stream() -> None:
    streams = Streams()
    streams.choose(3)
    found = []
    thread = threading.Thread(target=lambda: found.append(streams.current))
    thread.start()
    thread.join()
    assert found == [0]
    assert streams.current == 3
