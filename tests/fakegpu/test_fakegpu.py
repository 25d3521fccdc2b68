"""The fake GPU itself. Each test starts a process, since the libraries have to be preloaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from . import available, environment

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("BSFIND_FAKEGPU_VENV", ROOT / ".venv-fakegpu"))
GIB = 2**30

pytestmark = [
    pytest.mark.skipif(
        not available(VENV),
        reason=f"no fake GPU in {VENV}: sh tests/fakegpu/install.sh {VENV}",
    ),
    pytest.mark.timeout(60),
]

# Starts kernels without torch: quick. `launch` returns what the runtime says.
LAUNCH = """
    import ctypes
    cuda = ctypes.CDLL(None)
    cuda.cudaGetErrorString.restype = ctypes.c_char_p
    class Dim3(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint) for name in "xyz"]
    def launch():
        one = Dim3(1, 1, 1)
        return cuda.cudaLaunchKernel(None, one, one, None, ctypes.c_size_t(0), None)
"""
STICKY = {
    "illegal-address": "an illegal memory access was encountered",
    "misaligned-address": "misaligned address",
    "assert": "device-side assert triggered",
    "launch-timeout": "the launch timed out and was terminated",
    "launch-failure": "unspecified launch failure",
    "ecc": "uncorrectable ECC error encountered",
}
# Prints what the driver's library says, as pynvml has it, without torch: quick.
NVML = """
    import os, pynvml as n
    n.nvmlInit()
    for i in range(n.nvmlDeviceGetCount()):
        h = n.nvmlDeviceGetHandleByIndex(i)
        uuid = n.nvmlDeviceGetUUID(h)
        assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(uuid)) == i
        assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(n.nvmlDeviceGetPciInfo(h).busId)) == i
        v1, v2 = n.nvmlDeviceGetMemoryInfo(h), n.nvmlDeviceGetMemoryInfo(h, n.nvmlMemory_v2)
        assert (v1.total, v1.free, v1.used) == (v2.total, v2.free, v2.used)
        print(n.nvmlDeviceGetName(h), uuid, v1.total, v1.used, sep=";")
"""
TRAIN = """
    import torch
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten())
    model = model.cuda()
    for _ in range(10):
        model(torch.randn(4, 3, 16, 16, device="cuda")).sum().backward()
        torch.cuda.synchronize()
    print("trained")
"""


def script(*parts: str) -> str:
    return "".join(textwrap.dedent(part) for part in parts)


def run(code: str, *, timeout: float = 50, **gpu: Any) -> subprocess.CompletedProcess[str]:
    gpu.setdefault("cudnn", False)  # which takes time to load
    extra = gpu.pop("extra", {})
    return subprocess.run(
        ["python", "-W", "ignore", "-c", textwrap.dedent(code)],
        env=environment(VENV, **gpu) | extra,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def output(code: str, **gpu: Any) -> list[str]:
    done = run(code, **gpu)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_torch_sees_the_profile_and_the_memory() -> None:
    code = """
        import torch
        p = torch.cuda.get_device_properties(0)
        print(p.name, (p.major, p.minor), p.total_memory, torch.cuda.device_count(), sep=";")
        free, total = torch.cuda.mem_get_info()
        print(total - free)
    """
    assert output(code, memory="8GiB", overhead="100MiB") == [
        f"NVIDIA GeForce RTX 3090;(8, 6);{8 * GIB};1",
        str(100 * 2**20),
    ]


def test_training_uses_memory_and_is_traced(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    assert output(TRAIN, trace=trace) == ["trained"]
    text = trace.read_text()
    assert "malloc dev=0 size=2097152" in text
    assert "elementwise_kernel" in text
    assert "cudnnBackendExecute" in text


def test_out_of_memory_is_pytorchs_own() -> None:
    code = """
        import torch
        try:
            torch.empty(3 << 30, dtype=torch.uint8, device="cuda")
        except torch.cuda.OutOfMemoryError as error:
            print(error)
    """
    [text] = output(code, memory="2GiB", overhead="100MiB", others=[(4_194_301, "python", "1GiB")])
    assert text.startswith(
        "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 2.00 GiB of "
        "which 924.00 MiB is free. Including non-PyTorch memory, this process has 100.00 MiB memory "
        "in use. Process 4194301 has 1024.00 MiB memory in use. "
    )


def test_expandable_segments() -> None:
    code = """
        import torch
        def take():
            return torch.empty(200 << 20, dtype=torch.uint8, device="cuda")
        x = [take() for _ in range(3)]
        print(torch.cuda.memory_reserved() >> 20, len(torch.cuda.memory_snapshot()))
        try:
            take()
        except torch.cuda.OutOfMemoryError:
            print("full")
    """
    extra = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert output(code, memory="700MiB", overhead=0, extra=extra) == ["600 1", "full"]


def test_real_cudnn_plans_ask_for_workspaces(tmp_path: Path) -> None:
    if "FAKE_CUDNN" not in environment(VENV):
        pytest.skip("the real cuDNN is not installed")
    trace = tmp_path / "trace"
    assert output(TRAIN, cudnn=True, trace=trace) == ["trained"]
    assert "cuDNN plan workspace" in trace.read_text()


UNLIKE = "t4,rtx3090,a100"
# What CUDA sees, without torch: quick.
DEVICES = """
    import ctypes, uuid
    cuda = ctypes.CDLL("libcuda.so.1")
    cuda.cuInit(0)
    n = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(n))
    for i in range(n.value):
        name, u = ctypes.create_string_buffer(99), ctypes.create_string_buffer(16)
        cuda.cuDeviceGetName(name, 99, i)
        cuda.cuDeviceGetUuid(u, i)
        print(name.value.decode(), uuid.UUID(bytes=u.raw), sep=";")
"""
T4 = "Tesla T4;fa4e0000-fa4e-4a4e-8a4e-fa4e00000000"
RTX3090 = "NVIDIA GeForce RTX 3090;fa4e0100-fa4e-4a4e-8a4e-fa4e00000000"
A100 = "NVIDIA A100-SXM4-40GB;fa4e0200-fa4e-4a4e-8a4e-fa4e00000000"


@pytest.mark.parametrize(
    ("visible", "order", "expected"),
    [
        (None, "FASTEST_FIRST", [A100, T4, RTX3090]),
        (None, "PCI_BUS_ID", [T4, RTX3090, A100]),
        ("2,0", "PCI_BUS_ID", [A100, T4]),
        ("2,9,0", "PCI_BUS_ID", [A100]),
        ("GPU-fa4e0100-fa4e-4a4e-8a4e-fa4e00000000", "FASTEST_FIRST", [RTX3090]),
        ("GPU-fa4e02,GPU-fa4e00", "FASTEST_FIRST", [A100, T4]),
        ("GPU-fa4e", "FASTEST_FIRST", []),
        ("", "FASTEST_FIRST", []),
    ],
)
def test_visible_devices(visible: str | None, order: str, expected: list[str]) -> None:
    extra = {"CUDA_DEVICE_ORDER": order}
    assert output(DEVICES, gpu=UNLIKE, visible=visible, extra=extra) == expected


def test_torch_and_nvml_agree_on_a_visible_device() -> None:
    code = """
        import pynvml, torch
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        print(torch.cuda.device_count(), torch.cuda.get_device_name(0))
        print(pynvml.nvmlDeviceGetIndex(handle), pynvml.nvmlDeviceGetName(handle))
    """
    name = "NVIDIA GeForce RTX 3090"
    assert output(code, gpu=UNLIKE, visible="GPU-fa4e01") == [f"1 {name}", f"1 {name}"]
    none = "import torch; print(torch.cuda.is_available(), torch.cuda.device_count())"
    assert output(none, visible="") == ["False 0"]


def test_devices_of_an_unlike_machine_have_their_own_memory() -> None:
    code = """
        import torch
        x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda:1")
        print([torch.cuda.mem_get_info(i)[1] - torch.cuda.mem_get_info(i)[0] for i in (0, 1)])
        print(torch.cuda.mem_get_info(0)[1], torch.cuda.mem_get_info(1)[1])
    """
    got = output(code, gpu="rtx3090,t4", memory="8GiB,6GiB", overhead=0)
    assert got == [f"[0, {GIB}]", f"{8 * GIB} {6 * GIB}"]


def test_nvml_sees_all_gpus_whatever_cuda_sees() -> None:
    assert output(NVML, gpu="rtx3090,t4", memory="8GiB", visible="1") == [
        f"NVIDIA GeForce RTX 3090;GPU-fa4e0000-fa4e-4a4e-8a4e-fa4e00000000;{8 * GIB};0",
        f"Tesla T4;GPU-fa4e0100-fa4e-4a4e-8a4e-fa4e00000000;{8 * GIB};0",
    ]


def test_nvml_lists_the_other_processes() -> None:
    code = """
        import pynvml as n
        n.nvmlInit()
        for i in (0, 1):
            h = n.nvmlDeviceGetHandleByIndex(i)
            for p in n.nvmlDeviceGetComputeRunningProcesses(h):
                used = n.nvmlDeviceGetMemoryInfo(h).used
                print(i, p.pid, n.nvmlSystemGetProcessName(p.pid), p.usedGpuMemory, used)
            assert n.nvmlDeviceGetGraphicsRunningProcesses(h) == []
    """
    others = "4194301:/usr/bin/python3:2GiB,4194302:train:1GiB@1"
    assert output(code, count=2, others=others) == [
        f"0 4194301 /usr/bin/python3 {2 * GIB} {2 * GIB}",
        f"1 4194302 train {GIB} {GIB}",
    ]


def test_nvml_answers_about_the_system() -> None:
    code = """
        import os, sys, pynvml as n
        n.nvmlInit()
        h = n.nvmlDeviceGetHandleByIndex(0)
        print(n.nvmlSystemGetDriverVersion(), n.nvmlSystemGetCudaDriverVersion())
        print(n.nvmlDeviceGetCudaComputeCapability(h))
        print(n.nvmlSystemGetProcessName(os.getpid()) == os.path.realpath(sys.executable))
        for call in (
            lambda: n.nvmlDeviceGetMigMode(h),
            lambda: n.nvmlDeviceGetHandleByIndex(1),
            lambda: n.nvmlDeviceGetHandleByUUID("GPU-none"),
            lambda: n.nvmlSystemGetProcessName(4194303),
        ):
            try:
                call()
            except n.NVMLError as error:
                print(type(error).__name__)
    """
    assert output(code) == [
        "580.65.06 13000",
        "(8, 6)",
        "True",
        "NVMLError_NotSupported",
        "NVMLError_InvalidArgument",
        "NVMLError_NotFound",
        "NVMLError_NotFound",
    ]


@pytest.mark.parametrize(
    ("nvml", "error"), [(False, "DriverNotLoaded"), ("missing", "LibraryNotFound")]
)
def test_nvml_can_be_absent(nvml: bool | str, error: str) -> None:
    done = run(NVML, nvml=nvml)
    assert done.returncode == 1
    assert f"pynvml.NVMLError_{error}: " in done.stderr


def test_torch_does_without_nvml() -> None:
    code = """
        import torch
        print(torch.cuda.device_count())
        try:
            torch.empty(3 << 30, dtype=torch.uint8, device="cuda")
        except torch.cuda.OutOfMemoryError as error:
            print("this process" in str(error))
    """
    assert output(code, memory="2GiB", nvml="missing") == ["1", "False"]


def test_processes_share_a_gpu(tmp_path: Path) -> None:
    gpu: dict[str, Any] = {"state_file": tmp_path / "state", "memory": "2GiB", "overhead": "100MiB"}
    holder = subprocess.Popen(
        [
            "python",
            "-c",
            "import torch; x = torch.empty(1 << 30, dtype=torch.uint8, device='cuda');"
            "print('held', flush=True); input()",
        ],
        env=environment(VENV, cudnn=False, **gpu),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        code = """
            import pynvml as n
            n.nvmlInit()
            h = n.nvmlDeviceGetHandleByIndex(0)
            print(*[(p.pid, p.usedGpuMemory >> 20) for p in n.nvmlDeviceGetComputeRunningProcesses(h)])
        """
        assert output(code, **gpu) == [f"({holder.pid}, 1124)"]
        holder.kill()
        holder.wait()
        assert output(code, **gpu) == [""]
    finally:
        holder.kill()
        holder.communicate()


def test_a_card_that_spills_is_full_and_goes_on() -> None:
    code = """
        import torch
        kept = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(3)]
        print(torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved() >> 30)
    """
    variables = environment(VENV, cudnn=False, memory="2GiB") | {"FAKE_GPU_SPILL": "1"}
    done = subprocess.run(
        ["python", "-c", textwrap.dedent(code)], env=variables, capture_output=True, text=True
    )
    assert done.stdout.split() == ["0", "3"], done.stderr


def test_a_gpu_that_is_lost_is_not_there_for_new_processes(tmp_path: Path) -> None:
    code = """
        import pathlib, sys, torch
        print(torch.cuda.is_available())
        pathlib.Path(sys.argv[1]).touch()
        print(torch.ones(3, device="cuda").numel())
    """
    lost = tmp_path / "lost"
    variables = environment(VENV, cudnn=False) | {"FAKE_GPU_LOST": str(lost)}
    command = ["python", "-c", textwrap.dedent(code), str(lost)]
    first = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert first.stdout.split() == ["True", "3"], first.stderr
    second = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert second.stdout.split() == ["False"]


@pytest.mark.parametrize("kind", ["illegal-address", "assert"])
def test_torch_reports_an_error_again_and_again(kind: str) -> None:
    code = """
        import torch
        x = torch.zeros(8, device="cuda")
        for _ in range(2):
            try:
                for _ in range(100):
                    x += 1
                torch.cuda.synchronize()
            except torch.AcceleratorError as error:
                print(str(error).splitlines()[0])
    """
    done = run(code, fail=f"{kind}:10")
    assert done.stdout.splitlines() == [f"CUDA error: {STICKY[kind]}"] * 2
    assert ("Assertion `false` failed." in done.stderr) == (kind == "assert")


@pytest.mark.parametrize("kind", STICKY)
def test_an_error_comes_late_and_stays(kind: str) -> None:
    launches = script(
        LAUNCH,
        """
        for _ in range(3):
            print(launch())
        print(cuda.cudaGetLastError())
        for error in (cuda.cudaDeviceSynchronize(), launch(), cuda.cudaGetLastError()):
            print(cuda.cudaGetErrorString(error).decode())
        """,
    )
    assert output(launches, fail=f"{kind}:2") == ["0"] * 4 + [STICKY[kind]] * 3
    blocking = output(launches, fail=f"{kind}:2", extra={"CUDA_LAUNCH_BLOCKING": "1"})
    assert blocking[:2] == ["0", "0"]
    assert blocking[2] == blocking[3] != "0"


@pytest.mark.parametrize(
    ("kind", "status"), [("segv", -signal.SIGSEGV), ("kill", -signal.SIGKILL), ("exit", 1)]
)
def test_a_fault_can_end_the_process(kind: str, status: int) -> None:
    done = run(script(LAUNCH, "for _ in range(9): print(launch(), flush=True)"), fail=f"{kind}:5")
    assert (done.returncode, done.stdout) == (status, "0\n" * 5)


def test_a_fault_can_hang() -> None:
    hang = script(LAUNCH, "print('before', flush=True); launch(); print('after')")
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run(hang, fail="hang:0", timeout=2)
    assert caught.value.stdout == b"before\n"


def test_a_fault_can_depend_on_memory_and_strike_one_process(tmp_path: Path) -> None:
    code = """
        import torch
        torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        print("small", flush=True)
        torch.zeros(512 << 20, dtype=torch.uint8, device="cuda").add_(1)
        torch.cuda.synchronize()
        print("large", flush=True)
    """
    once = tmp_path / "once"
    first = run(code, fail="exit:256MiB", fail_once=once)
    assert (first.returncode, first.stdout) == (1, "small\n")
    assert once.exists()
    assert output(code, fail="exit:256MiB", fail_once=once) == ["small", "large"]


def test_launches_can_take_time() -> None:
    launches = script(
        LAUNCH,
        """
        import time
        start = time.perf_counter()
        for _ in range(100):
            launch()
        print(time.perf_counter() - start >= 0.2)
        """,
    )
    assert output(launches, launch_us=2000) == ["True"]


def test_a_gpu_older_than_the_build_has_no_kernels() -> None:
    done = run("import torch; torch.zeros(8, device='cuda')", gpu="v100")
    assert done.returncode == 1
    assert "CUDA error: no kernel image is available for execution on the device" in done.stderr


@pytest.mark.parametrize(
    "setting",
    [{"gpu": "gtx1"}, {"fail": "nonsense"}, {"others": "1:x"}, {"memory": "all"}],
)
def test_a_bad_setting_is_not_ignored(setting: dict[str, Any]) -> None:
    done = run(DEVICES, **setting)
    assert done.returncode == 2
    assert "cannot understand" in done.stderr


def test_run_sh_sets_what_environment_sets() -> None:
    names = ("LD_LIBRARY_PATH", "LD_PRELOAD", "FAKE_CUDNN", "FAKE_CUDNN_NVRTC", "PATH")
    code = f"import os; print([os.environ.get(n, '').strip() for n in {names}])"
    clean = environment(VENV)
    wanted = [clean.get(name, "") for name in names]
    for name in ("LD_LIBRARY_PATH", "LD_PRELOAD"):
        rest = clean.pop(name)
        if os.environ.get(name):
            pytest.skip(f"{name} is set already: {rest}")
    for name in ("FAKE_CUDNN", "FAKE_CUDNN_NVRTC"):
        clean.pop(name, None)
    clean["PATH"] = os.environ["PATH"]
    done = subprocess.run(
        ["sh", str(Path(__file__).with_name("run.sh")), str(VENV), sys.executable, "-c", code],
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(wanted)
