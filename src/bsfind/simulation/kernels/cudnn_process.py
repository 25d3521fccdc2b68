"""The program of a process that asks cuDNN which workspaces convolutions take on a GPU that is not there.

cuDNN plans without a GPU when it is given the description of one ("deviceless" mode, since version 9.8). It
runs in a process of its own, because it is not made to survive a machine without CUDA, and because this
process has a stand-in for cuBLASLt. What is imported here needs the standard library only.

It reads lines of JSON, and answers each with one. The first is

    {"library": PATH, "device": JSON of the GPU, for CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION}

and is answered with {"version": what cudnnGetVersion() returns} or {"error": why not}. Each further line is a
`Question`, answered with {"sizes": [bytes, …]} or {"error": …}.

Models get_configs_from_heuristics, filterEngineConfigs, try_configs and get_plans_from_find of
aten/src/ATen/native/cudnn/Conv_v8.cpp, torch 2.6-2.13, which call cuDNN's backend interface through
cudnn-frontend. Numbers of types and attributes are those of cudnn_graph.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

from bsfind.simulation.kernels import cublaslt_stand_in

FIRST_VERSION = 90800
"""The first version of cuDNN that plans without a GPU, as cudnnGetVersion() returns it."""

# cudnnBackendDescriptorType_t
_CONVOLUTION, _ENGINE, _CONFIG, _HEURISTIC, _PLAN, _GRAPH, _TENSOR, _DEVICE = (
    1,
    2,
    3,
    4,
    5,
    15,
    17,
    38,
)
# cudnnBackendAttributeType_t
_DATA_TYPE, _INT64, _FLOAT, _DOUBLE, _CONVOLUTION_MODE, _HEURISTIC_MODE = 1, 3, 4, 5, 7, 8
_NUMERICAL_NOTE, _DESCRIPTOR, _BEHAVIOR_NOTE, _CHAR = 11, 15, 19, 24
# cudnnBackendNumericalNote_t and cudnnBackendBehaviorNote_t
_TENSOR_CORE, _DOWN_CONVERTS, _NONDETERMINISTIC, _COMPILED_AT_RUN_TIME = 0, 1, 4, 0
# cudnnBackendHeurMode_t
_INSTANT, _MODE_B, _FALLBACK = 0, 1, 2

_DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 9}

# The descriptor of each pass, and the first of its attributes, which have one order in all of them.
_PASSES = {"forward": (10, 700), "weight_gradient": (11, 712), "input_gradient": (12, 706)}
_ATTRIBUTES = ("alpha", "beta", "convolution", "w", "x", "y")

_ALIGNMENT = 32
"""Bytes: the most that PyTorch looks for (`getAlignment`); its allocator's blocks have 512."""

_TIMES = 4
"""How many times as many engines are asked for where PyTorch passes over some."""


class Question(TypedDict):
    """A call of cuDNN; all but the last four are fields of `cudnn_problem.ConvolutionProblem`.

    `tf32`: whether engines for float32 may use tensor cores; `deterministic`: whether only deterministic
    engines may run; `mode_b`: TORCH_CUDNN_USE_HEURISTIC_MODE_B; `most`: of how many engines the workspaces
    are wanted, of those that PyTorch would try, in its order; 0: of all.
    """

    kind: str
    dtype: str
    channels_last: bool
    batch: int
    channels: int
    size: list[int]
    out_channels: int
    out_size: list[int]
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    tf32: bool
    deterministic: bool
    mode_b: bool
    most: int


class CudnnError(Exception):
    """A call of cuDNN failed."""


class Cudnn:
    """cuDNN's backend interface, for one GPU.

    Args:
        library: path of libcudnn.so.9.
        device: JSON of the GPU's properties.

    Attributes:
        version: what cudnnGetVersion() returns: 92000 for 9.20.0.

    Raises:
        OSError: the library cannot be loaded, or its stand-in for cuBLASLt.
        CudnnError: it is too old, or refuses the device.
    """

    def __init__(self, library: str, device: str) -> None:
        self._library = ctypes.CDLL(library)
        for name in ("cudnnGetVersion", "cudnnGetCudartVersion"):
            getattr(self._library, name).restype = ctypes.c_size_t
        self.version = int(self._library.cudnnGetVersion())
        if self.version < FIRST_VERSION:
            raise CudnnError("it is older than 9.8")
        cuda = int(self._library.cudnnGetCudartVersion()) // 1000
        self._cublaslt = cublaslt_stand_in.load(f"libcublasLt.so.{cuda}")
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        for name, arguments in (
            ("cudnnBackendCreateDescriptor", (ctypes.c_int, ctypes.POINTER(pointer))),
            ("cudnnBackendDestroyDescriptor", (pointer,)),
            ("cudnnBackendFinalize", (pointer,)),
            ("cudnnBackendSetAttribute", (pointer, ctypes.c_int, ctypes.c_int, number, pointer)),
            (
                "cudnnBackendGetAttribute",
                (pointer, ctypes.c_int, ctypes.c_int, number, ctypes.POINTER(number), pointer),
            ),
        ):
            getattr(self._library, name).argtypes = arguments
        text = ctypes.create_string_buffer(device.encode(), len(device.encode()))
        self._device = self._new(_DEVICE)
        self._set(self._device, 2702, _CHAR, text)
        self._finalize(self._device)

    # ---------------------------------------------------------------------------- descriptors

    def _check(self, status: int) -> None:
        if status:
            text = ctypes.create_string_buffer(512)
            self._library.cudnnGetLastErrorString(text, ctypes.c_size_t(len(text)))
            raise CudnnError(f"status {status}: {text.value.decode(errors='replace')}")

    def _new(self, kind: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._check(self._library.cudnnBackendCreateDescriptor(kind, ctypes.byref(made)))
        return made

    @contextlib.contextmanager
    def _owned(self) -> Iterator[list[ctypes.c_void_p]]:
        """Destroy the descriptors that are put into the list."""
        owned: list[ctypes.c_void_p] = []
        try:
            yield owned
        finally:
            for each in owned:
                self._library.cudnnBackendDestroyDescriptor(each)

    def _set(self, descriptor: ctypes.c_void_p, name: int, kind: int, values: Any) -> None:
        self._check(
            self._library.cudnnBackendSetAttribute(
                descriptor, name, kind, len(values), ctypes.cast(values, ctypes.c_void_p)
            )
        )

    def _finalize(self, descriptor: ctypes.c_void_p) -> None:
        self._check(self._library.cudnnBackendFinalize(descriptor))

    def _get(self, descriptor: ctypes.c_void_p, name: int, kind: int, values: Any) -> int:
        """Fill an array; returns how many values there are for it."""
        count = ctypes.c_int64()
        into = ctypes.cast(values, ctypes.c_void_p) if len(values) else None
        self._check(
            self._library.cudnnBackendGetAttribute(
                descriptor, name, kind, len(values), ctypes.byref(count), into
            )
        )
        return int(count.value)

    # ------------------------------------------------------------------------------ questions

    def sizes(self, question: Question) -> list[int]:
        """Return the bytes of workspace of the engines that PyTorch tries, in its order, as many as wanted.

        Raises:
            CudnnError: cuDNN refuses the question.
        """
        with self._owned() as owned:
            graph = self._graph(question, owned)
            ranked = _MODE_B if question["mode_b"] else _INSTANT
            found: list[int] = []
            most = question["most"]
            for mode in (ranked, _FALLBACK):
                if most and len(found) >= most:
                    break
                heuristic = self._new(_HEURISTIC)
                owned.append(heuristic)
                self._set(heuristic, 201, _DESCRIPTOR, _pointers(graph))
                self._set(heuristic, 200, _HEURISTIC_MODE, _integers(mode))
                self._set(heuristic, 204, _DESCRIPTOR, _pointers(self._device))
                try:
                    self._finalize(heuristic)
                    found += self._sizes_of(heuristic, question)
                except CudnnError:  # of one list: PyTorch goes on with the other
                    continue
            return found[:most] if most else found

    def _sizes_of(self, heuristic: ctypes.c_void_p, question: Question) -> list[int]:
        """Return the workspaces of a list of engines: as many as are wanted, if there are, or more."""
        most = question["most"]
        wanted = most or self._get(heuristic, 202, _DESCRIPTOR, _pointers())
        while True:
            with self._owned() as configs:
                configs += (self._new(_CONFIG) for _ in range(wanted))
                there = min(wanted, self._get(heuristic, 202, _DESCRIPTOR, _pointers(*configs)))
                found = [
                    size
                    for config in configs[:there]
                    if (size := self._size(config, question)) is not None
                ]
            if not most or len(found) >= most or there < wanted:
                return found
            wanted *= _TIMES

    def _size(self, config: ctypes.c_void_p, question: Question) -> int | None:
        """Return the workspace of an engine; None if PyTorch passes it over, or it makes no plan."""
        with self._owned() as owned:
            engine = self._new(_ENGINE)
            owned.append(engine)
            self._get(config, 300, _DESCRIPTOR, _pointers(engine))
            notes = self._notes(engine, 1303, _NUMERICAL_NOTE)
            if _DOWN_CONVERTS in notes:
                return None
            if question["deterministic"] and _NONDETERMINISTIC in notes:
                return None
            uses_tf32 = question["dtype"] == "float32" and _TENSOR_CORE in notes
            if uses_tf32 and not question["tf32"]:
                return None
            size = (ctypes.c_int64 * 1)()
            if _COMPILED_AT_RUN_TIME in self._notes(engine, 1305, _BEHAVIOR_NOTE):
                # A plan would be compiled, for half a second, only to say the same.
                self._get(config, 303, _INT64, size)
                return int(size[0])
            plan = self._new(_PLAN)
            owned.append(plan)
            self._set(plan, 401, _DESCRIPTOR, _pointers(config))
            self._set(plan, 407, _DESCRIPTOR, _pointers(self._device))
            try:
                self._finalize(plan)
            except CudnnError:  # PyTorch tries the next
                return None
            self._get(plan, 402, _INT64, size)
            return int(size[0])

    def _notes(self, engine: ctypes.c_void_p, name: int, kind: int) -> Sequence[int]:
        notes = (ctypes.c_int * 32)()
        return notes[: self._get(engine, name, kind, notes)]

    def _graph(self, question: Question, owned: list[ctypes.c_void_p]) -> ctypes.c_void_p:
        """Return a graph of one operation."""
        q = question
        double = q["dtype"] == "float64"
        inner = q["channels"] // q["groups"]
        tensors = {
            "x": self._tensor(q, "x", [q["batch"], q["channels"], *q["size"]], owned),
            "y": self._tensor(q, "y", [q["batch"], q["out_channels"], *q["out_size"]], owned),
            "w": self._tensor(q, "w", [q["out_channels"], inner, *q["kernel"]], owned),
        }
        convolution = self._new(_CONVOLUTION)
        owned.append(convolution)
        self._set(
            convolution, 100, _DATA_TYPE, _integers(_DATA_TYPES["float64" if double else "float32"])
        )
        self._set(convolution, 101, _CONVOLUTION_MODE, _integers(1))  # cross-correlation
        self._set(convolution, 106, _INT64, _longs(len(q["size"])))
        self._set(convolution, 105, _INT64, _longs(*q["padding"]))
        self._set(convolution, 104, _INT64, _longs(*q["padding"]))
        self._set(convolution, 103, _INT64, _longs(*q["stride"]))
        self._set(convolution, 102, _INT64, _longs(*q["dilation"]))
        self._finalize(convolution)
        kind, first = _PASSES[q["kind"]]
        operation = self._new(kind)
        owned.append(operation)
        for attribute, name in enumerate(_ATTRIBUTES, start=first):
            if name in ("alpha", "beta"):
                factor = 1.0 if name == "alpha" else 0.0
                values = ((ctypes.c_double if double else ctypes.c_float) * 1)(factor)
                self._set(operation, attribute, _DOUBLE if double else _FLOAT, values)
            else:
                part = convolution if name == "convolution" else tensors[name]
                self._set(operation, attribute, _DESCRIPTOR, _pointers(part))
        self._finalize(operation)
        graph = self._new(_GRAPH)
        owned.append(graph)
        self._set(graph, 801, _DESCRIPTOR, _pointers(operation))
        self._finalize(graph)
        return graph

    def _tensor(
        self, question: Question, name: str, shape: list[int], owned: list[ctypes.c_void_p]
    ) -> ctypes.c_void_p:
        """Return the descriptor of a packed tensor in the question's memory format."""
        tensor = self._new(_TENSOR)
        owned.append(tensor)
        self._set(tensor, 901, _DATA_TYPE, _integers(_DATA_TYPES[question["dtype"]]))
        self._set(tensor, 902, _INT64, _longs(*shape))
        self._set(tensor, 903, _INT64, _longs(*_strides(shape, question["channels_last"])))
        self._set(tensor, 906, _INT64, _longs(ord(name)))
        self._set(tensor, 900, _INT64, _longs(_ALIGNMENT))
        self._finalize(tensor)
        return tensor


def _strides(shape: Sequence[int], channels_last: bool) -> list[int]:
    """Return the strides of a packed tensor, also those of dimensions of one (`fixSizeOneDimStride`)."""
    space = range(2, len(shape))
    order = (0, *space, 1) if channels_last else (0, 1, *space)
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return strides


def _integers(*values: int) -> Any:
    return (ctypes.c_int * len(values))(*values)


def _longs(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def _pointers(*values: ctypes.c_void_p) -> Any:
    return (ctypes.c_void_p * len(values))(*values)


def main() -> None:
    """Answer until there are no more questions."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks

    def answer(found: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()

    opening = json.loads(sys.stdin.readline())
    try:
        cudnn = Cudnn(opening["library"], opening["device"])
    except (OSError, AttributeError, CudnnError) as error:
        answer({"error": str(error)})
        return
    answer({"version": cudnn.version})
    for line in sys.stdin:
        try:
            answer({"sizes": cudnn.sizes(json.loads(line))})
        except CudnnError as error:
            answer({"error": str(error)})
