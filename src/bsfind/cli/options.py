"""Every option of `run`, `check` and `inspect`, once.

From a row follow the parameter of the command, its environment variable (`BSFIND_STEPS`), its key in
`[tool.bsfind]`, what `--verbose` tells of it, its completion and its line in docs/cli.md. Its default,
and how its values are read and written, are those of the field of the settings that has its name.
"""

from __future__ import annotations

from pathlib import Path

from bsfind import option_types as types
from bsfind.cli.parameters import REQUIRED, Option, configure, gpus, one_of, option, profiles
from bsfind.option_types import OptionType
from bsfind.report.export import EXPORT_FORMATS
from bsfind.settings import LOSSES, PRECISIONS, REMEDIES

_ALL = ("run", "check", "inspect")
_RUN = ("run",)
_TRIES = ("run", "check")
_ONE_SIZE = ("check", "inspect")


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


OPTIONS: tuple[Option, ...] = (
    option(
        *("--batch-size", "-b"),
        panel="Search",
        commands=_ONE_SIZE,
        metavar="N",
        default=REQUIRED,
        is_in_file=False,
        help="The batch size to try.",
    ),
    # ----------------------------------------------------------------------------------- Target
    option(
        "--model-arg",
        panel="Target",
        commands=_ALL,
        metavar="KEY=VALUE",
        help="Keyword argument of the class or function; repeatable. "
        "`KEY=pkg.mod:attr()` passes what the call returns.",
    ),
    option(
        "--app-dir",
        panel="Target",
        commands=_ALL,
        metavar="DIR",
        help="Folder that is put first on `sys.path`.",
    ),
    # ----------------------------------------------------------------------------------- Inputs
    option(
        "--input-shape",
        panel="Inputs",
        commands=_ALL,
        kind=types.INPUT_SHAPE,
        metavar="SHAPE[:DTYPE[:LOW..HIGH]]",
        help="A positional input, such as `3,224,224` (without the batch dimension; float32) or "
        "`128:int64:0..30522`; repeatable.",
    ),
    option(
        "--input",
        panel="Inputs",
        commands=_ALL,
        metavar="NAME=SHAPE[:DTYPE[:LOW..HIGH]]",
        help="A keyword input; repeatable. `labels=:int64:0..2` is one number per sample.",
    ),
    option(
        "--batch-fn",
        panel="Inputs",
        commands=_ALL,
        metavar="pkg.mod:fn",
        help="Makes the batches: `fn(batch_size, device)` returns a tensor, tuple, dict or (args, kwargs). "
        "If it makes some tensors on `device`, the others stay on the CPU; if none, all are moved.",
    ),
    # --------------------------------------------------------------------------------- Training
    option(
        "--mode",
        panel="Training",
        commands=_ALL,
        help="Training steps, or forward passes alone.",
    ),
    option(
        "--loss",
        panel="Training",
        commands=_ALL,
        metavar="|".join((*LOSSES, "pkg.mod:fn")),
        help="Loss of the output. auto: the model's own, from synthetic labels if it takes some, or what "
        "suits the output; a mean where nothing does. A function is called as `fn(output)`.",
    ),
    option(
        "--optimizer",
        panel="Training",
        commands=_ALL,
        metavar="NAME|pkg.mod:fn",
        complete=one_of(("adamw", "sgd", "adam")),
        help="adamw, sgd, adam, any name of torch.optim, or a function of the parameters.",
    ),
    option(
        "--optimizer-arg",
        panel="Training",
        commands=_ALL,
        metavar="KEY=VALUE",
        help="Keyword argument of the optimizer; repeatable.",
    ),
    option(
        "--step",
        panel="Training",
        commands=_ALL,
        metavar="pkg.mod:fn",
        help="Your own forward pass: `fn(model, *args, **kwargs)` runs inside autocast and returns the loss.",
    ),
    option(
        "--grad-checkpoint",
        panel="Training",
        commands=_ALL,
        help="Activation checkpointing: recompute activations in the backward pass.",
    ),
    option(
        "--channels-last",
        panel="Training",
        commands=_ALL,
        help="Use the channels_last memory format.",
    ),
    option(
        "--compile",
        panel="Training",
        commands=_ALL,
        help="Run the model through torch.compile.",
    ),
    option(
        "--grad-accum",
        panel="Training",
        commands=_ALL,
        metavar="N",
        help="Micro-batches per optimizer step; batch sizes are those of a micro-batch.",
    ),
    # -------------------------------------------------------------------------------- Precision
    option(
        "--precision",
        panel="Precision",
        commands=_ALL,
        metavar="NAME,…",
        help=f"Of {', '.join(PRECISIONS)}; amp is amp-bf16 where the GPU has it, else amp-fp16.",
    ),
    # ----------------------------------------------------------------------------------- Search
    option(
        "--min-batch-size",
        panel="Search",
        commands=_RUN,
        metavar="N",
        help="Smallest useful answer: exit 1 when less fits.",
    ),
    option(
        "--max-batch-size",
        panel="Search",
        commands=_RUN,
        metavar="N",
        shows_default=False,
        help="Largest batch size to try.  [default: what memory allows]",
    ),
    option(
        "--fail-under",
        panel="Search",
        commands=_RUN,
        kind=types.COUNT,
        metavar="N",
        help="Exit 1 when the recommended batch size is smaller; it is still reported.",
    ),
    option(
        "--multiple-of",
        panel="Search",
        commands=_RUN,
        metavar="N",
        help="Try and recommend multiples of this only.",
    ),
    option(
        "--tolerance",
        panel="Search",
        commands=_RUN,
        metavar="PERCENT",
        help="Gap that may remain between the largest that ran and the smallest that did not; 0: exact.",
    ),
    option(
        "--headroom",
        panel="Search",
        commands=_RUN,
        metavar="PERCENT|SIZE",
        help="Memory that the recommended batch size leaves free.",
    ),
    option(
        "--objective",
        panel="Search",
        commands=_RUN,
        help="Recommend the largest, or the smallest within 2 % of the best samples/s.",
    ),
    option(
        "--global-batch",
        panel="Search",
        commands=_RUN,
        metavar="N",
        help="Samples for each optimizer step, over all GPUs: recommend the micro-batch and the "
        "accumulation steps that reach it.",
    ),
    option(
        "--world-size",
        panel="Search",
        commands=_RUN,
        metavar="N",
        help="GPUs that share the global batch.",
    ),
    option(
        "--compare",
        panel="Search",
        commands=_RUN,
        metavar="NAME,…",
        shows_default=False,
        help=f"Also try these, one row each: {', '.join(REMEDIES)}.",
    ),
    option(
        "--steps",
        panel="Search",
        commands=_ALL,
        metavar="N",
        help="Optimizer steps per trial.",
    ),
    option(
        "--confirm-steps",
        panel="Search",
        commands=_RUN,
        metavar="N",
        help="Optimizer steps of the recommended size in a fresh process, to confirm it.",
    ),
    option(
        "--trial-timeout",
        panel="Search",
        commands=_ALL,
        metavar="TIME",
        help="Longest time for one trial, such as `90s` or `10m`.",
    ),
    option(
        "--time-budget",
        panel="Search",
        commands=_RUN,
        metavar="TIME",
        help="Longest time for everything; what is known by then is reported, with exit 5.",
    ),
    # ----------------------------------------------------------------------------------- Device
    option(
        "--device",
        panel="Device",
        commands=_ALL,
        metavar="auto|cuda[:N]|sim",
        complete=one_of(("auto", "cuda", "sim")),
        help="GPU to use, as torch counts them (after CUDA_VISIBLE_DEVICES); sim predicts for an RTX "
        "4090, or for the `--gpu`.",
    ),
    option(
        "--gpu",
        panel="Device",
        commands=_ALL,
        metavar="NAME|SIZE",
        complete=gpus,
        help="Predict for a GPU that need not be there: a name that `bsfind gpus` lists, or its "
        "memory, such as `24GiB`.",
    ),
    option(
        "--context-memory",
        panel="Device",
        commands=_ALL,
        metavar="SIZE",
        shows_default=False,
        help="What a process holds of a simulated GPU outside PyTorch's allocator; without it, that is "
        "modelled.",
    ),
    option(
        "--memory-limit",
        panel="Device",
        commands=_ALL,
        metavar="SIZE",
        help="What PyTorch's allocator may reserve, such as `8GiB`: act as a smaller GPU. On a simulated "
        "one it may be more than the GPU has.",
    ),
    option(
        "--no-lock",
        panel="Device",
        commands=_TRIES,
        kind=types.FLAG,
        help="Do not wait for another bsfind that is using this GPU.",
    ),
    # ----------------------------------------------------------------------------------- Output
    option(
        "--json",
        panel="Output",
        commands=_ALL,
        kind=types.FLAG,
        help="Print the report as JSON instead of the table.",
    ),
    option(
        *("--quiet", "-q"),
        panel="Output",
        commands=_TRIES,
        kind=types.FLAG,
        help="Print nothing but the recommended batch size.",
    ),
    option(
        "--export",
        panel="Output",
        commands=_TRIES,
        kind=OptionType(_export, repeats=True),
        metavar="FILE",
        is_in_file=False,
        help=f"Also write the report to a file ({', '.join(EXPORT_FORMATS)}); repeatable.",
    ),
    option(
        "--plot",
        panel="Output",
        commands=_TRIES,
        kind=types.FLAG,
        help="Draw peak memory against batch size below the table.",
    ),
    option(
        "--github",
        panel="Output",
        commands=_TRIES,
        kind=types.FLAG,
        help="In GitHub Actions: write the step's summary and its outputs `batch_size` and "
        "`precision`, and annotate a failure.",
    ),
    option(
        "--top",
        panel="Output",
        commands=("inspect",),
        kind=types.integer(0),
        default=10,
        metavar="N",
        help="Show the N modules that hold the most; 0 shows all.",
    ),
    option(
        *("--verbose", "-v"),
        panel="Output",
        commands=_ALL,
        kind=types.FLAG,
        help="One line per trial, and every line of output.",
    ),
    option(
        "--no-progress",
        panel="Output",
        commands=_ALL,
        kind=types.FLAG,
        help="Hide the progress line.",
    ),
    option(
        "--color",
        panel="Output",
        commands=_ALL,
        kind=types.choice("auto", "always", "never"),
        default="auto",
        help="When to use colours.",
    ),
    # ---------------------------------------------------------------------------- Configuration
    option(
        "--profile",
        panel="Configuration",
        commands=_ALL,
        kind=types.TEXT,
        metavar="NAME",
        complete=profiles,
        is_in_file=False,
        is_eager=True,
        callback=configure,
        help="Use the options of `[tool.bsfind.profiles.NAME]` in the nearest pyproject.toml.",
    ),
)


def options_of(command: str) -> list[Option]:
    """Return the options of a command, in the order of its help."""
    return [option for option in OPTIONS if command in option.commands]
