"""The criterion that a tensor of the output is likely trained with, by shapes and the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from bsfind.workload.outputs import Path, name_of

Kind = Literal[
    "own",
    "cross-entropy",
    "negative log-likelihood",
    "binary cross-entropy",
    "contrastive loss",
    "CTC",
    "mse",
    "mean",
]

_OF_CLASSES = ("cross-entropy", "negative log-likelihood")


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """The loss of one tensor, and the reason for it.

    Attributes:
        kind: `own`: the tensor is a loss itself; `mean`: the loss is unknown, the mean replaces it.
        class_dim: dimension of the classes, if there are classes: 1, -1, or 2 for several scores of a sample.
        why: what the tensor was taken for.
    """

    kind: Kind
    class_dim: int = 1
    why: str = ""


_ONE_SCORE = Criterion(kind="binary cross-entropy", why="the output is one score for each target")


@dataclass(frozen=True)
class Targets:
    """Synthetic targets: class indices, or numbers from 0 to 1 if `classes` is None."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    classes: int | None = None

    def make(self) -> torch.Tensor:
        """Allocate the targets on the device."""
        if self.classes is not None:
            return torch.randint(0, self.classes, self.shape, device=self.device)
        return torch.rand(self.shape, device=self.device, dtype=self.dtype)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of the loss: a criterion of the tensor at a path of the output.

    Attributes:
        path: the path.
        criterion: the criterion.
        shape: shape of the tensor.
        batch_dim: its batch dimension.
        others: paths of further tensors that the criterion takes.
    """

    path: Path
    criterion: Criterion
    shape: tuple[int, ...]
    batch_dim: int = 0
    others: tuple[Path, ...] = ()

    def describe(self) -> str:
        """Return the term as text: `cross-entropy on the output (N, 1000)`."""
        shape = shape_of(self.shape, self.batch_dim)
        joint = "of" if self.criterion.kind == "mean" else "on"
        names = " and ".join(name_of(path) for path in (self.path, *self.others[:1]))
        return f"{self.criterion.kind} {joint} {names} {shape}"

    def targets(self, scores: torch.Tensor) -> Targets | None:
        """Return the targets that scores of this shape need; None if they need none."""
        kind, device = self.criterion.kind, scores.device
        if kind in ("own", "mean"):
            return None
        shape = list(scores.shape)
        if kind == "CTC":
            # Blanks may stand between characters: an alignment has room for half as many.
            samples, length = shape[self.batch_dim], max(1, shape[1 - self.batch_dim] // 2)
            return Targets((samples, length), torch.int64, device, shape[-1])
        if kind == "contrastive loss":  # each sample is the class of its partner
            return Targets((shape[0],), torch.int64, device, shape[0])
        if kind in _OF_CLASSES:
            classes = shape.pop(self.criterion.class_dim)
            return Targets(tuple(shape), torch.int64, device, classes)
        # A data loader makes float32, also where autocast casts the scores.
        is_cast = torch.is_autocast_enabled(device.type)
        return Targets(tuple(shape), torch.float32 if is_cast else scores.dtype, device)

    def loss(
        self,
        scores: torch.Tensor,
        targets: torch.Tensor | None,
        others: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Return the loss of the scores, given the tensors at `others`."""
        kind = self.criterion.kind
        if kind == "own":
            return scores if scores.dim() == 0 else scores.float().mean()
        if targets is None:
            return scores.float().mean()
        if kind == "mse":
            return F.mse_loss(scores, targets)
        if kind == "binary cross-entropy":
            return F.binary_cross_entropy_with_logits(scores, targets)
        if kind == "CTC":
            return self._ctc(scores, targets)
        if kind == "contrastive loss":
            partners, scale = others
            ours, theirs = scale * scores @ partners.T, scale * partners @ scores.T
            return (F.cross_entropy(ours, targets) + F.cross_entropy(theirs, targets)) / 2
        class_dim = self.criterion.class_dim
        if class_dim == -1 and scores.dim() > 2:
            scores, targets = scores.flatten(0, -2), targets.flatten()
        elif class_dim > 1:
            scores, targets = (x.flatten(0, class_dim - 1) for x in (scores, targets))
        if kind == "negative log-likelihood":
            return F.nll_loss(scores, targets)
        return F.cross_entropy(scores, targets)

    def _ctc(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the CTC loss of scores (N, T, C) or (T, N, C)."""
        if not is_log_softmax(scores):
            scores = scores.log_softmax(-1)
        if self.batch_dim == 0:
            scores = scores.transpose(0, 1)
        steps, samples = scores.shape[0], scores.shape[1]
        of_scores, of_targets = (torch.full((samples,), n) for n in (steps, targets.shape[1]))
        return F.ctc_loss(scores, targets, of_scores, of_targets)


def shape_of(shape: Sequence[int], batch_dim: int = 0) -> str:
    """Return a shape as text, with N for the batch dimension: `(N, 1000)`."""
    return f"({', '.join('N' if i == batch_dim else str(size) for i, size in enumerate(shape))})"


def batch_dimension(tensor: torch.Tensor, inputs: Sequence[torch.Tensor]) -> int:
    """Return the batch dimension of an output: 1 in sequences `(T, N, C)`, else 0."""
    if tensor.dim() != 3 or not inputs or not inputs[0].dim():
        return 0
    samples = inputs[0].shape[0]
    return int(tensor.shape[0] != samples and tensor.shape[1] == samples)


@dataclass(frozen=True)
class Widths:
    """Sizes of a model's embedding tables, which tell scores of a vocabulary from hidden states.

    Attributes:
        vocabularies: numbers of embeddings.
        hidden: widths of the embeddings.
        has_head: False where the model says that it has no classes (`num_classes` of timm and others).
    """

    vocabularies: frozenset[int]
    hidden: frozenset[int]
    has_head: bool = True

    @classmethod
    def of(cls, model: nn.Module) -> Widths:
        """Return the sizes of the embedding tables in a model."""
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        return cls(
            frozenset(table.num_embeddings for table in tables),
            frozenset(table.embedding_dim for table in tables),
            has_head=getattr(model, "num_classes", None) != 0,
        )

    def are_hidden(self, size: int) -> bool:
        """Tell whether a dimension of this size is a width of hidden states."""
        return size in self.hidden and size not in self.vocabularies


def criterion_of(tensor: torch.Tensor, inputs: Sequence[torch.Tensor], widths: Widths) -> Criterion:
    """Return the criterion that a floating tensor of the output is most likely trained with.

    Args:
        tensor: a tensor of the output, with one dimension or more.
        inputs: the inputs of the same forward pass.
        widths: sizes of the model's embedding tables.
    """
    is_normalized = _is_result_of(tensor, "NativeLayerNormBackward")
    if _is_unaligned(tensor, inputs) and not is_normalized:
        why = "the output is scores of a sequence that is shorter than the input (speech, lines of text)"
        return Criterion(kind="CTC", class_dim=-1, why=why)
    if (found := _log_softmax(tensor)) is not None:
        return found
    if any(x.is_floating_point() and x.shape == tensor.shape for x in inputs):
        return Criterion(kind="mse", why="the output has the shape of an input")
    if tensor.dim() == 2 and any(_is_flat(tensor, x) for x in inputs):
        return Criterion(kind="mse", why="the output has the values of an input in one row")
    if tensor.dim() == 1 or (tensor.dim() != 3 and tensor.shape[1] == 1):
        return _ONE_SCORE
    if any(_is_stacked(tensor, x) for x in inputs):
        why = "the output is class scores for each position, several of each sample (deep supervision)"
        return Criterion(kind="cross-entropy", class_dim=2, why=why)
    if any(_is_separated(tensor, x) for x in inputs):
        why = "the output is several signals in the shape of an input (separation of sources)"
        return Criterion(kind="mse", why=why)
    if tensor.dim() > 2 and any(_is_one_channel(tensor, x) for x in inputs):
        return Criterion(kind="binary cross-entropy", why="the output is one score for each pixel")
    has_tokens = any(_is_tokens(x) for x in inputs)
    if not widths.has_head:
        why = "the output is features, as `num_classes` is 0: `--model-arg num_classes=10` builds scores"
        return Criterion(kind="mean", why=why)
    if is_normalized and tensor.dim() < 4:
        return _hidden(tensor.shape[-1])
    if tensor.dim() == 2:
        if has_tokens and widths.are_hidden(tensor.shape[1]):
            return _hidden(tensor.shape[1])
        return Criterion(kind="cross-entropy", why="the output is class scores")
    class_dim, doubt = class_dimension(tensor, inputs)
    if tensor.dim() == 3:
        classes = tensor.shape[class_dim]
        if classes == 1:
            return _ONE_SCORE
        if has_tokens and widths.are_hidden(classes):
            return _hidden(classes)
        what = "scores of a vocabulary" if classes in widths.vocabularies else "class scores"
        return Criterion(
            kind="cross-entropy", class_dim=class_dim, why=f"the output is {what}{doubt}"
        )
    return _dense(tensor, inputs, class_dim)


def _is_flat(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether a matrix has as many elements as a floating input with more dimensions."""
    return (
        other.is_floating_point()
        and other.dim() > 2
        and other.shape[0] == tensor.shape[0]
        and other.numel() == tensor.numel()
    )


def _is_one_channel(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether a tensor is as large as the images of an input, without channels."""
    return (
        other.is_floating_point()
        and other.dim() == tensor.dim() + 1
        and other.shape[:1] + other.shape[2:] == tensor.shape
    )


def _is_stacked(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether a tensor is scores (N, K, C, …) that are as large as the images of an input (N, C, …)."""
    return (
        other.is_floating_point()
        and other.dim() > 3
        and other.dim() == tensor.dim() - 1
        and other.shape[2:] == tensor.shape[3:]
        and tensor.shape[2] > 1
    )


def _is_separated(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether a tensor is signals (N, K, C, T) in the shape of an input (N, C, T), mono or stereo."""
    return (
        other.is_floating_point()
        and other.dim() == 3
        and other.shape[1] <= 2
        and tensor.dim() == 4
        and tensor.shape[0] == other.shape[0]
        and tensor.shape[2:] == other.shape[1:]
    )


def is_log_softmax(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor of the output is the result of log_softmax."""
    return _is_result_of(tensor, "LogSoftmaxBackward")


def _is_result_of(tensor: torch.Tensor, node: str) -> bool:
    return tensor.grad_fn is not None and tensor.grad_fn.name().startswith(node)


def _log_softmax(tensor: torch.Tensor) -> Criterion | None:
    """Return the criterion of a result of log_softmax; None for other tensors."""
    if not is_log_softmax(tensor) or tensor.dim() < 2:
        return None
    dim = int(getattr(tensor.grad_fn, "_saved_dim", 1))
    is_last = dim in (tensor.dim() - 1, -1, (1 << 64) - 1)  # torch shows it unsigned
    if dim != 1 and not is_last:
        return None
    return Criterion(
        kind="negative log-likelihood",
        class_dim=-1 if is_last else 1,
        why="the output is log-probabilities",
    )


def _is_unaligned(tensor: torch.Tensor, inputs: Sequence[torch.Tensor]) -> bool:
    """Tell whether an output is scores (N, T, C) or (T, N, C) with fewer steps than the input.

    Such scores do not have a target for each step. With images as inputs, only (T, N, C) is recognised.
    """
    if tensor.dim() != 3 or not all(x.is_floating_point() for x in inputs if x.dim() > 1):
        return False
    is_time_first = batch_dimension(tensor, inputs) == 1
    steps, classes = tensor.shape[0 if is_time_first else 1], tensor.shape[2]
    sequences = [x for x in inputs if x.dim() in (2, 3) or (is_time_first and x.dim() == 4)]
    sizes = {size for x in inputs for size in x.shape[1:]}
    longest = max((max(x.shape[1:]) for x in sequences), default=0)
    if is_time_first and all(x.dim() == 4 for x in inputs):
        return classes > 2 and steps > 1  # no dimension of an image is that of the steps
    return classes > 2 and 1 < steps < longest and not sizes & {steps, classes}


def _is_tokens(tensor: torch.Tensor) -> bool:
    kinds = (torch.int64, torch.int32, torch.int16, torch.uint8)
    return tensor.dtype in kinds and tensor.dim() == 2


def _hidden(size: int) -> Criterion:
    return Criterion(
        kind="mean", why=f"the output is hidden states of width {size}, not class scores"
    )


def _dense(tensor: torch.Tensor, inputs: Sequence[torch.Tensor], class_dim: int) -> Criterion:
    """Return the criterion of an output with two spatial dimensions or more."""
    spatial = tensor.dim() - 2
    grids = [x for x in inputs if x.dim() > spatial]
    sizes = tensor.shape[2:] if class_dim == 1 else tensor.shape[1:-1]
    if any(
        all(ours >= theirs for ours, theirs in zip(sizes, x.shape[-spatial:], strict=True))
        and sizes != x.shape[-spatial:]
        for x in grids
    ):
        if any(x.dim() == tensor.dim() and x.shape[1] == tensor.shape[1] for x in grids):
            return Criterion(kind="mse", why="the output is a larger version of an input")
        return Criterion(kind="mean", why="the output is larger than the inputs: no class scores")
    if not grids:
        return Criterion(kind="mean", why="the output is an image and no input is one")
    return Criterion(
        kind="cross-entropy",
        class_dim=class_dim,
        why="the output is class scores for each position (dense prediction)",
    )


def class_dimension(tensor: torch.Tensor, inputs: Sequence[torch.Tensor]) -> tuple[int, str]:
    """Return the dimension of the classes in scores, 1 or -1, and the doubt about it in words.

    Scores of sequences are (N, T, C) or (N, C, T); the sizes of the inputs tell which. Where they do
    not, the smaller dimension is taken for the classes: more positions have more targets, which take
    more memory.
    """
    if tensor.dim() == 2:
        return 1, ""
    is_of_tokens = any(not x.is_floating_point() and x.shape == tensor.shape[:-1] for x in inputs)
    if is_of_tokens or batch_dimension(tensor, inputs) == 1:
        return -1, ""
    if tensor.dim() > 3:
        spatial = tensor.dim() - 2
        grids = [x.shape[-spatial:] for x in inputs if x.dim() > spatial]
        is_last = tensor.shape[1:-1] in grids and tensor.shape[2:] not in grids
        return (-1 if is_last else 1), ""
    first, last = tensor.shape[1], tensor.shape[2]
    tokens = {x.shape[1] for x in inputs if _is_tokens(x)}
    sequences = [x for x in inputs if x.is_floating_point() and x.dim() in (2, 3)]
    if tokens:
        is_last, is_first = first in tokens or last not in tokens, last in tokens
    else:
        is_last = any(x.dim() == 3 and x.shape[1] == first for x in sequences)
        is_first = any(x.shape[-1] == last for x in sequences)
    if is_last != is_first:
        return (-1 if is_last else 1), ""
    chosen = -1 if last <= first else 1
    other = "(N, C, T)" if chosen == -1 else "(N, T, C)"
    return chosen, (
        f"; its shape does not tell which dimension has the classes ({other} is possible), and this "
        "takes more memory"
    )
