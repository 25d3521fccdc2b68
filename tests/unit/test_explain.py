"""Explaining errors: labelled texts, the account's arithmetic, causes, remedies, logs, and any text."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsfind.explain.breakdown import Figures, make_breakdown, read_figures, read_size
from bsfind.explain.cause import CauseKind
from bsfind.explain.explanation import Explanation, explain
from bsfind.explain.log import clean, join
from bsfind.explain.texts import Kind
from bsfind.failures.oom import FailureKind, classify

GIB, MIB = 1 << 30, 1 << 20
DATA = Path(__file__).parent / "data"
TEXTS = [
    json.loads(line)
    for name in ("oom_texts.jsonl", "oom_logs.jsonl")
    for line in (DATA / name).read_text(encoding="utf-8").splitlines()
]


def explain_text(text: str) -> Explanation:
    return explain(io.BytesIO(text.encode("utf-8", errors="replace")))


def message(
    tried: str = "1.00 GiB",
    total: str = "24.00 GiB",
    free: str = "256.00 MiB",
    allocated: str = "22.00 GiB",
    unallocated: str = "512.00 MiB",
    processes: str = "Including non-PyTorch memory, this process has 23.50 GiB memory in use. ",
    gpu: int = 0,
) -> str:
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {tried}. GPU {gpu} has a total "
        f"capacity of {total} of which {free} is free. {processes}Of the allocated memory {allocated} is "
        f"allocated by PyTorch, and {unallocated} is reserved by PyTorch but unallocated. If reserved but "
        "unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid "
        "fragmentation."
    )


def in_traceback(frames: str, text: str) -> str:
    return f"Traceback (most recent call last):\n{frames}\n{text}\n"


def cause_of(text: str) -> CauseKind:
    return explain_text(text).cause.kind


# ------------------------------------------------------------------------------- labelled texts


@pytest.mark.parametrize("entry", TEXTS, ids=[entry["id"] for entry in TEXTS])
def test_kind_and_figures(entry: dict[str, object]) -> None:
    explanation = explain_text(str(entry["text"]))
    assert explanation.kind.value == entry["kind"]
    figures = entry["figures"]
    assert isinstance(figures, dict)
    assert {name: getattr(explanation.figures, name) for name in figures} == {
        name: pytest.approx(size, abs=1) for name, size in figures.items()
    }


def test_every_kind_has_texts() -> None:
    assert {entry["kind"] for entry in TEXTS} == {kind.value for kind in Kind}


# ------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20.00 MiB", 20 * MIB),
        ("273. GiB", 273 * GIB),
        ("0 bytes", 0),
        ("761,856,000 bytes", 761_856_000),
        ("1,024.00 MiB", GIB),
        ("7,50 GiB", int(7.5 * GIB)),
        ("1.5 GB", int(1.5 * GIB)),
        ("64kB", 64 << 10),
        ("17179869184.00 GiB", None),
        ("much", None),
        ("9" * 500 + " GiB", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    read = read_size(text)
    assert (read and read[0]) == size


def test_two_messages_in_a_line_are_not_mixed() -> None:
    short = "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 1 has a total capacity of 8.00 GiB; see: "
    figures = explain_text(short + message(gpu=5)).figures
    assert (figures.gpu_index, figures.tried_bytes, figures.total_bytes) == (5, GIB, 24 * GIB)


def test_an_allocators_own_message_outweighs_what_was_killed_after_it() -> None:
    log = f"{message()}\nslurmstepd: error: Detected 1 oom_kill event in StepId=7.0."
    assert explain_text(log).kind is Kind.CUDA_OOM


def test_what_is_reserved_follows_from_what_is_not_allocated() -> None:
    figures = read_figures(message())
    assert figures.reserved_bytes == int(22.5 * GIB)
    assert figures.this_process_bytes == int(23.5 * GIB)


# ------------------------------------------------------------------------------------- account


def test_the_parts_add_up_to_the_card() -> None:
    account = make_breakdown(read_figures(message()))
    parts = (
        account.allocated_bytes,
        account.cached_bytes,
        account.outside_bytes,
        account.others_bytes,
        account.free_bytes,
    )
    assert sum(part or 0 for part in parts) == account.total_bytes == 24 * GIB
    assert account.outside_bytes == GIB


def test_in_a_container_the_process_itself_is_named_like_any_other() -> None:
    account = make_breakdown(
        read_figures(message(processes="Process 7 has 23.50 GiB memory in use. "))
    )
    assert account.outside_bytes == GIB
    assert account.other_processes == ()


def test_other_processes_stay_others() -> None:
    text = message(
        allocated="2.00 GiB",
        processes="Process 7 has 20.00 GiB memory in use. "
        "Including non-PyTorch memory, this process has 3.00 GiB memory in use. ",
    )
    account = make_breakdown(read_figures(text))
    assert [process.pid for process in account.other_processes] == [7]
    assert account.others_bytes is not None
    assert account.others_bytes >= 20 * GIB


def test_cached_of_old_versions_is_on_top_of_what_is_allocated() -> None:
    """c10/cuda/CUDACachingAllocator.cpp, torch 1.0-1.3: `amount_cached - amount_allocated`."""
    figures = read_figures(
        "CUDA out of memory. Tried to allocate 80.00 MiB (GPU 0; 6.00 GiB total capacity; 4.50 GiB already "
        "allocated; 10.00 MiB free; 86.00 MiB cached)"
    )
    assert figures.reserved_bytes == int(4.5 * GIB) + 86 * MIB
    account = make_breakdown(figures)
    assert account.cached_bytes == 86 * MIB
    assert account.unattributed_bytes == int(1.5 * GIB) - 96 * MIB
    assert sum(account.parts.values()) == account.total_bytes


def test_reserved_holds_allocated() -> None:
    text = "(GPU 0; 8.00 GiB total capacity; 5.00 GiB already allocated; 1.00 GiB free; {} reserved in total"
    assert read_figures(text.format("1.50 GiB")).reserved_bytes is None  # a digit was lost
    rounded = read_figures(text.format("5119.00 MiB"))
    assert rounded.reserved_bytes == rounded.allocated_bytes


def test_figures_of_different_moments_are_no_account() -> None:
    account = make_breakdown(read_figures(message(free="5.00 GiB", processes="")))
    assert account.parts == {}
    assert account.overflow_bytes == int(3.5 * GIB)


def test_more_than_the_card_has() -> None:
    account = make_breakdown(read_figures(message(allocated="30.00 GiB", processes="")))
    assert account.overflow_bytes == int(6.75 * GIB)
    assert account.parts == {}
    assert not account.drawable


def test_a_part_smaller_than_the_rounding_is_never_negative() -> None:
    figures = Figures(
        total_bytes=MIB,
        free_bytes=MIB,
        allocated_bytes=MIB,
        reserved_bytes=4 * MIB,
        reserved_unallocated_bytes=3 * MIB,
        precision={"free_bytes": GIB},
    )
    account = make_breakdown(figures)
    assert (account.parts, account.overflow_bytes) == ({}, 4 * MIB)


# --------------------------------------------------------------------------------------- cause

OTHERS = message(
    allocated="2.00 GiB",
    processes="Process 7 has 20.00 GiB memory in use. "
    "Including non-PyTorch memory, this process has 3.00 GiB memory in use. ",
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (message(), CauseKind.BATCH_TOO_LARGE),
        (message(tried="30.00 GiB"), CauseKind.BATCH_TOO_LARGE),
        (message(allocated="12.00 GiB", unallocated="10.50 GiB"), CauseKind.FRAGMENTATION),
        (OTHERS, CauseKind.OTHER_PROCESS),
        (message(tried="1.00 GiB", free="9.00 GiB", allocated="5.00 GiB"), CauseKind.UNKNOWN),
        (
            in_traceback('  File "a.py", line 3, in validate\n    y = model(x)', message()),
            CauseKind.EVAL_WITHOUT_NO_GRAD,
        ),
        (
            in_traceback(
                '  File "torch/utils/_contextlib.py", line 9, in decorate_context\n'
                '  File "a.py", line 3, in validate\n    y = model(x)',
                message(),
            ),
            CauseKind.BATCH_TOO_LARGE,
        ),
        (
            in_traceback('  File "torch/optim/adamw.py", line 9, in _init_group', message()),
            CauseKind.MODEL_TOO_LARGE,
        ),
        (in_traceback("    model.to(device)", message()), CauseKind.MODEL_TOO_LARGE),
        (
            "step 900/1000 loss 1.2\n" + in_traceback("    loss.backward()", message()),
            CauseKind.LEAK,
        ),
        ("Out of memory: Killed process 42 (python) anon-rss:1048576kB", CauseKind.HOST_MEMORY),
        ("CUDA error: device-side assert triggered", CauseKind.NOT_MEMORY),
        ("all is well", CauseKind.NOT_MEMORY),
    ],
)
def test_causes(text: str, cause: CauseKind) -> None:
    assert cause_of(text) == cause


def test_a_limit_that_was_set() -> None:
    text = message(free="9.00 GiB", allocated="11.50 GiB").replace(
        "Of the allocated", "12.50 GiB allowed; Of the allocated"
    )
    explanation = explain_text(text)
    assert explanation.cause.kind is CauseKind.MEMORY_LIMIT
    assert explanation.figures.allowed_bytes == int(12.5 * GIB)


def test_the_reason_holds_the_arithmetic() -> None:
    reason = explain_text(message(allocated="12.00 GiB", unallocated="10.50 GiB")).cause.reason
    assert "10.5 GiB are reserved" in reason
    assert "1.0 GiB were asked for" in reason


def test_a_limit_is_compared_with_the_precision_of_the_printed_figures() -> None:
    text = message(
        tried="2.00 MiB",
        total="80.00 GiB",
        free="70.00 GiB",
        allocated="2040.00 MiB",
        unallocated="100.00 MiB",
        processes="2.10 GiB allowed; ",
    )
    # 2142 MiB are asked for in all, and 2.10 GiB stand for 2145 to 2156 MiB.
    assert cause_of(text) is not CauseKind.MEMORY_LIMIT
    reached = explain_text(text.replace("100.00 MiB", "106.00 MiB"))  # 2148 MiB
    assert reached.cause.kind is CauseKind.MEMORY_LIMIT
    assert "within the rounding" in reached.cause.reason


def test_a_limit_that_an_allocation_would_have_exceeded() -> None:
    text = (
        "torch.OutOfMemoryError: CUDA out of memory. Allocation was preemptively rejected because it would "
        "exceed per_process_memory_fraction limit. Requested size: 2147483648 bytes"
    )
    explanation = explain_text(text)
    assert explanation.cause.kind is CauseKind.MEMORY_LIMIT
    assert explanation.figures.tried_bytes == 2 * GIB


def test_a_size_that_no_machine_has() -> None:
    explanation = explain_text("CUDA out of memory. Tried to allocate more than 1EB memory.")
    assert explanation.cause.kind is CauseKind.OVERFLOWED_SHAPE
    assert "shape" in explanation.advice[0].text


def test_a_buffer_larger_than_metal_allows() -> None:
    explanation = explain_text("RuntimeError: Invalid buffer size: 24.00 GiB")
    assert explanation.cause.kind is CauseKind.BATCH_TOO_LARGE
    assert "24.0 GiB is larger than Metal allows" in explanation.cause.reason
    assert not any("WATERMARK" in command for command in commands(explanation))


def test_mps_other_allocations_are_this_process() -> None:
    text = (
        "MPS backend out of memory (MPS allocated: 6.00 GiB, other allocations: 11.50 GiB, max allowed: "
        "18.00 GiB). Tried to allocate 1.00 GiB on private pool."
    )
    explanation = explain_text(text)
    account = explanation.errors[0].breakdown
    assert (account.outside_bytes, account.others_bytes) == (int(11.5 * GIB), None)
    assert account.free_bytes == GIB // 2
    assert explanation.cause.kind is CauseKind.MEMORY_LIMIT
    assert "this process's own" in explanation.cause.reason


@pytest.mark.parametrize(
    "text",
    [
        "RuntimeError: DataLoader worker (pid 42) is killed by signal: Killed.",
        "Process finished with exit code 137 (interrupted by signal 9: SIGKILL)",
    ],
)
def test_a_signal_is_no_proof(text: str) -> None:
    explanation = explain_text(text)
    assert explanation.kind is Kind.HOST_OOM_KILL
    assert not explanation.errors[0].proven
    assert "Most likely" in explanation.cause.reason
    assert commands(explanation)[0].startswith("dmesg")


def test_ray_kills_before_the_kernel_does() -> None:
    explanation = explain_text("Task was killed due to the node running low on memory.")
    assert "by Ray's memory monitor" in explanation.cause.reason
    assert commands(explanation)[0].startswith("ray logs")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("RuntimeError: CUDA error: out of memory on device cuda:3", 3),
        ("out of memory when allocating on device:GPU:2 by allocator GPU_2_bfc", 2),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=1 ; hostname=node7", 1),
        ("gpu017: RuntimeError: CUDA error: out of memory", None),
        ("gpu-3 srun --gres=gpu:4: CUDA error: out of memory", None),
        ("CUDA error: out of memory on a GPU 24 GiB large", None),
    ],
)
def test_names_of_hosts_and_counts_are_no_gpu(text: str, index: int | None) -> None:
    assert explain_text(text).figures.gpu_index == index


def test_no_gpu_has_a_part_in_what_the_host_did() -> None:
    explanation = explain_text("GPU 3: Out of memory: Killed process 42 (python)")
    assert explanation.kind is Kind.HOST_OOM_KILL
    assert explanation.figures.gpu_index is None


# -------------------------------------------------------------------------------------- advice


def commands(explanation: Explanation) -> list[str]:
    return [remedy.command for remedy in explanation.advice if remedy.command is not None]


def test_the_first_remedy_answers_the_cause() -> None:
    assert commands(explain_text(message()))[0].startswith("bsfind run ")
    assert commands(explain_text(OTHERS))[0] == "kill 7"
    fragmented = message(allocated="12.00 GiB", unallocated="10.50 GiB")
    assert commands(explain_text(fragmented))[0].startswith(
        "PYTORCH_ALLOC_CONF=expandable_segments:True"
    )


def test_the_remedy_fits_the_version() -> None:
    old = (
        "CUDA out of memory. Tried to allocate 1.00 GiB (GPU 0; 24.00 GiB total capacity; 12.00 GiB "
        "already allocated; 0 bytes free; 23.00 GiB reserved in total by PyTorch)"
    )
    assert commands(explain_text(old))[0].startswith(
        "PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:128"
    )


def test_not_memory_has_a_remedy_of_its_own() -> None:
    assert commands(explain_text("CUDA error: an illegal memory access was encountered")) == [
        "CUDA_LAUNCH_BLOCKING=1 python train.py",
    ]


# ----------------------------------------------------------------------------------------- log


@pytest.mark.parametrize(
    ("line", "rank", "name", "text"),
    [
        ("[rank3]: x", 3, None, "x"),
        ("[rank12]:   File", 12, None, "  File"),
        ("2025-01-02 03:04:05,678 | [default1]:x", 1, None, "x"),
        ("\x1b[36m(Worker_TP1 pid=499)\x1b[0m x", 1, "Worker_TP1", "x"),
        ("(EngineCore pid=12) ERROR 09-28 20:07:31 [core.py:720] x", None, "EngineCore", "x"),
        ("[1,5]<stderr>:x", 5, None, "x"),
        ("7: x", 7, None, "x"),
    ],
)
def test_prefixes_are_taken_off(line: str, rank: int | None, name: str | None, text: str) -> None:
    source, rest = clean(line)
    assert source is not None
    assert (source.rank, source.name, rest) == (rank, name, text)


def test_lines_without_a_prefix_belong_to_nobody() -> None:
    assert clean("RuntimeError: x\n") == (None, "RuntimeError: x")


def test_lines_cut_at_one_width_are_joined_without_a_space() -> None:
    text = (
        "CUDA out of memory. Tried to allocate 20.00 MiB, and so on and on until the end of it all"
    )
    cut = [text[i : i + 40] for i in range(0, len(text), 40)]
    assert join(cut) == text


def test_one_error_per_rank() -> None:
    lines = [
        f"[rank{rank}]: {line}"
        for rank in (2, 0, 5)
        for line in ("Traceback (most recent call last):", message(gpu=rank))
    ]
    explanation = explain_text("\n".join(lines))
    assert [error.source.rank for error in explanation.errors] == [2, 0, 5]
    assert [error.figures.gpu_index for error in explanation.errors] == [2, 0, 5]


def test_interleaved_ranks() -> None:
    halves = [message(gpu=gpu).split(". Tried", 1) for gpu in range(3)]
    lines = [f"[rank{gpu}]: {half[0]}." for gpu, half in enumerate(halves)]
    lines += [f"[rank{gpu}]: Tried{half[1]}" for gpu, half in enumerate(halves)]
    explanation = explain_text("\n".join(lines))
    assert {(error.source.rank, error.figures.gpu_index) for error in explanation.errors} == {
        *((gpu, gpu) for gpu in range(3)),
    }


def test_the_same_error_twice_is_counted() -> None:
    text = message()
    explanation = explain_text("\n".join([text, *["fine"] * 30, text]))
    assert [error.occurrences for error in explanation.errors] == [2]


def test_a_fault_elsewhere_makes_a_librarys_error_an_echo() -> None:
    library = (
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    )
    assert explain_text(library).kind is Kind.CUBLAS_ALLOC
    log = "\n".join(["Assertion `t < n_classes` failed.", *["x"] * 50, library])
    assert explain_text(log).kind is Kind.NOT_OOM


def test_the_advice_of_every_cuda_error_is_no_fault() -> None:
    class AcceleratorError(RuntimeError):
        pass

    error = AcceleratorError(
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."
    )
    assert classify(error) is FailureKind.OUT_OF_MEMORY


def test_a_proof_outweighs_what_launchers_say_of_it() -> None:
    log = "\n".join([message(), *["x"] * 30, "  exitcode  : -9 (pid: 7)"])
    assert [error.kind for error in explain_text(log).errors] == [Kind.CUDA_OOM]


def test_long_logs_are_read_with_bounded_memory() -> None:
    class Endless(io.RawIOBase):
        """10 MB of lines, made as they are read, then an error."""

        def __init__(self) -> None:
            self.left = 100_000

        def read(self, size: int = -1, /) -> bytes:
            self.left -= 1
            if self.left > 0:
                return b"x" * 99 + b"\n"
            return message().encode() + b"\n" if self.left == 0 else b""

    explanation = explain(Endless())  # type: ignore[arg-type]
    assert explanation.lines == 100_000
    assert explanation.errors[0].line == 100_000


@pytest.mark.parametrize("filling", ["0123456789", "0,1,2.3", "abcdef0123456789", "a_", "* "])
def test_a_line_without_end_after_an_error_takes_no_time(filling: str) -> None:
    text = "RuntimeError: CUDA out of memory. Tried to allocate " + filling * (
        100_000 // len(filling)
    )
    start = time.process_time()
    assert explain_text(text).kind is Kind.CUDA_OOM
    assert time.process_time() - start < 10  # one search per digit took minutes


def test_reports_of_memory_in_use_hide_no_error_between_them() -> None:
    report = [f"step {n}: GPU memory allocated 10.2 GiB, buffers 1.1 GiB" for n in range(100)]
    assert explain_text("\n".join(report)).kind is Kind.NOT_OOM
    report[50:50] = ["RuntimeError: Insufficient memory"]
    assert explain_text("\n".join(report)).errors[0].line <= 51


@pytest.mark.parametrize(
    ("text", "kind", "sizes"),
    [
        (
            "ValueError: Free memory on device (67.25/79.25 GiB) on startup is less than desired GPU "
            "memory utilization (0.9, 71.33 GiB).",
            Kind.OTHER_FRAMEWORK_OOM,
            {"free_bytes": int(67.25 * GIB), "total_bytes": int(79.25 * GIB)},
        ),
        (
            "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
            "Failed to CUDA calloc async 608 bytes",
            Kind.CUDA_OOM,
            {"tried_bytes": 608},
        ),
        (
            "RESOURCE_EXHAUSTED: Failed to allocate request for 3.0GiB (3206250496B) on device ordinal 0",
            Kind.OTHER_FRAMEWORK_OOM,
            {"tried_bytes": 3206250496},
        ),
        (
            "cupy.cuda.memory.OutOfMemoryError: out of memory to allocate 1073741824 bytes (total 4 bytes)",
            Kind.OTHER_FRAMEWORK_OOM,
            {"tried_bytes": GIB},
        ),
        (
            "Current platform can NOT allocate memory block with size larger than 4GB! Tried to allocate "
            "6.00 GiB (GPU  0; 15.00 GiB total capacity; 0 bytes already allocated)",
            Kind.XPU_OOM,
            {"tried_bytes": 6 * GIB, "total_bytes": 15 * GIB, "allocated_bytes": 0},
        ),
        ("EnforceNotMet: enforce allocating <= available failed", Kind.OTHER_FRAMEWORK_OOM, {}),
        ("epoch 3: 50%\n\n**Killed**", Kind.HOST_OOM_KILL, {}),
        ("epoch 3: 50%\n已杀死", Kind.HOST_OOM_KILL, {}),
        ("GPU out of memory", Kind.CUDA_OOM, {}),
        ("CUDA memory allocation of 4096 bytes failed", Kind.CUDA_OOM, {"tried_bytes": 4096}),
        ("Killed process 12 (python3) total-vm:490kB, anon-rss:300kB", Kind.HOST_OOM_KILL, {}),
        ("failed to allocate 1900,00 MiB of pinned memory: invalid argument", Kind.NOT_OOM, {}),
    ],
)
def test_texts_of_rarer_programs(text: str, kind: Kind, sizes: dict[str, int]) -> None:
    explanation = explain_text(text)
    assert explanation.kind is kind
    assert {name: getattr(explanation.figures, name) for name in sizes} == sizes


def test_a_log_of_one_line_and_a_log_that_is_not_text() -> None:
    assert explain_text("x" * 1_000_000 + "\n" + message()).kind is Kind.CUDA_OOM
    noise = bytes(range(256)) * 50 + b"\n" + message().encode() + b"\n\xff\xfe"
    assert explain(io.BytesIO(noise)).kind is Kind.CUDA_OOM


# -------------------------------------------------------------------------------- any text at all

PIECES = st.sampled_from(
    [entry["text"] for entry in TEXTS]
    + ["[rank1]: ", "\n", "\r", "\x1b[31m", " 3.00 GiB", "Process 1 has "]
)


@settings(max_examples=60)
@given(st.lists(PIECES | st.text(max_size=40), max_size=6).map("".join))
def test_any_text_is_explained(text: str) -> None:
    explanation = explain_text(text)
    assert explanation.cause.reason
    described = explanation.to_json()
    assert (described["kind"] == "not_oom") == (described["errors"] == [])
    for part in (described, *described["errors"], *(e["account"] for e in described["errors"])):
        for name, value in part.items():
            if name.endswith("_bytes"):
                assert value is None or value >= 0, name
    json.dumps(described, allow_nan=False)


@settings(max_examples=100)
@given(st.binary(max_size=400))
def test_any_bytes_are_read(data: bytes) -> None:
    assert explain(io.BytesIO(data)).lines >= 0


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_part_of_an_account_is_negative(
    total: int, free: int, allocated: int, cached: int
) -> None:
    figures = Figures(
        total_bytes=total,
        free_bytes=free,
        allocated_bytes=allocated,
        reserved_bytes=allocated + cached,
        reserved_unallocated_bytes=cached,
    )
    account = make_breakdown(figures)
    assert all(not value or value > 0 for value in vars(account).values() if value != ())
    assert sum(account.parts.values()) <= total
