"""The fake NCCL, without torch: quick. Training over it: `tests/gpu/test_launch_ranks.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .test_fakegpu import output, pytestmark, run, script

__all__ = ["pytestmark"]

# Forks ranks that have a communicator each, and prints what they print in the order of ranks.
RANKS = """
    import ctypes, os, time, traceback
    lib = ctypes.CDLL(None)
    lib.ncclGetLastError.restype = ctypes.c_char_p
    class Id(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_char * 128)]
    def begin(count, uid, rank):
        comm = ctypes.c_void_p()
        error = lib.ncclCommInitRank(ctypes.byref(comm), count, uid, rank)
        return comm if error == 0 else error
    def size_of(comm):
        count, rank = ctypes.c_int(), ctypes.c_int()
        assert lib.ncclCommCount(comm, ctypes.byref(count)) == 0
        assert lib.ncclCommUserRank(comm, ctypes.byref(rank)) == 0
        return count.value, rank.value
    def used():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        assert lib.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
        return (total.value - free.value) >> 20
    def reduce(comm, count):
        return lib.ncclAllReduce(None, None, ctypes.c_size_t(count), 7, 0, comm, None)
    def ranks(body, count):
        uid, pipes = Id(), []
        assert lib.ncclGetUniqueId(ctypes.byref(uid)) == 0
        for rank in range(count):
            pipes.append(os.pipe())
            if os.fork() == 0:
                try:
                    said = body(rank, uid)
                except BaseException:
                    said = traceback.format_exc()
                os.write(pipes[rank][1], str(said).encode())
                os._exit(0)
            os.close(pipes[rank][1])
        for out, _ in pipes:
            print(os.read(out, 10000).decode())
"""
TWO: dict[str, Any] = {
    "gpu": "rtx3090,t4",
    "memory": "2GiB,1GiB",
    "overhead": 0,
    "nccl_memory": "300MiB",
}


def test_ranks_wait_for_each_other_and_take_memory_of_their_gpus() -> None:
    code = """
        def body(rank, uid):
            lib.cudaSetDevice(rank)
            comm = begin(2, uid, rank)
            time.sleep(0.3 * rank)
            start = time.perf_counter()
            assert reduce(comm, 8) == 0
            waited = time.perf_counter() - start > 0.1
            held = used()
            assert lib.ncclCommDestroy(comm) == 0
            return waited, held, used()
        ranks(body, 2)
    """
    assert output(script(RANKS, code), **TWO) == ["(True, 300, 0)", "(False, 300, 0)"]


def test_a_gpu_without_room_for_a_communicator() -> None:
    code = """
        def body(rank, uid):
            return begin(1, uid, 0), lib.ncclGetLastError(None).decode()
        ranks(body, 1)
    """
    assert output(script(RANKS, code), memory="256MiB", overhead=0) == [
        "(1, \"Cuda failure 2 'out of memory'\")"
    ]


def test_two_ranks_on_one_gpu_are_refused() -> None:
    code = """
        def body(rank, uid):
            return begin(2, uid, rank), lib.ncclGetLastError(None).decode()
        ranks(body, 2)
    """
    assert output(script(RANKS, code), **TWO) == [
        "(5, 'Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000')",
        "(5, 'Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000')",
    ]


def test_a_communicator_is_split_by_color_in_the_order_of_keys() -> None:
    code = """
        def body(rank, uid):
            lib.cudaSetDevice(rank)
            comm, child = begin(4, uid, rank), ctypes.c_void_p()
            color = -1 if rank == 3 else rank % 2
            assert lib.ncclCommSplit(comm, color, -rank, ctypes.byref(child), None) == 0
            if child:
                assert reduce(child, 8) == 0
            return size_of(child) if child else None
        ranks(body, 4)
    """
    # Ranks 0 and 2 have one color, and the key of 2 is the smaller one.
    expected = ["(2, 1)", "(1, 0)", "(2, 0)", "None"]
    assert output(script(RANKS, code), gpu="rtx3090", count=4, nccl_memory=0) == expected


def test_another_collective_is_told_and_waits_until_it_is_aborted() -> None:
    code = """
        import threading
        def body(rank, uid):
            lib.cudaSetDevice(rank)
            comm = begin(2, uid, rank)
            threading.Timer(0.5, lambda: lib.ncclCommAbort(comm)).start()
            return reduce(comm, 8 + rank), lib.ncclGetLastError(None).decode()
        ranks(body, 2)
    """
    done = run(script(RANKS, code), **TWO)
    assert done.stdout.splitlines() == ["(6, 'the communicator was aborted')"] * 2
    assert "rank 0 calls AllReduce of 32 bytes, rank 1 something else" in done.stderr


def test_a_rank_that_does_not_come_is_waited_for() -> None:
    code = """
        import threading
        def body(rank, uid):
            lib.cudaSetDevice(rank)
            comm = begin(2, uid, rank)
            if rank == 1:
                os._exit(1)
            threading.Timer(0.5, lambda: lib.ncclCommAbort(comm)).start()
            start = time.perf_counter()
            return reduce(comm, 8), time.perf_counter() - start >= 0.4
        ranks(body, 2)
    """
    assert output(script(RANKS, code), **TWO) == ["(6, True)", ""]


def test_a_rank_can_be_alone(tmp_path: Path) -> None:
    code = """
        def body(rank, uid):
            comm = begin(64, uid, 5)
            return reduce(comm, 8), size_of(comm)
        print(body(0, Id()))
    """
    trace = tmp_path / "trace"
    alone = {"FAKE_NCCL": "alone"}
    assert output(script(RANKS, code), extra=alone, trace=trace) == ["(0, (64, 5))"]
    assert "nccl AllReduce bytes=32 rank=5 of 64" in trace.read_text()
