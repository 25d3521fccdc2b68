"""Every option of `run`, `launch`, `check` and `inspect`, once.

From a row follow the parameter of the command, its environment variable (`BSFIND_STEPS`), its key in
`[tool.bsfind]`, what `--verbose` tells of it, its completion and its line in docs/cli.md. Its default,
and how its values are read and written, are those of the field of the settings that has its name.
"""

from __future__ import annotations

from pathlib import Path

from bsfind import option_types as types
from bsfind.cli.parameters import REQUIRED, Option, configure, gpus, one_of, profiles
from bsfind.parallel import STRATEGIES
from bsfind.report.export import EXPORT_FORMATS
from bsfind.settings import LOSSES, PRECISIONS, REMEDIES
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
    # ----------------------------------------------------------------------------------- Target
    Option(
        "--model-arg",
        panel="Target",
        commands=_ALL,
        metavar="KEY=VALUE",
        help="Keyword argument of the class or function; repeatable. "
        "`KEY=pkg.mod:attr()` passes what the call returns.",
    ),
    Option(
        "--app-dir",
        panel="Target",
        commands=_ALL,
        metavar="DIR",
        help="Folder that is put first on `sys.path`.",
    ),
    # ----------------------------------------------------------------------------------- Inputs
    Option(
        "--input-shape",
        panel="Inputs",
        commands=_ALL,
        kind=types.INPUT_SHAPE,
        metavar="SHAPE[:DTYPE[:LOW..HIGH]]",
        help="A positional input, such as `3,224,224` (without the batch dimension; float32) or "
        "`128:int64:0..30522`; repeatable.",
    ),
    Option(
        "--input",
        panel="Inputs",
        commands=_ALL,
        metavar="NAME=SHAPE[:DTYPE[:LOW..HIGH]]|@OTHER|=VALUE",
        help="A keyword input; repeatable. `labels=:int64:0..2` is one number per sample, `labels=@ids` the "
        "same tensor as the input `ids`; `return_loss=True` and `frames==16` are constants; `batch.image=…` "
        "is an item of a dict.",
    ),
    Option(
        "--seq-len",
        panel="Inputs",
        commands=_ALL,
        metavar="N,…",
        shows_default=False,
        help="Tokens of each sample, where inputs follow from the model (without it, as many as the model "
        "takes, up to 1024) or the function of `--batch-fn` has an argument `seq_len`. Several lengths have "
        "rows of their own; the answer is for the longest.",
    ),
    Option(
        "--image-size",
        panel="Inputs",
        commands=_ALL,
        metavar="PIXELS",
        shows_default=False,
        help="Height and width of images, where inputs follow from the model or the function of "
        "`--batch-fn` has an argument `image_size`.",
    ),
    Option(
        "--batch-fn",
        panel="Inputs",
        commands=_ALL,
        metavar="pkg.mod:fn",
        help="Makes the batches: `fn(batch_size, device)` returns a tensor, tuple, dict or (args, kwargs). "
        "If it makes some tensors on `device`, the others stay on the CPU; if none, all are moved. "
        "`bsfind.batches:` has `detection`, `detr`, `image_text`, `yolo` and `graphs`.",
    ),
    Option(
        "--batch-arg",
        panel="Inputs",
        commands=_ALL,
        metavar="KEY=VALUE",
        help="Keyword argument of that function; repeatable.",
    ),
    # --------------------------------------------------------------------------------- Training
    Option(
        "--mode",
        panel="Training",
        commands=_ALL,
        help="Training steps, or forward passes alone.",
    ),
    Option(
        "--loss",
        panel="Training",
        commands=_ALL,
        metavar="|".join((*LOSSES, "pkg.mod:fn")),
        help="Loss of the output. auto: the model's own, from synthetic labels if it takes some, or what "
        "suits the output; a mean where nothing does. A function is called as `fn(output)`.",
    ),
    Option(
        "--optimizer",
        panel="Training",
        commands=_ALL,
        metavar="NAME|pkg.mod:fn",
        complete=one_of(("adamw", "sgd", "adam")),
        help="adamw, sgd, adam, any name of torch.optim, or a function of the parameters.",
    ),
    Option(
        "--optimizer-arg",
        panel="Training",
        commands=_ALL,
        metavar="KEY=VALUE",
        help="Keyword argument of the optimizer; repeatable.",
    ),
    Option(
        "--step",
        panel="Training",
        commands=_ALL,
        metavar="pkg.mod:fn",
        help="Your own forward pass: `fn(model, *args, **kwargs)` runs inside autocast and returns the loss; "
        "None if it has stepped its own optimizers.",
    ),
    Option(
        "--grad-checkpoint",
        panel="Training",
        commands=_ALL,
        help="Activation checkpointing: recompute activations in the backward pass.",
    ),
    Option(
        "--channels-last",
        panel="Training",
        commands=_ALL,
        help="Use the channels_last memory format.",
    ),
    Option(
        "--compile",
        panel="Training",
        commands=_ALL,
        help="Run the model through torch.compile.",
    ),
    Option(
        "--grad-accum",
        panel="Training",
        commands=_ALL,
        metavar="N",
        help="Micro-batches per optimizer step; batch sizes are those of a micro-batch.",
    ),
    Option(
        "--with-eval",
        panel="Training",
        commands=_TRAINS,
        help="Evaluate after the steps of a trial, as a trainer does between epochs.",
    ),
    Option(
        "--eval-batch-size",
        panel="Training",
        commands=_TRAINS,
        metavar="N",
        shows_default=False,
        help="Samples in a batch of the evaluation; without it, as many as in training.",
    ),
    # --------------------------------------------------------------------------------- Parallel
    Option(
        "--parallel",
        panel="Parallel",
        commands=_ALL,
        metavar="|".join((*STRATEGIES, "pkg.mod:fn")),
        help="How several GPUs share the training: ddp, fsdp (FSDP2, `fully_shard`), hsdp, zero1, or "
        "`fn(model, mesh)`, which returns the wrapped model. Batch sizes are those of one GPU.",
    ),
    Option(
        "--world-size",
        panel="Parallel",
        commands=_ALL,
        metavar="N|auto",
        help="GPUs in all, one for each rank, which share the global batch; auto: the smallest number on "
        "which the model trains with fsdp.",
    ),
    Option(
        "--nproc-per-node",
        panel="Parallel",
        commands=_RUN,
        metavar="N|gpu",
        shows_default=False,
        help="Run so many ranks on the GPUs of this machine, under torchrun; gpu: one on each. Without it, "
        "one rank runs, and the others are absent.",
    ),
    Option(
        "--replicas",
        panel="Parallel",
        commands=_ALL,
        metavar="N",
        shows_default=False,
        help="With hsdp: groups of GPUs that have a whole model each; without it, 2.",
    ),
    Option(
        "--shard-by",
        panel="Parallel",
        commands=_ALL,
        metavar="CLASS,…|auto",
        help="With fsdp and hsdp: the classes of modules that are sharded one by one. auto: those of "
        "`_no_split_modules`, else the blocks that repeat.",
    ),
    Option(
        "--parallel-arg",
        panel="Parallel",
        commands=_ALL,
        metavar="KEY=VALUE",
        help="Argument of the strategy, such as `reshard_after_forward=false`, `bucket_cap_mb=100`, "
        "`static_graph=true`; repeatable.",
    ),
    Option(
        "--nccl-memory",
        panel="Parallel",
        commands=_ALL,
        metavar="SIZE",
        shows_default=False,
        help="What NCCL takes of each GPU, where it does not run; without it, that is modelled.",
    ),
    # -------------------------------------------------------------------------------- Precision
    Option(
        "--precision",
        panel="Precision",
        commands=_ALL,
        metavar="NAME,…",
        help=f"Of {', '.join(PRECISIONS)}; amp is amp-bf16 where the GPU has it, else amp-fp16.",
    ),
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
