"""Which runs of the core corpus are compared with PyTorch's CUDA build (`make corpus` compares all)."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.corpus import cases
from tests.simulation.corpus.case import Run
from tests.simulation.known_differences import DIFFERENCES, NOT_COMPARED

__all__ = ["cudnn_runs", "stub_runs"]

# cuDNN compiles these at run time in half precision, for seconds each.
_SLOW = ("efficientnet", "mobilenet", "convnext", "conformer", "state_space", "depthwise")


def stub_runs() -> Iterator[Run]:
    """Yield every case in one precision, for a stub in cuDNN's place.

    It is its first, or one of the others in turn.
    """
    for index, case in enumerate(cases()):
        if case.name in NOT_COMPARED:
            continue
        first, *others = case.precisions
        precision = others[index // 2 % len(others)] if others and index % 2 else first
        yield Run(case=case, precision=precision, batch_size=case.batch_sizes[0])


def cudnn_runs() -> Iterator[Run]:
    """Yield cases of whose memory cuDNN decides a part, in one of their precisions in turn.

    Of those with attention, every third and those with known differences.
    """
    concerned = [c for c in cases() if c.kind != "other" and c.family not in ("gpu_code", "layers")]
    for index, case in enumerate(concerned):
        precision = case.precisions[index % len(case.precisions)]
        if case.name.startswith(_SLOW):
            precision = case.precisions[0]
        run = Run(case=case, precision=precision, batch_size=case.batch_sizes[0])
        if case.kind != "attention" or index % 3 == 0 or f"CUDNN {run}" in DIFFERENCES:
            yield run
