"""Compares what operators allocated with what the rules say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.simulation.operator_probe import call_from

from bsfind.simulation.kernels.call import GpuSpec, KernelTrace, TensorSpec, rule_for


def rounded(nbytes: int) -> int:
    """Return the block that the caching allocator gives for so many bytes."""
    return max(512, -(-nbytes // 512) * 512)


def storage_bytes(output: TensorSpec) -> int:
    """Return the bytes of the storage that a new tensor of these strides has."""
    if output.numel == 0:
        return 0
    extent = 1 + sum((n - 1) * s for n, s in zip(output.shape, output.stride, strict=True))
    return extent * output.element_size


class Expectation:
    """What the rules say, for calls in the order in which they were made.

    Args:
        gpu: the GPU that made them.
    """

    def __init__(self, gpu: GpuSpec) -> None:
        self._gpu = gpu
        self._workspaces: set[tuple[int, str]] = set()

    def events(self, record: dict[str, Any]) -> list[str]:
        """Return the events of a call in the notation of operator_probe, sizes rounded."""
        call = call_from(record)
        trace = KernelTrace(call)
        rule = rule_for(call.operator, call.overload)
        if rule is not None:
            rule(call, self._gpu, trace)
        events: list[str] = []
        numbers: dict[int, int] = {}
        count = 0
        for kind, key, nbytes in trace.finish():
            if kind == "output":
                output = call.outputs[key]
                if output is None or record["views"][key] or not output.on_gpu:
                    continue
                nbytes = max(nbytes, storage_bytes(output))
                if nbytes:
                    events.append(f"+o{key}:{rounded(nbytes)}")
                    count += 1
            elif kind in ("scratch", "optional"):
                numbers[key] = count
                events.append(f"+{count}:{rounded(nbytes)}")
                count += 1
            elif kind == "free":
                events.append(f"-{numbers[key]}")
            elif kind == "workspace" and (record["thread"], key) not in self._workspaces:
                self._workspaces.add((record["thread"], key))
                events.append(f"+{count}:{rounded(nbytes)}")
                count += 1
        return events


def differences(
    records: Iterable[dict[str, Any]], gpu: GpuSpec
) -> list[tuple[dict[str, Any], list[str], list[str]]]:
    """Return (call, events on the GPU, events expected) where they differ."""
    expectation = Expectation(gpu)
    found = []
    for record in records:
        seen = [_rounded_event(event) for event in record["events"]]
        try:
            expected = expectation.events(record)
        except Exception as error:  # a rule that raises is a difference too
            expected = [repr(error)]
        if seen != expected:
            found.append((record, seen, expected))
    return found


def _rounded_event(event: str) -> str:
    place, _, nbytes = event.partition(":")
    return f"{place}:{rounded(int(nbytes))}" if nbytes else place
