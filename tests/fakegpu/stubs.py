"""Stubs: an assembly function for each CUDA symbol that PyTorch imports and the C sources do not define.

A stub returns success. Three kinds do more: size queries set their outputs to 0, products of cuBLAS
count as kernel launches, and driver functions that are only ever looked up by name say "not
supported".
x86-64 and the System V calling convention only.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Imports", "assembly", "defined_symbols", "imports"]

_CUDA_SYMBOL = re.compile(
    r"(cu[A-Z]|cuda[A-Z]|__cuda|cublas|cudnn|nvrtc|nccl|curand|cusparse|cusolver|cufft|cufile|cuFile"
    r"|cupti|nvml|nvshmem|nvtx|nvJit|nvjpeg)"
)
_CUDA_LIBRARY = re.compile(r"lib(cu[a-zA-Z]+|nv[a-zA-Z_]+|nccl)[-.]?")
# In libc10_cuda and libtorch_cuda: names of functions that are looked up at run time.
_NAME = re.compile(
    rb"(?<=\0)(?:cu[A-Z][A-Za-z0-9_]{5,60}|nvml[A-Z][A-Za-z0-9_]{3,60})(?=\0)",
)
_FUNCTION_NAME = re.compile(
    r"cu(Mem|Ctx|Device|DevRes|DevSm|Green|Multicast|Stream|Func|Get|Launch|Module|Link|Pointer|Tensor|Occ)"
    r"[A-Za-z0-9]*(_v\d)?$|nvml"
)
# What the real cuDNN wants to find in libcuda.so.1. Without a device it never calls them.
_CUDNN_WANTS = frozenset(
    {
        *("__nvrtcCPEx", "cuCtxGetLimit", "cuCtxPopCurrent", "cuCtxPushCurrent", "cuFuncGetName"),
        *("cuFuncSetCacheConfig", "cuKernelGetAttribute", "cuKernelSetAttribute"),
        *("cuLaunchKernelEx", "cuLibraryGetKernel", "cuLibraryLoadData", "cuLibraryLoadFromFile"),
        *("cuLibraryUnload", "cuLinkAddData", "cuLinkCreate", "cuLinkDestroy", "cuStreamGetCtx"),
        *("cuOccupancyAvailableDynamicSMemPerBlock", "cuOccupancyMaxActiveClusters"),
        *("cuOccupancyMaxPotentialClusterSize", "cuTensorMapEncodeIm2col"),
        "cuTensorMapEncodeIm2colWide",
    }
)
_LAUNCH = re.compile(r"cublas(?!Set|Get)\w+(?<!SetAttribute)")

# Workspace queries: which arguments are outputs, and of how many bytes.
_SIZE_QUERIES: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    (r"cusolverDn[SDCZ](geqrf|getrf|potrf)_bufferSize", ((5, 4),)),
    (r"cusolverDn[SDCZ]gesvd_bufferSize", ((3, 4),)),
    (r"cusolverDn[SDCZ]gesvdaStridedBatched_bufferSize", ((16, 4),)),
    (r"cusolverDn[SDCZ]gesvdjBatched_bufferSize", ((11, 4),)),
    (r"cusolverDn[SDCZ]gesvdj_bufferSize", ((12, 4),)),
    (
        r"cusolverDn[SDCZ](heevd|syevd|heevj|syevj|heevjBatched|syevjBatched|ungqr|orgqr)_bufferSize",
        ((7, 4),),
    ),
    (r"cusolverDn[SDCZ]sytrf_bufferSize", ((4, 4),)),
    (r"cusolverDn[SDCZ](unmqr|ormqr)_bufferSize", ((11, 4),)),
    (r"cusolverDnXgeev_bufferSize", ((17, 8), (18, 8))),
    (r"cusolverDnXgeqrf_bufferSize", ((10, 8), (11, 8))),
    (r"cusolverDnXpotrf_bufferSize", ((8, 8), (9, 8))),
    (r"cusolverDnX(syevBatched|syevd|sytrs)_bufferSize", ((11, 8), (12, 8))),
    (r"cusparse[SDCZ]bsrsm2_bufferSize", ((13, 4),)),
    (r"cusparse[SDCZ]bsrsv2_bufferSize", ((11, 4),)),
    (r"cusparse[SDCZ]csrgeam2_bufferSizeExt", ((19, 8),)),
    (r"cusparse(SDDMM|SpMM|SpSM)_bufferSize", ((10, 8),)),
    (r"cusparse(SpMV|SpSV)_bufferSize", ((9, 8),)),
    (r"cusparseSpGEMM_workEstimation", ((11, 8),)),
    (r"cusparseX(coosort|csrsort)_bufferSizeExt", ((6, 8),)),
)
_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_NOT_SUPPORTED = 801


@dataclass(frozen=True)
class Imports:
    """What the libraries of an installed PyTorch want from CUDA."""

    symbols: frozenset[str]  # that the dynamic linker resolves
    names: frozenset[str]  # that are looked up at run time
    libraries: tuple[str, ...]  # the sonames to stand in for


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def imports(site_packages: Path) -> Imports:
    """Return what PyTorch, and torchvision where it is installed, import from CUDA's libraries."""
    symbols = set()
    libraries = {"libcuda.so.1", "libnvidia-ml.so.1"}
    for pattern in ("torch/lib/*.so*", "torchvision/*.so"):
        for file in sorted(site_packages.glob(pattern)):
            for line in _lines("nm", "-D", "--undefined-only", str(file)):
                symbol = line.split()[-1].split("@")[0]
                if _CUDA_SYMBOL.match(symbol) and "@GLIBC" not in line:
                    symbols.add(symbol)
            for line in _lines("readelf", "-d", str(file)):
                needed = re.search(r"NEEDED.*\[(.*?)\]", line)
                if needed and _CUDA_LIBRARY.match(needed[1]) and "libcurl" not in needed[1]:
                    libraries.add(needed[1])
    names = set(_CUDNN_WANTS)
    for library in ("libc10_cuda.so", "libtorch_cuda.so"):
        content = (site_packages / "torch/lib" / library).read_bytes()
        found = {name.decode() for name in _NAME.findall(content)}
        names |= {name for name in found if _FUNCTION_NAME.match(name)}
    return Imports(frozenset(symbols), frozenset(names - symbols), tuple(sorted(libraries)))


def defined_symbols(objects: Iterable[Path]) -> frozenset[str]:
    """Return the symbols that object files define."""
    lines = _lines("nm", "-g", "--defined-only", *map(str, objects))
    return frozenset(line.split()[-1] for line in lines if len(line.split()) == 3)


def assembly(wanted: Imports, defined: frozenset[str]) -> str:
    """Return the source of the stubs."""
    by_name = {
        name
        for name in wanted.names - defined
        if name in _CUDNN_WANTS or name + "_v2" not in defined
    }
    stubs = sorted((wanted.symbols | by_name) - defined)
    return "\n".join(
        [
            ".text",
            *(_stub(i, name, name in by_name) for i, name in enumerate(stubs)),
            ".section .rodata",
            *(f'.Lname{i}: .asciz "{name}"' for i, name in enumerate(stubs)),
            ".bss",
            *(f".Lcalled{i}: .skip 1" for i in range(len(stubs))),
            '.section .note.GNU-stack,"",@progbits',
            "",
        ]
    )


def _stub(i: int, name: str, by_name: bool) -> str:
    if _LAUNCH.fullmatch(name):
        result = _call("fakecuda_library_launch")
    else:
        result = f" movl ${_NOT_SUPPORTED if by_name else 0},%eax"
    return f"""\
.globl {name}
.type {name},@function
{name}:
{_set_outputs_to_zero(name)} cmpb $0,.Lcalled{i}(%rip)
 jne 1f
 movb $1,.Lcalled{i}(%rip)
 leaq .Lname{i}(%rip),%rdi
{_call("fakecuda_stub_called")}
1:
{result}
 ret
.size {name},.-{name}"""


def _call(function: str) -> str:
    return f" pushq %rbp\n movq %rsp,%rbp\n andq $-16,%rsp\n call {function}@PLT\n leave"


def _set_outputs_to_zero(name: str) -> str:
    code = ""
    for pattern, outputs in _SIZE_QUERIES:
        if not re.fullmatch(pattern, name):
            continue
        for argument, size in outputs:
            stack = 8 + 8 * (argument - len(_REGISTERS))
            source = f"%{_REGISTERS[argument]}" if argument < len(_REGISTERS) else f"{stack}(%rsp)"
            move = "movl" if size == 4 else "movq"
            code += f" movq {source},%rax\n testq %rax,%rax\n jz 9f\n {move} $0,(%rax)\n9:\n"
    return code
