"""The known GPUs: their figures, and finding them by what people write."""

from __future__ import annotations

import contextlib
import re
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsfind.errors import UsageError
from bsfind.simulation.gpus.catalogue import DEFAULT_GPU, CatalogueGpu, find_gpu, known_gpus
from bsfind.units import GIB, MIB

GPUS = known_gpus()
SHARED_NAMES = {gpu.name for gpu in GPUS if [g.name for g in GPUS].count(gpu.name) > 1}
THREADS = {"7.5": 1024, **dict.fromkeys(("8.6", "8.9", "12.0"), 1536)}


def key(gpu: CatalogueGpu) -> str:
    return gpu.key


@pytest.mark.parametrize("gpu", GPUS, ids=key)
def test_every_row(gpu: CatalogueGpu) -> None:
    assert re.fullmatch(r"[a-z0-9]+(?:[-.][a-z0-9]+)*", gpu.key)
    assert gpu.name.strip() == gpu.name != ""
    assert not gpu.generic
    assert set(gpu.estimated) <= {"total_bytes", "sm_count"}
    assert gpu.sm_count is not None
    assert 6 <= gpu.sm_count <= 304
    if gpu.total_bytes is not None:
        assert 3 * GIB < gpu.total_bytes < 270 * GIB
        assert gpu.total_bytes % 1024 == 0
    if gpu.capability is None:
        assert gpu.name.startswith("AMD ")
        assert gpu.compute_capability.startswith("gfx")
        assert gpu.max_threads_per_sm is None
    else:
        assert (6, 0) <= gpu.capability <= (12, 0)
        assert gpu.max_threads_per_sm == THREADS.get(gpu.compute_capability, 2048)


@pytest.mark.parametrize("gpu", GPUS, ids=key)
def test_torch_sees_a_little_less_than_the_box_says(gpu: CatalogueGpu) -> None:
    sold = re.search(r"[-.](\d+)gb$", gpu.key)
    if sold is None or gpu.total_bytes is None:
        return
    assert 0.92 < gpu.total_bytes / (int(sold[1]) * GIB) < 1


def test_keys_are_unique_whatever_the_separators() -> None:
    assert len({re.sub(r"[-.]", "", gpu.key) for gpu in GPUS}) == len(GPUS) > 70


def test_names_are_shared_by_cards_that_differ_in_memory() -> None:
    assert {
        "NVIDIA GeForce RTX 3050",
        "NVIDIA GeForce RTX 3080",
        "NVIDIA GeForce RTX 3080 Laptop GPU",
        "NVIDIA GeForce RTX 4060 Ti",
        "NVIDIA GeForce RTX 4090",
    } == SHARED_NAMES
    assert len({(gpu.name, gpu.total_bytes) for gpu in GPUS}) == len(GPUS)


@pytest.mark.parametrize(
    ("text", "gib", "capability", "sm_count"),
    [
        ("rtx-3090", 23.56, (8, 6), 82),
        ("rtx-4090", 23.49, (8, 9), 128),
        ("a10g", 22.06, (8, 6), 80),
        ("t4", 14.56, (7, 5), 40),
        ("a100-sxm4-80gb", 79.14, (8, 0), 108),
        ("h100", 79.18, (9, 0), 132),
        ("rtx-5090", 31.35, (12, 0), 170),
    ],
)
def test_some_figures(text: str, gib: float, capability: tuple[int, int], sm_count: int) -> None:
    gpu = find_gpu(text)
    assert gpu.total_bytes is not None
    assert gpu.total_bytes / GIB == pytest.approx(gib, abs=0.006)
    assert (gpu.capability, gpu.sm_count, gpu.estimated) == (capability, sm_count, ())


def test_it_is_read_once_and_cannot_be_changed() -> None:
    assert known_gpus() is known_gpus()
    with pytest.raises(FrozenInstanceError):
        GPUS[0].name = "x"  # type: ignore[misc]


# ------------------------------------------------------------------------------- forgiving names


def respelled(text: str) -> st.SearchStrategy[str]:
    """Write a name in other cases, with other separators, or with none."""
    words = re.findall(r"[A-Za-z0-9.]+", text)
    separators = st.lists(
        st.sampled_from(["", " ", "-", "_", "  "]), min_size=len(words), max_size=len(words)
    )
    cases = st.sampled_from([str.lower, str.upper, str.title, str])
    return st.builds(
        lambda used, case: " " + case("".join(map("".join, zip(words, used, strict=True)))),
        *(separators, cases),
    )


@given(data=st.data(), gpu=st.sampled_from(GPUS))
def test_a_key_is_found_however_it_is_written(data: st.DataObject, gpu: CatalogueGpu) -> None:
    assert find_gpu(data.draw(respelled(gpu.key))) is gpu


@given(data=st.data(), gpu=st.sampled_from([gpu for gpu in GPUS if gpu.name not in SHARED_NAMES]))
def test_a_name_is_found_however_it_is_written(data: st.DataObject, gpu: CatalogueGpu) -> None:
    assert find_gpu(data.draw(respelled(gpu.name))) is gpu
    short = re.sub(r"^(NVIDIA|AMD) ", "", gpu.name)
    assert find_gpu(data.draw(respelled(short))) is gpu
    assert find_gpu(data.draw(respelled(short.replace("GeForce ", "")))) is gpu


@pytest.mark.parametrize("gpu", GPUS, ids=key)
def test_every_gpu_is_found(gpu: CatalogueGpu) -> None:
    plain = re.sub(r"^(rtx|gtx)-", "", gpu.key)
    bare = plain.replace("-", "")
    variants = [gpu.key, gpu.key.upper(), plain, bare, f"nvidia {plain}", plain.replace("-", " ")]
    if gpu.name not in SHARED_NAMES:
        variants.append(gpu.name)
    for variant in variants:
        assert find_gpu(variant) is gpu, variant


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4090", "rtx-4090"),
        ("RTX4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("4090 24gb", "rtx-4090"),
        ("4090 48GB", "rtx-4090-48gb"),
        ("NVIDIA GeForce RTX 3080 12GB", "rtx-3080-12gb"),
        ("3080-10g", "rtx-3080-10gb"),
        ("geforce 2080ti", "rtx-2080-ti"),
        ("4080 mobile", "rtx-4080-laptop"),
        ("4070 ti", "rtx-4070-ti"),
        ("4070TiSuper", "rtx-4070-ti-super"),
        ("a10", "a10"),
        ("A10G", "a10g"),
        ("l40", "l40"),
        ("a100-80g", "a100-sxm4-80gb"),
        ("a100 80gb", "a100-sxm4-80gb"),
        ("a100 80GiB", "a100-sxm4-80gb"),
        ("a100-40gb", "a100-pcie-40gb"),
        ("A100 PCIe 80GB", "a100-pcie-80gb"),
        ("a100 sxm 40gb", "a100-sxm4-40gb"),
        ("v100-32gb", "v100-sxm2-32gb"),
        ("v100 16gb", "v100-sxm2-16gb"),
        ("h100", "h100-sxm5-80gb"),
        ("h100 sxm", "h100-sxm5-80gb"),
        ("H100-80GB", "h100-sxm5-80gb"),
        ("h100 94gb", "h100-nvl"),
        ("rtx 6000 ada", "rtx-6000-ada"),
        ("rtx pro 6000", "rtx-pro-6000-server"),
        ("titan rtx", "titan-rtx"),
        ("tesla p100", "p100-pcie-16gb"),
        ("GH200 480GB", "gh200-96gb"),
        ("mi300x", "mi300x"),
        ("1050ti", "gtx-1050-ti"),
        ("GTX 1060", "gtx-1060-6gb"),
        ("1660 super", "gtx-1660-super"),
        ("NVIDIA GeForce RTX 3050 6GB", "rtx-3050-6gb"),
        ("rtx 3050 laptop", "rtx-3050-laptop-4gb"),
        ("NVIDIA GeForce RTX 3050 6GB Laptop GPU", "rtx-3050-laptop-6gb"),
        ("4090 mobile", "rtx-4090-laptop"),
        ("rtx a2000", "rtx-a2000-6gb"),
        ("a2000 12gb", "rtx-a2000-12gb"),
        ("l20", "l20"),
        ("b300", "b300"),
    ],
)
def test_what_people_write(text: str, found: str) -> None:
    assert find_gpu(text).key == found


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("3080", ["rtx-3080-10gb", "rtx-3080-12gb"]),
        ("NVIDIA GeForce RTX 3080", ["rtx-3080-10gb", "rtx-3080-12gb"]),
        ("4060 Ti", ["rtx-4060-ti-8gb", "rtx-4060-ti-16gb"]),
        ("a100-sxm4", ["a100-sxm4-40gb", "a100-sxm4-80gb"]),
        ("gh200", ["gh200-96gb", "gh200-144gb"]),
        ("rtx-3050", ["rtx-3050-8gb", "rtx-3050-6gb"]),
        ("3080 mobile", ["rtx-3080-laptop-8gb", "rtx-3080-laptop-16gb"]),
    ],
)
def test_several_are_asked_back(text: str, choices: list[str]) -> None:
    with pytest.raises(UsageError, match="can be several GPUs") as caught:
        find_gpu(text)
    assert caught.value.hint == f"write `{choices[0]}` or `{choices[1]}`"
    assert [line.split(":")[0] for line in caught.value.detail.splitlines()] == choices
    for choice in choices:
        assert find_gpu(choice).key == choice


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("rtx-4091", "rtx-4090"),
        ("4090ti", "rtx-4090"),
        ("h2000", "h200"),
        ("rtx 6000", "rtx-6000-ada"),
        ("mi300", "mi300x"),
        ("gtx titan x", "titan-x-pascal"),
        ("titan", "titan-rtx"),
    ],
)
def test_a_miss_names_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UsageError, match="is not a GPU that bsfind knows") as caught:
        find_gpu(text)
    assert "did you mean" in caught.value.hint
    assert f"`{near}`" in caught.value.hint
    assert "`bsfind gpus`" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("foo-6gb", "6GiB"),
        ("rtx-2060-12gb", "12GiB"),
        ("arc a770 16GB", "16GiB"),
        ("mystery 80 GiB", "80GiB"),
        ("card_24g", "24GiB"),
    ],
)
def test_a_miss_with_a_size_offers_the_size(text: str, size: str) -> None:
    with pytest.raises(UsageError, match="is not a GPU that bsfind knows") as caught:
        find_gpu(text)
    assert f"`--gpu {size}`" in caught.value.hint
    assert find_gpu(size).generic


@pytest.mark.parametrize("text", ["foo-0gb", "foo-9999gb", "foo-6gbx", "foo-1.5gb", "gb6"])
def test_what_is_no_size_is_not_offered(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu(text)
    assert "`--gpu" not in caught.value.hint


@pytest.mark.parametrize("text", ["", "  ", "nvidia", "rtx", "-", "zzzzzzz", "²", "24"])
def test_a_miss_without_a_nearest(text: str) -> None:
    with pytest.raises(UsageError, match="is not a GPU that bsfind knows") as caught:
        find_gpu(text)
    assert "`bsfind gpus`" in caught.value.hint


@given(text=st.text(max_size=30))
def test_any_text_finds_a_gpu_or_is_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert find_gpu(text).key


# ------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * GIB),
        (" 24 gib ", 24 * GIB),
        ("24GB", 24 * 10**9),
        ("80gb", 80 * 10**9),
        ("1.5GiB", 3 * GIB // 2),
        ("512MiB", 512 * MIB),
        (str(24 * GIB), 24 * GIB),
    ],
)
def test_a_size_is_a_generic_card(text: str, size: int) -> None:
    gpu, like = find_gpu(text), find_gpu(DEFAULT_GPU)
    assert gpu.generic
    assert (gpu.total_bytes, gpu.estimated) == (size, ())
    assert (gpu.compute_capability, gpu.sm_count, gpu.max_threads_per_sm) == ("8.9", 128, 1536)
    assert (gpu.capability, gpu.sm_count) == (like.capability, like.sm_count)
    assert gpu not in known_gpus()
    assert find_gpu(gpu.key) == gpu


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("24G", "write `24GiB` (binary) or `24GB` (decimal)"),
        ("1.5", "write `1.5GiB`"),
        ("0GiB", "is not the memory of a GPU"),
        ("5KiB", "is not the memory of a GPU"),
        ("99999TiB", "is not the memory of a GPU"),
        ("9" * 400 + ".5GiB", "is not the memory of a GPU"),
    ],
)
def test_a_wrong_size(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        find_gpu(text)
