"""`--loss auto`: the loss that a model is most likely trained with, chosen once for a workload.

In this order: the model's own loss; the model's own loss from synthetic labels, if its `forward` has an
argument for labels; a loss of scores, by their shape; the mean of the output, which replaces a loss that
is not known.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bsfind.failures.oom import FailureKind, classify
from bsfind.records import Assumption
from bsfind.workload.criteria import (
    Criterion,
    Term,
    Widths,
    batch_dimension,
    criterion_of,
    shape_of,
)
from bsfind.workload.inputs import Batch
from bsfind.workload.labels import Label, candidates, missing_labels
from bsfind.workload.loss import mean_of
from bsfind.workload.outputs import Path, float_leaves, is_made_from, name_of, named, trained_by

_OWN = Criterion(kind="own")
_MEASURED = (
    *(("sample",), ("reconstruction",), ("predicted_depth",), ("heatmaps",), ("audio_values",)),
    *(("spectrogram",), ("prediction_outputs",), ("regression_outputs",)),
)
"""Names of outputs in diffusers and transformers that are compared with what was measured."""
_INNER = (
    *("last_hidden_state", "pooler_output", "hidden_states", "feature_maps", "image_embeds"),
    *("text_embeds", "down_block_res_samples", "mid_block_res_sample", "controlnet_block_samples"),
)
"""Names of outputs in diffusers and transformers from which something else computes a loss."""
_FEATURES = Criterion(kind="mean", why="the output is features, which another part is trained with")


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """The loss that was chosen.

    Attributes:
        terms: the loss is their sum.
        name: what the report calls it.
        why: the reason, without a full stop.
        is_stand_in: whether it replaces a loss that is not known.
    """

    terms: Sequence[Term]
    name: str
    why: str
    is_stand_in: bool = False


class LossChoice:
    """The loss of a workload, chosen at the first forward pass and kept for all batch sizes.

    It holds no tensor, and stays valid when the same model is built again.

    Args:
        device: the device of labels.
        float_dtype: dtype of floating labels; None: torch's default.
        labels: the labels that the model is known to take; none: they are to be tried.
    """

    def __init__(
        self,
        device: torch.device,
        float_dtype: torch.dtype | None,
        labels: tuple[Label, ...] = (),
    ) -> None:
        self._device = device
        self._float_dtype = float_dtype
        self._chosen: _Chosen | None = None
        self._labels = labels
        self._refusal = ""
        self._has_tried_labels = bool(labels)

    # ------------------------------------------------------------------------------- labels

    @property
    def takes_labels(self) -> bool:
        """Whether the model computes its loss from labels that were tried."""
        return bool(self._labels)

    def forget_labels(self) -> None:
        """Try labels again."""
        self._labels, self._refusal, self._has_tried_labels = (), "", False

    def for_plan(self, float_dtype: torch.dtype | None) -> LossChoice:
        """Return a choice with the same labels, in another precision, and no loss yet."""
        return LossChoice(self._device, float_dtype, self._labels)

    def needs_a_try(self, model: nn.Module, positional: int, keywords: Collection[str]) -> bool:
        """Tell whether forward passes have to show if the model takes labels (see `try_labels`).

        Args:
            model: the model.
            positional: number of positional inputs.
            keywords: names of keyword inputs.
        """
        if self._has_tried_labels or self._chosen is not None:
            return False
        return bool(missing_labels(model, positional, keywords))

    def try_labels(self, model: nn.Module, forward: Callable[[Batch], Any], batch: Batch) -> None:
        """Find out whether the model computes its loss from labels.

        Args:
            model: the model.
            forward: runs the forward pass as in a step.
            batch: a batch without labels.

        Raises:
            Exception: what the model raises without labels, if it does not run with labels either.
        """
        if not missing_labels(model, len(batch.args), batch.kwargs):
            self._has_tried_labels = True
            return
        output, failure = None, None
        try:
            output = forward(batch)
        except Exception as error:
            _raise_unless_of_the_model(error)
            failure = error
            output = _in_evaluation(model, forward, batch)
        if failure is not None or _own(output) is None:
            self._labels = self._accepted(model, forward, batch, output)
        if failure is not None and not self._labels:
            if self._refusal and sys.version_info >= (3, 11):
                failure.add_note(f"With synthetic labels it raises {self._refusal}")
            raise failure
        self._has_tried_labels = True

    def _accepted(
        self,
        model: nn.Module,
        forward: Callable[[Batch], Any],
        batch: Batch,
        output: Any | None,
    ) -> tuple[Label, ...]:
        """Return the first candidates from which the model computes a loss; `()` if there are none."""
        missing = missing_labels(model, len(batch.args), batch.kwargs)
        for labels in candidates(model, missing, batch, output):
            try:
                result = forward(self._with(labels, batch))
            except Exception as error:
                _raise_unless_of_the_model(error)
                self._refusal = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            self._refusal = ""
            if _own(result) is not None:
                return labels
        return ()

    def with_labels(self, batch: Batch) -> Batch:
        """Return the batch, with labels if the model takes labels."""
        return self._with(self._labels, batch) if self._labels else batch

    def _with(self, labels: Sequence[Label], batch: Batch) -> Batch:
        made = {label.name: label.make(batch, self._device, self._float_dtype) for label in labels}
        return replace(batch, kwargs={**batch.kwargs, **made})

    # ------------------------------------------------------------------------------- the loss

    def terms_of(self, model: nn.Module, output: Any, batch: Batch) -> Sequence[Term]:
        """Return the terms of the loss, which the first output decides."""
        if self._chosen is None:
            own = _own(output) or _vector_of_losses(output, batch) or _of_pairs(output, batch)
            if own is None:
                self._chosen = _by_shapes(model, output, batch, self._refusal)
            elif self._labels:
                self._chosen = replace(own, **self._from_labels(batch))
            else:
                self._chosen = own
        return self._chosen.terms

    def _from_labels(self, batch: Batch) -> dict[str, Any]:
        names = [label.name for label in self._labels]
        shown = ", ".join(
            f"`{name}`"
            if batch.kwargs[name] is True
            else f"`{name}` {shape_of(batch.kwargs[name].shape)}"
            for name in names
        )
        return {
            "name": f"the model's own loss from {shown}",
            "why": f"`forward` takes `{names[0]}`, which was not given, and returns a loss then",
        }

    def forget_loss(self) -> None:
        """Choose again at the next output: the first was not that of the largest step."""
        self._chosen = None

    # ----------------------------------------------------------------------------- for the report

    @property
    def assumption(self) -> Assumption | None:
        """The loss that was chosen; None before."""
        if self._chosen is None:
            return None
        return Assumption(what="loss", value=self._chosen.name, why=self._chosen.why)

    @property
    def is_stand_in(self) -> bool:
        """Whether a mean replaces a loss that is not known."""
        return self._chosen is not None and self._chosen.is_stand_in


def _in_evaluation(model: nn.Module, forward: Callable[[Batch], Any], batch: Batch) -> Any | None:
    """Return the output in evaluation mode, if there is one: many models need labels in training only."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return forward(batch)
    except Exception as error:
        _raise_unless_of_the_model(error)
        return None
    finally:
        for module in training:
            module.training = True


def _raise_unless_of_the_model(error: Exception) -> None:
    """Raise an error again that is not about labels: out of memory, or a device that failed."""
    if classify(error) is FailureKind.OUT_OF_MEMORY:
        raise error


def _own(output: Any) -> _Chosen | None:
    """Return the loss that is in the output; None if there is none, or only a term of it."""
    loss = named(output, "loss")
    if loss is not None and loss.requires_grad:
        return _own_loss([(("loss",), loss)], "the output has a `loss`")
    found = float_leaves(output)
    scalars = [(path, t) for path, t in found if t.dim() == 0 and t.requires_grad]
    if not scalars:
        return None
    others = [t for _, t in found if t.dim() > 0 and t.requires_grad]
    if not trained_by(others) <= trained_by(t for _, t in scalars):
        return None  # a term of the loss (commitment, load balancing)
    why = (
        f"{name_of(scalars[0][0])} is one number that depends on all that is trained"
        if len(scalars) == 1
        else f"the output has {len(scalars)} numbers that depend on all that is trained: their sum"
    )
    return _own_loss(scalars, why)


_MOST_LOSSES = 8


def _vector_of_losses(output: Any, batch: Batch) -> _Chosen | None:
    """Return the sum of a vector of losses, as models of ultralytics return it; None if there is none."""
    trained = [(path, tensor) for path, tensor in float_leaves(output) if tensor.requires_grad]
    if len(trained) != 1 or trained[0][1].dim() != 1 or batch.size < 2:
        return None
    count = trained[0][1].shape[0]
    if count > _MOST_LOSSES or count % batch.size == 0:
        return None
    why = (
        f"the output has {count} numbers for {batch.size} samples: losses, all of which are trained"
    )
    return _own_loss(trained, why)


def _of_pairs(output: Any, batch: Batch) -> _Chosen | None:
    """Return the loss of CLIP and its relatives, from two features of each sample and a learned scale."""
    found = [(path, tensor) for path, tensor in float_leaves(output) if tensor.requires_grad]
    features = [(path, t) for path, t in found if t.dim() == 2]
    scales = [(path, t) for path, t in found if t.dim() == 0 and len(trained_by([t])) == 1]
    if len(features) != 2 or len(scales) != 1 or len(found) != 3 or batch.size < 2:
        return None
    (path, one), (other_path, other) = features
    towers = [trained_by([tensor]) for tensor in (one, other)]
    if one.shape != other.shape or one.shape[0] != batch.size or towers[0] & towers[1]:
        return None
    term = Term(
        path=path,
        criterion=Criterion(kind="contrastive loss"),
        shape=tuple(one.shape),
        others=(other_path, scales[0][0]),
    )
    why = f"the output is two features of each sample and a learned scale, {name_of(scales[0][0])}"
    return _Chosen(terms=[term], name=term.describe(), why=why)


def _own_loss(losses: Sequence[tuple[Path, torch.Tensor]], why: str) -> _Chosen:
    terms = [Term(path=path, criterion=_OWN, shape=tuple(loss.shape)) for path, loss in losses]
    return _Chosen(terms=terms, name="the model's own loss", why=why)


def _by_shapes(model: nn.Module, output: Any, batch: Batch, refusal: str) -> _Chosen:
    """Return the loss of an output by the shapes of its tensors."""
    inputs, widths = batch.tensors(), Widths.of(model)
    scalars = [path for path, t in float_leaves(output) if t.dim() == 0 and t.requires_grad]
    tensors = [(path, t) for path, t in _candidates(output) if t.dim() > 0 and t.requires_grad]
    is_backbone = _are_feature_maps([tensor for _, tensor in tensors])
    terms = [
        Term(
            path=path,
            criterion=_FEATURES
            if is_backbone
            else _by_name(path) or criterion_of(tensor, inputs, widths),
            shape=tuple(tensor.shape),
            batch_dim=batch_dimension(tensor, inputs),
        )
        for path, tensor in _results(tensors)
    ]
    ends = {path: trained_by([tensor]) for path, tensor in tensors}
    by_products: set[Path] = set()
    for term in sorted(terms, key=lambda term: -len(ends[term.path])):
        others = [other for other in terms if other.path not in by_products]
        if _is_by_product(term, others, ends, widths):
            by_products.add(term.path)
    terms = [term for term in terms if term.path not in by_products]
    refused = f"; with labels the model raises {refusal}" if refusal else ""
    if all(term.criterion.kind == "mean" for term in terms):
        why = terms[0].criterion.why if terms else "the output has nothing to train"
        return _stand_in(output, why + refused)
    own = [Term(path=path, criterion=_OWN, shape=()) for path in scalars]
    name = " + ".join(_described(terms))
    if own:
        name += " + the model's own " + ", ".join(name_of(term.path) for term in own)
    why = "; ".join(dict.fromkeys(term.criterion.why for term in terms)) + refused
    return _Chosen(terms=[*terms, *own], name=name, why=why)


def _by_name(path: Path) -> Criterion | None:
    """Return the criterion of a tensor that the output names for what it is; None if its shape decides."""
    if path in _MEASURED:
        return Criterion(kind="mse", why=f"the output is a `{path[0]}`")
    return _FEATURES if path and path[0] in _INNER else None


def _are_feature_maps(tensors: Sequence[torch.Tensor]) -> bool:
    """Tell whether an output is maps of falling size with channels of their own, as a backbone returns."""
    return (
        len(tensors) > 2
        and all(tensor.dim() > 3 for tensor in tensors)
        and len({tensor.shape[1] for tensor in tensors}) > 2
        and all(later.shape[2] < earlier.shape[2] for earlier, later in itertools.pairwise(tensors))
    )


def _results(tensors: Sequence[tuple[Path, torch.Tensor]]) -> list[tuple[Path, torch.Tensor]]:
    """Return the tensors of an output that have a loss of their own.

    If one is computed from another with parameters between them, the earlier one is features: the later
    one has a loss. Without parameters, the later one is the earlier in another form, as probabilities
    are: the earlier one has a loss.
    """
    left_out: set[Path] = set()
    for path, tensor in tensors:
        for other_path, other in tensors:
            if not left_out.isdisjoint((path, other_path)) or not is_made_from(tensor, other):
                continue
            left_out.add(other_path if trained_by([tensor], beyond=other) else path)
    return [(path, tensor) for path, tensor in tensors if path not in left_out]


def _is_by_product(
    term: Term, terms: Sequence[Term], ends: Mapping[Path, frozenset[Any]], widths: Widths
) -> bool:
    """Tell whether a result trains fewer parameters than another, and is not the same at another depth."""
    larger = [other for other in terms if ends[term.path] < ends[other.path]]
    is_vocabulary = (
        term.criterion.kind == "cross-entropy"
        and term.shape[term.criterion.class_dim] in widths.vocabularies
    )
    return bool(larger) and not is_vocabulary and not any(_alike(term, o) for o in larger)


def _candidates(output: Any) -> list[Any]:
    """Return the tensors of an output that may be scores, with their paths."""
    found = float_leaves(output)
    logits = named(output, "logits")
    if logits is not None and not isinstance(output, (list, tuple)):
        return [(("logits",), logits)]
    if named(output, "out") is not None:  # torchvision's segmentation
        return [(path, t) for path, t in found if path[0] == "out" or str(path[0])[:3] == "aux"]
    return found


def _alike(term: Term, other: Term) -> bool:
    """Tell whether two outputs are the same at two depths, or scales, of a network."""
    ours, theirs = term.criterion, other.criterion
    return (
        ours.kind == theirs.kind
        and len(term.shape) == len(other.shape)
        and (
            ours.kind != "cross-entropy"
            or term.shape[ours.class_dim] == other.shape[theirs.class_dim]
        )
    )


def _described(terms: Sequence[Term]) -> list[str]:
    """Return the terms as text; several that are alike become one text."""
    if len(terms) > 2 and all(_alike(term, terms[0]) for term in terms):
        return [f"{terms[0].criterion.kind} on {len(terms)} outputs {shape_of(terms[0].shape)} …"]
    return [term.describe() for term in terms]


def _stand_in(output: Any, why: str) -> _Chosen:
    terms = mean_of(output)
    name = terms[0].describe() if len(terms) == 1 else f"mean of {len(terms)} outputs"
    return _Chosen(terms=terms, name=name, why=why, is_stand_in=True)
