"""What a model and the user's code keep between steps is set back, and what is replaced is not held."""

from __future__ import annotations

import functools
import gc
import random
import sys
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from bsfind.workload.state import DeviceValues, State

META = torch.device("meta")


class Tracker:
    def __init__(self) -> None:
        self.seen = 0
        self.past: list[torch.Tensor] = []


class Model(nn.Module):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("queue", torch.zeros(3, 2))
        self.count, self.flag, self.cache = 0, False, None
        self.past: list[Any] = []
        self.recent: deque[int] = deque([1, 2], maxlen=2)
        self.sums: Counter[str] = Counter()
        self.order: OrderedDict[str, int] = OrderedDict(a=1, b=2)
        self.by_size: defaultdict[int, list[int]] = defaultdict(list)
        self.tracker = Tracker()
        self.nested = ({"steps": [0]},)
        self.draw = random.Random(3)
        self.host = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.flag = True
        self.cache = x
        self.late = x  # an attribute that it did not have
        self.past.append(x)
        self.recent.append(self.count)
        self.sums["steps"] += 1
        self.order["c"] = 3
        self.order.move_to_end("a")
        self.by_size[len(x)].append(1)
        self.tracker.seen += 1
        self.tracker.past = [*self.tracker.past, x]
        self.nested[0]["steps"][0] += 1
        self.draw.random()
        self.host += 1
        self.queue = torch.cat([self.queue, x])[-3:].detach()
        Model.made += 1
        result: torch.Tensor = self.layer(self.norm(x))
        return result


def state_of(model: Model) -> dict[str, Any]:
    kept = ["count", "flag", "cache", "past", "recent", "sums", "order", "by_size", "nested"]
    return {
        **{name: repr(getattr(model, name)) for name in kept},
        "late": hasattr(model, "late"),
        "tracker": repr(vars(model.tracker)),
        "draw": model.draw.getstate(),
        "buffers": [buffer.tolist() for buffer in model.buffers()],
        "host": model.host.tolist(),
        "order of keys": list(model.order),
        "made": Model.made,
    }


def test_a_model_begins_every_trial_afresh() -> None:
    model = Model()
    before, queue = state_of(model), model.queue
    state = State(model, DeviceValues(torch.device("cpu")))
    for _ in range(2):
        for _ in range(3):
            model(torch.ones(4, 2))
        assert state_of(model)["count"] == "3"
        weakly = weakref.ref(model.past[0])
        assert state.restore()
        assert state_of(model) == before
        assert model.queue is queue
        gc.collect()
        assert weakly() is None


class Opaque:
    """Raises whatever it is asked for."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_objects_that_cannot_be_asked_are_passed_over() -> None:
    model = Model()
    model.tracker.opaque = Opaque()
    model.tracker.without_values = torch.empty(2, device="meta")
    state = State(model, DeviceValues(torch.device("cpu")))
    model(torch.ones(4, 2))
    assert state.restore()
    assert model.count == 0


def test_weights_stay_as_they_are() -> None:
    model = nn.Linear(2, 2)
    state = State(model, DeviceValues(torch.device("cpu")))
    with torch.no_grad():
        model.weight.add_(1)
    after = model.weight.tolist()
    assert state.restore()
    assert model.weight.tolist() == after


@pytest.fixture
def file() -> Any:
    """A file of the user's."""
    module = ModuleType("file_of_the_user")
    module.__file__ = "/somewhere/file_of_the_user.py"
    sys.modules[module.__name__] = module
    source = """
import functools
COUNT, PAST, REGISTERED = 0, [], False

class Settings:
    steps = 0

@functools.lru_cache
def mask(size):
    return [size]

def closed():
    count = 0
    def step():
        nonlocal count
        count += 1
        return count
    return step

counted = closed()

def step(seen=[]):
    global COUNT, REGISTERED, LATE
    COUNT += 1
    REGISTERED = True
    LATE = [1]
    PAST.append(COUNT)
    Settings.steps += 1
    step.calls = COUNT
    seen.append(COUNT)
    mask(COUNT)
    return COUNT, len(PAST), Settings.steps, len(seen), counted(), mask.cache_info().currsize
"""
    exec(source, vars(module))
    yield module
    del sys.modules[module.__name__]


def test_the_file_of_the_user_too(file: Any) -> None:
    state = State(nn.Identity(), DeviceValues(torch.device("cpu")), (file.step,))
    first = file.step()
    for _ in range(2):
        assert file.step() != first
        assert state.restore()
        assert not hasattr(file.step, "calls")
        assert not hasattr(file, "LATE")
        assert file.REGISTERED  # what was done once for the process is not done again
        assert file.step() == first


def test_what_belongs_to_an_object_that_stays_is_not_removed(file: Any) -> None:
    source = """
ITERATOR = None
def batch(size):
    global ITERATOR, SIZE
    if ITERATOR is None or SIZE != size:
        ITERATOR, SIZE = iter([size] * 10), size
    return next(ITERATOR)
"""
    exec(source, vars(file))
    state = State(nn.Identity(), DeviceValues(torch.device("cpu")), (file.batch,))
    for size in (3, 3, 4):
        assert file.batch(size) == size
        assert state.restore()


class OnDevice(nn.Module):
    def __init__(self, change: Callable[[OnDevice], None]) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(3, device=META))
        self.other = self.queue
        self.change = change


class Known(DeviceValues):
    """Values of tensors that have none."""

    def __init__(self, *, are_whole: bool) -> None:
        super().__init__(META)
        self.are_whole = are_whole
        self.written: list[torch.Tensor] = []

    def read(self, tensor: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros(tensor.shape)

    def write(self, tensor: torch.Tensor, copy: torch.Tensor) -> None:
        self.written.append(tensor)


@pytest.mark.parametrize("are_whole", [True, False])
def test_a_tensor_on_the_gpu_that_is_replaced_is_not_held(*, are_whole: bool) -> None:
    """What a trial has not got any more would count as its memory."""
    model = OnDevice(lambda _: None)
    state = State(model, Known(are_whole=are_whole))
    first = weakref.ref(model.queue)
    model.queue = model.other = torch.ones(3, device=META)
    assert first() is None
    assert state.restore() is are_whole
    if are_whole:
        assert model.queue is model.other
        assert state.restore()


def test_the_values_of_buffers_on_the_gpu_are_written_back() -> None:
    values = Known(are_whole=False)
    model = OnDevice(lambda _: None)
    assert State(model, values).restore()
    assert any(written is model.queue for written in values.written)


def test_what_cannot_be_set_back_asks_for_a_fresh_model() -> None:
    class Fixed(list[int]):
        def clear(self) -> None:
            raise TypeError("fixed")

    model = nn.Identity()
    model.kept = Fixed()
    state = State(model, DeviceValues(torch.device("cpu")))
    model.kept.append(1)
    assert not state.restore()


def test_functools_is_left_alone() -> None:
    state = State(nn.Identity(), DeviceValues(torch.device("cpu")), (functools.reduce,))
    assert state.restore()
