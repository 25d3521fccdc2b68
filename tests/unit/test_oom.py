"""Which exceptions mean that the batch was too large: real texts, and texts that look like them."""

from __future__ import annotations

import pytest
import torch

from bsfind.failures.oom import OOM_TEXTS, FailureKind, OomText, classify, is_batch_norm_refusal

CUDA_2_13 = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.54 GiB of "
    "which 17.00 MiB is free. Including non-PyTorch memory, this process has 23.50 GiB memory in "
    "use. Of the allocated memory 22.86 GiB is allocated by PyTorch, and 197.44 MiB is reserved by "
    "PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation "
    "for Memory Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html"
    "#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
)

# One real text at least for each row of the table.
CONCLUSIVE = [
    "CUDA out of memory. Tried to allocate 1.56 GiB (GPU 0; 6.00 GiB total capacity; 2.12 GiB "
    "already allocated; 1.06 GiB free; 1.54 GiB cached)",
    "CUDA out of memory. Tried to allocate 264.00 MiB (GPU 0; 2.00 GiB total capacity; 788.51 "
    "MiB already allocated; 145.93 MiB free; 1.02 GiB reserved in total by PyTorch)",
    "CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacty of 14.75 GiB "
    "of which 11.06 MiB is free. Process 3258 has 14.73 GiB memory in use.",
    CUDA_2_13,
    "CUDA out of memory. Tried to allocate more than 1EB memory.",
    "CUDA out of memory. Allocation was preemptively rejected because it would exceed "
    "per_process_memory_fraction limit. Requested size: 4294967296 bytes",
    "HIP out of memory. Tried to allocate 1.75 GiB",
    "XPU out of memory. Tried to allocate 16.00 GiB. GPU 0 has a total capacity of 16.48 GiB of "
    "which 16.07 GiB is free. Of the allocated memory 0 bytes is allocated by PyTorch, and 0 "
    "bytes is reserved by PyTorch but unallocated. Please use `empty_cache` to release all "
    "unoccupied cached memory.",
    "MPS backend out of memory (MPS allocated: 5.56 GB, other allocations: 1.10 GB, max "
    "allowed: 6.80 GB). Tried to allocate 768.00 MB on private pool. Use "
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations (may "
    "cause system failure).",
    "Allocating 4294967296 bytes would exceed allowed memory. (out of memory)",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some "
    "other API call, so the stacktrace below might be incorrect.",
    "CUDA driver error: out of memory",
    "HIP error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "cudaErrorMemoryAllocation",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "Not enough memory for workspace!",
    "NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() INTERNAL ASSERT FAILED at "
    '"/pytorch/c10/cuda/CUDACachingAllocator.cpp":1131, please report a bug to PyTorch. ',
    "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1275, unhandled cuda "
    "error, NCCL version 2.18.1\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 2 'out of memory'",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you "
    "tried to allocate 6383992832 bytes.",
]
INCONCLUSIVE = [
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
]

LOOK_ALIKES = [
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported "
    "at some other API call, so the stacktrace below might be incorrect.",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm( handle, opa, opb)`",
    "cuDNN error: CUDNN_STATUS_BAD_PARAM",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a "
    "non-contiguous input.",
    "mat1 and mat2 shapes cannot be multiplied (4x512 and 1000x10)",
    "Given groups=1, weight of size [64, 3, 7, 7], expected input[4, 1, 224, 224] to have 3 "
    "channels, but got 1 channels instead",
    "The size of tensor a (224) must match the size of tensor b (112) at non-singleton dimension 3",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "element 0 of tensors does not require grad and does not have a grad_fn",
    "DataLoader worker (pid(s) 4242) exited unexpectedly",
    "unable to write to file </torch_3377_1311053497_0>: No space left on device (28)",
    "out of resource: shared memory, Required: 114688, Hardware limit: 101376.",
    "the memory bank is out of slots",
]
SIZE_LIMITS = [
    "CUDA error: invalid configuration argument",
    "upsample_nearest3d only supports output tensors with less than INT_MAX elements, but got "
    "[1, 1, 1178, 1367, 1367]",
    "Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true, but got false.",
    "integer multiplication overflow",
    "Storage size calculation overflowed with sizes=[4294967296, 4294967296]",
    "Invalid buffer size: 80.00 GiB",
]


@pytest.mark.parametrize("row", OOM_TEXTS, ids=lambda row: row.pattern)
def test_each_row_of_the_table_stands_for_a_real_text(row: OomText) -> None:
    assert row.source
    assert any(row.matches(text) for text in (CONCLUSIVE if row.conclusive else INCONCLUSIVE))


@pytest.mark.parametrize("text", CONCLUSIVE)
@pytest.mark.parametrize(
    "cls", [RuntimeError, OSError, getattr(torch, "AcceleratorError", RuntimeError)]
)
def test_texts_of_failed_allocations(text: str, cls: type[Exception]) -> None:
    assert classify(cls(text)) is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize("text", INCONCLUSIVE)
def test_inconclusive_texts_count_on_a_full_device_only(text: str) -> None:
    assert classify(RuntimeError(text)) is FailureKind.OTHER
    assert classify(RuntimeError(text), memory_exhausted=True) is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize("text", LOOK_ALIKES)
@pytest.mark.parametrize("memory_exhausted", [False, True])
def test_look_alikes_are_failures_of_the_users_code(text: str, memory_exhausted: bool) -> None:
    error = RuntimeError(text)
    assert classify(error, memory_exhausted=memory_exhausted) is FailureKind.OTHER


@pytest.mark.parametrize("text", SIZE_LIMITS)
def test_limits_of_kernels(text: str) -> None:
    assert classify(RuntimeError(text)) is FailureKind.SIZE_LIMIT


def test_an_overflow_is_a_limit_too() -> None:
    assert classify(OverflowError("integer multiplication overflow")) is FailureKind.SIZE_LIMIT


def test_types_say_it_without_any_text() -> None:
    class OurOutOfMemoryError(torch.OutOfMemoryError):
        pass

    assert classify(torch.OutOfMemoryError("")) is FailureKind.OUT_OF_MEMORY
    assert classify(OurOutOfMemoryError("")) is FailureKind.OUT_OF_MEMORY
    assert classify(MemoryError()) is FailureKind.OUT_OF_MEMORY


def test_types_of_the_same_name_from_elsewhere_do_not() -> None:
    class OutOfMemoryError(Exception):
        pass

    assert classify(OutOfMemoryError("the queue is full")) is FailureKind.OTHER


@pytest.mark.parametrize("cls", [ValueError, KeyError, AssertionError, SystemExit])
def test_other_types_that_quote_a_text_do_not(cls: type[BaseException]) -> None:
    assert classify(cls("CUDA out of memory. Tried to allocate 2 GiB")) is FailureKind.OTHER


def raised(raise_it: object) -> BaseException:
    assert callable(raise_it)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 (whatever it is)
        raise_it()
    return caught.value


def test_wrapped_with_a_cause() -> None:
    def fail() -> None:
        try:
            raise torch.OutOfMemoryError(CUDA_2_13)
        except RuntimeError as error:
            raise ValueError("the layer failed") from error

    assert classify(raised(fail)) is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize("hide", [True, False])
def test_raised_while_another_was_handled(hide: bool) -> None:
    def fail() -> None:
        try:
            raise RuntimeError(CUDA_2_13)
        except RuntimeError:
            if hide:
                raise KeyError("cleanup") from None
            raise KeyError("cleanup")  # noqa: B904 (that is the case)

    assert classify(raised(fail)) is FailureKind.OUT_OF_MEMORY


def test_a_cause_far_down_and_a_limit_of_a_kernel() -> None:
    error = ValueError("top")
    error.__cause__ = ValueError("middle")
    error.__cause__.__context__ = RuntimeError("CUDA error: invalid configuration argument")
    assert classify(error) is FailureKind.SIZE_LIMIT


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert classify(first) is FailureKind.OTHER


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (torch.nn.BatchNorm1d(4), (1, 4)),
        (torch.nn.BatchNorm2d(4), (1, 4, 1, 1)),
        (torch.nn.InstanceNorm1d(4), (1, 4, 1)),
    ],
)
def test_batch_normalisation_that_refuses_one_sample(
    model: torch.nn.Module, shape: tuple[int, ...]
) -> None:
    error = raised(lambda: model(torch.zeros(shape)))
    assert is_batch_norm_refusal(error)
    assert classify(error) is FailureKind.OTHER
    wrapped = RuntimeError("in layer 3")
    wrapped.__cause__ = error
    assert is_batch_norm_refusal(wrapped)


def test_other_refusals_are_not_batch_normalisations() -> None:
    error = raised(lambda: torch.nn.BatchNorm2d(4)(torch.zeros(1, 4)))
    assert isinstance(error, ValueError)
    assert not is_batch_norm_refusal(error)
    assert not is_batch_norm_refusal(RuntimeError("Expected more than 1 value per channel"))


@pytest.mark.parametrize(
    "text",
    [
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":844',
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at\n"/opt/x/c10/cuda/CUDACachingAllocator.cpp":838',
        "CUDA out of memory",
    ],
)
def test_more_texts_of_failed_allocations(text: str) -> None:
    assert classify(RuntimeError(text)) is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "text",
    [
        "CUBLAS_STATUS_NOT_INITIALIZED: Assertion `t >= 0 && t < n_classes` failed.",
        "CUBLAS_STATUS_ALLOC_FAILED after: device-side assert triggered",
    ],
)
def test_a_fault_of_a_kernel_is_not_lack_of_memory_on_a_full_card(text: str) -> None:
    assert classify(RuntimeError(text), memory_exhausted=True) is FailureKind.OTHER
