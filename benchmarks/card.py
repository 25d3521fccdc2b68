"""On which card a benchmark runs: the fake GPU, or the GPU of this machine; and where its results go."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = [
    "ROOT",
    "add_options",
    "child_environment",
    "identity",
    "results_file",
    "use",
    "write",
]

ROOT = Path(__file__).resolve().parents[1]
FAKE_VENV = Path(os.environ.get("BSFIND_FAKEGPU_VENV", ROOT / ".venv-fakegpu"))


def add_options(parser: argparse.ArgumentParser, *, memory: str | None = None) -> None:
    """Add the options that choose the card.

    Args:
        parser: of the benchmark.
        memory: capacity of the fake GPU where none is given; None: that of the profile.
    """
    parser.add_argument("--real", action="store_true", help="use the GPU of this machine")
    parser.add_argument("--gpu", default="rtx3090", help="profile of the fake GPU")
    parser.add_argument("--gpu-memory", default=memory, help="capacity of the fake GPU")


def use(arguments: argparse.Namespace, *, launch_us: float | None = None) -> None:
    """Start this program again on the fake GPU that `arguments` ask for, unless it runs there already.

    Args:
        arguments: with those of `add_options`.
        launch_us: microseconds that each kernel launch takes longer.
    """
    if arguments.real or "FAKE_GPU" in os.environ:
        return
    sys.path.insert(0, str(ROOT))
    from tests import fakegpu

    environment = fakegpu.environment(
        FAKE_VENV, gpu=arguments.gpu, memory=arguments.gpu_memory, launch_us=launch_us
    )
    python = str(FAKE_VENV / "bin" / "python")
    os.execvpe(python, [python, *sys.orig_argv[1:]], environment)


def child_environment(*packages: Path) -> dict[str, str]:
    """Return the environment of a process that imports this tree, and `packages` after it."""
    paths = [ROOT / "src", ROOT, *packages]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in paths)}


def identity() -> dict[str, Any]:
    """Return the card's name, its memory in bytes, and torch's version.

    From a process of its own: the benchmark's may fork later, which a CUDA context would not survive.
    """
    code = (
        "import json, torch; p = torch.cuda.get_device_properties(0);"
        "print(json.dumps({'gpu': p.name, 'gpu_bytes': p.total_memory, 'torch': torch.__version__}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def results_file(stem: str, card: str, *, is_fake: bool) -> Path:
    """Return where the results of a benchmark go.

    Args:
        stem: of the file's name.
        card: the name of the GPU.
        is_fake: whether it is not there.
    """
    slug = card.lower().replace(" ", "_")
    return ROOT / "benchmarks" / "results" / f"{stem}_{'fake_' if is_fake else ''}{slug}.json"


def write(path: Path, document: dict[str, Any]) -> None:
    """Write results, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)
