"""What an installed CUDA build of PyTorch was built with, read from its wheel.

    python -m fakegpu.release VENV

prints the requirements that the fake GPU has besides, one a line: CUDA's headers, and the real cuDNN, which
plans without a GPU, with the compiler that it calls.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from . import site_packages

__all__ = ["Release", "release_of"]

_NO_BUILD = "the torch in {} is not a CUDA build from the package index"


@dataclass(frozen=True)
class Release:
    """The versions and files that belong to a PyTorch.

    Attributes:
        site: the directory of packages that it is in.
        cuda: version of CUDA, (13, 0).
        pins: what its wheel requires of NVIDIA's libraries, by the first part of their names: cudnn, nccl.
        architectures: of its kernels, 90 for sm_90, the newest first.
    """

    site: Path
    cuda: tuple[int, int]
    pins: dict[str, str]
    architectures: tuple[int, ...]

    @property
    def requirements(self) -> list[str]:
        """What to install, without its dependencies."""
        major, minor = self.cuda
        cudnn = f"nvidia-cudnn-cu{major}=={self.pins['cudnn']}"
        if major >= 13:
            parts = ("nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-cuda-nvrtc")
        else:  # the compiler's wheel has the headers that are one of their own later
            parts = tuple(f"nvidia-cuda-{part}-cu{major}" for part in ("runtime", "nvcc", "nvrtc"))
        return [cudnn, *(f"{part}=={major}.{minor}.*" for part in parts)]

    @property
    def headers(self) -> tuple[Path, ...]:
        """The directories of CUDA's headers."""
        nvidia = self.site / "nvidia"
        if self.cuda >= (13, 0):
            return (nvidia / f"cu{self.cuda[0]}" / "include",)
        return (nvidia / "cuda_runtime" / "include", nvidia / "cuda_nvcc" / "include")

    def version_number(self, library: str) -> int:
        """Return the version of a library as cuDNN 9 and NCCL write it: 92000 for 9.20.0."""
        major, minor, patch = map(int, self.pins[library].split(".")[:3])
        return major * 10_000 + minor * 100 + patch


def release_of(site: Path) -> Release:
    """Return what the PyTorch in a directory of packages was built with.

    Raises:
        SystemExit: there is none, or it is not a CUDA build from the package index.
    """
    try:
        [torch] = importlib.metadata.distributions(name="torch", path=[str(site)])
        cuda = re.search(
            r"^cuda\b.* = '(\d+)\.(\d+)'", (site / "torch/version.py").read_text(), re.MULTILINE
        )
        library = (site / "torch/lib/libtorch_python.so").read_bytes()
    except (ValueError, OSError) as error:
        raise SystemExit(_NO_BUILD.format(site)) from error
    pins = {}
    for requirement in torch.requires or ():
        if pinned := re.match(r"nvidia-(\w+)-cu\d+ *\(?== *([\d.]+)", requirement):
            pins[pinned[1]] = pinned[2]
    built = re.search(rb"((?:sm_\d+ )+sm_\d+)\0", library)  # `torch.cuda.get_arch_list()`
    if cuda is None or built is None or not {"cudnn", "nccl"} <= pins.keys():
        raise SystemExit(_NO_BUILD.format(site))
    architectures = sorted((int(name) for name in re.findall(rb"\d+", built[1])), reverse=True)
    return Release(site, (int(cuda[1]), int(cuda[2])), pins, tuple(architectures))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m fakegpu.release VENV")
    print("\n".join(release_of(site_packages(Path(sys.argv[1]))).requirements))
