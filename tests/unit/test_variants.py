"""What `--compare` changes."""

from __future__ import annotations

import dataclasses

import pytest
from example_report import SETTINGS

from bsfind.search.request import why_pointless
from bsfind.search.variants import (
    remedied,
    variables_of,
    why_unsupported,
    with_expandable_segments,
)
from bsfind.settings import REMEDIES
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings

BOTH = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize("remedy", REMEDIES)
def test_every_remedy_changes_the_step_or_the_environment(remedy: str) -> None:
    asked = dataclasses.replace(SETTINGS, compare=tuple(REMEDIES))
    tried = remedied(asked, remedy, "amp-bf16")
    assert (tried.workload != SETTINGS.workload) != bool(variables_of(remedy, {}))
    assert tried.precisions == ("amp-bf16",)
    assert tried.remedy == remedy
    assert tried.compare == ()
    assert why_pointless(SETTINGS.workload, remedy) is None


def test_what_is_on_already_is_nothing_to_compare() -> None:
    on = dataclasses.replace(SETTINGS.workload, grad_checkpoint=True, optimizer="sgd")
    for remedy in ("checkpointing", "sgd"):
        assert "changes nothing" in (why_pointless(on, remedy) or "")
    inference = dataclasses.replace(SETTINGS.workload, mode="infer")
    assert "--mode infer" in (why_pointless(inference, "checkpointing") or "")


def test_what_a_prediction_cannot_tell() -> None:
    assert why_unsupported("compile", simulated=True)
    assert why_unsupported("compile", simulated=False) is None
    assert why_unsupported("checkpointing", simulated=True) is None


@pytest.mark.parametrize("version", ["2.6.0", "2.8.0", "2.9.0", "2.13.0"])
@pytest.mark.parametrize("name", BOTH)
def test_other_options_of_the_allocator_stay(name: str, version: str) -> None:
    before = {name: "max_split_size_mb:128,expandable_segments:False"}
    known = AllocatorSettings.from_environment(before, version)
    after = AllocatorSettings.from_environment(
        {**before, **with_expandable_segments(before)}, version
    )
    assert after.expandable_segments
    if known.max_split_size_mb is not None:  # a torch that reads this name
        assert after.max_split_size_mb == known.max_split_size_mb == 128


def test_without_options_there_is_this_one() -> None:
    assert with_expandable_segments({}) == dict.fromkeys(BOTH, "expandable_segments:True")
