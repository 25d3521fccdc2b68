"""The batches in the box, and the tensors in batches of any make."""

from __future__ import annotations

import sys
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from bsfind import batches
from bsfind.errors import TargetError, UsageError
from bsfind.settings import Workload
from bsfind.workload.delivery import Deliveries, extents_of
from bsfind.workload.inputs import Batch, batch_function, batch_maker

CPU = torch.device("cpu")


def made(function: str, size: int = 3, **options: Any) -> Batch:
    workload = Workload(target="a:b", batch_fn=f"bsfind.batches:{function}", **options)
    make = batch_maker(
        (), batch_function(workload), device=CPU, float_dtype=None, channels_last=False
    )
    batch = make(size)
    deliveries = Deliveries(workload)
    deliveries.note_batch(batch)
    deliveries.check(
        size, lambda n: extents_of(make(n).args, make(n).kwargs), lambda _: None
    )  # raises where the function delivers another number of samples
    return batch


def test_detection() -> None:
    images, targets = made("detection", image_size=64, batch_args=(("masks", "True"),)).args
    assert [image.shape for image in images] == [(3, 64, 64)] * 3
    for target in targets:
        left, top, right, bottom = target["boxes"].unbind(1)
        assert ((left >= 0) & (right > left) & (right <= 64)).all()
        assert ((top >= 0) & (bottom > top) & (bottom <= 64)).all()
        assert ((target["labels"] > 0) & (target["labels"] < 91)).all()
        assert target["masks"].shape == (8, 64, 64)


def test_detection_of_oblong_images_with_keypoints() -> None:
    arguments = (("image_size", "(32, 64)"), ("keypoints", "17"))
    images, targets = made("detection", batch_args=arguments).args
    assert [image.shape for image in images] == [(3, 32, 64)] * 3
    for target in targets:
        boxes, points = target["boxes"][:, None], target["keypoints"]
        assert points.shape == (8, 17, 3)
        assert (points[..., :2] >= boxes[..., :2]).all()
        assert (points[..., :2] <= boxes[..., 2:]).all()
        assert target["boxes"][:, 3].max() <= 32


def test_masks_of_transformers() -> None:
    arguments = (("image_size", "(32, 48)"), ("objects", "5"), ("classes", "7"))
    batch = made("mask2former", batch_args=arguments).kwargs
    assert batch["pixel_values"].shape == (3, 3, 32, 48)
    for masks, classes in zip(batch["mask_labels"], batch["class_labels"], strict=True):
        assert masks.shape == (5, 32, 48)
        assert (masks.sum(0) == 1).all()
        assert (masks.sum((1, 2)) > 0).all()
        assert classes.shape == (5,)
        assert (classes < 7).all()
    (label, *_) = made("detr", batch_args=(*arguments[:1], ("masks", "True"))).kwargs["labels"]
    assert label["masks"].shape == (8, 32, 48)


def test_detr_and_yolo() -> None:
    detr = made("detr", image_size=64, batch_args=(("boxes", "5"),)).kwargs
    (yolo,) = made("yolo", image_size=64, batch_args=(("boxes", "5"),)).args
    assert detr["pixel_values"].shape == yolo["img"].shape == (3, 3, 64, 64)
    assert yolo["batch_idx"].tolist() == [0.0] * 5 + [1.0] * 5 + [2.0] * 5
    for boxes in (yolo["bboxes"], *(label["boxes"] for label in detr["labels"])):
        centre, size = boxes.split(2, 1)
        assert (centre - size / 2 >= 0).all()
        assert (centre + size / 2 <= 1).all()


def test_yolo_with_masks_and_keypoints() -> None:
    pairs = (("boxes", "5"), ("masks", "True"), ("keypoints", "17"))
    (batch,) = made("yolo", image_size=66, batch_args=pairs).args
    assert batch["masks"].shape == batch["sem_masks"].shape == (3, 17, 17)
    assert batch["keypoints"].shape == (15, 17, 3)
    for masks, classes, of_pixels in zip(
        batch["masks"], batch["cls"].view(3, 5), batch["sem_masks"], strict=True
    ):
        assert masks.unique().tolist() == [1, 2, 3, 4, 5]
        assert (classes[masks.long() - 1] == of_pixels).all()


def test_texts_with_images() -> None:
    pairs = (("vocabulary", "9"), ("image_token", "8"), ("image_tokens", "3"), ("images", "2"))
    batch = made("image_text", image_size=16, seq_len=10, batch_args=pairs).kwargs
    assert batch["pixel_values"].shape == (3, 2, 3, 16, 16)
    assert (batch["input_ids"][:, :6] == 8).all()
    assert (batch["input_ids"][:, 6:] < 8).all()
    cut = (*pairs[:2], ("image_tokens", "4"), ("patch", "4"), ("token_types", "kinds"))
    batch = made("image_text", image_size=16, seq_len=10, batch_args=cut).kwargs
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] * 3
    assert batch["pixel_values"].shape == (3 * 16, 2 * 3 * 4 * 4)
    assert batch["kinds"].tolist() == [[1] * 4 + [0] * 6] * 3
    with pytest.raises(TargetError) as error:
        made("image_text", seq_len=256)
    assert "--seq-len 384" in error.value.hint


def test_graphs() -> None:
    pairs = (("fields", "x,edge_index,batch"), ("nodes", "5"), ("edges", "40"))
    graphs = made("graphs", batch_args=pairs).kwargs
    source, other = graphs["edge_index"]
    assert graphs["x"].shape == (15, 16)
    assert (graphs["batch"][source] == graphs["batch"][other]).all()
    assert (source != other).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_args": (("node", "3"),)}, "`--batch-arg node=…`: `bsfind.batches:graphs` has no"),
        (
            {"image_size": 64},
            "`--image-size`: `bsfind.batches:graphs` has no argument `image_size`",
        ),
        ({"batch_args": (("nodes", "0"),)}, "`--batch-arg nodes=…` is too small"),
        ({"batch_args": (("fields", "x,z"),)}, "graphs have no `z`"),
    ],
)
def test_arguments_that_a_function_does_not_take(options: dict[str, Any], said: str) -> None:
    with pytest.raises((TargetError, UsageError)) as error:
        made("graphs", **options)
    assert said in error.value.message


@pytest.mark.parametrize("size", ["0", "[64]", "'large'"])
def test_sizes_that_images_cannot_have(size: str) -> None:
    with pytest.raises(TargetError) as error:
        made("detection", batch_args=(("image_size", size),))
    assert "is not a size of images in pixels" in error.value.message
    assert "image_size=[800,1333]" in error.value.hint


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises((TargetError, ModuleNotFoundError)) as error:
        batches.graphs(2, CPU)
    assert "torch_geometric" in str(error.value)


# ------------------------------------------------------------------------------- of any make


@dataclass(frozen=True)
class Fields:
    x: torch.Tensor
    name: str = "fields"


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Graph:
    """As one of PyTorch Geometric: tensors in a store that knows its graph, which `apply` changes."""

    def __init__(self, x: torch.Tensor) -> None:
        self.store = {"x": x, "graph": self, "seeds": 2}
        self.moved_to: Any = None

    def __copy__(self) -> Graph:
        return Graph(self.store["x"])

    def apply(self, change: Any) -> Graph:
        for name in ("x", "seeds"):  # numbers too
            self.store[name] = change(self.store[name])
        return self

    def to(self, device: Any) -> Graph:
        self.moved_to = device
        return self


FLOATS = torch.zeros(2, 3)
LAYOUTS = {
    "dataclass": (Fields(FLOATS), lambda value: value.x),
    "named tuple": (Pair(FLOATS, FLOATS), lambda value: value.y),
    "mapping": (UserDict(x=[FLOATS]), lambda value: value["x"][0]),
    "packed": (
        pack_padded_sequence(torch.zeros(3, 2, 4), torch.tensor([3, 2])),
        lambda value: value.data,
    ),
    "graph": (Graph(FLOATS), lambda value: value.store["x"]),
    "nested": ([{"a": (Fields(FLOATS), 3, "text")}], lambda value: value[0]["a"][0].x),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_are_found_and_changed(name: str) -> None:
    value, tensor_in = LAYOUTS[name]
    batch = Batch(args=(value,))
    assert batch.tensors()[-1] is tensor_in(value)
    changed = batch.map_tensors(lambda tensor: tensor.bfloat16()).args[0]
    assert type(changed) is type(value)
    assert tensor_in(changed).dtype == torch.bfloat16
    assert tensor_in(value).dtype == torch.float32
    assert Batch(args=(value,)).map_tensors(lambda t: t).tensors()[-1] is tensor_in(value)


def test_an_object_that_can_be_moved_is_moved_itself() -> None:
    graph = Graph(FLOATS)
    Batch(args=([graph],)).map_tensors(lambda t: t, lambda value: value.to("there"))
    assert graph.moved_to == "there"


def test_an_object_is_passed_as_the_fields_that_a_model_takes() -> None:
    class Parts(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, mask: Any = None) -> torch.Tensor:
            return x

    class Whole(torch.nn.Module):
        def forward(self, data: Any) -> torch.Tensor:
            return data.x

    def make(model: torch.nn.Module) -> Batch:
        value = SimpleNamespace(x=FLOATS, y=FLOATS, name="graph")
        options: Any = {"device": CPU, "float_dtype": None, "channels_last": False}
        made_by = batch_maker((), lambda *_: value, taken_by=model.forward, **options)
        return made_by(2)

    assert make(Parts()).kwargs.keys() == {"x", "y"}
    assert not make(Parts()).args
    assert make(Whole()).args[0].name == "graph"
