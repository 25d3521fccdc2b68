"""Build libfakecuda.so for the PyTorch that is installed in an environment.

    python -m fakegpu.build VENV

Needs gcc, binutils, and the CUDA headers of NVIDIA's wheels (see release.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import NVML, build_directory, site_packages, stubs
from .release import release_of

__all__ = ["build"]

_HERE = Path(__file__).parent
_SOURCES = _HERE / "csrc"
_FLAGS = ("-std=gnu17", "-O2", "-g", "-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE", "-Wall")


def build(venv: Path) -> bool:
    """Build the library where it is missing or older than what it is made of; return whether it was."""
    target = build_directory(venv)
    site = site_packages(venv)
    if _is_current(target, site):
        return False
    scratch = target.with_name(f"{target.name}.new.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        _build_in(scratch, site)
        _replace(target, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def _is_current(target: Path, site: Path) -> bool:
    try:
        built = (target / "lib").stat().st_mtime
    except FileNotFoundError:
        return False
    inputs = [
        *_SOURCES.iterdir(),
        _HERE / "build.py",
        _HERE / "release.py",
        _HERE / "stubs.py",
        *site.glob("torch/lib/libtorch_cuda.so"),
        *site.glob("torchvision"),
    ]
    return all(max(i.stat().st_mtime, i.stat().st_ctime) <= built for i in inputs)


def _build_in(directory: Path, site: Path) -> None:
    release = release_of(site)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        importing = pool.submit(stubs.imports, site)
        flags = [
            *(f"-I{folder}" for folder in release.headers),
            f"-DFAKECUDA_CUDNN_VERSION={release.version_number('cudnn')}",
            f"-DFAKECUDA_NCCL_VERSION={release.version_number('nccl')}",
            f"-DFAKECUDA_ARCHITECTURES={','.join(map(str, release.architectures))}",
        ]
        objects = list(
            pool.map(
                lambda source: _compile(source, directory / f"{source.stem}.o", *flags),
                sorted(_SOURCES.glob("*.c")),
            )
        )
        wanted = importing.result()
    assembly = directory / "stubs.S"
    assembly.write_text(stubs.assembly(wanted, stubs.defined_symbols(objects)))
    objects.append(_compile(assembly, directory / "stubs.o"))
    library = directory / "libfakecuda.so"
    _gcc("-shared", "-o", library, *objects, f"-Wl,-soname,{library.name}", "-lpthread", "-ldl")
    for file in objects:
        file.unlink()
    (directory / "sonames.txt").write_text("".join(f"{name}\n" for name in wanted.libraries))
    for name in wanted.libraries:
        # Apart, so that it can be left out.
        folder = directory / ("nvml" if name == NVML else "lib")
        folder.mkdir(exist_ok=True)
        (folder / name).symlink_to(f"../{library.name}")


def _compile(source: Path, target: Path, *flags: str) -> Path:
    _gcc(*_FLAGS, *flags, "-c", source, "-o", target)
    return target


def _gcc(*arguments: str | Path) -> None:
    subprocess.run(["gcc", *map(str, arguments)], check=True)


def _replace(target: Path, new: Path) -> None:
    # By renaming: processes that have the old library mapped keep it.
    old = target.with_name(f"{target.name}.old.{os.getpid()}")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m fakegpu.build VENV")
    build(Path(sys.argv[1]))
