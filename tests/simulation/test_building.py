"""Models are built without the memory of their weights, and ties survive whatever moves them."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from tests.models import built
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.errors import UntraceableError, UsageError
from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.trace import building
from bsfind.simulation.trace.tracer import Tracer

MODELS = Path(__file__).parents[1] / "models" / "built.py"
A100 = GPU_SPECS["a100"]
FLOATS = InputSpec(shape=(8,), dtype="float32")
IMAGES = InputSpec(shape=(3, 8, 8), dtype="float32")
TOKENS = InputSpec(name="x", shape=(5,), dtype="int64", low=0, high=1000)
GIB = 1 << 30


def tracer(attribute: str, spec: InputSpec = FLOATS, **arguments: str) -> Tracer:
    workload = Workload(
        target=f"{MODELS}:{attribute}", inputs=(spec,), model_args=tuple(arguments.items())
    )
    return Tracer(workload, "fp32", A100)


def sizes_on_gpu(opened: Tracer) -> list[int]:
    """Return the sizes of what the model keeps on the GPU."""
    sizes: dict[int, int] = {}
    for event in opened.model_program().load_events:
        if event >= 0:
            sizes[len(sizes)] = event
        else:
            sizes[-event - 1] = 0
    return sorted(size for size in sizes.values() if size)


@contextlib.contextmanager
def within(nbytes: int) -> Iterator[None]:
    """Let this process allocate no more than `nbytes` beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_inputs_that_are_not_known_are_told_before_weights_take_memory() -> None:
    workload = Workload(
        target="torch.nn:Bilinear",
        model_args=(
            ("in1_features", "10000"),
            ("in2_features", "10000"),
            ("out_features", "1000"),
        ),
    )
    with pytest.raises(UsageError, match="the inputs of `Bilinear` are not known"):
        Tracer(workload, "fp32", A100)


@pytest.mark.parametrize("move", built.MOVES)
def test_ties_survive_each_move(move: str) -> None:
    with tracer("TiedAndMoved", TOKENS, move=move) as opened:
        assert opened.notes == {}
        assert opened.parameters == 64_000
        assert sizes_on_gpu(opened) == [256_000]


@pytest.mark.parametrize("how", ["dict", "new", "held", "afterwards"])
@pytest.mark.parametrize("move", ["to_cpu", "there_and_back"])
def test_ties_survive_however_they_are_made(how: str, move: str) -> None:
    with tracer("TiedAndMoved", TOKENS, how=how, move=move) as opened:
        assert opened.parameters == 64_000
        assert sizes_on_gpu(opened) == [256_000]
        assert opened.notes == {}


@pytest.mark.parametrize(
    ("how", "move"),
    [
        *(("values", move) for move in ("to_cpu", "cuda", "there_and_back", "half_float")),
        ("held values", "to_cpu"),
    ],
)
def test_ties_survive_a_build_in_memory_which_is_told(how: str, move: str) -> None:
    with tracer("TiedAndMoved", TOKENS, how=how, move=move) as opened:
        assert opened.parameters == 64_000
        assert sizes_on_gpu(opened) == [256_000]
        note = opened.notes["built_in_host_memory"]
    assert "KiB of the host's memory" in note
    assert "aten::nonzero" in note


def test_copies_of_blocks_are_weights_of_their_own() -> None:
    with tracer("Copied") as opened:
        assert opened.notes == {}
        assert opened.parameters == 3 * (8 * 8 + 3 * 8)


def test_parametrizations_need_no_second_build() -> None:
    with tracer("Parametrized") as opened:
        assert opened.notes == {}
        assert opened.program(4, 2).trial_events


def test_a_model_that_tries_itself_needs_no_second_build() -> None:
    with tracer("TriesItself", IMAGES) as opened:
        assert opened.notes == {}
        assert opened.parameters == 8 * 27 + 8 + 16 + 8 * 36 * 2 + 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is one of Linux")
@pytest.mark.parametrize(
    "made",
    [
        *("linear", "embedding", "scaled", "initialised", "legacy", "pretrained", "joined"),
        *("scattered", "positions", "mask"),
    ],
)
def test_one_tensor_may_be_larger_than_the_hosts_memory(made: str) -> None:
    with within(2 * GIB), tracer("Large", made=made) as opened:
        assert opened.notes == {}
        assert sizes_on_gpu(opened)[-1] >= 4 * built.N**2
        assert opened.program(4, 2).trial_events


def test_the_host_is_asked_before_a_model_is_built_in_its_memory() -> None:
    with pytest.raises(UntraceableError, match=r"its weights take 14\.6 TiB or more") as caught:
        tracer("NeedsValuesOfMuch")
    assert "aten::nonzero" in caught.value.detail


def test_a_build_in_memory_stops_before_the_host_has_none_left() -> None:
    with (
        mock.patch.object(building, "available_host_bytes", return_value=200_000),
        pytest.raises(UntraceableError, match=r"500\.0 KiB or more, and 195\.3 KiB are free"),
    ):
        tracer("TiedAndMoved", TOKENS, how="values")


def test_a_large_table_of_a_module_is_on_the_host_for_each_tracer() -> None:
    for _ in range(2):
        with tracer("UsesATableOfItsModule") as opened:
            assert sizes_on_gpu(opened)[-1] == 36_000_000


def test_what_a_step_takes_at_any_batch_size() -> None:
    with tracer("Copied") as opened:
        fixed = opened.fixed_memory()
        before = opened.program(4, 2).trial_events
        assert opened.fixed_memory() == fixed
        assert opened.program(5, 2).trial_events
        assert opened.program(4, 2, exact=True).trial_events == before
    weights = 4 * 3 * (8 * 8 + 3 * 8)
    assert (fixed.parameter_bytes, fixed.gradient_bytes) == (weights, weights)
    assert fixed.optimizer_bytes == 2 * weights
    assert fixed.against(1024).endswith("= 4.1 KiB, and the card has 1.0 KiB for it")
    assert torch.cuda.is_available() is False


def test_weights_that_wrap_other_tensors_stay_what_they_are() -> None:
    try:
        opened = tracer("quantized")
    except UntraceableError as error:
        assert "an assertion of its own failed" in error.message  # noqa: PT017
        assert torch.__version__ < "2.13"
        return
    with opened:
        sizes = sizes_on_gpu(opened)
        assert opened.program(4, steps=2).trial_events
        assert "weights of the class `Int8` wrap" in opened.notes["built_in_host_memory"]
    biases = 4 * 1000
    assert sorted(sizes) == sorted([8 * 1000, 4 * 1000, biases, 4 * 1000, 4])
