"""How many samples the user's code delivered: counted in batches of many layouts, compared over sizes."""

from __future__ import annotations

import random
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from bsfind.errors import ShortBatchError, TargetError
from bsfind.settings import Workload
from bsfind.workload.delivery import Deliveries, Delivery, Extents, extents_of

CAP = 1000


@dataclass
class Fields:
    x: torch.Tensor
    name: str = "fields"


def graphs(n: int) -> Any:
    """A batch as PyTorch Geometric's: nodes of all graphs behind one another, random ones."""
    draw = random.Random(n)
    nodes = sum(draw.randrange(3, 30) for _ in range(n))
    store = SimpleNamespace(_mapping={"x": torch.zeros(nodes, 4), "edges": torch.zeros(2, nodes)})
    return SimpleNamespace(_store=store, num_graphs=n)


def tokens(n: int) -> torch.Tensor:
    draw = random.Random(n)
    return torch.zeros(sum(draw.randrange(3, 30) for _ in range(n)))


LAYOUTS: dict[str, Callable[[int], Any]] = {
    "tensor": lambda n: torch.zeros(n, 8),
    "labels alone": lambda n: torch.zeros(n),
    "nested": lambda n: {"inputs": [torch.zeros(1, 4), {"x": (torch.zeros(n, 8),)}]},
    "mapping": lambda n: UserDict(input_ids=torch.zeros(n, 8)),
    "dataclass": lambda n: Fields(torch.zeros(n, 3, 4, 4)),
    "time first": lambda n: torch.zeros(20, n, 8),
    "packed": lambda n: pack_padded_sequence(torch.zeros(20, n, 2), torch.tensor([20] * n)),
    "list of tensors": lambda n: [torch.zeros(3, 4, 4) for _ in range(n)],
    "list of texts": lambda n: ["text"] * n,
    "graph count": graphs,
    "batch_size": lambda n: SimpleNamespace(batch_size=torch.Size([n]), x=torch.zeros(3)),
    "nested tensor": lambda n: torch.nested.nested_tensor(
        [torch.zeros(2)] * n, layout=torch.jagged
    ),
    "flat nodes": lambda n: torch.zeros(17 * n, 4),
    "views": lambda n: torch.zeros(2 * n, 8),
    "half": lambda n: torch.zeros(-(-n // 2), 8),
}
EXACT = [name for name in LAYOUTS if name != "half"]


def checked(make: Callable[[int], Any], asked: int, delivery: Delivery | None = None) -> Delivery:
    delivery = delivery or Delivery("`data:batch`")

    def probe(size: int) -> Extents:
        return extents_of([make(size)], {})

    delivery.check(asked, probe(asked), probe)
    return delivery


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_asked_for_is_delivered(layout: str) -> None:
    delivery = Delivery("`data:batch`")
    for asked in (5, 997, 12_329, 2000, 1):
        checked(LAYOUTS[layout], asked, delivery)
        checked(LAYOUTS[layout], asked)


@pytest.mark.parametrize("layout", EXACT)
@pytest.mark.parametrize("asked", [1001, 1500, 12_329])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_batch_that_does_not_grow_is_short(layout: str, asked: int, is_first: bool) -> None:
    def capped(n: int) -> Any:
        return LAYOUTS[layout](min(n, CAP))

    delivery = Delivery("`data:batch`")
    if not is_first:
        checked(capped, 5, delivery)
        checked(capped, 701, delivery)
    with pytest.raises(
        ShortBatchError, match=f"asked for {asked:,} samples and delivered"
    ) as caught:
        checked(capped, asked, delivery)
    assert caught.value.delivered == CAP
    checked(capped, CAP, delivery)


def test_random_numbers_of_tokens_that_do_not_grow() -> None:
    delivery = Delivery("`data:batch`")
    for asked in (5, 701, 5000):
        checked(tokens, asked, delivery)
    with pytest.raises(ShortBatchError) as caught:
        checked(lambda n: tokens(min(n, CAP)), 12_329, delivery)
    assert caught.value.delivered == pytest.approx(CAP, rel=0.05)


@pytest.mark.parametrize("asked", [5, 997, 12_329])
@pytest.mark.parametrize("shape", [(7, 8), (64, 3, 4, 4), (1, 8)])
def test_a_batch_that_is_always_the_same_is_refused(asked: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(TargetError, match=rf"ignores the batch size: {asked:,} .*\({shape[0]}\)"):
        checked(lambda _: torch.zeros(shape), asked)


def test_the_one_size_of_a_constant_batch_is_delivered() -> None:
    checked(lambda _: torch.zeros(7, 8), 7)


@pytest.mark.parametrize("asked", [5, 1005, 1009])
def test_a_size_that_is_rounded_is_not_the_end(asked: int) -> None:
    with pytest.raises(ShortBatchError) as caught:
        checked(lambda n: torch.zeros(n - n % 8, 3), asked)
    assert caught.value.delivered is None
    checked(lambda n: torch.zeros(n - n % 8, 3), 1008)


PADDED: dict[str, Callable[[int], int]] = {
    "to 8": lambda n: -(-n // 8) * 8,
    "to 64": lambda n: -(-n // 64) * 64,
    "to a power of two": lambda n: 1 << (n - 1).bit_length(),
    "by one": lambda n: n + 1,
}
ORDERS = [(5, 64, 1000, 4000), (5, 11, 23, 257, 1535), (4096, 100, 300), (17, 345, 6000)]


@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_batch_that_is_padded(padding: str, order: tuple[int, ...]) -> None:
    padded, cap = PADDED[padding], 701
    whole, capped = Delivery("`data:batch`"), Delivery("`data:batch`")
    for asked in order:
        checked(lambda n: torch.zeros(padded(n), 8), asked, whole)
        delivered: int | None = asked
        try:
            checked(lambda n: torch.zeros(padded(min(n, cap)), 8), asked, capped)
        except ShortBatchError as error:
            delivered = error.delivered
        assert delivered is not None
        assert min(asked, cap) <= delivered <= padded(cap)


def test_an_end_that_is_near_is_found_at_the_end() -> None:
    for asked in (3, 17, 40):
        checked(lambda n: torch.zeros(9 * min(n, 50), 8), asked)
    with pytest.raises(ShortBatchError) as caught:
        checked(lambda n: torch.zeros(9 * min(n, 50), 8), 900)
    assert caught.value.delivered == 50


def test_a_number_that_was_never_the_samples_is_not_at_another_size() -> None:
    delivery = Delivery("`data:batch`")

    def make(n: int) -> Any:
        return {"x": torch.zeros(min(n, 500), 8), "queue": torch.zeros(4096, 8)}

    checked(make, 5, delivery)
    with pytest.raises(ShortBatchError) as caught:
        checked(make, 4096, delivery)
    assert caught.value.delivered == 500


def test_a_loader_that_drops_its_only_batch_delivers_none() -> None:
    delivery = Delivery("`data:batch`")

    def make(n: int) -> Any:
        return torch.zeros(n if n <= CAP else 0, 8)

    checked(make, 5, delivery)
    with pytest.raises(ShortBatchError, match="asked for 1,889 samples and delivered 0") as caught:
        checked(make, 1889, delivery)
    assert caught.value.delivered is None


def test_rows_for_each_sample_are_named() -> None:
    assert checked(LAYOUTS["views"], 997).rows == 2
    assert checked(LAYOUTS["tensor"], 997).rows is None


def test_a_batch_without_another_to_compare_is_not_judged() -> None:
    Delivery("`data:batch`").check(10, extents_of([torch.zeros(3)], {}), lambda _: None)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x[:3])


STEPS: dict[str, tuple[Callable[[nn.Module, torch.Tensor], Any], int | None]] = {
    "whole": (lambda model, x: model(x=x), None),
    "chunks": (lambda model, x: [model(part) for part in x.split(64)], None),
    "two views": (lambda model, x: (model(x), model(-x)), None),
    "part": (lambda model, x: model(x[:300]), 300),
    "chunks of a part": (lambda model, x: [model(part) for part in x[:300].split(64)], 300),
    "a part of it": (lambda model, x: model.inner(x[:300]), 300),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_a_step_passes_to_modules(name: str) -> None:
    step, delivered = STEPS[name]
    model = Outer()
    deliveries = Deliveries(Workload(target="a:B", step="a:step"))

    def run(size: int) -> Extents:
        deliveries.begin()
        with deliveries.watching():
            step(model, torch.zeros(size, 8))
        return deliveries.of_step

    def probe(size: int) -> Extents:
        before = deliveries.of_step
        found = run(size)
        deliveries.of_step = before
        return found

    for asked in (5, 997):
        run(asked)
        if delivered is None or asked <= delivered:
            assert deliveries.check(asked, probe, probe) is None
            continue
        with pytest.raises(ShortBatchError) as caught:
            deliveries.check(asked, probe, probe)
        assert caught.value.delivered == delivered


def test_a_step_with_a_batch_of_its_own_is_told() -> None:
    deliveries = Deliveries(Workload(target="a:B", step="a:step"))

    def probe(_: int) -> Extents:
        deliveries.begin()
        with deliveries.watching():
            nn.Linear(8, 8)(torch.zeros(32, 8))
        return deliveries.of_step

    probe(5)
    assert "`--step a:step` ignores the batch size" in str(deliveries.check(5, probe, probe))
