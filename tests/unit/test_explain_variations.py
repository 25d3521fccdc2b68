"""The labelled texts as logs show them: wrapped, prefixed, coloured, escaped; and texts of other faults.

Every way in which a text reaches a log has to leave what is made of it the same, with few exceptions: a
message that is cut in the middle of a number may lose that number.
"""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bsfind.explain.breakdown import read_size
from bsfind.explain.explanation import explain
from bsfind.explain.log import join, readings
from bsfind.explain.texts import Kind

FILE = Path(__file__).parent / "data" / "oom_texts.jsonl"
ENTRIES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
# Those that are variations themselves would be varied twice.
VARIED = re.compile(r"wrapped|comment|rich-border|quoted|timestamps|progress")
TEXTS = [entry["text"] for entry in ENTRIES if not VARIED.match(entry["id"])]
PROMISED = 0.97

Variation = Callable[[str], str]


def each_line(change: Callable[[str], str]) -> Variation:
    return lambda text: "\n".join(map(change, text.split("\n")))


def prefixed(prefix: str) -> Variation:
    return each_line(lambda line: prefix + line)


def wrapped(width: int, indent: str = "") -> Variation:
    def wrap(line: str) -> str:
        return "\n".join(textwrap.wrap(line, width, subsequent_indent=indent)) or line

    return each_line(wrap)


def cut(width: int) -> Variation:
    def parts(line: str) -> Iterator[str]:
        yield from (line[i : i + width] for i in range(0, len(line), width))

    return each_line(lambda line: "\n".join(parts(line)) or line)


def both(first: Variation, second: Variation) -> Variation:
    return lambda text: second(first(text))


def boxed(text: str) -> str:
    lines = wrapped(90)(text).split("\n")
    return "\n".join(["╭─ Error ─╮", *(f"│ {line.ljust(90)} │" for line in lines), "╰─────────╯"])


RANK = prefixed("[rank3]: ")
TIME = prefixed("2025-03-04T05:06:07.123456Z ")
SYSLOG = prefixed("Nov 25 14:05:14 node01 python[4242]: ")
COLOR = each_line(lambda line: f"\x1b[31m\x1b[1m{line}\x1b[0m")

VARIATIONS: dict[str, Variation] = {
    "wrapped at 60": wrapped(60),
    "wrapped at 80": wrapped(80),
    "wrapped at 72, indented": wrapped(72, " " * 8),
    "cut at 67": cut(67),
    "cut at 80": cut(80),
    "cut at 120": cut(120),
    "time": TIME,
    "time, cut": both(cut(80), TIME),
    "python logging": prefixed("2025-03-04 05:06:07,123 - trainer - ERROR - "),
    "loguru": prefixed("2025-03-04 05:06:07.123 | ERROR    | train:main:12 - "),
    "absl": prefixed("E0121 15:28:37.077000 231117 torch/foo.py:2100] "),
    "syslog": SYSLOG,
    "syslog, wrapped": both(wrapped(60), SYSLOG),
    "docker compose": prefixed("trainer-1  | "),
    "kubectl": prefixed("[pod/train-0/pytorch] "),
    "rank": RANK,
    "rank, wrapped": both(wrapped(80), RANK),
    "rank, then wrapped": both(RANK, wrapped(80)),
    "rank, cut": both(cut(80), RANK),
    "torchrun": prefixed("[default0]:"),
    "mpi": prefixed("[1,3]<stderr>:"),
    "ray": prefixed("(RayTrainWorker pid=123, ip=1.2.3.4) "),
    "slurm": prefixed("3: "),
    "colours": COLOR,
    "coloured figures": lambda text: re.sub(r"(\d+\.\d+)", "\x1b[36m\\1\x1b[0m", text),
    "colours, cut": both(cut(80), COLOR),
    "windows": lambda text: text.replace("\n", "\r\n"),
    "json": lambda text: json.dumps({"level": "error", "msg": text}),
    "docker json": lambda text: json.dumps({"log": f"{text}\n", "stream": "stderr"}),
    "repr": lambda text: f"Exception: {text!r}",
    "quoted": prefixed("> "),
    "quoted, wrapped": both(wrapped(80), prefixed("> ")),
    "markdown": lambda text: text.replace("_", "\\_"),
    "box": boxed,
    "no-break spaces": lambda text: re.sub(r"(\d) ([KMG]iB)", "\\1\u00a0\\2", text),
    "pytest": prefixed("E       "),
}


def summary(text: str) -> tuple[Kind, list[int | None]]:
    """Return what is made of a text: its kind and its figures."""
    found = explain(io.BytesIO(text.encode()))
    names = ("tried", "total", "free", "allocated", "reserved", "allowed")
    return found.kind, [getattr(found.figures, f"{name}_bytes") for name in names]


PLAIN = [summary(text) for text in TEXTS]


@pytest.mark.parametrize("name", VARIATIONS)
def test_variations_are_read_like_the_text_itself(name: str) -> None:
    seen = [summary(VARIATIONS[name](text)) for text in TEXTS]
    kinds = [ours[0] == plain[0] for ours, plain in zip(seen, PLAIN, strict=True)]
    figures = [
        ours_one == plain_one
        for ours, plain in zip(seen, PLAIN, strict=True)
        for ours_one, plain_one in zip(ours[1], plain[1], strict=True)
        if plain_one is not None
    ]
    assert sum(kinds) >= PROMISED * len(kinds)
    assert sum(figures) >= PROMISED * len(figures)
    taken = [
        text
        for text, ours, plain in zip(TEXTS, seen, PLAIN, strict=True)
        if plain[0] is Kind.NOT_OOM and ours[0] is not Kind.NOT_OOM
    ]
    assert taken == []


@pytest.mark.parametrize(
    "text",
    [
        "    except torch.cuda.OutOfMemoryError:",
        "UserWarning: if you run out of memory, reduce the batch size",
        "WARNING: a batch size of 512 may cause CUDA out of memory errors",
        "hint: to avoid OOM set PYTORCH_ALLOC_CONF=expandable_segments:True",
        "INFO oom handler enabled, retries=3",
        "NCCL WARN Cuda failure 'invalid argument'",
        "Memory usage: 23.1 GiB / 23.6 GiB allocated, 0.2 GiB free",
        "step 100 | loss 3.1 | mem 22.3 GiB reserved, 20.1 GiB allocated",
        "Process finished with exit code 143 (interrupted by signal 15: SIGTERM)",
        "slurmstepd: error: *** JOB 123 ON node CANCELLED DUE TO TIME LIMIT ***",
        "RuntimeError: cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned",
        "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if …",
        "RuntimeError: CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx( handle )`",
        "OSError: [Errno 28] No space left on device",
        "OSError: [Errno 24] Too many open files",
        "RuntimeError: nonzero is not supported for tensors with more than INT_MAX elements",
        "RuntimeError: CUDA error: too many resources requested for launch",
        "OutOfResources: out of resource: shared memory, Required: 147456, Hardware limit: 101376.",
        "FileNotFoundError: 'out_of_memory.log'",
        "torch.cuda.empty_cache()  # avoid out of memory",
        "Killed by user",
        "exitcode  : -15 (pid: 79468)",
        "Signal 6 (SIGABRT) received by PID 79468",
        '"OOMKilled": false, "Error": "", "ExitCode": 1',
        "OOMKilled: false",
        "systemd[1]: Started Userspace Out-Of-Memory (OOM) Killer.",
        "oom_score_adj set to -500",
        "RuntimeError: handle_0 INTERNAL ASSERT FAILED at ../c10/cuda/driver_api.cpp:15",
        "MemoryErrorHandler installed",
    ],
)
def test_what_only_speaks_of_memory_is_no_error_of_it(text: str) -> None:
    assert explain(io.BytesIO(text.encode())).kind is Kind.NOT_OOM


def test_lines_are_read_as_they_may_have_been_wrapped() -> None:
    """No number is put together from two, and none torn apart, in at least one of the readings."""
    text = (
        "RuntimeError: on GPU 0, 23.431824GB memory has been allocated and 97.6 MB are free, in all"
    )
    for lines in (wrapped(40)(text).split("\n"), cut(40)(text).split("\n")):
        assert text in list(readings(lines))
    logged = [f"Nov 25 14:05:{i:02} node01 python[4242]: {line}" for i, line in enumerate(lines)]
    assert text in list(readings(logged))
    assert join(["a", "b"]) == "a b"


def test_a_wrapped_message_that_lost_its_beginning() -> None:
    text = (
        "GPU 1 has a total capacity of 31.73 GiB of which 514.19 MiB is free. Including non-PyTorch memory, "
        "this process has 31.22 GiB memory in use. Of the allocated memory 29.40 GiB is allocated by "
        "PyTorch, and 1.39 GiB is reserved by PyTorch but unallocated."
    )
    plain = summary(text)
    assert plain[0] is Kind.CUDA_OOM
    for variation in (wrapped(80), both(wrapped(80), RANK), boxed):
        kind, figures = summary(variation(text))
        assert kind is Kind.CUDA_OOM
        assert figures[1:3] == plain[1][1:3]


def test_two_numbers_in_one_are_no_size() -> None:
    assert read_size("0,23.431824GB") is None
