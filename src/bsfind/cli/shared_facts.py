"""The block that `bsfind env --share` prints: a card, its versions, and the memory of a process on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from bsfind.units import format_bytes

_TIMEOUT_S = 180.0
"""Longest time for the measurement: importing torch and loading CUDA's libraries can take a minute."""

POST_IT = (
    "post the block in bsfind's issue tracker, as an issue with the name of the card: it says what others "
    "can expect of that card, driver and version of CUDA (docs/context-memory.md)"
)


def measured() -> dict[str, Any]:
    """Measure in a process of its own (see `devices.cuda_context`).

    Returns:
        What it found; `missing` says why there is no more.
    """
    command = [sys.executable, "-m", "bsfind.devices.cuda_context"]
    found: dict[str, Any] = {}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
        out, missing = done.stdout, _how_it_ended(done)
    except subprocess.TimeoutExpired as expired:
        out, missing = expired.stdout or b"", f"the measurement took longer than {_TIMEOUT_S:.0f} s"
    except OSError as error:
        out, missing = b"", f"the measurement did not start: {error}"
    for line in out.splitlines():
        if line.startswith(b"{"):  # libraries may write lines of their own
            try:
                found |= json.loads(line)
            except ValueError:
                continue
    return found if "missing" in found or missing is None else {**found, "missing": missing}


def _how_it_ended(done: subprocess.CompletedProcess[bytes]) -> str | None:
    """Return why a measurement ended early; None if it did not."""
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    return f"the measurement ended with {how}" + (f": {said[-1]}" if said else "")


def block(facts: dict[str, Any], platform: str) -> Iterator[str]:
    """Yield the lines of the block, in Markdown.

    Args:
        facts: what `measured` returned.
        platform: the operating system.
    """
    yield "```text"
    if "gpu" in facts:
        total = facts["total_bytes"]
        yield (
            f"card: {facts['gpu']}, compute capability {facts['compute_capability']}, "
            f"{facts['sm_count']} multiprocessors, {format_bytes(total)} ({total} bytes)"
        )
    yield f"driver: {facts.get('driver') or 'not found'}, {platform}"
    names = (("torch", "torch"), ("CUDA", "cuda"), ("cuDNN", "cudnn"), ("NCCL", "nccl"))
    versions = (f"{name} {facts[key]}" for name, key in names if facts.get(key))
    yield ", ".join(versions) or "torch: not found"
    if "gpu" in facts:
        yield f"context memory, {facts['module_loading']} loading of modules:"
        yield f"  with one kernel: {_size(facts, 'context')}"
        yield f"  after cuBLAS and cuDNN: {_size(facts, 'libraries')}"
        yield f"  modelled by bsfind: {format_bytes(facts['modelled_bytes'])}"
        yield f"NCCL, a group of one rank: {_nccl(facts)}"
    if "missing" in facts:
        yield f"missing: {facts['missing']}"
    if "CUDA_MODULE_LOADING" in os.environ:
        yield f"CUDA_MODULE_LOADING={os.environ['CUDA_MODULE_LOADING']}"
    yield "```"


def _size(facts: dict[str, Any], stage: str) -> str:
    """Return the memory after a stage, or why it is not known."""
    if error := facts.get(f"{stage}_error"):
        return f"not measured: {error}"
    nbytes = facts.get(f"{stage}_bytes")
    return "not measured" if nbytes is None else f"{format_bytes(nbytes)} ({nbytes} bytes)"


def _nccl(facts: dict[str, Any]) -> str:
    """Return what NCCL takes beside the other libraries, or why it is not known."""
    before, after = facts.get("libraries_bytes"), facts.get("nccl_bytes")
    if before is None or after is None:
        return _size(facts, "nccl") if after is None else "not measured"
    return f"{format_bytes(max(0, after - before))} ({after - before} bytes)"
