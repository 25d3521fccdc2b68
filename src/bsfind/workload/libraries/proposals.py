"""The inputs of a model for which the user described none."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from bsfind.errors import UsageError
from bsfind.inputs import InputSpec
from bsfind.option_fields import arguments_of
from bsfind.records import Assumption
from bsfind.settings import Settings, Workload
from bsfind.workload.libraries import diffusers, timm, torchvision, transformers
from bsfind.workload.libraries.base import Proposal, input_like
from bsfind.workload.libraries.lightning_data import LightningData


def with_inputs(
    workload: Workload, model: nn.Module, data: LightningData | None = None
) -> tuple[Workload, Assumption | None]:
    """Return a workload that has inputs: those that it has, or what the model says of its inputs.

    Args:
        workload: what to train.
        model: the model that was built for it.
        data: its data loaders, if it is a LightningModule that runs its own training step.

    Returns:
        The workload, and what was assumed; None if the user described the inputs.

    Raises:
        UsageError: they are not known, or do not follow the options that ask for their sizes.
    """
    if workload.inputs or workload.batch_fn is not None:
        return workload, None
    found = data.propose() if data is not None else None
    found = found or _proposed(model, workload)
    if found is None:
        raise UsageError(
            f"the inputs of `{type(model).__name__}` are not known",
            detail="\n".join(data.failures) if data is not None else "",
            hint="pass `--input-shape 3,224,224` (without the batch dimension), "
            "`--input input_ids=128:int64:0..30522`, or `--batch-fn pkg.mod:fn`",
        )
    for name, meaning in (("seq_len", "sequences"), ("image_size", "images")):
        of_axis = workload.axis is not None and workload.axis.option == name
        if (of_axis or getattr(workload, name) is not None) and name not in found.follows:
            flag = f"--{'axis ' if of_axis else ''}{name.replace('_', '-')}"
            raise UsageError(
                f"`{flag}` has no meaning: bsfind makes no {meaning} for `{type(model).__name__}`"
            )
    if found.batch_fn is not None:
        others = [pair for pair in found.batch_args if getattr(workload, pair[0], None) is None]
        made: dict[str, Any] = {"batch_fn": found.batch_fn, "batch_args": tuple(others)}
        described = replace(workload, **made)
        shown = replace(_NOTHING, seq_len=workload.seq_len, image_size=workload.image_size, **made)
    else:
        described = replace(workload, inputs=found.inputs, seq_len=None, image_size=None)
        is_sized = workload.axis is not None
        specs = _with_its_name(workload, model, found.inputs) if is_sized else found.inputs
        shown = replace(_NOTHING, inputs=specs)
    options = arguments_of(Settings(workload=shown))[2:]
    return described, Assumption(what="inputs", value=shlex.join(options), why=found.why)


def _proposed(model: nn.Module, workload: Workload) -> Proposal | None:
    return next(filter(None, (ask(model, workload) for ask in _PROPOSERS)), None)


def _with_its_name(
    workload: Workload, model: nn.Module, inputs: tuple[InputSpec, ...]
) -> tuple[InputSpec, ...]:
    """Return inputs with the name of the axis where their shapes follow its size."""
    axis = workload.axis
    assert axis is not None
    try:
        smaller, larger = (_proposed(model, workload.at(size)) for size in _TWO_SIZES)
    except UsageError:  # the model takes one size only
        return inputs
    if smaller is None or larger is None:
        return inputs
    return tuple(
        replace(
            spec,
            names=tuple(
                axis.name if size != other else None
                for size, other in zip(spec.shape, more.shape, strict=True)
            ),
        )
        for spec, more in zip(smaller.inputs, larger.inputs, strict=True)
    )


_TWO_SIZES = (64, 96)
"""Sizes of an axis at which inputs are compared."""

_NOTHING = Workload(target="module:model")


def _from_examples(model: nn.Module, _: Workload) -> Proposal | None:
    """Return inputs that look like the example that a model carries, a batch of a few samples."""
    for name in ("example_input_array", "dummy_inputs"):
        example = getattr(model, name, None)
        if isinstance(example, Mapping):
            named = [input_like(value, str(key)) for key, value in example.items()]
        elif isinstance(example, (tuple, list)):
            named = [input_like(value, None) for value in example]
        else:
            named = [input_like(example, None)]
        specs = [spec for spec in named if spec is not None]
        if example is not None and specs and len(specs) == len(named):
            return Proposal(inputs=tuple(specs), why=f"the model's `{name}`")
    return None


_PROPOSERS: tuple[Callable[[nn.Module, Workload], Proposal | None], ...] = (
    transformers.propose,
    diffusers.propose,
    timm.propose,
    torchvision.propose,
    _from_examples,
)
