"""One rank of a training on several GPUs: bsfind's reference step under torchrun, without an end.

    python -m torch.distributed.run … -m bsfind.devices.rank REQUEST BATCH_SIZE

The probe of `bsfind launch` (launch/probe) counts the steps, reads the allocator's counters and ends the
process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bsfind.errors import BsfindError
from bsfind.failures.exceptions import plain
from bsfind.failures.oom import FailureKind, classify, may_depend_on_size
from bsfind.import_path import make_importable
from bsfind.parallel import GRAD_ACCUM
from bsfind.records import ModelInfo
from bsfind.settings import Workload
from bsfind.workload.precision import precision_plan
from bsfind.workload.randomness import LargestStep, reproducible_building
from bsfind.workload.step import LoadedWorkload
from bsfind.workload.training import TrainingSteps
from bsfind.workload.user_errors import user_error


def main() -> None:
    """Train until the process is ended; rank 0 writes what it has found beside the request.

    Raises:
        BsfindError: the user's code failed.
        Exception: out of memory, or what another batch size may not raise.
    """
    request = Path(sys.argv[1])
    asked, batch_size = json.loads(request.read_text(encoding="utf-8")), int(sys.argv[2])
    workload = Workload.from_json(asked["workload"])
    if (micro_batches := os.environ.get(GRAD_ACCUM)) is not None:
        workload = dataclasses.replace(workload, grad_accum=int(micro_batches))
    make_importable(workload.app_dir)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    before = _outside_bytes(device)
    _join(device)
    nccl_bytes = _outside_bytes(device) - before
    doing = "building the model"
    try:
        with reproducible_building():
            loaded = LoadedWorkload(workload, precision_plan(asked["precision"]), device)
        if workload.parallel.has_subgroups:  # each with a communicator of its own
            nccl_bytes = _outside_bytes(device) - before
        model = loaded.describe(lambda: torch.cuda.memory_allocated(device))
        doing = f"batch size {batch_size} in {asked['precision']}"
        loaded.try_labels(batch_size)
        steps = TrainingSteps(loaded, lambda: None)
        with LargestStep().searched(batch_size):
            while True:
                steps.run(batch_size)
                if dist.get_rank() == 0 and steps.attempts == 1:
                    _tell(request.with_suffix(".found"), loaded, model, nccl_bytes)
    except BsfindError:
        raise
    except Exception as error:
        raised = plain(error)
        if classify(raised) is not FailureKind.OTHER or may_depend_on_size(raised):
            raise
        raise user_error(error, doing=doing) from error


def _join(device: torch.device) -> None:
    """Join the process group; NCCL takes its memory with the first collective at the latest."""
    dist.init_process_group("nccl", device_id=device)
    dist.all_reduce(torch.zeros(1, device=device))
    torch.cuda.synchronize(device)


def _outside_bytes(device: torch.device) -> int:
    """Return what is taken of the device outside this process's allocator, bytes."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _tell(file: Path, loaded: LoadedWorkload, model: ModelInfo, nccl_bytes: int) -> None:
    """Write what the steps train, and what was assumed, to a file."""
    found: dict[str, Any] = {
        "model": asdict(model),
        "assumptions": [asdict(made) for made in loaded.assumptions],
        "inputs": [spec.to_json() for spec in loaded.proposed_inputs],
        "output": None if loaded.output is None else asdict(loaded.output),
        "warnings": [{"code": code, "message": text} for code, text in loaded.notes.items()],
        "nccl_bytes": nccl_bytes,
        "micro_batches": loaded.workload.grad_accum,
    }
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(found), encoding="utf-8")
    unfinished.replace(file)


if __name__ == "__main__":
    main()
