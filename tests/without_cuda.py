"""Let a CUDA build of PyTorch be imported without CUDA's libraries, for tests on the CPU.

    VENV/bin/python tests/without_cuda.py > requirements.txt

The package index has no CPU build of PyTorch for x86-64 Linux, and a CUDA build needs 3 GB of libraries
before it can be imported. This script is run in an environment whose torch was installed with `--no-deps`.
For each of these libraries it writes a stand-in, whose functions all answer that there is no device, and it
prints what else torch requires. What runs on the CPU is PyTorch's own code. Needs gcc and binutils.
A CPU build gets no stand-ins.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from fakegpu import NVML
from fakegpu.stubs import imports

_NO_DEVICE = 100  # cudaErrorNoDevice, CUDA_ERROR_NO_DEVICE
_OF_CUDA = re.compile(r"nvidia-|cuda-|triton")


def write_stand_ins(site_packages: Path) -> None:
    """Put the stand-ins beside PyTorch's own libraries, where the dynamic linker looks for them."""
    wanted = imports(site_packages)
    functions = "".join(
        f".globl {name}\n.type {name},@function\n{name}: movl ${_NO_DEVICE},%eax\n ret\n"
        for name in sorted(wanted.symbols)
    )
    versions = _versions(site_packages)
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch, "functions.S"), Path(scratch, "versions")
        source.write_text(f'.text\n{functions}.section .note.GNU-stack,"",@progbits\n')
        for name in set(wanted.libraries) - {NVML}:
            target = site_packages / "torch/lib" / name
            flags = [f"-Wl,-soname,{name}"]
            if name in versions:
                script.write_text(f"{versions[name]} {{ global: *; }};\n")
                flags.append(f"-Wl,--version-script={script}")
            subprocess.run(
                ["gcc", "-shared", "-nostdlib", "-o", target, source, *flags], check=True
            )


def _versions(site_packages: Path) -> dict[str, str]:
    """Return the symbol version that PyTorch asks each library for (CUDA's have one each)."""
    found: dict[str, str] = {}
    for library in sorted(site_packages.glob("torch/lib/*.so")):
        command = ["readelf", "-VW", library]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found |= re.findall(r"File: (\S+) .*\n.*Name: (\S+)", text)
    return found


def requirements() -> list[str]:
    """Return what torch requires apart from CUDA's libraries and Triton."""
    required = importlib.metadata.requires("torch") or []
    return [line for line in required if "extra ==" not in line and not _OF_CUDA.match(line)]


if __name__ == "__main__":
    site = Path(sysconfig.get_path("platlib"))
    if (site / "torch/lib/libtorch_cuda.so").exists():
        write_stand_ins(site)
    sys.stdout.write("".join(f"{line}\n" for line in requirements()))
