"""The side of the oracle that runs on the GPU: `python -m tests.simulation.oracle_process`.

Reads runs from standard input, one JSON document a line, and answers each with a line on standard
output, in order. torch is imported once and every run is a fork of its own, made before CUDA is
initialised: each has an allocator that nothing has touched. oracle.py is the other side.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
import traceback
import warnings
from typing import Any

import torch
import torch._dynamo  # optimizers import it when they are made: better once, before the forks
from tests.simulation.forks import in_fork
from tests.simulation.frames import operator_of

from bsfind.parallel import Parallel
from bsfind.settings import Workload
from bsfind.workload import step as step_module
from bsfind.workload.model import build_model, keyword_arguments
from bsfind.workload.precision import precision_plan
from bsfind.workload.step import LoadedWorkload, TrainingSteps

_MAX_ENTRIES = 3_000_000

_PAUSE_S = 0.3
"""Between steps of several GPUs: NCCL's watchdog lets go of what collectives have read after 0.1 s."""


def main() -> None:
    """Answer runs until there are no more."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # threads do not survive a fork
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what models print is no result
    models = _Models()
    for line in sys.stdin:
        run = json.loads(line)
        result = models.prepare(run) or in_fork(lambda run=run: _measure(run, models.model))
        results.write(json.dumps(result) + "\n")
        results.flush()


class _Models:
    """Builds the model of consecutive runs once, in the parent: initialising it takes longest.

    Each fork then has a copy of its own on the host, where its constructor would have left it.

    Attributes:
        model: of the run that was prepared last; None if the fork has to build it.
    """

    def __init__(self) -> None:
        self._key: str | None = None
        self.model: torch.nn.Module | None = None

    def prepare(self, run: dict[str, Any]) -> dict[str, Any] | None:
        """Make the model of a run; returns a result if that failed."""
        workload = Workload.from_json(run["workload"])
        key = f"{workload.target} {workload.model_args}"
        if run["builds_on_gpu"]:
            self._key = self.model = None
        elif key != self._key:
            self._key = self.model = None
            try:
                self.model = build_model(workload.target, keyword_arguments(workload.model_args))
            except Exception:
                return {"status": "error", "message": traceback.format_exc()[-1500:]}
            self._key = key
        return None


def _measure(run: dict[str, Any], model: torch.nn.Module | None) -> dict[str, Any]:
    """Train as `devices/cuda.py` does: same order, same places where caches are emptied."""
    started = time.perf_counter()
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    torch.zeros((), device=device)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    properties = torch.cuda.get_device_properties(device)
    result: dict[str, Any] = {
        "status": "ok",
        "gpu": properties.name,
        "capability": [properties.major, properties.minor],
        "sm_count": properties.multi_processor_count,
        "max_threads_per_sm": properties.max_threads_per_multi_processor,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "free_bytes": torch.cuda.mem_get_info(device)[0],
        "total_bytes": properties.total_memory,
    }
    history = _History(run)
    workload = Workload.from_json(run["workload"])
    _join(workload.parallel)
    if model is not None:
        step_module.build_model = lambda *_: model  # type: ignore[assignment]
    steps = None
    try:
        loaded = LoadedWorkload(workload, precision_plan(run["precision"]), device)
        if workload.mode == "train":
            loaded.make_optimizers()
        _release(loaded)
        result["model_bytes"] = torch.cuda.memory_allocated()
        result["load_peak_allocated"] = torch.cuda.max_memory_allocated()
        result["load_peak_reserved"] = torch.cuda.max_memory_reserved()
        if loaded.try_labels(run["batch_size"]):
            _release(loaded)
        load_count = history.count()
        torch.cuda.reset_peak_memory_stats(device)
        steps = TrainingSteps(loaded, lambda: None)
        for _ in range(run["steps"]):
            torch.cuda.synchronize(device)
            steps.run(run["batch_size"])
            if workload.parallel.is_used:
                torch.cuda.synchronize(device)
                time.sleep(_PAUSE_S)
        if workload.with_eval:
            steps.evaluate(workload.evaluated(run["batch_size"]))
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError as error:
        result |= {"status": "oom", "message": str(error)[:500]}
    else:
        result |= history.events(load_count)
    stats = torch.cuda.memory_stats()
    result["peak_allocated"] = torch.cuda.max_memory_allocated()
    result["peak_reserved"] = torch.cuda.max_memory_reserved()
    for name in ("allocated", "reserved"):
        result[f"process_peak_{name}"] = max(
            result[f"peak_{name}"], result.get(f"load_peak_{name}", 0)
        )
    result["num_alloc_retries"] = stats.get("num_alloc_retries", 0)
    result["seconds"] = round(time.perf_counter() - started, 3)
    return result


def _join(parallel: Parallel) -> None:
    """Be a rank of a process group over NCCL, of which all others are absent."""
    if not parallel.is_used:
        return
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    store = _AbsentRanks()
    _stores.append(store)
    torch.distributed.init_process_group(
        "nccl", rank=parallel.rank, world_size=parallel.world_size, store=store
    )


class _AbsentRanks(torch.distributed.Store):
    """What ranks that are absent would have told each other: nothing that the fake NCCL reads."""

    def set(self, *_: object) -> None:
        pass

    def get(self, *_: object) -> bytes:
        return bytes(128)  # the unique id of a communicator

    def wait(self, *_: object) -> None:
        pass

    def check(self, *_: object) -> bool:
        return False

    def add(self, _key: str, number: int) -> int:
        return number


_stores: list[_AbsentRanks] = []
"""Process groups hold them only in C++, where a store whose Python object is gone has no methods."""


def _release(loaded: LoadedWorkload) -> None:
    loaded.clear_gradients()
    gc.collect()
    torch.cuda.synchronize()
    with contextlib.suppress(AttributeError):
        torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


class _History:
    """The allocator's history since the process began.

    Args:
        run: `events`: false leaves it out; `frames`: true names the operators, slowly.
    """

    def __init__(self, run: dict[str, Any]) -> None:
        self._enabled = run.get("events", True)
        self._frames = run.get("frames", False)
        if self._enabled:
            context = "all" if self._frames else None
            torch.cuda.memory._record_memory_history(
                "all", context=context, stacks="all", max_entries=_MAX_ENTRIES
            )

    def _entries(self) -> list[dict[str, Any]]:
        return torch.cuda.memory._snapshot()["device_traces"][0]  # type: ignore[no-any-return]

    def count(self) -> int:
        """Return the number of entries so far."""
        return len(self._entries()) if self._enabled else 0

    def events(self, load_count: int) -> dict[str, Any]:
        """Return the events of the load and of the trial, as `Recording.events` has them.

        Blocks are numbered by their allocation, from the start of the load on.

        Args:
            load_count: the number of entries of the load.

        Raises:
            RuntimeError: the history is incomplete.
        """
        if not self._enabled:
            return {}
        entries = self._entries()
        if len(entries) >= _MAX_ENTRIES:
            raise RuntimeError("the history has too few entries")
        numbers: dict[int, int] = {}
        load: list[int] = []
        trial: list[int] = []
        names: list[str] = []
        streams: list[int] = []
        numbers_of_streams = {0: 0}
        allocations = 0
        for index, entry in enumerate(entries):
            events = load if index < load_count else trial
            if entry["action"] == "alloc":
                stream = entry["stream"]
                streams.append(numbers_of_streams.setdefault(stream, len(numbers_of_streams)))
                numbers[entry["addr"]] = allocations
                allocations += 1
                events.append(entry["size"])
            elif entry["action"] == "free_requested":
                events.append(-numbers.pop(entry["addr"]) - 1)
            else:
                continue
            if self._frames:
                names.append(operator_of(entry.get("frames", ())))
        result: dict[str, Any] = {
            "load_events": load,
            "trial_events": trial,
            "streams": streams if any(streams) else [],
        }
        if self._frames:
            result["operators"] = names
        return result


if __name__ == "__main__":
    main()
