"""What PyTorch's CUDA build allocates on the fake GPU, run by run, kept in a cache.

python -m tests.simulation.oracle                      every case of the corpus
python -m tests.simulation.oracle resnet gpt --gpu a100 --stub-cudnn -o events.json.gz
"""

from __future__ import annotations

import argparse
import ast
import functools
import gzip
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import fakegpu
from tests.simulation.corpus import cases
from tests.simulation.corpus.case import Run
from tests.simulation.recurrent_sizes import RECURRENT_BYTES

__all__ = ["Oracle", "why_there_is_none"]

ROOT = Path(__file__).resolve().parents[2]
FAKE_VENV = Path(os.environ.get("BSFIND_FAKEGPU_VENV", ROOT / ".venv-fakegpu"))

CACHE = Path(os.environ.get("BSFIND_ORACLE_CACHE", Path(tempfile.gettempdir(), "bsfind-oracle")))
# The modules of bsfind.workload that decide what a step allocates.
_STEP = (
    *("criteria", "inputs", "labels", "loss", "loss_choice", "model", "optimizer", "outputs"),
    *("parallel", "precision", "step", "training", "evaluation"),
)


def why_there_is_none() -> str | None:
    """Return why there is no oracle on this machine; None if there is one."""
    if fakegpu.available(FAKE_VENV):
        return None
    return f"no fake GPU: `make setup` builds it ({FAKE_VENV})"


class Oracle:
    """A fake GPU to ask. Its process starts with the first question that the cache cannot answer.

    An answer in the cache is good as long as the run, the training step, the file of the model, the
    release of PyTorch and the fake GPU's library stay the same.

    Args:
        gpu: its profile.
        memory: its capacity, `24GiB`; None: that of the profile.
        cudnn: the real cuDNN makes the plans; else it is a stub that wants no workspace.
        cache: folder of earlier answers; None: there is none.
    """

    def __init__(
        self,
        *,
        gpu: str = "h100",
        memory: str | None = None,
        cudnn: bool = True,
        cache: Path | None = CACHE,
    ) -> None:
        self.gpu, self.memory, self.cudnn, self.cache = gpu, memory, cudnn, cache
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def ask(self, run: Run, *, events: bool = True, frames: bool = False) -> dict[str, Any]:
        """Return what a run does: status, peaks in bytes, and its events.

        Runs of one model should follow each other, since it is built once.

        Args:
            run: what to train.
            events: record them (see `oracle_process`).
            frames: name the operator of each event, slowly.
        """
        request = run.to_json() | {"events": events, "frames": frames}
        file = self._file(request)
        if file is not None and file.exists():
            return json.loads(gzip.decompress(file.read_bytes()))  # type: ignore[no-any-return]
        if self._process is None:
            self._process = self._start()
        result = _ask(self._process, request)
        if file is not None and result["status"] != "error":  # of a process that failed, perhaps
            _store(file, result)
        return result

    def _start(self) -> subprocess.Popen[str]:
        environment = fakegpu.environment(
            FAKE_VENV,
            gpu=self.gpu,
            memory=self.memory,
            cudnn=self.cudnn,
            recurrent=RECURRENT_BYTES,
            nccl_memory=0,
        )
        environment["FAKE_NCCL"] = "alone"  # each process is one rank of many
        environment["FAKECUDA_COPY_MAX"] = "65536"  # weights have no use for their values
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
        for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
            environment.pop(name, None)
        return subprocess.Popen(
            [FAKE_VENV / "bin" / "python", "-m", "tests.simulation.oracle_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def _file(self, request: dict[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        question = json.dumps(
            [
                *(self.gpu, self.memory, self.cudnn, RECURRENT_BYTES),
                *(request, _fingerprint(request), _torch_of(FAKE_VENV)),
            ],
            sort_keys=True,
        )
        return self.cache / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json.gz"


def _ask(process: subprocess.Popen[str], request: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"the oracle ended with {process.wait()} at {request['name']}")
    return json.loads(answer)  # type: ignore[no-any-return]


def _store(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_bytes(gzip.compress(json.dumps(result).encode(), 5))
    partial.replace(file)


@functools.cache
def _torch_of(venv: Path) -> str:
    """Return the version of the PyTorch in an environment."""
    path = [str(fakegpu.site_packages(venv))]
    [torch] = importlib.metadata.distributions(name="torch", path=path)
    return torch.version


def _fingerprint(request: dict[str, Any]) -> str:
    """Return a digest of the sources that an answer depends on."""
    module = request["workload"]["target"].partition(":")[0]
    sources = [
        *(ROOT / "src/bsfind/workload" / f"{name}.py" for name in _STEP),
        Path(__file__).with_name("oracle_process.py"),
        *sorted((ROOT / "tests/fakegpu/csrc").glob("*")),
        ROOT / "tests/fakegpu/release.py",
    ]
    model = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    sources += [model] if model.exists() else []
    return _digest(tuple(sources))


_DIGESTS: dict[tuple[Path, ...], str] = {}


def _digest(files: tuple[Path, ...]) -> str:
    if files not in _DIGESTS:
        digest = hashlib.sha256()
        for file in files:
            source = file.read_bytes()
            # Comments and formatting change no answer.
            digest.update(ast.dump(ast.parse(source)).encode() if file.suffix == ".py" else source)
        _DIGESTS[files] = digest.hexdigest()
    return _DIGESTS[files]


def chosen_runs(
    names: Sequence[str], families: Sequence[str], precisions: Sequence[str]
) -> list[Run]:
    """Return the corpus's runs of some names, families and precisions; empty means all."""
    known = {case.name for case in cases()}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no such case: {', '.join(unknown)}")
    return [
        run
        for case in cases()
        if (not names or case.name in names) and (not families or case.family in families)
        for run in case.runs()
        if not precisions or run.precision in precisions
    ]


def main() -> None:
    """Ask, and write the answers to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--family", action="append", default=[])
    parser.add_argument("--precision", action="append", default=[])
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--memory")
    parser.add_argument("--stub-cudnn", action="store_true")
    parser.add_argument("--frames", action="store_true", help="name the operator of each event")
    parser.add_argument("-o", "--output", type=Path, help="a .json.gz with all answers")
    arguments = parser.parse_args()
    runs = chosen_runs(arguments.cases, arguments.family, arguments.precision)
    answers = {}
    with Oracle(
        gpu=arguments.gpu, memory=arguments.memory, cudnn=not arguments.stub_cudnn
    ) as oracle:
        for run in runs:
            answers[str(run)] = result = oracle.ask(run, frames=arguments.frames)
            print(_line(run, result), flush=True)
    if arguments.output:
        arguments.output.write_bytes(gzip.compress(json.dumps(answers).encode()))
    failed = sum(result["status"] == "error" for result in answers.values())
    print(f"{len(answers)} runs, {failed} failed", file=sys.stderr)


def _line(run: Run, result: dict[str, Any]) -> str:
    if result["status"] != "ok":
        return f"{run!s:48} {result['status']}: {result['message'].strip().splitlines()[-1]}"
    peaks = (result["peak_allocated"] / 2**20, result["peak_reserved"] / 2**20)
    events = len(result["trial_events"])
    return f"{run!s:48} {peaks[0]:9.2f} {peaks[1]:9.2f} MiB {events:7} {result['seconds']:6.2f} s"


if __name__ == "__main__":
    main()
