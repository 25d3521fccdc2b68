"""A fake GPU: PyTorch's unmodified CUDA build on CUDA libraries that have no GPU behind them.

`environment()` gives the environment variables to start a process with. They have to be set before
the process starts, since the libraries are preloaded: a test needs a subprocess. See README.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

__all__ = ["NVML", "available", "build_directory", "environment", "site_packages"]

# Settings of the caller that would change the GPU which was asked for.
_FOREIGN = ("FAKE_", "FAKECUDA_", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE")

NVML = "libnvidia-ml.so.1"


def build_directory(venv: Path) -> Path:
    """Return where the library of an environment is built, or is to be."""
    return Path(os.environ.get("FAKECUDA_BUILD") or Path(venv, "fakegpu", "build")).absolute()


def site_packages(venv: Path) -> Path:
    """Return the directory of an environment's packages."""
    for found in sorted(Path(venv).absolute().glob("lib/python3*/site-packages")):
        return found
    raise FileNotFoundError(f"{venv} is not a virtual environment")


def available(venv: Path) -> bool:
    """Return whether install.sh has made this environment and its library."""
    return (
        Path(venv, "bin", "python").exists()
        and (build_directory(venv) / "lib" / "libcuda.so.1").exists()
    )


def environment(
    venv: Path,
    *,
    gpu: str = "rtx3090",
    memory: str | int | None = None,
    count: int = 1,
    cudnn: bool = True,
    state_file: Path | None = None,
    trace: Path | None = None,
    overhead: str | int | None = None,
    visible: str | None = None,
    others: str | Sequence[tuple[int, str, str | int]] = (),
    nvml: bool | Literal["missing"] = True,
    fail: str | None = None,
    fail_once: Path | None = None,
    recurrent: Sequence[int] = (),
    launch_us: float | None = None,
    nccl_memory: str | int | None = None,
) -> dict[str, str]:
    """Return the complete environment variables of a process on a fake GPU.

    Args:
        venv: that install.sh made. Its programs come first in PATH.
        gpu: the profile, or a comma-separated list of them for a machine with unlike GPUs.
        memory: of a GPU; in bytes or as "8GiB", also a list.
        count: how many GPUs there are, if more than are listed in `gpu`; 0 for none.
        cudnn: ask the real cuDNN for its plans and workspaces, where its wheel is installed.
        state_file: processes with the same file share the GPUs.
        trace: a file to append each allocation and launch to.
        overhead: memory of a CUDA context.
        visible: CUDA_VISIBLE_DEVICES.
        others: processes that hold memory of a GPU, as (PID, name, size), or as FAKE_GPU_OTHERS.
        nvml: False: it cannot be initialised; "missing": there is no such library.
        fail: what goes wrong and when, for example "illegal-address:100".
        fail_once: a file that the first process to fail makes; the others then do not fail.
        recurrent: bytes that cuDNN asks for in a recurrent layer: workspace, reserve, random states.
        launch_us: microseconds that each kernel launch takes longer.
        nccl_memory: of a GPU, for each communicator of NCCL.
    """
    build = build_directory(venv)
    sonames = (build / "sonames.txt").read_text().split()
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    folders = [build / "lib", build / "nvml"]
    if nvml == "missing":
        folders.pop()
        sonames.remove(NVML)
    preloaded = [name for name in variables.get("LD_PRELOAD", "").split() if name not in sonames]
    variables |= {
        "FAKE_GPU": gpu,
        "FAKE_GPU_COUNT": str(count),
        "FAKECUDA_BUILD": str(build),
        "LD_LIBRARY_PATH": _join(folders, variables.get("LD_LIBRARY_PATH")),
        "LD_PRELOAD": " ".join([*sonames, *preloaded]),
        "PATH": _join([Path(venv).absolute() / "bin"], variables.get("PATH")),
    }
    nvidia = site_packages(venv) / "nvidia"
    if cudnn and (nvidia / "cudnn/lib/libcudnn.so.9").exists():
        variables["FAKE_CUDNN"] = str(nvidia / "cudnn/lib/libcudnn.so.9")
        for compiler in nvidia.glob("*/lib/libnvrtc.so.*"):
            variables["FAKE_CUDNN_NVRTC"] = str(compiler)
    if not isinstance(others, str):
        others = ",".join(f"{pid}:{name}:{size}" for pid, name, size in others)
    optional = {
        "FAKE_GPU_MEMORY": memory,
        "FAKE_GPU_OVERHEAD": overhead,
        "FAKE_GPU_OTHERS": others or None,
        "FAKE_GPU_STATE": state_file,
        "FAKE_NVML": "off" if nvml is False else None if nvml is True else nvml,
        "FAKE_CUDNN_RECURRENT": ",".join(map(str, recurrent)) or None,
        "FAKECUDA_FAIL": fail,
        "FAKECUDA_FAIL_ONCE": fail_once,
        "FAKECUDA_LAUNCH_US": launch_us,
        "FAKE_NCCL_MEMORY": nccl_memory,
        "FAKECUDA_TRACE": trace,
        "CUDA_VISIBLE_DEVICES": visible,
    }
    return variables | {name: str(value) for name, value in optional.items() if value is not None}


def _join(first: Sequence[Path], rest: str | None) -> str:
    parts = [str(path) for path in first]
    parts += [part for part in (rest.split(os.pathsep) if rest else ()) if part not in parts]
    return os.pathsep.join(parts)
