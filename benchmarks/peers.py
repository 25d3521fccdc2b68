"""bsfind beside other finders of batch sizes, on the same models and card: `make peers`.

Each finder runs in a process of its own, with the defaults of its documentation and a time limit, and
trains the same step (peer_tools.py). The true maximum comes from a bisection of single fresh processes
(fresh.py), and every answer is tried in a fresh process, too. Writes benchmarks/results/peers_GPU.json, and
the table of it, peers_GPU.md.

What the figures are:
    of the maximum   the answer, in % of the largest batch size that runs
    trials           batch sizes that were tried, the same one twice counts twice; confirmations count. What
                     bsfind runs for other ends (to time smaller sizes, to try expandable segments) is
                     given beside, as `+ n more`; steps and seconds are those of everything
    OOMs             how many of those ran out of memory
    steps            complete training steps of all trials
    seconds          of the whole process, imports and the model's construction included
    was run          the finder itself ran the very size that it answers, to the end
    runs             it runs in a fresh process

Lightning's loop keeps the gradients of the last step during the forward pass, which the others and the
reference do not: its true maximum is a little smaller.

On the fake GPU memory is what PyTorch's allocator makes of it, and steps cost next to nothing: seconds are
start-up and bookkeeping. bsfind begins its search at a prediction, and its simulator was developed against
the fake GPU: on hardware a prediction may be further off, which costs trials.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import card, fresh, peers_table

MODELS = ("resnet50", "densenet", "vit", "unet", "bert", "gpt2", "lstm", "mlp")
PRECISIONS = ("fp32", "amp-fp16")
_LONGEST_S = 600


def main() -> None:
    """Run every finder, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help="names of zoo.py; a selection without any")
    parser.add_argument("--tools", help="some of them, with commas between")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the file's rows and maxima; add and replace others",
    )
    parser.add_argument("--packages", type=Path, default=card.FAKE_VENV / "peers")
    card.add_options(parser, memory="8GiB")
    arguments = parser.parse_args()
    card.use(arguments)
    sys.path.append(str(arguments.packages))

    from benchmarks.peer_tools import TOOLS

    environment = card.child_environment(arguments.packages)
    gpu = card.identity()
    path = card.results_file("peers", gpu["gpu"], is_fake=not arguments.real)
    rows: dict[_Key, dict[str, Any]] = {}
    if arguments.keep:
        rows = {_key(row): row for row in json.loads(path.read_text())["rows"]}
    document: dict[str, Any] = {}
    for model in arguments.models or MODELS:
        for precision in arguments.precisions.split(","):
            known = {row["exact"] for key, row in rows.items() if key[:2] == (model, precision)}
            names = arguments.tools.split(",") if arguments.tools else list(TOOLS)
            for row in compare(model, precision, names, environment, next(iter(known), None)):
                rows[_key(row)] = row
            document = {
                "date": datetime.date.today().isoformat(),
                **gpu,
                "tools": {
                    name: {"label": tool.label, "version": tool.version}
                    for name, tool in TOOLS.items()
                },
                "rows": list(rows.values()),
            }
            card.write(path, document)
            path.with_suffix(".md").write_text(peers_table.markdown(document))
    print(peers_table.markdown(document))


_Key = tuple[str, str, str]


def _key(row: dict[str, Any]) -> _Key:
    return row["model"], row["precision"], row["tool"]


def compare(
    model: str,
    precision: str,
    names: list[str],
    environment: dict[str, str],
    maximum: int | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each tool that can take the model.

    Args:
        model: of zoo.py.
        precision: to train it in.
        names: of the tools.
        environment: of their processes.
        maximum: the largest batch size that runs; None: it is not known yet.
    """
    from benchmarks import zoo
    from benchmarks.peer_tools import TOOLS
    from benchmarks.workloads import workload_of

    rows = [
        {"model": model, "precision": precision, "tool": name}
        | search(name, model, precision, environment)
        for name in names
        if TOOLS[name].suits(zoo.ARGUMENTS[model])
    ]
    workload = workload_of(model)
    if maximum is None:
        near = next((row["batch_size"] for row in rows if row["batch_size"]), None) or 64
        maximum = fresh.ask(workload, precision, fresh.Largest(near=near))[0]
    sizes = sorted({row[key] for row in rows for key in ("batch_size", "recommended") if row[key]})
    ran = fresh.ask(workload, precision, *(fresh.Runs(batch_size=size) for size in sizes))
    runs = dict(zip(sizes, ran, strict=True))
    for row in rows:
        row["exact"] = maximum
        for key, of_it, runs_key in (
            ("batch_size", "of_the_maximum", "runs"),
            ("recommended", "recommended_of_the_maximum", "recommended_runs"),
        ):
            size = row[key]
            row[of_it] = round(size / maximum, 4) if size else None
            row[runs_key] = runs[size] if size else None
        print(json.dumps({**row, "trials": len(row["trials"])}), flush=True)
    return rows


def search(name: str, model: str, precision: str, environment: dict[str, str]) -> dict[str, Any]:
    """Let a tool search in a process of its own, and return what it answered and how."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answer.json")
        command = [
            *(sys.executable, "-m", "benchmarks.peer_tools"),
            *(name, model, precision, str(file)),
        ]
        settings = {"YOLO_CONFIG_DIR": folder, "YOLO_OFFLINE": "true"}
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment | settings,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(_LONGEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - start
        if file.exists():
            answer = json.loads(file.read_text())
        else:
            why = f"nothing after {seconds:.0f} s, exit status {process.returncode}"
            answer = {"batch_size": None, "recommended": None, "trials": [], "error": why}
    ok = {trial["batch_size"] for trial in answer["trials"] if trial["status"] == "ok"}
    return {
        **answer,
        "out_of_memory": sum(
            trial["status"] == "oom" and not trial["is_extra"] for trial in answer["trials"]
        ),
        "steps": sum(trial["steps"] for trial in answer["trials"]),
        "seconds": round(seconds, 1),
        "was_run": answer["batch_size"] in ok,
    }


if __name__ == "__main__":
    main()
