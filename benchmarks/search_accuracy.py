"""How right and how quick is the search? `bsfind run` against the exact largest batch sizes.

Run it on a fake GPU (`make bench`) or, with `--real`, on the GPU of this machine. Writes
benchmarks/results/search_accuracy_GPU.json, which the README quotes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from benchmarks import card  # noqa: E402

PRECISIONS = ("fp32", "amp")
STEPS = 3


def main() -> None:
    """Compare, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names of zoo.py; all of them without any")
    parser.add_argument("--memory-limit", help="bsfind's option, for a quicker run on a large GPU")
    card.add_options(parser)
    arguments = parser.parse_args()
    card.use(arguments)
    import zoo

    rows: list[dict[str, Any]] = []
    for name in arguments.models or zoo.ARGUMENTS:
        for row in compare(name, zoo.ARGUMENTS[name], arguments.memory_limit):
            rows.append(row)
            print(json.dumps(row), flush=True)
        write(rows, is_fake=not arguments.real)
    print(json.dumps(summarise(rows), indent=2))


def write(rows: list[dict[str, Any]], *, is_fake: bool) -> None:
    """Write what is known so far."""
    path = card.results_file("search_accuracy", rows[0]["gpu"], is_fake=is_fake)
    card.write(path, {"summary": summarise(rows), "rows": rows})


def searched(
    name: str, inputs: tuple[str, ...], memory_limit: str | None
) -> tuple[dict[str, Any], float]:
    """Return the report of `bsfind run` on a model of the zoo, and the seconds that it took."""
    limit = ("--memory-limit", memory_limit) if memory_limit else ()
    start = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bsfind", "run", f"zoo:{name}", *inputs, *limit),
            *("--app-dir", str(ROOT / "benchmarks"), "--device", "cuda", "--headroom", "0"),
            *("--precision", ",".join(PRECISIONS), "--steps", str(STEPS), "--json"),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - start
    if done.returncode != 0:
        raise RuntimeError(f"{name}: bsfind ended with {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout), seconds


def compare(name: str, inputs: tuple[str, ...], memory_limit: str | None) -> list[dict[str, Any]]:
    """Return a row for each precision of a model."""
    report, seconds = searched(name, inputs, memory_limit)
    rows = []
    for result in report["results"]:
        found = result["max_batch_size"]
        exact = exact_maximum(name, inputs, result["precision"], found, memory_limit)
        ran = {trial["batch_size"] for trial in result["trials"] if trial["status"] == "ok"}
        rows.append(
            {
                "model": name,
                "precision": result["precision"],
                "found": found,
                "exact": exact,
                "error": (found - exact) / exact,
                "has_run": found in ran,
                "verified": result["verified"],
                "trials": len(result["trials"]),
                "out_of_memory": sum(t["status"] == "oom" for t in result["trials"]),
                "seconds_both_precisions": round(seconds, 1),
                "gpu": report["device"]["name"],
                "torch": report["device"]["torch_version"],
            }
        )
    return rows


def exact_maximum(
    name: str, inputs: tuple[str, ...], precision: str, near: int, memory_limit: str | None
) -> int:
    """Bisect in a process of its own: this one must not import torch before it forks."""
    code = f"import search_accuracy as s; s.bisect({name!r}, {inputs!r}, {precision!r}, {near})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/benchmarks:{ROOT}/src"}
    if memory_limit:
        environment["LIMIT"] = memory_limit
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name} {precision}:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def bisect(name: str, inputs: tuple[str, ...], precision: str, near: int) -> None:
    """Print the exact maximum; the training step is written out here, in plain PyTorch."""
    import exact
    import torch
    import zoo

    from bsfind.units import parse_size

    def tensor(text: str, batch_size: int) -> torch.Tensor:
        shape, *more = text.split(":")
        sizes = [batch_size, *(int(size) for size in shape.split(",") if size)]
        if not more:
            return torch.randn(sizes, device="cuda")
        low, high = more[1].split("..")
        return torch.randint(int(low), int(high), sizes, device="cuda")

    def make(batch_size: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        args, kwargs = [], {}
        for option, text in zip(inputs[::2], inputs[1::2], strict=True):
            if option == "--input-shape":
                args.append(tensor(text, batch_size))
            else:
                key, _, rest = text.partition("=")
                kwargs[key] = tensor(rest, batch_size)
        return args, kwargs

    def train(batch_size: int) -> None:
        if "LIMIT" in os.environ:
            total = torch.cuda.get_device_properties(0).total_memory
            fraction = parse_size(os.environ["LIMIT"]) / total
            torch.cuda.set_per_process_memory_fraction(fraction)
        dtype = {"amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}.get(precision)
        model = getattr(zoo, name)().cuda().train()
        optimizer = torch.optim.AdamW(model.parameters())
        scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)

        def loss_of(args: list[torch.Tensor], kwargs: dict[str, torch.Tensor]) -> torch.Tensor:
            output = model(*args, **kwargs)
            own = getattr(output, "loss", None)
            return own if own is not None else output.float().mean()

        for _ in range(STEPS):
            args, kwargs = make(batch_size)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype=dtype or torch.float16, enabled=dtype is not None):
                loss = loss_of(args, kwargs)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            del loss, args, kwargs
        torch.cuda.synchronize()

    print(exact.largest_batch_size(train, near))


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the promise."""
    errors = sorted(abs(row["error"]) for row in rows)
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": rows[0]["gpu"],
        "torch": rows[0]["torch"],
        "searches": len(rows),
        "median_error": round(statistics.median(errors), 5),
        "largest_error": round(errors[-1], 5),
        "within_0.6_percent": round(sum(error <= 0.006 for error in errors) / len(errors), 3),
        "median_trials": statistics.median(row["trials"] for row in rows),
        "mean_trials": round(statistics.fmean(row["trials"] for row in rows), 2),
        "median_out_of_memory": statistics.median(row["out_of_memory"] for row in rows),
        "mean_out_of_memory": round(statistics.fmean(row["out_of_memory"] for row in rows), 2),
        "every_maximum_has_run": all(row["has_run"] for row in rows),
    }


if __name__ == "__main__":
    main()
