"""Batches of models that are not called with plain tensors: detectors, images in texts, graph networks.

    bsfind run torchvision:fasterrcnn_resnet50_fpn --batch-fn bsfind.batches:detection --batch-arg classes=91
    bsfind run train.py:yolo --batch-fn bsfind.batches:yolo --image-size 640
    bsfind run train.py:Gnn --batch-fn bsfind.batches:graphs --batch-arg nodes=40 --batch-arg features=16

Values are random, but as data has them: boxes lie in the image, edges inside their graph.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bsfind.errors import TargetError

if TYPE_CHECKING:
    import torch

_DIFFERENT_GRAPHS = 1024
"""Graphs with edges of their own; more graphs in a batch repeat these."""

_TEXT = 128
"""Tokens of text beside an image."""


def detection(
    batch_size: int,
    device: torch.device,
    *,
    image_size: int | tuple[int, int] = 640,
    boxes: int = 8,
    classes: int = 91,
    masks: bool = False,
    keypoints: int = 0,
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Return images and targets as the detectors of torchvision take them.

    Args:
        batch_size: images.
        device: where the tensors are.
        image_size: side of the images, or height and width, pixels. The detector may resize them.
        boxes: objects in each image.
        classes: labels are from 1 to one less than this; 0 is the background.
        masks: targets have a mask of each object, as Mask R-CNN takes them.
        keypoints: points of each object, as Keypoint R-CNN takes them.

    Returns:
        A list of images of shape (3, height, width), and a list of dicts: `boxes` of shape
        (boxes, 4) as left, top, right, bottom in pixels, and `labels` of shape (boxes,). With masks, `masks`
        of shape (boxes, height, width); with keypoints, `keypoints` of shape (boxes, keypoints, 3):
        x and y in pixels, inside the box, and 1 for visible.
    """
    import torch

    height, width = _sides(image_size)
    _check(boxes=boxes, classes=classes - 1)
    sides = torch.tensor((width, height))
    targets = []
    for _ in range(batch_size):
        corner = torch.rand(boxes, 2) * sides / 2
        size = (0.1 + 0.4 * torch.rand(boxes, 2)) * sides
        target = {
            "boxes": torch.cat((corner, corner + size), 1).to(device),
            "labels": torch.randint(1, classes, (boxes,)).to(device),
        }
        if masks:
            shape = (boxes, height, width)
            target["masks"] = torch.ones(shape, dtype=torch.uint8, device=device)
        if keypoints:
            inside = corner[:, None] + torch.rand(boxes, keypoints, 2) * size[:, None]
            visible = torch.ones(boxes, keypoints, 1)
            target["keypoints"] = torch.cat((inside, visible), 2).to(device)
        targets.append(target)
    images = [torch.rand(3, height, width, device=device) for _ in range(batch_size)]
    return images, targets


def detr(
    batch_size: int,
    device: torch.device,
    *,
    image_size: int | tuple[int, int] = 640,
    boxes: int = 8,
    classes: int = 91,
    masks: bool = False,
) -> dict[str, Any]:
    """Return images and labels as the detectors of transformers take them (DETR and its successors).

    Args:
        batch_size: images.
        device: where the tensors are.
        image_size: side of the images, or height and width, pixels.
        boxes: objects in each image.
        classes: labels are from 0 to one less than this.
        masks: labels have a mask of each object, as `DetrForSegmentation` takes them.

    Returns:
        `pixel_values` of shape (batch_size, 3, height, width), and `labels`, a list of dicts:
        `class_labels` of shape (boxes,), and `boxes` of shape (boxes, 4) as centre and size, from 0 to 1.
        With masks, `masks` of shape (boxes, height, width).
    """
    import torch

    height, width = _sides(image_size)
    _check(boxes=boxes, classes=classes)
    labels = [
        {
            "class_labels": torch.randint(0, classes, (boxes,)).to(device),
            "boxes": _centred_boxes(boxes).to(device),
        }
        for _ in range(batch_size)
    ]
    if masks:
        for label in labels:
            label["masks"] = _masks(boxes, height, width).to(device)
    shape = (batch_size, 3, height, width)
    return {"pixel_values": torch.rand(shape, device=device), "labels": labels}


def mask2former(
    batch_size: int,
    device: torch.device,
    *,
    image_size: int | tuple[int, int] = 384,
    objects: int = 8,
    classes: int = 80,
) -> dict[str, Any]:
    """Return images and masks as MaskFormer and its successors in transformers take them.

    Args:
        batch_size: images.
        device: where the tensors are.
        image_size: side of the images, or height and width, pixels.
        objects: objects, or regions, in each image.
        classes: labels are from 0 to one less than this.

    Returns:
        `pixel_values` of shape (batch_size, 3, height, width), and lists with a tensor for each
        image: `mask_labels` of shape (objects, height, width), 0 or 1, and `class_labels` of
        shape (objects,).
    """
    import torch

    height, width = _sides(image_size)
    _check(objects=objects, classes=classes)
    images = range(batch_size)
    shape = (batch_size, 3, height, width)
    return {
        "pixel_values": torch.rand(shape, device=device),
        "mask_labels": [_masks(objects, height, width).to(device) for _ in images],
        "class_labels": [torch.randint(0, classes, (objects,)).to(device) for _ in images],
    }


def _masks(count: int, height: int, width: int) -> torch.Tensor:
    """Return the masks of objects that stand side by side, and fill the image."""
    import torch

    object_of_column = torch.arange(width) * count // width
    of_object = object_of_column == torch.arange(count)[:, None]
    return of_object[:, None].expand(count, height, width).float()


def yolo(
    batch_size: int,
    device: torch.device,
    *,
    image_size: int = 640,
    boxes: int = 8,
    classes: int = 80,
    masks: bool = False,
    keypoints: int = 0,
) -> tuple[dict[str, torch.Tensor]]:
    """Return one dict, as the models of ultralytics take it to return their loss.

    Args:
        batch_size: images.
        device: where the tensors are.
        image_size: height and width of the images, pixels.
        boxes: objects in each image.
        classes: labels are from 0 to one less than this.
        masks: for segmentation: a mask of the objects of each image, a quarter of its height and width.
        keypoints: for poses: points of each object.

    Returns:
        `img` of shape (batch_size, 3, image_size, image_size); and of all objects in a row `batch_idx`,
        the index of the image, `cls` of shape (objects, 1), and `bboxes` of shape (objects, 4) as centre
        and size, from 0 to 1. With masks, `masks` and `sem_masks` of shape (batch_size, image_size / 4,
        image_size / 4), in which pixels have the number of their object, from 1, and its class. With
        keypoints, `keypoints` of shape (objects, keypoints, 3): x and y from 0 to 1, and 1 for visible.
    """
    import torch

    _check(image_size=image_size, boxes=boxes, classes=classes)
    objects = batch_size * boxes
    shape = (batch_size, 3, image_size, image_size)
    batch = {
        "img": torch.rand(shape, device=device),
        "batch_idx": torch.arange(batch_size).repeat_interleave(boxes).float().to(device),
        "cls": torch.randint(0, classes, (objects, 1)).float().to(device),
        "bboxes": _centred_boxes(objects).to(device),
    }
    if masks:
        side = -(-image_size // 4)
        columns = torch.arange(side) * boxes // side  # of each image, each object has some
        numbers = (columns + 1).expand(batch_size, side, side).to(torch.uint8)
        of_class = batch["cls"].view(batch_size, boxes).cpu()[:, columns]
        batch["masks"] = numbers.to(device)
        batch["sem_masks"] = of_class[:, None].expand(-1, side, -1).to(torch.uint8).to(device)
    if keypoints:
        points = torch.rand(objects, keypoints, 3)
        points[..., 2] = 1
        batch["keypoints"] = points.to(device)
    return (batch,)


def image_text(
    batch_size: int,
    device: torch.device,
    *,
    image_size: int | tuple[int, int] = 224,
    seq_len: int = 1024,
    vocabulary: int = 32000,
    image_token: int = 31999,
    image_tokens: int = 256,
    images: int = 0,
    patch: int = 0,
    token_types: str = "",
) -> dict[str, torch.Tensor]:
    """Return texts with an image in each, as models of images and text in transformers take them.

    Args:
        batch_size: texts.
        device: where the tensors are.
        image_size: side of the images, or height and width, pixels.
        seq_len: tokens of each text, those for its images among them.
        vocabulary: tokens are from 0 to one less than this.
        image_token: the token that marks the places of images.
        image_tokens: places of each image.
        images: images in each text, in a dimension of their own; 0: one, without such a dimension.
        patch: side of the patches that images are cut into, a row for each, as Qwen-VL takes them; 0: none.
        token_types: name of the argument that tells the places of images (1) from text (0); "": none.

    Returns:
        `input_ids` and `attention_mask` of shape (batch_size, seq_len), and `pixel_values` of shape
        (batch_size, 3, height, width), with `images` (batch_size, images, 3, height, width). With `patch`,
        `pixel_values` of shape (patches of all images, 6 * patch * patch), and `image_grid_thw` of shape
        (batch_size, 3): 1, and how many patches are in a column and in a row.
    """
    import torch

    height, width = _sides(image_size)
    places = image_tokens * max(images, 1)
    _check(vocabulary=vocabulary - 1, image_tokens=image_tokens)
    if places >= seq_len:
        raise TargetError(
            f"texts of {seq_len} tokens have no room for {places} places of images",
            hint=f"`--seq-len {places + _TEXT}`, or smaller images: `--image-size`",
        )
    tokens = torch.randint(0, vocabulary, (batch_size, seq_len))
    tokens[tokens == image_token] = (image_token + 1) % vocabulary
    tokens[:, :places] = image_token
    batch = {
        "input_ids": tokens.to(device),
        "attention_mask": torch.ones(batch_size, seq_len, dtype=torch.int64).to(device),
    }
    if token_types:
        batch[token_types] = (tokens == image_token).long().to(device)
    if patch:
        grid = (1, height // patch, width // patch)
        rows = (batch_size * grid[1] * grid[2], 2 * 3 * patch * patch)
        batch["pixel_values"] = torch.rand(rows, device=device)
        batch["image_grid_thw"] = torch.tensor([grid] * batch_size).to(device)
        return batch
    of_sample = (images, 3, height, width) if images else (3, height, width)
    batch["pixel_values"] = torch.rand(batch_size, *of_sample, device=device)
    return batch


def _centred_boxes(count: int) -> torch.Tensor:
    """Return boxes as centre and size, in parts of the image, inside of it."""
    import torch

    size = 0.1 + 0.4 * torch.rand(count, 2)
    return torch.cat((size / 2 + (1 - size) * torch.rand(count, 2), size), 1)


def graphs(
    batch_size: int,
    device: torch.device,
    *,
    nodes: int = 32,
    edges: int = 128,
    features: int = 16,
    edge_features: int = 0,
    classes: int = 2,
    fields: str = "",
) -> Any:
    """Return graphs in one batch of PyTorch Geometric, or the tensors of one.

    Args:
        batch_size: graphs.
        device: where the tensors are.
        nodes: nodes of each graph.
        edges: edges of each graph, of which each has one direction; no node has one to itself.
        features: numbers of each node.
        edge_features: numbers of each edge; 0: edges have none.
        classes: labels of graphs are from 0 to one less than this.
        fields: names of the tensors to return as keyword arguments, separated by commas, of `x`,
            `edge_index`, `edge_attr`, `batch` and `y`; "": a `torch_geometric.data.Batch` of all.
    """
    import torch

    _check(nodes=nodes - 1, edges=edges, features=features, classes=classes)
    different = min(batch_size, _DIFFERENT_GRAPHS)
    source = torch.randint(0, nodes, (different, edges))
    other = (source + torch.randint(1, nodes, (different, edges))) % nodes
    drawn = torch.stack((source, other))
    edge_index = torch.empty(2, batch_size, edges, dtype=torch.int64)
    for first in range(0, batch_size, different):
        part = edge_index[:, first : first + different]
        part.copy_(drawn[:, : part.shape[1]])
    edge_index += (torch.arange(batch_size) * nodes)[:, None]
    tensors = {
        "x": torch.rand(batch_size * nodes, features, device=device),
        "edge_index": edge_index.flatten(1).to(device),
        "y": torch.randint(0, classes, (batch_size,)).to(device),
        "batch": torch.arange(batch_size).repeat_interleave(nodes).to(device),
        "ptr": (torch.arange(batch_size + 1) * nodes).to(device),
    }
    if edge_features:
        tensors["edge_attr"] = torch.rand(batch_size * edges, edge_features, device=device)
    names = [name.strip() for name in fields.split(",") if name.strip()]
    if unknown := [name for name in names if name not in tensors]:
        raise TargetError(f"graphs have no `{unknown[0]}`", hint=f"fields are {', '.join(tensors)}")
    if names:
        return {name: tensors[name] for name in names}
    try:
        made = importlib.import_module("torch_geometric.data").Batch(**tensors)
    except ModuleNotFoundError as error:
        if error.name != "torch_geometric":
            raise
        raise TargetError(
            "`torch_geometric` is not installed, which has the batch that `bsfind.batches:graphs` returns",
            hint="`--batch-arg fields=x,edge_index,batch` passes these tensors to the model instead",
        ) from None
    return made


def _sides(image_size: Any) -> tuple[int, int]:
    """Return the height and width of images.

    Raises:
        TargetError: they are no positive numbers.
    """
    sides = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise TargetError(
            f"`--batch-arg image_size={image_size}` is not a size of images in pixels",
            hint="give one side, or height and width: `--batch-arg 'image_size=[800,1333]'`",
        )
    return sides[0], sides[1]


def _check(**numbers: Any) -> None:
    """Make sure that arguments are positive numbers.

    Raises:
        TargetError: one is not; names it.
    """
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise TargetError(f"`--batch-arg {name}=…` is too small, or not an integer")
