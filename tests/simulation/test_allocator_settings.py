"""The allocator's options, as PyTorch reads them from the environment."""

import sys

import pytest

from bsfind.simulation.allocator.alloc_conf import AllocatorSettings


def read(text, torch_version="2.13.0"):
    return AllocatorSettings.from_environment({"PYTORCH_CUDA_ALLOC_CONF": text}, torch_version)


def test_defaults():
    assert AllocatorSettings.from_environment({}, "2.13") == AllocatorSettings()
    assert AllocatorSettings().large_segment_bytes == 20 << 20
    assert AllocatorSettings().max_split_bytes == sys.maxsize
    assert AllocatorSettings().max_non_split_rounding_bytes == 20 << 20


def test_all_that_changes_the_model():
    settings = read(
        "expandable_segments:True, max_split_size_mb:64,max_non_split_rounding_mb:32,"
        "garbage_collection_threshold:0.8,large_segment_size_mb:30,roundup_power2_divisions:8"
    )
    assert settings == AllocatorSettings(
        torch_version="2.13.0",
        expandable_segments=True,
        max_split_size_mb=64,
        max_non_split_rounding_mb=32,
        garbage_collection_threshold=0.8,
        large_segment_size_mb=30,
        roundup_power2_divisions=(8,) * 16,
    )
    assert settings.max_split_bytes == 64 << 20
    assert settings.max_non_split_rounding_bytes == 32 << 20


@pytest.mark.parametrize(
    ("text", "divisions"),
    [
        ("[256:1,512:2,1024:4,>:8]", (1,) * 8 + (1, 2, 4) + (8,) * 5),
        ("[1:2,4:8]", (2, 0, 8) + (0,) * 13),
        ("[65536:4]", (4,) * 16),
        ("[64:0,>:2]", (0,) * 7 + (2,) * 9),
    ],
)
def test_divisions_by_size(text, divisions):
    settings = read(f"roundup_power2_divisions:{text},expandable_segments:True")
    assert settings.roundup_power2_divisions == divisions
    assert settings.expandable_segments


@pytest.mark.parametrize(
    "text",
    [
        "expandable_segments:true",
        "max_split_size_mb:10",
        "max_split_size_mb:many",
        "large_segment_size_mb:10",
        "large_segment_size_mb:30,max_split_size_mb:25",
        "garbage_collection_threshold:0",
        "garbage_collection_threshold:1.0",
        "roundup_power2_divisions:0",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:[3:4]",
        "roundup_power2_divisions:[4]",
    ],
)
def test_values_that_pytorch_refuses(text):
    with pytest.raises(ValueError, match=text.rpartition(",")[2].partition(":")[0]):
        read(text)


@pytest.mark.parametrize(
    ("text", "unsupported"),
    [
        ("backend:native,pinned_use_background_threads:True", ()),
        ("per_process_memory_fraction:1.0,throw_on_cudamalloc_oom:False", ()),
        ("release_lock_on_cudamalloc:True", ()),
        ("backend:cudaMallocAsync", ("backend",)),
        ("per_process_memory_fraction:0.5", ("per_process_memory_fraction",)),
        ("brand_new:1,max_split_size_mb:64,newer", ("brand_new", "newer")),
    ],
)
def test_what_the_model_does_not_follow_is_named(text, unsupported):
    assert read(text).unsupported == unsupported


def test_no_caching_at_all_is_not_modelled():
    settings = AllocatorSettings.from_environment({"PYTORCH_NO_CUDA_MEMORY_CACHING": "0"}, "2.13")
    assert settings.unsupported == ("PYTORCH_NO_CUDA_MEMORY_CACHING",)


@pytest.mark.parametrize(
    ("environment", "torch_version", "large_segment_size_mb"),
    [
        ({"PYTORCH_ALLOC_CONF": "large_segment_size_mb:40"}, "2.13.0+cu130", 40),
        ({"PYTORCH_ALLOC_CONF": "large_segment_size_mb:40"}, "2.8.0", 20),
        (
            {
                "PYTORCH_ALLOC_CONF": "large_segment_size_mb:40",
                "PYTORCH_CUDA_ALLOC_CONF": "large_segment_size_mb:60",
            },
            "2.13.0",
            60,
        ),
        (
            {
                "PYTORCH_ALLOC_CONF": "large_segment_size_mb:40",
                "PYTORCH_CUDA_ALLOC_CONF": "",
            },
            "2.13.0",
            20,
        ),
    ],
)
def test_which_variable_counts(environment, torch_version, large_segment_size_mb):
    settings = AllocatorSettings.from_environment(environment, torch_version)
    assert settings.large_segment_size_mb == large_segment_size_mb


@pytest.mark.parametrize(
    ("torch_version", "rule"),
    [
        ("2.6.0", "address"),
        ("2.11.0+cu130", "address"),
        ("2.12.1", "block"),
        ("2.13.0", "segment"),
        ("3.0.0a0+git1234", "segment"),
    ],
)
def test_tie_rule(torch_version, rule):
    assert AllocatorSettings(torch_version=torch_version).tie_rule == rule


def test_a_version_is_needed():
    with pytest.raises(ValueError, match="`main` is not a version"):
        AllocatorSettings(torch_version="main")


def test_number_of_divisions():
    with pytest.raises(ValueError, match="16 values"):
        AllocatorSettings(roundup_power2_divisions=(4,))


def test_what_differs_from_the_defaults() -> None:
    assert AllocatorSettings(torch_version="2.11").changed() == {}
    changed = AllocatorSettings.from_environment(
        {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64,roundup_power2_divisions:4,backend:x"},
        torch_version="2.13",
    ).changed()
    assert changed == {
        "max_split_size_mb": 64,
        "roundup_power2_divisions": [4] * 16,
        "unsupported": ["backend"],
    }
