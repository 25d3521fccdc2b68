"""Every option of `run`, `launch`, `check` and `inspect`, once.

From a row follow the parameter of the command, its environment variable (`BSFIND_STEPS`), its key in
`[tool.bsfind]`, what `--verbose` tells of it, its completion and its line in docs/cli.md. Its default,
and how its values are read and written, are those of the field of the settings that has its name.
"""

from __future__ import annotations

from pathlib import Path

from bsfind import option_types as types
from bsfind.cli.parameters import REQUIRED, Option, configure, gpus, one_of, profiles
from bsfind.cli.workload_options import WORKLOAD_OPTIONS
from bsfind.report.export import EXPORT_FORMATS
from bsfind.settings import REMEDIES
from bsfind.units import brief

_ALL = ("run", "check", "inspect")
_EVERY = (*_ALL, "launch")
_RUN = ("run",)
_LAUNCH = ("launch",)
_SEARCHES = ("run", "launch")
_TRAINS = ("run", "check")
_TRIES = (*_TRAINS, "launch")
_ONE_SIZE = ("check", "inspect")


def _export(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in EXPORT_FORMATS:
        formats = ", ".join(EXPORT_FORMATS)
        raise ValueError(f"`{brief(text)}` has no format that can be written, end it in {formats}")
    try:
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder `{brief(path.parent)}`")
        if path.is_dir():
            raise ValueError(f"`{text}` is a folder")
    except OSError as error:
        raise ValueError(f"cannot write `{brief(text)}`: {error.strerror}") from None
    return path


OPTIONS: tuple[Option, ...] = (
    Option(
        *("--batch-size", "-b"),
        panel="Search",
        commands=_ONE_SIZE,
        metavar="N",
        default=REQUIRED,
        is_in_file=False,
        help="The batch size to try; of `run`: the fixed one, with `--axis`.",
    ),
    Option(
        *("--batch-size", "-b"),
        panel="Search",
        commands=_RUN,
        metavar="N",
        is_in_file=False,
        help="The batch size to try; of `run`: the fixed one, with `--axis`.",
    ),
    # ---------------------------------------------------------------------------------- Command
    Option(
        "--set-env",
        panel="Command",
        commands=_LAUNCH,
        metavar="NAME=TEXT",
        is_in_file=False,
        help="Environment variable of the command, such as `BS={batch_size}`; repeatable.",
    ),
    Option(
        "--substitute",
        panel="Command",
        commands=_LAUNCH,
        metavar="FILE",
        is_in_file=False,
        help="A file with `{batch_size}` or `{variant}` in it: the command gets the path of a filled copy in "
        "its place; repeatable.",
    ),
    Option(
        "--listen",
        panel="Command",
        commands=_LAUNCH,
        metavar="HOST[:PORT]",
        is_in_file=False,
        help="An address of this machine that others reach, where the command starts ranks on several, as "
        "srun does.",
    ),
    Option(
        "--variant",
        panel="Command",
        commands=_LAUNCH,
        metavar="NAME=ARGUMENTS",
        is_in_file=False,
        help="What `{variant}` in the command stands for, such as `amp=--bf16`: a row for each; repeatable.",
    ),
    *WORKLOAD_OPTIONS,
    # ----------------------------------------------------------------------------------- Search
    Option(
        "--min-batch-size",
        panel="Search",
        commands=_SEARCHES,
        metavar="N",
        help="Smallest useful answer: exit 1 when less fits.",
    ),
    Option(
        "--max-batch-size",
        panel="Search",
        commands=_SEARCHES,
        metavar="N",
        help="Largest batch size to try.",
    ),
    Option(
        "--axis",
        panel="Search",
        commands=_RUN,
        metavar="seq-len|image-size|NAME",
        shows_default=False,
        complete=one_of(("seq-len", "image-size")),
        help="Search this size at a fixed `--batch-size`: that of `--seq-len` or `--image-size`, or "
        "what has a name in place of a number: `--input ids=L:int64:0..50257 --axis L`.",
    ),
    Option(
        "--min-size",
        panel="Search",
        commands=_RUN,
        metavar="N",
        shows_default=False,
        help="With `--axis`: the smallest useful answer.",
    ),
    Option(
        "--max-size",
        panel="Search",
        commands=_RUN,
        metavar="N",
        shows_default=False,
        help="With `--axis`: the largest size to try.",
    ),
    Option(
        "--fail-under",
        panel="Search",
        commands=_SEARCHES,
        kind=types.BATCH_SIZE,
        metavar="N",
        help="Exit 1 when the recommended batch size (or size of the `--axis`) is smaller; it is still "
        "reported.",
    ),
    Option(
        "--multiple-of",
        panel="Search",
        commands=_SEARCHES,
        metavar="N",
        help="Try and recommend multiples of this only.",
    ),
    Option(
        "--tolerance",
        panel="Search",
        commands=_SEARCHES,
        metavar="PERCENT",
        help="Gap that may remain between the largest that ran and the smallest that did not; 0: exact.",
    ),
    Option(
        "--headroom",
        panel="Search",
        commands=_SEARCHES,
        metavar="PERCENT|SIZE",
        help="Memory that the recommended batch size leaves free.",
    ),
    Option(
        "--objective",
        panel="Search",
        commands=_RUN,
        help="Recommend the largest, or the smallest within 2 % of the best samples/s.",
    ),
    Option(
        "--global-batch",
        panel="Search",
        commands=_RUN,
        metavar="N",
        help="Samples for each optimizer step, over all GPUs: recommend the micro-batch and the "
        "accumulation steps that reach it.",
    ),
    Option(
        "--compare",
        panel="Search",
        commands=_RUN,
        metavar="NAME,…",
        shows_default=False,
        help=f"Also try these, one row each: {', '.join(REMEDIES)}.",
    ),
    Option(
        "--steps",
        panel="Search",
        commands=_EVERY,
        metavar="N",
        help="Optimizer steps per trial.",
    ),
    Option(
        "--confirm-steps",
        panel="Search",
        commands=_SEARCHES,
        metavar="N",
        help="Optimizer steps of the recommended size in a fresh process, to confirm it.",
    ),
    Option(
        "--trial-timeout",
        panel="Search",
        commands=_EVERY,
        metavar="TIME",
        help="Longest time for one trial, such as `90s` or `10m`.",
    ),
    Option(
        "--time-budget",
        panel="Search",
        commands=_SEARCHES,
        metavar="TIME",
        help="Longest time for everything; what is known by then is reported, with exit 5.",
    ),
    # ----------------------------------------------------------------------------------- Device
    Option(
        "--device",
        panel="Device",
        commands=_ALL,
        metavar="auto|cuda[:N]|sim",
        complete=one_of(("auto", "cuda", "sim")),
        help="GPU to use, as torch counts them (after CUDA_VISIBLE_DEVICES); sim predicts for an RTX "
        "4090, or for the `--gpu`.",
    ),
    Option(
        "--gpu",
        panel="Device",
        commands=_EVERY,
        metavar="NAME|SIZE",
        complete=gpus,
        help="Predict for a GPU that need not be there: a name that `bsfind gpus` lists, or its "
        "memory, such as `24GiB`. `run` compares several: `l4,a10g`, or `all`.",
    ),
    Option(
        "--context-memory",
        panel="Device",
        commands=_EVERY,
        metavar="SIZE",
        shows_default=False,
        help="What a process holds of a simulated GPU outside PyTorch's allocator; without it, that is "
        "modelled.",
    ),
    Option(
        "--torch-version",
        panel="Device",
        commands=_EVERY,
        metavar="X.Y",
        shows_default=False,
        help="Predict for another release of PyTorch than the one that is installed, such as `2.9`: where "
        "its allocator and kernels differ, not its Python code.",
    ),
    Option(
        "--memory-limit",
        panel="Device",
        commands=_EVERY,
        metavar="SIZE",
        help="What PyTorch's allocator may reserve, such as `8GiB`: act as a smaller GPU. On a simulated "
        "one it may be more than the GPU has.",
    ),
    Option(
        "--no-lock",
        panel="Device",
        commands=_TRIES,
        kind=types.FLAG,
        help="Do not wait for another bsfind that is using this GPU.",
    ),
    # ----------------------------------------------------------------------------------- Output
    Option(
        "--json",
        panel="Output",
        commands=_EVERY,
        kind=types.FLAG,
        help="Print the report as JSON instead of the table.",
    ),
    Option(
        *("--quiet", "-q"),
        panel="Output",
        commands=_TRIES,
        kind=types.FLAG,
        help="Print nothing but the recommended batch size, or size of the `--axis`.",
    ),
    Option(
        "--export",
        panel="Output",
        commands=_TRIES,
        kind=types.of_text(_export, repeats=True),
        metavar="FILE",
        is_in_file=False,
        help=f"Also write the report to a file ({', '.join(EXPORT_FORMATS)}); repeatable.",
    ),
    Option(
        "--plot",
        panel="Output",
        commands=_TRIES,
        kind=types.FLAG,
        help="Draw peak memory against batch size below the table.",
    ),
    Option(
        "--github",
        panel="Output",
        commands=_TRIES,
        kind=types.FLAG,
        help="In GitHub Actions: write the step's summary and its outputs `batch_size` and "
        "`precision`, and annotate a failure.",
    ),
    Option(
        "--top",
        panel="Output",
        commands=("inspect",),
        kind=types.integer(0, 1_000_000),
        default=10,
        metavar="N",
        help="Show the N modules that hold the most; 0 shows all.",
    ),
    Option(
        *("--verbose", "-v"),
        panel="Output",
        commands=_EVERY,
        kind=types.FLAG,
        help="One line per trial, and every line of output.",
    ),
    Option(
        "--no-progress",
        panel="Output",
        commands=_EVERY,
        kind=types.FLAG,
        help="Hide the progress line.",
    ),
    Option(
        "--color",
        panel="Output",
        commands=_EVERY,
        kind=types.choice("auto", "always", "never"),
        default="auto",
        help="When to use colours.",
    ),
    # ---------------------------------------------------------------------------- Configuration
    Option(
        "--profile",
        panel="Configuration",
        commands=_EVERY,
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
