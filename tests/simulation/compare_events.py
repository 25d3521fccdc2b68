"""Where does the simulator part from PyTorch?

    python -m tests.simulation.compare_events resnet --precision fp32 --batch-size 4 --gpu h100
    python -m tests.simulation.compare_events resnet gpt lstm          one line for each run
    python -m tests.simulation.compare_events --all --stub-cudnn       the whole corpus

Runs a case on both sides, aligns the events and prints the first differences with what is around
them. With `--frames` PyTorch's side is named by operator too (slowly, from its C++ stacks).
"""

from __future__ import annotations

import argparse
import collections
import math
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from tests.simulation.corpus import by_name
from tests.simulation.corpus.case import Run
from tests.simulation.event_alignment import Difference, align, normalised, positions
from tests.simulation.oracle import Oracle, chosen_runs
from tests.simulation.simulated import Answer, peaks_of, simulate

_CONTEXT = 4
_LONGEST = 14


def main() -> None:
    """Compare what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--all", action="store_true", help="the whole corpus")
    parser.add_argument("--family", action="append", default=[])
    parser.add_argument("--precision", action="append", default=[])
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--stub-cudnn", action="store_true")
    parser.add_argument("--frames", action="store_true")
    parser.add_argument("--differences", type=int, default=6, help="how many to print of a run")
    parser.add_argument("--brief", action="store_true", help="one line for each run")
    parser.add_argument("--table", action="store_true", help="lines for known_differences.py")
    arguments = parser.parse_args()
    if not (arguments.cases or arguments.family or arguments.all):
        parser.error("name a case, a --family, or --all")
    runs = _runs(arguments)
    brief = arguments.brief or len(runs) > 1
    verdicts: collections.Counter[str] = collections.Counter()
    with Oracle(gpu=arguments.gpu, cudnn=not arguments.stub_cudnn) as oracle:
        for run in runs:
            result = oracle.ask(run, frames=arguments.frames)
            verdicts[_compare(run, result, arguments, brief=brief)] += 1
    if brief:
        print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    sys.exit(set(verdicts) != {"exact"})


def _runs(arguments: argparse.Namespace) -> list[Run]:
    runs = chosen_runs(arguments.cases, arguments.family, arguments.precision)
    if arguments.batch_size is None:
        return [run for run in runs if run.batch_size == run.case.batch_sizes[0]]
    precisions = arguments.precision
    return [
        Run(case=by_name(name), precision=precision, batch_size=arguments.batch_size)
        for name in dict.fromkeys(run.case.name for run in runs)
        for precision in precisions or by_name(name).precisions
    ]


def _compare(
    run: Run, result: dict[str, Any], arguments: argparse.Namespace, *, brief: bool
) -> str:
    """Print how a run compares; returns the verdict."""
    label = f"{run!s:44}"
    if result["status"] != "ok":
        print(f"{label} the oracle: {result['status']}, {result['message'].splitlines()[-1]}")
        return "not run"
    try:
        answer = simulate(run, result, cudnn=not arguments.stub_cudnn)
    except Exception as error:
        print(f"{label} the simulator: {type(error).__name__}: {str(error).splitlines()[:1]}")
        if not brief:
            traceback.print_exc()
        return "failed"
    expected = normalised([*result["load_events"], *result["trial_events"]])
    found = normalised([*answer.load_events, *answer.trial_events])
    differences = align(expected, found, limit=200)
    peaks = _peaks(result, answer)
    exact = answer.peak_allocated == result["peak_allocated"]
    exact = exact and answer.peak_reserved == result["peak_reserved"]
    verdict = "exact" if exact and not differences else "equal peaks" if exact else "different"
    if arguments.table:
        if verdict != "exact":
            print(_known(run, result, answer, "STUB" if arguments.stub_cudnn else "CUDNN"))
        return verdict
    print(f"{label} {verdict:11} {peaks}, {len(differences)} differences")
    if brief:
        return verdict
    own = peaks_of(result["load_events"], result["trial_events"], result["free_bytes"])
    if own != (result["peak_allocated"], result["peak_reserved"]):
        print(f"caution: the oracle's own events replay to {own}")
    sides = ([*result["load_events"], *result["trial_events"]], result.get("operators", ()))
    names = (
        _in_order(*sides),
        _in_order([*answer.load_events, *answer.trial_events], answer.operators),
    )
    load = len(normalised(result["load_events"]))
    for difference in differences[: arguments.differences]:
        print(_passage(difference, load))
        for line in _lines(difference, (expected, found), names):
            print(line)
    return verdict


def _in_order(events: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return the names of the normalised events."""
    return [names[position] for position in positions(events)] if names else []


def _known(run: Run, result: dict[str, Any], answer: Answer, key: str) -> str:
    errors = []
    for name in ("allocated", "reserved"):
        found = getattr(answer, f"peak_{name}")
        error = 1.0 if found is None else abs(found / result[f"peak_{name}"] - 1)
        errors.append(math.ceil(error * 10_000) / 10_000)
    return f'    "{key} {run}": Known({errors[0]}, {errors[1]}, "?"),'


def _peaks(result: dict[str, Any], answer: Answer) -> str:
    parts = []
    for name in ("allocated", "reserved"):
        expected, found = result[f"peak_{name}"], getattr(answer, f"peak_{name}")
        if found is None:
            parts.append(f"{name} out of memory for {expected:,}")
        elif found == expected:
            parts.append(f"{name} {expected:,}")
        else:
            share = (found - expected) / expected
            parts.append(f"{name} {found:,} for {expected:,} ({share:+.3%})")
    return ", ".join(parts)


def _passage(difference: Difference, load: int) -> str:
    start = difference.expected[0]
    place = f"event {start} of the load" if start < load else f"event {start - load} of the trial"
    if difference.is_lifetime:
        return f"\n--- {place}: another block of the same size is released"
    return f"\n--- {place}: - PyTorch, + simulator"


def _lines(
    difference: Difference,
    events: tuple[Sequence[int], Sequence[int]],
    names: tuple[Sequence[str], Sequence[str]],
) -> Iterator[str]:
    (start, end), (found_start, found_end) = difference.expected, difference.found
    texts = [_Texts(side, name) for side, name in zip(events, names, strict=True)]
    for offset in range(-_CONTEXT, 0):
        yield from _both(texts, start + offset, found_start + offset)
    yield from _one("-", texts[0], start, end)
    yield from _one("+", texts[1], found_start, found_end)
    for offset in range(_CONTEXT):
        yield from _both(texts, end + offset, found_end + offset)


class _Texts:
    """The events of one side as text."""

    def __init__(self, events: Sequence[int], names: Sequence[str]) -> None:
        self._events, self._names = events, names
        self._allocations = [index for index, event in enumerate(events) if event >= 0]

    def __len__(self) -> int:
        return len(self._events)

    def name(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else ""

    def __getitem__(self, index: int) -> str:
        event = self._events[index]
        if event >= 0:
            return f"alloc {event:>13,}  {self.name(index)}"
        born = self._allocations[-event - 1]
        return f"free  {self._events[born]:>13,}  {self.name(index)}  <- {self.name(born)} @{born}"


def _both(texts: Sequence[_Texts], left: int, right: int) -> Iterator[str]:
    if 0 <= left < len(texts[0]) and 0 <= right < len(texts[1]):
        other = f"  | PyTorch: {texts[0].name(left)}" if texts[0].name(left) else ""
        yield f"    {texts[1][right]}{other}"


def _one(sign: str, texts: _Texts, start: int, end: int) -> Iterator[str]:
    for index in range(start, min(end, start + _LONGEST)):
        yield f"  {sign} {texts[index]}"
    if end - start > _LONGEST:
        yield f"  {sign} ... {end - start - _LONGEST} more"


if __name__ == "__main__":
    main()
