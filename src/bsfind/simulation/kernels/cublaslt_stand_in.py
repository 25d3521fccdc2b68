"""A library in the place of cuBLASLt, for the process that asks cuDNN without a GPU (`cudnn_process`).

cuDNN has engines for pointwise convolutions that are products of cuBLASLt, and asks cuBLASLt for an algorithm
before it ranks them. Without a GPU cuBLASLt has none (cublasLtCreate fails), the engines drop out, and the
answer is another than on a GPU; where cuBLASLt is missing, cuDNN ends the process. The library here offers
one algorithm for every product, without a workspace, and computes nothing.

On a GPU such an algorithm can take more. cuDNN 9.20 allows them nothing, 4 MiB or 128 MiB, depending on the
call (CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES); how much of it cuBLASLt takes was not measured.

It is a shared object for Linux on x86-64, made here byte by byte: no compiler is at hand, and a file of
machine code could not be read by anybody. It lies in memory only (memfd_create(2)), and is found by its
name, since the dynamic linker looks for a name among the libraries that are loaded.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Mapping

# Machine code of x86-64, System V calling convention.
_RETURN_0 = bytes.fromhex("31c0 c3")  # xor eax, eax; ret
_CREATE = bytes.fromhex("48893f") + _RETURN_0  # mov [rdi], rdi: some handle that is not null
_VERSION = bytes.fromhex("b8") + struct.pack("<I", 130_000) + bytes.fromhex("c3")  # mov eax, …; ret
# cublasLtMatmulAlgoGetHeuristic has the results, 96 bytes each, and their number as arguments 9 and 10.
_ONE_ALGORITHM = bytes.fromhex(
    "488b7c2418"  # mov rdi, [rsp+24]      the first result
    "31c0"  # xor eax, eax
    "b90c000000"  # mov ecx, 12
    "f348ab"  # rep stosq                  all zero: no workspace, CUBLAS_STATUS_SUCCESS
    "c747ec0000803f"  # mov dword [rdi-20], 1.0f   one wave
    "488b4c2420"  # mov rcx, [rsp+32]
    "c70101000000"  # mov dword [rcx], 1
    "c3"  # ret
)

_FUNCTIONS = {
    "cublasLtGetVersion": _VERSION,
    "cublasLtMatmulAlgoGetHeuristic": _ONE_ALGORITHM,
    **dict.fromkeys(
        (
            *("cublasLtCreate", "cublasLtMatmulDescCreate", "cublasLtMatmulPreferenceCreate"),
            *("cublasLtMatrixLayoutCreate", "cublasLtMatrixTransformDescCreate"),
        ),
        _CREATE,
    ),
    **dict.fromkeys(
        (
            *(
                "cublasLtDestroy",
                "cublasLtGetProperty",
                "cublasLtMatmul",
                "cublasLtMatrixTransform",
            ),
            *(
                f"cublasLt{kind}{what}"
                for kind in (
                    "MatmulDesc",
                    "MatmulPreference",
                    "MatrixLayout",
                    "MatrixTransformDesc",
                )
                for what in ("Destroy", "GetAttribute", "SetAttribute", "Init_internal")
            ),
        ),
        _RETURN_0,
    ),
}

_PAGE = 4096

# Of ELF: section 1-4 of "System V Application Binary Interface", and its supplement for AMD64.
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
_EXECUTE, _WRITE, _READ = 1, 2, 4
_HASH, _STRING_TABLE, _SYMBOL_TABLE, _STRING_SIZE, _SYMBOL_SIZE, _SONAME = 4, 5, 6, 10, 11, 14
_SHARED_OBJECT, _X86_64 = 3, 62
_GLOBAL_FUNCTION = 0x12


def is_possible() -> bool:
    """Return whether this machine can have the library."""
    is_known = sys.platform.startswith("linux") and platform.machine() == "x86_64"
    return is_known and hasattr(os, "memfd_create")


def load(name: str) -> ctypes.CDLL:
    """Load the library into this process.

    Args:
        name: by which it is looked for, such as `libcublasLt.so.13`.

    Raises:
        OSError: the system does not allow it.
    """
    descriptor = os.memfd_create(name)
    try:
        os.write(descriptor, shared_object(name, _FUNCTIONS))
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=ctypes.RTLD_GLOBAL)
    finally:
        os.close(descriptor)


def shared_object(name: str, functions: Mapping[str, bytes]) -> bytes:
    """Return a library's file: a page of code, and tables that the dynamic linker may write to.

    Args:
        name: its DT_SONAME.
        functions: machine code by the name of the function, less than a page in all.
    """
    code, offsets = b"", {}
    headers = 64 + 4 * 56
    for function, instructions in functions.items():
        offsets[function] = headers + len(code)
        code += instructions + bytes(-len(instructions) % 16)

    strings = b"\0" + name.encode() + b"\0"
    symbols = bytes(24)
    for function, offset in offsets.items():
        symbols += struct.pack("<IBBHQQ", len(strings), _GLOBAL_FUNCTION, 0, 1, offset, 16)
        strings += function.encode() + b"\0"
    count = len(offsets) + 1
    # One bucket, whose chain is all symbols in turn; 0 ends it.
    chain = [0, *range(2, count), 0]
    table = struct.pack(f"<{3 + count}I", 1, count, 1, *chain)

    at_symbols = _PAGE
    at_hash = at_symbols + len(symbols)
    at_strings = at_hash + len(table) + -len(table) % 8
    at_dynamic = at_strings + len(strings) + -len(strings) % 8
    entries = (
        *((_SONAME, 1), (_HASH, at_hash), (_STRING_TABLE, at_strings), (_SYMBOL_TABLE, at_symbols)),
        *((_STRING_SIZE, len(strings)), (_SYMBOL_SIZE, 24), (0, 0)),
    )
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    end = at_dynamic + len(dynamic)

    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    header = ident + struct.pack(
        *("<HHIQQQIHHHHHH", _SHARED_OBJECT, _X86_64, 1, 0, 64, 0, 0, 64, 56, 4, 64, 0, 0)
    )
    for kind, flags, begin, size in (
        (_LOAD, _READ | _EXECUTE, 0, headers + len(code)),
        (_LOAD, _READ | _WRITE, _PAGE, end - _PAGE),
        (_DYNAMIC, _READ | _WRITE, at_dynamic, len(dynamic)),
        (_STACK, _READ | _WRITE, 0, 0),
    ):
        align = _PAGE if kind == _LOAD else 8
        header += struct.pack("<IIQQQQQQ", kind, flags, begin, begin, begin, size, size, align)
    parts = {0: header + code, at_symbols: symbols, at_hash: table}
    parts |= {at_strings: strings, at_dynamic: dynamic}
    file = bytearray(end)
    for begin, part in parts.items():
        file[begin : begin + len(part)] = part
    return bytes(file)
