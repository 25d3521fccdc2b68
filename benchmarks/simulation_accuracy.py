"""How exact is the simulator? `python -m benchmarks.simulation_accuracy`, or `make simulation-accuracy`.

Compares it with PyTorch's CUDA build and cuDNN's own plans on the fake GPU: the peaks of training runs
of the wide corpus (wide_corpus.py), which the simulator's rules
were not written for, and the largest batch sizes for a card of 24 GB. Writes
benchmarks/results/simulation_accuracy_GPU.json after every row; accuracy_report.py makes the pages
and the package's own figures of it. PyTorch's answers are kept (see tests/simulation/oracle.py), so
that a change of the simulator is measured again without them.

`--classify` compares nothing: it traces each model once, and writes into the results that are there
what kind it is by its operators.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import accuracy_summary, max_batch, wide_corpus
from tests.simulation.corpus import cases as core_cases
from tests.simulation.corpus.case import Case, Run
from tests.simulation.forks import in_fork
from tests.simulation.gpu_specs import GPU_SPECS
from tests.simulation.oracle import Oracle
from tests.simulation.simulated import simulate

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Compare, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names of wide_corpus.py; all without any")
    parser.add_argument("--gpu", default="h100", help="profile of the fake GPU")
    parser.add_argument("--full", action="store_true", help="every combination, not a Latin square")
    parser.add_argument("--core", action="store_true", help="the small models of the tests instead")
    parser.add_argument("--oracle-only", action="store_true", help="only fill the cache")
    parser.add_argument("--no-searches", action="store_true", help="no largest batch sizes")
    parser.add_argument(
        "--search-every", type=int, default=1, metavar="N", help="those of each Nth model only"
    )
    parser.add_argument("--classify", action="store_true", help="only write the kinds anew")
    parser.add_argument("--no-write", action="store_true", help="only print")
    arguments = parser.parse_args()
    corpus = core_cases() if arguments.core else wide_corpus.CASES
    chosen = [case for case in corpus if not arguments.models or case.name in arguments.models]
    if arguments.classify:
        _classify(arguments.gpu)
        return
    rows: list[dict[str, Any]] = []
    searches: list[dict[str, Any]] = []

    def write() -> None:
        if not (arguments.no_write or arguments.models or arguments.oracle_only or arguments.core):
            _write(arguments.gpu, rows, searches)

    with Oracle(gpu=arguments.gpu) as oracle:
        for run, optimizer in grid(chosen, full=arguments.full):
            result = oracle.ask(run)
            if arguments.oracle_only:
                print(f"{run!s:56} {result['status']} {result.get('seconds')}", flush=True)
                continue
            rows.append(compared(run, optimizer, result))
            print(json.dumps(rows[-1]), flush=True)
            write()
    if not (arguments.no_searches or arguments.oracle_only or arguments.core):
        for row in max_batch.searches(chosen[:: arguments.search_every]):
            searches.append(row)
            print(json.dumps(row), flush=True)
            write()
    print(json.dumps(accuracy_summary.summary(rows, searches), indent=2))


def grid(chosen: list[Case], *, full: bool) -> Iterator[tuple[Run, str]]:
    """Yield the runs; without `full`, each model in each precision once.

    Batch sizes and optimizers take turns then, so that all combinations occur across models.
    """
    optimizers = tuple(wide_corpus.OPTIMIZERS)
    for index, case in enumerate(chosen):
        if case.family not in {other.family for other in wide_corpus.CASES}:
            yield from ((run, case.workload.optimizer) for run in case.runs())
            continue
        for turn, precision in enumerate(case.precisions):
            sizes = case.batch_sizes
            some = [(sizes[(index + turn) % len(sizes)], optimizers[(index // 2 + turn) % 2])]
            every = [(size, optimizer) for size in sizes for optimizer in optimizers]
            for size, optimizer in every if full else some:
                changed = wide_corpus.with_optimizer(case, optimizer)
                yield Run(case=changed, precision=precision, batch_size=size), optimizer


def compared(run: Run, optimizer: str, result: dict[str, Any]) -> dict[str, Any]:
    """Predict a run in a process of its own, and return both peaks and their errors."""
    row: dict[str, Any] = {
        "model": run.case.name,
        "family": run.case.family,
        "kind": run.case.kind,
        "precision": run.precision,
        "batch_size": run.batch_size,
        "optimizer": optimizer,
    }
    if result["status"] != "ok":
        reason = result["message"].strip().splitlines()[-1][:200]
        return row | {"status": "not run", "message": reason}
    row |= {name: result[name] for name in ("gpu", "torch", "cudnn")}
    start = time.monotonic()
    answer = in_fork(lambda: _simulated(run, result))
    row["seconds"] = round(time.monotonic() - start, 2)
    if answer.get("status") == "error":
        reason = answer["message"].strip().splitlines()[-1][:200]
        return row | {"status": "failed", "message": reason}
    row |= {"status": "ok", "kind": answer["kind"] or run.case.kind}
    for name in ("allocated", "reserved"):
        real, predicted = result[f"peak_{name}"], answer[f"peak_{name}"]
        row[f"real_{name}"], row[f"predicted_{name}"] = real, predicted
        row[f"{name}_error"] = None if predicted is None else round((predicted - real) / real, 6)
    row["exact"] = row["allocated_error"] == row["reserved_error"] == 0
    row["same_events"] = answer["events"] == _sizes(
        [*result["load_events"], *result["trial_events"]]
    )
    return row


def _simulated(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    answer = simulate(run, result)
    return {
        "kind": answer.kind,
        "peak_allocated": answer.peak_allocated,
        "peak_reserved": answer.peak_reserved,
        "events": _sizes([*answer.load_events, *answer.trial_events]),
    }


def _sizes(events: list[int]) -> int:
    """Return a number that two lists of events share if they are the same."""
    from tests.simulation.event_alignment import normalised

    return hash(tuple(normalised(events)))


def _classify(gpu: str) -> None:
    """Write the kind of each model into the results, by the operators of one traced step."""
    path = results_file(gpu)
    document = json.loads(path.read_text())
    models = {row["model"] for row in document["rows"]}
    kinds = {}
    for case in wide_corpus.CASES:
        if case.name not in models:
            continue
        answer = in_fork(lambda case=case: _traced_kind(case))
        if answer.get("status") == "error":
            raise SystemExit(f"{case.name}: {answer['message']}")
        kinds[case.name] = answer["kind"]
        print(f"{case.name:48} {answer}", flush=True)
    for row in (*document["rows"], *document["searches"]):
        row["kind"] = kinds[row["model"]]
    _write(gpu, document["rows"], document["searches"], date=document["date"])


def _traced_kind(case: Case) -> dict[str, Any]:
    from bsfind.simulation.trace.tracer import Tracer

    with Tracer(case.workload, case.precisions[0], GPU_SPECS["h100"]) as tracer:
        tracer.program(case.batch_sizes[0], steps=1)
        operators = tracer.steps.operators
    assert operators is not None
    return {"kind": operators.kind, **dataclasses.asdict(operators)}


def results_file(gpu: str) -> Path:
    """Return where the results of a GPU are."""
    return ROOT / "benchmarks" / "results" / f"simulation_accuracy_{gpu}.json"


def _write(
    gpu: str, rows: list[dict[str, Any]], searches: list[dict[str, Any]], date: str | None = None
) -> None:
    path = results_file(gpu)
    path.parent.mkdir(exist_ok=True)
    document = {
        "date": date or datetime.date.today().isoformat(),
        "summary": accuracy_summary.summary(rows, searches),
        "rows": rows,
        "searches": searches,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
