"""CUDA's autocast on tensors without a GPU: lists, casts, and the cache of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.cuda.amp.common
from torch.nn import functional as F  # noqa: N812

from bsfind.errors import UntraceableError
from bsfind.simulation.trace.cuda_paths.autocast import AutocastCuda, operator_lists

HALF, FLOAT = torch.float16, torch.float32


@pytest.fixture(autouse=True)
def is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)


@pytest.fixture
def autocast() -> Iterator[AutocastCuda]:
    cuda = AutocastCuda()
    with cuda.active():
        yield cuda


@contextlib.contextmanager
def half() -> Iterator[None]:
    with torch.autocast("cuda", dtype=HALF):
        yield


def empty(*shape: int, dtype: torch.dtype = FLOAT, requires_grad: bool = False) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=requires_grad)


def test_a_torch_without_its_header_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lists = operator_lists()
    assert "linear" in lists["LOWER_PRECISION_FP"]
    assert all(lists.values())
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(UntraceableError, match=r"it has no `include/ATen/autocast_mode\.h`"):
        operator_lists()


def test_what_is_cast(autocast: AutocastCuda) -> None:
    x, w = empty(4, 4), empty(4, 4)
    with half():
        assert (x @ w).dtype == HALF
        assert F.linear(x, w).dtype == HALF
        assert F.conv1d(empty(1, 4, 4), empty(2, 4, 3)).dtype == HALF
        assert empty(4, 4, dtype=HALF).exp().dtype == FLOAT
        assert F.layer_norm(empty(4, 4, dtype=HALF), (4,)).dtype == FLOAT
        assert F.softmax(empty(4, 4, dtype=HALF), -1).dtype == FLOAT
        assert empty(4, 4, dtype=HALF).sum().dtype == FLOAT
        assert torch.addcmul(x, empty(4, 4, dtype=HALF), w).dtype == FLOAT
        assert torch.norm(empty(4, 4, dtype=HALF), dim=1).dtype == FLOAT
        assert (empty(4, dtype=HALF) + empty(4, dtype=HALF)).dtype == HALF
        assert (empty(4, 4, dtype=torch.float64) @ empty(4, 4, dtype=torch.float64)).dtype == (
            torch.float64
        )
        assert F.relu(x).dtype == FLOAT
    assert (x @ w).dtype == FLOAT


def test_host_tensors_are_left_alone(autocast: AutocastCuda) -> None:
    with half():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == FLOAT


def test_a_weight_is_cast_once(autocast: AutocastCuda) -> None:
    weight = empty(4, 4, requires_grad=True)
    with half():
        first = autocast.cast(weight, HALF)
        assert autocast.cast(weight, HALF) is first
        activation = weight * 1
        assert autocast.cast(activation, HALF) is not autocast.cast(activation, HALF)
        autocast.clear_cache()
        assert autocast.cast(weight, HALF) is not first


def test_it_is_gone_afterwards() -> None:
    with AutocastCuda().active():
        pass
    assert (empty(4, 4) @ empty(4, 4)).dtype == FLOAT


@pytest.mark.one_torch
@pytest.mark.parametrize(("release", "kept"), [((2, 9), 1), ((2, 11), 0), ((2, 13), 0)])
def test_casts_in_inference_mode_are_kept_by_releases_that_do(
    release: tuple[int, int], kept: int
) -> None:
    seen: list[torch.Tensor] = []
    weight = empty(4, 4, requires_grad=True)
    cuda = AutocastCuda(lambda weight, _: seen.append(weight), release)
    with cuda.active(), torch.inference_mode(), half():
        weight.mm(weight)
    assert len(seen) == kept


@pytest.mark.one_torch
@pytest.mark.parametrize(("release", "dtype"), [((2, 11), HALF), ((2, 13), FLOAT)])
def test_rms_norm_is_in_float32_in_releases_that_list_it(
    release: tuple[int, int], dtype: torch.dtype
) -> None:
    with AutocastCuda(release=release).active(), half():
        assert F.rms_norm(empty(4, 8, dtype=HALF), (8,)).dtype == dtype
