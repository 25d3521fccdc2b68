"""Every option, once: its flags, panel, environment variable, reader and help.

Commands name the options they take in their signatures; `Annotated` carries the rest. Texts are
checked here, before torch is imported: a typo costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from bsfind import input_spec, units
from bsfind.import_path import is_import_path, parse_import_path
from bsfind.precisions import REQUESTABLE_PRECISIONS
from bsfind.report.formats import EXPORT_FORMATS

__all__ = ["ColorChoice", "Mode", "Objective"]

T = TypeVar("T")

_TARGET, _INPUTS, _TRAINING = "Target", "Inputs", "Training"
_PRECISION, _SEARCH, _DEVICE, _OUTPUT = "Precision", "Search", "Device", "Output"

_LOSSES = ("auto", "cross-entropy", "mse")


class Mode(str, Enum):
    """What a step is."""

    train = "train"
    infer = "infer"


class Objective(str, Enum):
    """What the recommended batch size is best at."""

    largest = "largest"
    fastest = "fastest"


class ColorChoice(str, Enum):
    """When to colour the output."""

    auto = "auto"
    always = "always"
    never = "never"


def _reader(parse: Callable[[str], T]) -> Callable[[Any], T]:
    """Turn a parser that raises ValueError into one whose message reaches the user."""

    def read(value: Any) -> T:
        # Defaults and values of the configuration file pass through here too.
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        try:
            return parse(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    read.__name__ = parse.__name__
    return read


def _import_path(text: str) -> str:
    parse_import_path(text)
    return text


def _loss(text: str) -> str:
    if text in _LOSSES:
        return text
    if not is_import_path(text):
        raise ValueError(f"`{text}` is not one of {', '.join(_LOSSES)}, nor `pkg.mod:fn`")
    return _import_path(text)


def _optimizer(text: str) -> str:
    if is_import_path(text):
        return _import_path(text)
    if not text.isidentifier():
        raise ValueError(f"`{text}` is neither a name of torch.optim nor `pkg.mod:fn`")
    return text


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip().isidentifier():
        raise ValueError(f"`{text}` is not `KEY=VALUE`")
    return key.strip(), value


def _precisions(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError("no precision is named")
    for name in names:
        if name not in REQUESTABLE_PRECISIONS:
            choices = ", ".join(REQUESTABLE_PRECISIONS)
            raise ValueError(f"`{name}` is not a precision, choose from {choices}")
    return names


def _device(text: str) -> str:
    from bsfind.settings import DeviceChoice

    if text != "sim":
        DeviceChoice(device=text)
    return text


def _gpu(text: str) -> str:
    from bsfind.simulation.gpu_catalogue import find_gpu

    return find_gpu(text).key


def _export(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in EXPORT_FORMATS:
        formats = ", ".join(EXPORT_FORMATS)
        raise ValueError(f"`{text}` has no format that can be written, end it in {formats}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder `{path.parent}`")
    if path.is_dir():
        raise ValueError(f"`{text}` is a folder")
    return path


def _option(
    *flags: str,
    panel: str,
    help: str,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    **more: Any,
) -> Any:
    name = next(flag for flag in flags if flag.startswith("--")).split("/")[0]
    return typer.Option(
        *flags,
        rich_help_panel=panel,
        help=help,
        envvar="BSFIND_" + name.removeprefix("--").replace("-", "_").upper(),
        parser=_reader(parse) if parse else None,
        metavar=metavar,
        **more,
    )


Target = Annotated[
    str,
    typer.Argument(
        parser=_reader(_import_path),
        metavar="TARGET",
        help="The model: `package.module:attr` or `path/file.py:attr`; a class, a function or an instance.",
        show_default=False,
    ),
]
ModelArg = Annotated[
    list[str] | None,
    _option(
        "--model-arg",
        panel=_TARGET,
        parse=_key_value,
        metavar="KEY=VALUE",
        help="Keyword argument of the class or function; repeatable. "
        "`KEY=pkg.mod:attr()` passes what the call returns.",
    ),
]
AppDir = Annotated[
    str,
    _option(
        "--app-dir",
        panel=_TARGET,
        metavar="DIR",
        help="Folder that is put first on `sys.path`.",
    ),
]
InputShape = Annotated[
    list[str] | None,
    _option(
        "--input-shape",
        panel=_INPUTS,
        parse=input_spec.parse_input_shape,
        metavar="3,224,224",
        help="Shape of a positional float32 input, without the batch dimension; repeatable.",
    ),
]
Input = Annotated[
    list[str] | None,
    _option(
        "--input",
        panel=_INPUTS,
        parse=input_spec.parse_input,
        metavar="NAME=SHAPE[:DTYPE[:LOW..HIGH]]",
        help="A keyword input; repeatable. `labels=:int64:0..2` is one number per sample.",
    ),
]
BatchFn = Annotated[
    str | None,
    _option(
        "--batch-fn",
        panel=_INPUTS,
        parse=_import_path,
        metavar="pkg.mod:fn",
        help="Makes the batches: `fn(batch_size, device)` returns a tensor, tuple, dict or (args, kwargs).",
    ),
]
ModeOption = Annotated[
    Mode, _option("--mode", panel=_TRAINING, help="Training steps, or forward passes alone.")
]
Loss = Annotated[
    str,
    _option(
        "--loss",
        panel=_TRAINING,
        parse=_loss,
        metavar="auto|cross-entropy|mse|pkg.mod:fn",
        help="Loss of the output. auto: the model's own, or a mean. A function is called as `fn(output)`.",
    ),
]
Optimizer = Annotated[
    str,
    _option(
        "--optimizer",
        panel=_TRAINING,
        parse=_optimizer,
        metavar="NAME|pkg.mod:fn",
        help="adamw, sgd, adam, any name of torch.optim, or a function of the parameters.",
    ),
]
OptimizerArg = Annotated[
    list[str] | None,
    _option(
        "--optimizer-arg",
        panel=_TRAINING,
        parse=_key_value,
        metavar="KEY=VALUE",
        help="Keyword argument of the optimizer; repeatable.",
    ),
]
Step = Annotated[
    str | None,
    _option(
        "--step",
        panel=_TRAINING,
        parse=_import_path,
        metavar="pkg.mod:fn",
        help="Your own forward pass: `fn(model, *args, **kwargs)` runs inside autocast and returns the loss.",
    ),
]
GradCheckpoint = Annotated[
    bool,
    _option(
        "--grad-checkpoint",
        panel=_TRAINING,
        help="Activation checkpointing: recompute activations in the backward pass.",
    ),
]
ChannelsLast = Annotated[
    bool, _option("--channels-last", panel=_TRAINING, help="Use the channels_last memory format.")
]
Compile = Annotated[
    bool, _option("--compile", panel=_TRAINING, help="Run the model through torch.compile.")
]
GradAccum = Annotated[
    int,
    _option(
        "--grad-accum",
        panel=_TRAINING,
        min=1,
        metavar="N",
        help="Micro-batches per optimizer step; batch sizes are those of a micro-batch.",
    ),
]
Precision = Annotated[
    str,
    _option(
        "--precision",
        panel=_PRECISION,
        parse=_precisions,
        metavar="NAME,…",
        help="Of fp32, tf32, amp-fp16, amp-bf16, bf16; amp is amp-bf16 where the GPU has it, else amp-fp16.",
    ),
]
BatchSize = Annotated[
    int,
    _option("--batch-size", "-b", panel=_SEARCH, min=1, metavar="N", help="The batch size to try."),
]
MinBatchSize = Annotated[
    int,
    _option(
        "--min-batch-size",
        panel=_SEARCH,
        min=1,
        metavar="N",
        help="Smallest useful answer: exit 1 when less fits.",
    ),
]
MaxBatchSize = Annotated[
    int | None,
    _option(
        "--max-batch-size",
        panel=_SEARCH,
        min=1,
        metavar="N",
        help="Largest batch size to try.  [default: what memory allows]",
        show_default=False,
    ),
]
MultipleOf = Annotated[
    int,
    _option(
        "--multiple-of",
        panel=_SEARCH,
        min=1,
        metavar="N",
        help="Round the recommended batch size down to a multiple of this.",
    ),
]
Tolerance = Annotated[
    str,
    _option(
        "--tolerance",
        panel=_SEARCH,
        parse=units.parse_fraction,
        metavar="PERCENT",
        help="Gap that may remain between the largest that ran and the smallest that did not; 0: exact.",
    ),
]
Headroom = Annotated[
    str,
    _option(
        "--headroom",
        panel=_SEARCH,
        parse=units.parse_headroom,
        metavar="PERCENT|SIZE",
        help="Memory that the recommended batch size leaves free.",
    ),
]
ObjectiveOption = Annotated[
    Objective,
    _option(
        "--objective",
        panel=_SEARCH,
        help="Recommend the largest, or the smallest within 2 % of the best samples/s.",
    ),
]
Steps = Annotated[
    int,
    _option("--steps", panel=_SEARCH, min=1, metavar="N", help="Optimizer steps per trial."),
]
TrialTimeout = Annotated[
    str,
    _option(
        "--trial-timeout",
        panel=_SEARCH,
        parse=units.parse_duration,
        metavar="TIME",
        help="Longest time for one trial, such as `90s` or `10m`.",
    ),
]
TimeBudget = Annotated[
    str | None,
    _option(
        "--time-budget",
        panel=_SEARCH,
        parse=units.parse_duration,
        metavar="TIME",
        help="Longest time for everything; what is known by then is reported, with exit 5.",
    ),
]
Device = Annotated[
    str,
    _option(
        "--device",
        panel=_DEVICE,
        parse=_device,
        metavar="auto|cuda[:N]|sim",
        help="GPU to use, as torch counts them (after CUDA_VISIBLE_DEVICES); sim predicts for an RTX "
        "4090, or for the `--gpu`.",
    ),
]
Gpu = Annotated[
    str | None,
    _option(
        "--gpu",
        panel=_DEVICE,
        parse=_gpu,
        metavar="NAME|SIZE",
        help="Predict for a GPU that need not be there: a name that `bsfind gpus` lists, or its "
        "memory, such as `24GiB`.",
    ),
]
ContextMemory = Annotated[
    str | None,
    _option(
        "--context-memory",
        panel=_DEVICE,
        parse=units.parse_size,
        metavar="SIZE",
        help="What a process holds of a simulated GPU outside PyTorch's allocator; without it, that is "
        "modelled.",
        show_default=False,
    ),
]
MemoryLimit = Annotated[
    str | None,
    _option(
        "--memory-limit",
        panel=_DEVICE,
        parse=units.parse_size,
        metavar="SIZE",
        help="What PyTorch's allocator may reserve, such as `8GiB`: play a smaller GPU. On a simulated "
        "one it may be more than the GPU has.",
    ),
]
NoLock = Annotated[
    bool,
    _option(
        "--no-lock",
        panel=_DEVICE,
        help="Measure although another bsfind may be measuring on the same GPU; without it, bsfind waits.",
    ),
]
Json = Annotated[
    bool, _option("--json", panel=_OUTPUT, help="Print the report as JSON instead of the table.")
]
Quiet = Annotated[
    bool,
    _option("--quiet", "-q", panel=_OUTPUT, help="Print nothing but the recommended batch size."),
]
Verbose = Annotated[
    bool,
    _option("--verbose", "-v", panel=_OUTPUT, help="One line per trial, and every line of output."),
]
Export = Annotated[
    list[str] | None,
    _option(
        "--export",
        panel=_OUTPUT,
        parse=_export,
        metavar="FILE",
        help=f"Also write the report to a file ({', '.join(EXPORT_FORMATS)}); repeatable.",
    ),
]
NoProgress = Annotated[
    bool, _option("--no-progress", panel=_OUTPUT, help="No line about what is going on.")
]
Color = Annotated[ColorChoice, _option("--color", panel=_OUTPUT, help="When to use colours.")]
