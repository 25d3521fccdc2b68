"""How exact predictions are: what the file says, for whom it holds, and why there is no bound."""

from __future__ import annotations

import pytest

from bsfind.records import Accuracy, ErrorBound
from bsfind.simulation.gpus.accuracy import ComparedRelease, Measured, measured
from bsfind.simulation.torch_releases import cuda_and_cudnn

BOUND = ErrorBound(median=0.0, p95=0.01)
ACCURACY = Accuracy(runs=60, against="torch 2.13.0", allocated=BOUND, reserved=BOUND)
MEASURED = Measured(torch="2.13", kinds={"convolutional": ACCURACY})


@pytest.mark.parametrize("version", ["2.13.0", "2.13.1+cpu", "2.13.0a0+gitabc"])
def test_a_bound_is_for_the_version_that_it_was_measured_on(version: str) -> None:
    assert MEASURED.accuracy("convolutional", version) == ACCURACY
    assert MEASURED.why_not("convolutional", version) is None


@pytest.mark.parametrize(
    ("version", "named"), [("2.9.1", "2.9"), ("2.12.0+cu130", "2.12"), ("2.14.0.dev1", "2.14")]
)
def test_another_version_has_none(version: str, named: str) -> None:
    assert MEASURED.accuracy("convolutional", version) is None
    why = MEASURED.why_not("convolutional", version)
    assert why == f"not measured for torch {named} (measured for 2.13)"


def test_predictions_that_ask_cudnn_have_a_bound_of_their_own() -> None:
    asked = Accuracy(
        runs=70, against="torch 2.13.0", allocated=BOUND, reserved=BOUND, asks_cudnn=True
    )
    found = Measured(
        torch="2.13",
        kinds={"convolutional": ACCURACY, "attention": ACCURACY},
        kinds_asked={"convolutional": asked},
    )
    assert found.accuracy("convolutional", "2.13.0") == ACCURACY
    assert found.accuracy("convolutional", "2.13.0", asks_cudnn=True) == asked
    assert found.accuracy("attention", "2.13.0", asks_cudnn=True) == ACCURACY
    assert found.accuracy("convolutional", "2.14.0", asks_cudnn=True) is None


def test_a_release_that_was_compared_says_so_and_has_no_bound_either() -> None:
    largest = {"allocated": 0.05649, "reserved": 0.0}
    compared = ComparedRelease(
        against="torch 2.9.1 on a fake GPU", runs=60, exact=59, largest=largest
    )
    found = Measured(torch="2.13", kinds={"attention": ACCURACY}, releases={"2.9": compared})
    assert found.accuracy("attention", "2.9.0") is None
    assert str(found.compared_release("2.9.0+cpu")) == (
        "59 of 60 small test models are exact, the largest errors are 5.6 % allocated and 0 % reserved, "
        "against torch 2.9.1 on a fake GPU"
    )
    assert found.compared_release("2.8.0") is None


def test_a_trace_of_another_release_is_looked_up_by_both() -> None:
    largest = {"allocated": 0.0, "reserved": 0.0}
    compared = ComparedRelease(
        against="torch 2.9.1 on a fake GPU", runs=60, exact=60, largest=largest
    )
    found = Measured(torch="2.13", kinds={}, traces={"2.13": {"2.9": compared}})
    assert found.compared_traces("2.13.1+cpu") == {"2.9": compared}
    assert found.compared_traces("2.9.1") == {}  # not the other way round
    assert found.compared_release("2.9.1") is None


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ((2, 5), ("12.4", 90100)),
        ((2, 6), ("12.4", 90100)),
        ((2, 10), ("12.8", 91002)),
        ((2, 13), ("13.0", 92000)),
        ((2, 14), ("13.0", 92400)),
        ((3, 0), ("13.0", 92400)),
    ],
)
def test_the_libraries_of_a_release(release: tuple[int, int], expected: tuple[str, int]) -> None:
    """As the metadata of the wheels on PyPI say."""
    assert cuda_and_cudnn(release) == expected


@pytest.mark.parametrize("version", ["2.13.0", "2.9.0"])
def test_recurrent_layers_have_none(version: str) -> None:
    assert MEASURED.accuracy("recurrent", version) is None
    assert "not compared with cuDNN" in (MEASURED.why_not("recurrent", version) or "")


def test_a_kind_that_was_not_measured_has_none() -> None:
    assert MEASURED.accuracy("attention", "2.13.0") is None
    assert MEASURED.why_not("attention", "2.13.0") == "not measured for attention models"


def test_the_file_that_comes_with_bsfind() -> None:
    found = measured()
    assert found.torch == "2.13"
    assert set(found.kinds) == {"convolutional", "attention"}
    assert {"2.9", "2.11"} <= set(found.compared_traces("2.13.0"))
    for accuracy in found.kinds.values():
        assert accuracy.runs > 100
        assert accuracy.against.startswith("torch 2.13.")
        for bound in (accuracy.allocated, accuracy.reserved):
            assert 0 <= bound.median <= bound.p95
    assert "too few" in (found.why_not("other", "2.13.0") or "")
    assert found.torch not in found.releases
    for compared in found.releases.values():
        assert 0 < compared.exact <= compared.runs
