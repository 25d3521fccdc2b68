"""cuDNN asked without a GPU: what it answers, and what becomes of it where it cannot."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests import fakegpu
from tests.simulation.gpu_specs import GPU_SPECS
from tests.simulation.oracle import FAKE_VENV
from tests.simulation.test_convolution_rules import problem, read_workspaces

from bsfind.devices.simulated import SimulatedDevice
from bsfind.inputs import InputSpec
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.gpus.catalogue import different_gpus
from bsfind.simulation.gpus.cudnn_device import device_json
from bsfind.simulation.kernels import convolution_workspace, cudnn_library, cudnn_workspace
from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.kernels.convolution_workspace import (
    workspace_bytes,
    workspaces_source,
)
from bsfind.simulation.kernels.cublaslt_stand_in import is_possible, load, shared_object
from bsfind.simulation.kernels.cudnn_library import VARIABLE, CudnnLibrary, find_library
from bsfind.simulation.kernels.cudnn_workspace import fitted_workspace_bytes

pytestmark = pytest.mark.skipif(not is_possible(), reason="Linux on x86-64 only")

H100 = GPU_SPECS["h100"]
MODELS = Path(__file__).parents[1] / "models" / "operators.py"


def installed() -> Path | None:
    """Return cuDNN's library in the environment of the fake GPU."""
    with contextlib.suppress(FileNotFoundError):
        path = fakegpu.site_packages(FAKE_VENV) / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9"
        return path if path.exists() else None
    return None


needs_cudnn = pytest.mark.skipif(installed() is None, reason=f"no cuDNN in {FAKE_VENV}")


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Forget what this process knows of cuDNN, before and after; the test says which library there is."""

    def forget() -> None:
        for library in convolution_workspace._libraries.values():
            if library is not None:
                library.close()
        convolution_workspace._libraries.clear()
        convolution_workspace._answered.clear()
        workspace_bytes.cache_clear()

    forget()
    yield monkeypatch
    forget()


@pytest.fixture
def settings() -> Iterator[None]:
    yield
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cudnn(asks: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    asks.setenv(VARIABLE, str(installed()))
    return asks


@contextlib.contextmanager
def loaded(attribute: str) -> Iterator[SimulatedDevice]:
    workload = Workload(
        target=f"{MODELS}:{attribute}", inputs=(InputSpec(shape=(3, 12, 12), dtype="float32"),)
    )
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="rtx-4090"))
    device.load(workload, "fp32")
    try:
        yield device
    finally:
        device.close()


# --------------------------------------------------------------------------------- what it says


@needs_cudnn
@pytest.mark.parametrize("gpu", GPU_SPECS)
def test_answers_are_what_pytorch_took_on_the_fake_gpu(gpu: str, cudnn: pytest.MonkeyPatch) -> None:
    """The fake GPU has the same library: this compares what PyTorch and bsfind do around it."""
    found = Counter(
        workspace_bytes(asked, GPU_SPECS[gpu]) == truth
        for name, asked, truth in read_workspaces()
        if name == gpu
    )
    assert found[True] > 200
    assert found[False] <= 0.01 * found[True]
    assert workspaces_source(H100) == "cuDNN 9.20, asked"


@needs_cudnn
def test_every_gpu_of_the_catalogue_is_described(cudnn: pytest.MonkeyPatch) -> None:
    of_a_kind = {gpu.capability: gpu for gpu in different_gpus()}
    assert len(of_a_kind) > 5
    for gpu in of_a_kind.values():
        assert gpu.capability
        assert gpu.sm_count
        assert gpu.max_threads_per_sm
        spec = GpuSpec(
            capability=gpu.capability,
            sm_count=gpu.sm_count,
            max_threads_per_sm=gpu.max_threads_per_sm,
            torch_version=(2, 13),
        )
        assert workspace_bytes(problem(), spec) >= 0
    libraries = convolution_workspace._libraries.values()
    assert [library.failure for library in libraries if library] == [None] * len(libraries)


@needs_cudnn
def test_settings_of_pytorch_rule_engines_out(cudnn: pytest.MonkeyPatch) -> None:
    call = problem(dtype=torch.float32)
    without = dataclasses.replace(H100, tf32_convolutions=False)
    assert workspace_bytes(call, without) < workspace_bytes(call, H100)
    gradient = problem(kind="weight_gradient", dtype=torch.float32, batch=8, size=(7, 7))
    strict = dataclasses.replace(H100, cudnn_deterministic=True)
    every = [convolution_workspace._asked(gradient, gpu, most=0) for gpu in (H100, strict)]
    assert every[0]
    assert every[1]
    assert len(every[1]) < len(every[0])


@needs_cudnn
def test_benchmark_counts_the_largest_workspace_that_is_timed(cudnn: pytest.MonkeyPatch) -> None:
    call = problem(dtype=torch.float32, batch=16, channels=256, size=(14, 14), out_channels=256)
    benchmark = dataclasses.replace(H100, cudnn_benchmark=True)
    ranked = convolution_workspace._asked(call, H100, most=0)
    assert ranked is not None
    assert len(ranked) > 10
    assert workspace_bytes(call, H100) == ranked[0]
    assert workspace_bytes(call, benchmark) == max(ranked[:10]) > ranked[0]


@needs_cudnn
@pytest.mark.parametrize(
    ("attribute", "codes"),
    [("Benchmarks", {"cudnn_benchmark"}), ("Deterministic", {"deterministic_algorithms"})],
)
def test_settings_are_followed(
    attribute: str, codes: set[str], cudnn: pytest.MonkeyPatch, settings: None
) -> None:
    """Without cuDNN there is a warning for deterministic kernels, too (see test_prediction_limits.py)."""
    with loaded(attribute) as device:
        device.take_warnings()
        device.run_trial(2, 1)
        found = {warning.code: warning.message for warning in device.take_warnings()}
        source = device.convolution_workspaces
    assert set(found) == codes
    assert source == "cuDNN 9.20, asked"
    if attribute == "Benchmarks":
        assert "largest workspace of the ten kernels" in found["cudnn_benchmark"]


@needs_cudnn
def test_a_fork_asks_for_itself(cudnn: pytest.MonkeyPatch) -> None:
    before = workspace_bytes(problem(batch=3), H100)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        workspace_bytes.cache_clear()
        os.write(write, str(workspace_bytes(problem(batch=3), H100)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert int(pipe.read()) == before
    os.waitpid(child, 0)
    workspace_bytes.cache_clear()
    assert workspace_bytes(problem(batch=3), H100) == before


# ------------------------------------------------------------------------------ where it cannot


def returning(number: int) -> bytes:
    """Return the machine code of a function that returns a number."""
    return b"\xb8" + number.to_bytes(4, "little") + b"\xc3"


ENDLESS, UNDEFINED = b"\xeb\xfe", b"\x0f\x0b"

FAILURES = {
    "old": (returning(90100), "it is older than 9.8"),
    "hangs": (ENDLESS, "it did not answer in 1 s"),
    "crashes": (UNDEFINED, "it ended the process that asked"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_the_trees_serve_where_the_library_fails(
    kind: str, tmp_path: Path, asks: pytest.MonkeyPatch
) -> None:
    code, why = FAILURES[kind]
    path = tmp_path / "libcudnn.so.9"
    functions = {"cudnnGetVersion": code, "cudnnGetCudartVersion": returning(13000)}
    path.write_bytes(shared_object("libcudnn.so.9", functions))
    asks.setenv(VARIABLE, str(path))
    asks.setattr(cudnn_library, "_PATIENCE_S", 30.0 if kind != "hangs" else 1.0)
    assert workspace_bytes(problem(), H100) == fitted_workspace_bytes(problem(), H100)
    assert workspaces_source(H100) == (
        f"fitted trees of cuDNN 9.20 (the library cannot be asked: {why})"
    )
    (library,) = convolution_workspace._libraries.values()
    assert library is not None
    assert library._process is None  # it is ended, and not started again


def test_the_larger_workspace_counts_within_a_limit(asks: pytest.MonkeyPatch) -> None:
    """What is recommended is confirmed within a limit; the maximum is found without one."""
    votes = [1 << 20, 1 << 20, 64 << 20]
    asks.setattr(cudnn_workspace, "workspaces_by_tree", lambda problem, gpu: votes)
    with loaded("Convolutions") as device:
        usual = device.run_trial(4, 1).peak_allocated_bytes
        device.limit_memory(8 << 30)
        cautious = device.run_trial(4, 1).peak_allocated_bytes
    assert usual is not None
    assert cautious is not None
    assert 62 << 20 < cautious - usual < 64 << 20


def test_a_library_that_is_not_there(asks: pytest.MonkeyPatch) -> None:
    asks.setenv(VARIABLE, "/nonexistent/libcudnn.so.9")
    assert workspace_bytes(problem(), H100) == fitted_workspace_bytes(problem(), H100)
    assert "cannot open shared object file" in (workspaces_source(H100) or "")


def test_it_can_be_turned_off(asks: pytest.MonkeyPatch) -> None:
    asks.setenv(VARIABLE, "off")
    assert find_library() is None
    assert workspaces_source(H100) is None
    assert workspace_bytes(problem(), H100) == fitted_workspace_bytes(problem(), H100)
    assert workspaces_source(H100) == "fitted trees of cuDNN 9.20"


def test_the_package_is_named_where_the_library_is_not_there(asks: pytest.MonkeyPatch) -> None:
    asks.delenv(VARIABLE, raising=False)
    asks.setattr(cudnn_library, "_loaded", lambda: None)
    asks.setattr(cudnn_library, "_installed", lambda: None)
    workspace_bytes(problem(), H100)
    assert workspaces_source(H100) == (
        "fitted trees of cuDNN 9.20 "
        "(`pip install 'nvidia-cudnn-cu13==9.20.*'` lets bsfind ask cuDNN itself)"
    )


def test_no_package_is_named_that_is_too_old_to_be_asked(asks: pytest.MonkeyPatch) -> None:
    asks.delenv(VARIABLE, raising=False)
    asks.setattr(cudnn_library, "_loaded", lambda: None)
    asks.setattr(cudnn_library, "_installed", lambda: None)
    gpu = dataclasses.replace(H100, torch_version=(2, 7))  # its wheel has cuDNN 9.5
    workspace_bytes(problem(), gpu)
    assert workspaces_source(gpu) == "fitted trees of cuDNN 9.20"


def test_the_old_interface_of_pytorch_is_not_asked_for(asks: pytest.MonkeyPatch) -> None:
    asks.setenv(VARIABLE, "/nonexistent/libcudnn.so.9")
    asks.setenv("TORCH_CUDNN_V8_API_DISABLED", "1")
    workspace_bytes(problem(), H100)
    assert workspaces_source(H100) == "fitted trees of cuDNN 9.20"


def test_the_wheel_of_nvidia_is_found(tmp_path: Path, asks: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9"
    path.parent.mkdir(parents=True)
    asks.syspath_prepend(str(tmp_path))
    asks.delenv(VARIABLE, raising=False)
    asks.setattr(cudnn_library, "_loaded", lambda: None)
    assert find_library() != str(path)
    path.write_bytes(b"")
    assert find_library() == str(path)


# ------------------------------------------------------------------------------- the stand-in


def test_the_stand_in_is_found_by_its_name_and_offers_an_algorithm() -> None:
    name = "libcublasLtOfTests.so.1"
    library = load(name)
    assert ctypes.CDLL(name)._handle == library._handle
    handle = ctypes.c_void_p()
    assert library.cublasLtCreate(ctypes.byref(handle)) == 0
    assert handle
    pointer = ctypes.c_void_p
    ask = library.cublasLtMatmulAlgoGetHeuristic
    ask.argtypes = [*[pointer] * 7, ctypes.c_int, pointer, pointer]
    results, count = (ctypes.c_uint64 * 24)(*[99] * 24), ctypes.c_int(99)
    assert ask(*[None] * 7, 2, ctypes.addressof(results), ctypes.addressof(count)) == 0
    assert count.value == 1
    assert list(results[:9]) == [0] * 9  # the algorithm, and its workspace
    assert list(results[12:]) == [99] * 12  # a second result is left alone


def test_a_description_has_what_the_catalogue_knows() -> None:
    found = json.loads(device_json((8, 6), 82, 1536))
    assert (found["deviceVer"], found["multiProcessorCount"]) == (860, 82)
    assert (found["maxThreadsPerSM"], found["maxSharedMemoryPerBlockOptin"]) == (1536, 101376)


def test_a_library_that_nobody_asks_starts_no_process() -> None:
    library = CudnnLibrary("/nonexistent", "{}")
    library.close()
    assert library._process is None
    assert library.failure is None
