"""Synthetic labels for models that compute their loss themselves if they get labels.

They are passed through arguments of `forward` that have a name for labels. Their shape follows from what
the model returns without them, from its inputs and, in transformers, from its configuration. Where
several shapes are possible, they are tried in the order of their likelihood.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bsfind.workload.criteria import Widths
from bsfind.workload.inputs import Batch
from bsfind.workload.outputs import float_leaves, named

_NAMES = (
    *("labels", "targets", "target", "label", "label_ids", "lm_labels", "target_ids"),
    *("tgt_labels", "y", "y_true", "gt", "ground_truth"),
)
"""Names of arguments for labels, the least ambiguous first."""

_OF_SENTENCES = ("next_sentence_label", "sentence_order_label")
_OF_SPANS = ("start_positions", "end_positions")
_FLAG = "return_loss"
"""The argument of transformers' contrastive models, whose labels are the pairs of the batch."""

_MOST_DECODER_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Label:
    """One argument with synthetic labels.

    Attributes:
        name: name of the argument.
        shape: shape for each sample; None: the labels have the shape of the token ids.
        rows: number of rows for each sample.
        high: integers are drawn from 0 ≤ x < high; None: the labels are floating.
        is_flag: the argument is `True` instead of a tensor.
    """

    name: str
    shape: tuple[int, ...] | None = ()
    rows: int = 1
    high: int | None = None
    is_flag: bool = False

    def make(self, batch: Batch, device: torch.device, float_dtype: torch.dtype | None) -> Any:
        """Return the labels of a batch."""
        if self.is_flag:
            return True
        if self.shape is None:
            shape = tuple(_token_ids(batch).shape)  # type: ignore[union-attr]
        else:
            shape = (batch.tensors()[0].shape[0] * self.rows, *self.shape)
        if self.high is None:
            return torch.rand(shape, device=device, dtype=float_dtype)
        return torch.randint(0, self.high, shape, device=device)


def missing_labels(model: nn.Module, positional: int, keywords: Collection[str]) -> list[str]:
    """Return the arguments of `forward` that have a name for labels and are not given.

    Args:
        model: the model.
        positional: number of positional inputs that are given.
        keywords: names of keyword inputs that are given.
    """
    names = _arguments(model)
    given = {*names[:positional], *keywords}
    known = (*_NAMES, *_OF_SENTENCES, *_OF_SPANS, _FLAG)
    return [name for name in known if name in names and name not in given]


def _arguments(module: nn.Module) -> list[str]:
    """Return the names of the arguments of `forward`, with its children's if it has `**kwargs`.

    DataParallel, torch.compile, peft and the user's wrappers pass these on.
    """
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names += [name for child in module.children() for name in _arguments(child)]
    return list(dict.fromkeys(names))


def candidates(
    model: nn.Module, missing: Sequence[str], batch: Batch, output: Any | None
) -> Iterator[tuple[Label, ...]]:
    """Yield labels that the model may take, the most likely first.

    Args:
        model: the model.
        missing: the arguments that `missing_labels` returned.
        batch: the batch of a forward pass without labels.
        output: the output of that pass; None: the model does not run without labels.
    """
    scores = None if output is None else _scores(output)
    if all(name in missing for name in _OF_SPANS):
        length = scores.shape[1] if scores is not None and scores.dim() > 1 else 1
        yield tuple(Label(name=name, high=length) for name in _OF_SPANS)
    name = next((name for name in missing if name in _NAMES), None)
    if name is not None:
        besides = tuple(Label(name=other, high=2) for other in missing if other in _OF_SENTENCES)
        seen: set[Label] = set()
        high = _vocabulary(model) if output is None else _valid_classes(output, model)
        for label in _shapes(name, model, batch, scores, high):
            if label not in seen:
                seen.add(label)
                yield (label, *besides)
    if _FLAG in missing:
        yield (Label(name=_FLAG, is_flag=True),)


def _shapes(
    name: str, model: nn.Module, batch: Batch, scores: torch.Tensor | None, high: int
) -> Iterator[Label]:
    """Yield the label of each possible shape, with integers below `high`."""
    ids = _token_ids(batch)
    config = getattr(model, "config", None)
    if (codebooks := _codebooks(config)) is not None:
        yield Label(name=name, shape=(_decoder_tokens(config) or 1, codebooks), high=high)
    if scores is None:
        if ids is not None:
            yield Label(name=name, shape=None, high=high)
        elif (tokens := _decoder_tokens(config)) is not None:
            yield Label(name=name, shape=(tokens,), high=high)
        yield Label(name=name, high=2)
        return
    n = batch.tensors()[0].shape[0]
    rows = scores.shape[0] // n if n and scores.shape[0] % n == 0 else 1
    classes = scores.shape[1] if scores.dim() > 1 else 1
    is_regression = getattr(config, "problem_type", None) == "regression"
    is_multi_label = getattr(config, "problem_type", None) == "multi_label_classification"
    same = Label(name=name, shape=tuple(scores.shape[1:]), rows=rows)
    if scores.dim() <= 2:
        if is_multi_label or (is_regression and classes > 1):
            yield same
        if classes == 1:
            yield Label(name=name, rows=rows)
            yield same
        yield Label(name=name, rows=rows, high=high)
        yield same
    elif scores.dim() == 3:
        if ids is not None:
            yield Label(name=name, shape=None, high=high)
        if type(model).__name__.endswith("ForCTC"):
            # Blanks may stand between characters: an alignment has room for half as many.
            yield Label(name=name, shape=(max(1, scores.shape[1] // 2),), high=high)
        yield Label(name=name, shape=(scores.shape[1],), rows=rows, high=high)
        yield Label(name=name, shape=(scores.shape[2],), rows=rows, high=high)
        yield same
    else:
        spatial = scores.dim() - 2
        if any(x.is_floating_point() and x.shape == scores.shape for x in batch.tensors()):
            yield same
        if classes == 1:
            yield same
        for x in batch.tensors():
            if x.dim() > spatial:
                yield Label(name=name, shape=tuple(x.shape[-spatial:]), high=high)
        yield Label(name=name, shape=tuple(scores.shape[2:]), rows=rows, high=high)
        yield same


def _scores(output: Any) -> torch.Tensor | None:
    logits = named(output, "logits")
    if logits is not None:
        return logits
    return next((tensor for _, tensor in float_leaves(output) if tensor.dim() > 0), None)


def _token_ids(batch: Batch) -> torch.Tensor | None:
    """Return the token ids, whose shape labels for each token have: the decoder's, or the encoder's."""
    named_ones = [batch.kwargs.get(name) for name in ("decoder_input_ids", "input_ids")]
    found = [x for x in named_ones if isinstance(x, torch.Tensor)]
    found += [x for x in batch.tensors() if not x.is_floating_point() and x.dtype != torch.bool]
    return next((x for x in found if x.dim() == 2), None)


def _decoder_tokens(config: Any) -> int | None:
    """Return how many tokens a decoder of transformers takes; None if the model is not of transformers."""
    for name in ("max_target_positions", "max_text_positions", "max_position_embeddings"):
        decoder = getattr(config, "decoder", config)
        most = getattr(decoder, name, None)
        if isinstance(most, int):
            return min(most, _MOST_DECODER_TOKENS)
    return None


def _codebooks(config: Any) -> int | None:
    """Return how many codes there are for each moment, where the text is sound (MusicGen); else None."""
    number = getattr(getattr(config, "decoder", config), "num_codebooks", None)
    return number if isinstance(number, int) and number > 1 else None


def _valid_classes(output: Any, model: nn.Module) -> int:
    """Return a number of classes that is in range for every possible loss of an output.

    A label out of range makes the CUDA context unusable. The classes may be in any dimension of the
    scores, and any tensor may be the scores.
    """
    vocabularies = Widths.of(model).vocabularies
    most = []
    for _, tensor in float_leaves(output):
        sizes = [size for size in tensor.shape[1:] if size > 1]
        if sizes:
            is_vocabulary = tensor.dim() == 3 and tensor.shape[-1] in vocabularies
            most.append(tensor.shape[-1] if is_vocabulary else min(sizes))
    return max(2, min(most, default=2))


def _vocabulary(model: nn.Module) -> int:
    """Return the same for a model that does not run without labels.

    The smallest embedding table is at most as large as that of the tokens.
    """
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if isinstance(size, int):
        return max(2, size)
    return max(2, min(Widths.of(model).vocabularies, default=2))
