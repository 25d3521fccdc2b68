"""`bsfind env`: what a bug report needs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bsfind import __version__
from bsfind.errors import BsfindError, ExitCode
from bsfind.settings import DeviceChoice

if TYPE_CHECKING:
    from bsfind.worker.client import Worker

_PACKAGES = (
    "torch",
    "typer",
    "rich",
    "nvidia-ml-py",
    "pynvml",
    "lightning",
    "transformers",
    "timm",
)
_PREFIXES = ("BSFIND_", "CUDA_", "PYTORCH_", "NVIDIA_", "TORCH_")
_OPEN_TIMEOUT_S = 120.0


def env(
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Measure the memory that a process holds of the GPU beside PyTorch's allocator, and print a "
            "block to paste into an issue.",
        ),
    ] = False,
) -> int:
    """Print versions, GPUs and settings, for a bug report.

    With `--share` only what helps predictions for the same card: card, driver, versions, and the context
    memory. A process of its own measures it; nothing else is written, and nothing is sent.
    """
    from bsfind.report.json import dumps
    from bsfind.report.visible import visible

    if share:
        return _share(as_json=json)
    facts = _facts()
    if json:
        sys.stdout.write(dumps(facts))
        return ExitCode.OK
    for name, value in facts.items():
        if isinstance(value, dict):
            sys.stdout.write(f"{name}:\n")
            sys.stdout.writelines(f"  {visible(f'{key}: {item}')}\n" for key, item in value.items())
        else:
            sys.stdout.write(f"{name}: {visible(str(value))}\n")
    return ExitCode.OK


def _share(*, as_json: bool) -> int:
    """Print the block; return 3 where there is no GPU to measure."""
    import platform

    from bsfind.cli.console import Terminal
    from bsfind.cli.shared_facts import POST_IT, block, measured
    from bsfind.report.json import dumps
    from bsfind.report.visible import visible

    facts = measured()
    if as_json:
        sys.stdout.write(dumps(facts))
    else:
        sys.stdout.writelines(f"{visible(line)}\n" for line in block(facts, platform.platform()))
        if "gpu" in facts:
            Terminal().hint(POST_IT)
    return ExitCode.OK if "gpu" in facts else ExitCode.NO_DEVICE


def _facts() -> dict[str, Any]:
    import platform

    from bsfind.devices import nvml

    return {
        "bsfind": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "driver": nvml.driver_version(),
        "gpus": {str(gpu.index): f"{gpu.name} ({gpu.uuid})" for gpu in nvml.list_gpus()},
        **_worker_facts(),
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)
        },
    }


def _version(package: str) -> str | None:
    from importlib import metadata  # slow to load

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _worker_facts() -> dict[str, str]:
    """Return what only a process with torch can find out, from one worker."""
    from bsfind.worker.client import Worker

    with Worker(lambda _: None) as worker:
        return {"device": _device(worker), "simulator": _simulator(worker)}


def _device(worker: Worker) -> str:
    """Return the real device that `bsfind run` would use."""
    try:
        device = worker.open(DeviceChoice(), _OPEN_TIMEOUT_S)
    except BsfindError as error:
        return f"none: {error.message}" + (f" ({error.detail})" if error.detail else "")
    return (
        f"cuda:{device.index} {device.name}, compute capability {device.compute_capability}, "
        f"{device.total_bytes} bytes, {device.free_bytes} free"
    )


def _simulator(worker: Worker) -> str:
    """Return whether the simulator passes its self-checks with this torch."""
    try:
        problems = worker.self_check(_OPEN_TIMEOUT_S)
    except BsfindError as error:
        return f"does not work: {error.message}"
    return f"coarse: {'; '.join(problems)}" if problems else "exact: all self-checks passed"
