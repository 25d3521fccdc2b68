"""What a step is: panels Training and Precision."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from bsfind.cli.options import completion
from bsfind.cli.options.option import import_path, key_value, option
from bsfind.import_path import is_import_path
from bsfind.settings import REQUESTABLE_PRECISIONS

_PANEL = "Training"
_LOSSES = ("auto", "cross-entropy", "mse", "mean")


class Mode(str, Enum):
    """What a step is."""

    train = "train"
    infer = "infer"


def _loss(text: str) -> str:
    if text in _LOSSES:
        return text
    if not is_import_path(text):
        raise ValueError(f"`{text}` is not one of {', '.join(_LOSSES)}, nor `pkg.mod:fn`")
    return import_path(text)


def _optimizer(text: str) -> str:
    if is_import_path(text):
        return import_path(text)
    if not text.isidentifier():
        raise ValueError(f"`{text}` is neither a name of torch.optim nor `pkg.mod:fn`")
    return text


def _precisions(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError("no precision is named")
    for name in names:
        if name not in REQUESTABLE_PRECISIONS:
            choices = ", ".join(REQUESTABLE_PRECISIONS)
            raise ValueError(f"`{name}` is not a precision, choose from {choices}")
    return names


ModeOption = Annotated[
    Mode, option("--mode", panel=_PANEL, help="Training steps, or forward passes alone.")
]
Loss = Annotated[
    str,
    option(
        "--loss",
        panel=_PANEL,
        parse=_loss,
        autocompletion=completion.one_of(_LOSSES),
        metavar="auto|cross-entropy|mse|mean|pkg.mod:fn",
        help="Loss of the output. auto: the model's own, from synthetic labels if it takes some, or what "
        "suits the output; a mean where nothing does. A function is called as `fn(output)`.",
    ),
]
Optimizer = Annotated[
    str,
    option(
        "--optimizer",
        panel=_PANEL,
        parse=_optimizer,
        autocompletion=completion.one_of(("adamw", "sgd", "adam")),
        metavar="NAME|pkg.mod:fn",
        help="adamw, sgd, adam, any name of torch.optim, or a function of the parameters.",
    ),
]
OptimizerArg = Annotated[
    list[str] | None,
    option(
        "--optimizer-arg",
        panel=_PANEL,
        parse=key_value,
        metavar="KEY=VALUE",
        help="Keyword argument of the optimizer; repeatable.",
    ),
]
Step = Annotated[
    str | None,
    option(
        "--step",
        panel=_PANEL,
        parse=import_path,
        metavar="pkg.mod:fn",
        help="Your own forward pass: `fn(model, *args, **kwargs)` runs inside autocast and returns the loss.",
    ),
]
GradCheckpoint = Annotated[
    bool,
    option(
        "--grad-checkpoint",
        panel=_PANEL,
        help="Activation checkpointing: recompute activations in the backward pass.",
    ),
]
ChannelsLast = Annotated[
    bool, option("--channels-last", panel=_PANEL, help="Use the channels_last memory format.")
]
Compile = Annotated[
    bool, option("--compile", panel=_PANEL, help="Run the model through torch.compile.")
]
GradAccum = Annotated[
    int,
    option(
        "--grad-accum",
        panel=_PANEL,
        min=1,
        metavar="N",
        help="Micro-batches per optimizer step; batch sizes are those of a micro-batch.",
    ),
]
Precision = Annotated[
    str,
    option(
        "--precision",
        panel="Precision",
        parse=_precisions,
        autocompletion=completion.names(REQUESTABLE_PRECISIONS),
        metavar="NAME,…",
        help="Of fp32, tf32, amp-fp16, amp-bf16, bf16; amp is amp-bf16 where the GPU has it, else amp-fp16.",
    ),
]
