"""One rank of a training on several GPUs, on the simulated GPU and on PyTorch's CUDA build.

python -m tests.simulation.parallel_runs                        all runs, one line each
python -m tests.simulation.parallel_runs decoder-fsdp cnn       those whose names contain one of these

PyTorch's side is the fake GPU with its NCCL, which lets a process be any rank of any number.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tests.simulation.corpus import by_name
from tests.simulation.corpus.case import Run
from tests.simulation.event_alignment import align, normalised
from tests.simulation.oracle import Oracle
from tests.simulation.simulated import simulate

from bsfind.parallel import Parallel

__all__ = ["GPU", "difference", "every_run", "run_of"]

GPU = "a100"
PRECISIONS = ("fp32", "amp-bf16")
SHARDED_PRECISIONS = (*PRECISIONS, "mp-bf16")

_FAMILIES = {"decoder": ("llama", 8), "vit": ("vit", 8), "cnn": ("resnet", 8)}
"""By family, a case of the corpus and its batch size."""

_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "ddp": (
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"find_unused_parameters": True},
        {"bucket_cap_mb": 2},
        {"broadcast_buffers": False},
    ),
    "fsdp": (
        {"reshard_after_forward": False},
        {"reshard_after_forward": 4},
        {"prefetch": 2},
        {"param_dtype": "bfloat16", "reduce_dtype": "bfloat16"},
    ),
    "hsdp": ({"reshard_after_forward": False},),
    "zero1": ({"gradient_as_bucket_view": True},),
}
"""Arguments of strategies besides their defaults."""


def run_of(
    family: str,
    strategy: str,
    world_size: int,
    precision: str,
    *,
    rank: int = 0,
    workload: dict[str, Any] | None = None,
    **arguments: Any,
) -> Run:
    """Return a run.

    Args:
        family: `decoder`, `vit` or `cnn`.
        strategy: as of `Parallel`.
        world_size: number of ranks.
        precision: a key of `bsfind.workload.precision`.
        rank: the rank that trains.
        workload: further fields of the workload.
        arguments: of the strategy.
    """
    of_family, batch_size = _FAMILIES[family]
    case = by_name(of_family)
    workload = workload or {}
    parallel = Parallel(
        strategy=strategy,
        world_size=world_size,
        rank=rank,
        arguments=tuple((key, str(value)) for key, value in arguments.items()),
    )
    more = {**arguments, **workload, **({"rank": rank} if rank else {})}
    name = "-".join([family, strategy, str(world_size), *(f"{k}={v}" for k, v in more.items())])
    case = replace(case, name=name, workload=replace(case.workload, parallel=parallel, **workload))
    return Run(case=case, precision=precision, batch_size=batch_size)


def every_run() -> Iterator[Run]:
    """Yield all runs, those of one model after each other."""
    for family in _FAMILIES:
        for strategy, variants in _VARIANTS.items():
            # Batch normalisation does not take bfloat16 weights with float32 statistics.
            shards = strategy in ("fsdp", "hsdp") and family != "cnn"
            for precision in SHARDED_PRECISIONS if shards else PRECISIONS:
                sizes = (4, 8, 64) if strategy == "hsdp" else (2, 7, 8, 64)
                for world_size in sizes:
                    yield run_of(family, strategy, world_size, precision)
            for arguments in variants:
                if family == "cnn" and "param_dtype" in arguments:
                    continue
                yield run_of(family, strategy, 8, "fp32", **arguments)
            yield run_of(family, strategy, 8, "amp-bf16", workload={"grad_accum": 2})
            yield run_of(family, strategy, 8, "fp32", rank=5)
        yield run_of(family, "fsdp", 1, "fp32")
        yield run_of(family, "fsdp", 7, "fp32", rank=6)
    yield run_of("decoder", "fsdp", 7, "mp-bf16", rank=6)
    yield run_of("vit", "fsdp", 8, "fp32", workload={"grad_checkpoint": True})


def difference(run: Run, oracle: Oracle) -> str | None:
    """Compare peaks, events and streams; returns what differs, None if nothing does.

    Raises:
        AssertionError: there is nothing to compare with.
    """
    real = oracle.ask(run)
    assert real["status"] == "ok", real["message"]
    answer = simulate(run, real, cudnn=oracle.cudnn)
    differences = []
    for what in ("allocated", "reserved"):
        expected, found = real[f"peak_{what}"], getattr(answer, f"peak_{what}")
        if expected != found:
            error = "" if found is None else f" ({found - expected:+,})"
            differences.append(f"{what} {expected:,}{error}")
    events = (
        [*real["load_events"], *real["trial_events"]],
        [*answer.load_events, *answer.trial_events],
    )
    first = align(*map(normalised, events), limit=3)
    if first:
        differences.append(f"events {first}")
    if _by_use(events[0], real["streams"]) != _by_use(events[1], answer.streams):
        differences.append("streams")
    return "; ".join(differences) or None


def _by_use(events: Sequence[int], streams: Sequence[int]) -> list[int]:
    """Return the stream of each block that has memory, numbered by their first use."""
    sizes = [event for event in events if event >= 0]
    numbers: dict[int, int] = {}
    return [
        numbers.setdefault(stream, len(numbers))
        for stream, size in zip(streams or [0] * len(sizes), sizes, strict=True)
        if size
    ]


def main() -> None:
    """Compare what was asked for."""
    asked = sys.argv[1:]
    verdicts: collections.Counter[str] = collections.Counter()
    with Oracle(gpu=GPU, cudnn=False) as oracle:
        for run in every_run():
            if asked and not any(part in str(run) for part in asked):
                continue
            try:
                verdict = difference(run, oracle)
            except Exception as error:
                verdict = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
            verdicts["exact" if verdict is None else "different"] += 1
            print(f"{run!s:56} {verdict or 'exact'}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    sys.exit(set(verdicts) != {"exact"})


if __name__ == "__main__":
    main()
