"""`bsfind.find` and `bsfind.check`: the commands of the same kind, as functions.

They take what `bsfind run` and `bsfind check` take, by the same names, and print nothing. Environment
variables (`BSFIND_*`) and pyproject.toml are not read: a program says what it wants.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from bsfind.api.inputs import input_specs
from bsfind.api.naming import Target, callable_name, is_worker, locate
from bsfind.api.report import Report
from bsfind.cli.commands.check import check as check_command
from bsfind.cli.commands.run import run as run_command
from bsfind.cli.keywords import read_keywords
from bsfind.cli.request import settings_from
from bsfind.errors import BsfindError, TimeLimitError, UsageError
from bsfind.records import ReportWarning, Trial
from bsfind.search.events import Events
from bsfind.search.finder import Finder

Names = str | Sequence[str]
"""`"fp32,amp"` or `("fp32", "amp")`."""

OnTrial = Callable[[str, Trial], None]

_FUNCTIONS = ("batch_fn", "loss", "optimizer", "step")
_PAIRS = ("model_arg", "optimizer_arg")


Arguments = ParamSpec("Arguments")


def _answered_by(
    command: Callable[..., Any],
) -> Callable[[Callable[Arguments, Report]], Callable[Arguments, Report]]:
    """Let a command answer a function whose arguments are its options.

    What a caller wrote is told from what is at its default, as the command line does.
    """

    def decorated(function: Callable[Arguments, Report]) -> Callable[Arguments, Report]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def search(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Report:
            bound = signature.bind(*args, **kwargs)
            given = frozenset(k for k, v in bound.arguments.items() if v is not None)
            bound.apply_defaults()
            return _search(command, bound.arguments, given)

        return search

    return decorated


@_answered_by(run_command)
def find(
    model: Any,
    inputs: Any = None,
    *,
    model_arg: Mapping[str, Any] | None = None,
    app_dir: str | None = None,
    batch_fn: str | Callable[..., Any] | None = None,
    mode: str = "train",
    loss: str | Callable[..., Any] = "auto",
    optimizer: str | Callable[..., Any] = "adamw",
    optimizer_arg: Mapping[str, Any] | None = None,
    step: str | Callable[..., Any] | None = None,
    grad_checkpoint: bool = False,
    channels_last: bool = False,
    compile: bool = False,
    grad_accum: int = 1,
    precision: Names = "fp32,amp",
    min_batch_size: int = 1,
    max_batch_size: int | None = None,
    multiple_of: int = 1,
    tolerance: str | float = "0.5%",
    headroom: str | int = "5%",
    objective: str = "largest",
    global_batch: int | None = None,
    world_size: int = 1,
    compare: Names = "",
    steps: int = 3,
    confirm_steps: int = 20,
    trial_timeout: str | float = "10m",
    time_budget: str | float | None = None,
    device: str = "auto",
    gpu: str | int | None = None,
    context_memory: str | int | None = None,
    memory_limit: str | int | None = None,
    no_lock: bool = False,
    on_trial: OnTrial | None = None,
) -> Report:
    """Find the batch size that a model should train with (see `bsfind run`).

    The model is trained for a few steps in processes of its own, at several batch sizes and in each
    precision; with `gpu`, nothing runs and the same is predicted. Sizes are texts (`"8GiB"`) or bytes,
    durations are texts (`"90s"`) or seconds.

    Args:
        model: an import path (`"package.module:Net"`, `"path/file.py:Net"`); an `nn.Module` class or a
            function that returns one, if they can be imported by their name; or an instance, which is
            pickled: it must be on the CPU, its class importable.
        inputs: what the model is called with, without the batch dimension: a shape `(3, 224, 224)`
            (float32), the text of an option (`"128:int64:0..30522"`), an `InputSpec`, or an example,
            the tensor of one sample, whose shape, dtype and range of integers are taken. A list of
            them: several positional inputs; a dict: keyword inputs. None with `batch_fn`.
        model_arg: keyword arguments of the class or function; Python literals.
        app_dir: folder that is put first on `sys.path`; None: where the model's module is, if it
            was passed as an object, else the current folder.
        batch_fn: makes the batches: `fn(batch_size, device)` returns a tensor, tuple, dict or
            `(args, kwargs)`.
        mode: `"train"`: training steps; `"infer"`: forward passes alone.
        loss: `"auto"`, `"cross-entropy"`, `"mse"`, `"mean"`, or a function of the output.
        optimizer: a name or class of `torch.optim`, or a function of the parameters.
        optimizer_arg: keyword arguments of the optimizer; Python literals.
        step: the forward pass: `fn(model, *args, **kwargs)`, runs inside autocast, returns the loss.
        grad_checkpoint: recompute activations in the backward pass.
        channels_last: use the channels_last memory format.
        compile: run the model through `torch.compile`.
        grad_accum: micro-batches for each optimizer step.
        precision: of fp32, tf32, amp-fp16, amp-bf16, bf16 and amp.
        min_batch_size: smallest useful answer, samples.
        max_batch_size: largest batch size to try, samples; None: what memory allows.
        multiple_of: every size that is tried is a multiple of this.
        tolerance: gap that may remain between the largest that ran and the smallest that did not,
            as a part of it; 0: exact.
        headroom: memory that the recommended size leaves free: part of the capacity, or bytes.
        objective: `"largest"`, or `"fastest"`: the smallest within 2 % of the best samples/s.
        global_batch: samples for each optimizer step over all GPUs, reached with accumulation.
        world_size: GPUs that share the global batch.
        compare: remedies to try besides: checkpointing, channels-last, compile, …
        steps: optimizer steps of a trial.
        confirm_steps: optimizer steps of the confirmation in a fresh process.
        trial_timeout: longest time for one trial.
        time_budget: longest time for everything; what is known by then is returned.
        device: `"auto"`, `"cuda"`, `"cuda:1"`, or `"sim"`: predict.
        gpu: predict for a GPU that need not be there: its name, or its memory (bytes or text).
        context_memory: what a process holds of a simulated GPU outside PyTorch's allocator.
        memory_limit: what PyTorch's allocator may reserve.
        no_lock: measure although another bsfind may be measuring on the same GPU.
        on_trial: called as `on_trial(precision, trial)` after each trial, in this thread.

    Returns:
        The report. Its `status` is `partial` where a time limit ended the search: what is recommended
        then ran, and more may fit.

    Raises:
        UsageError: arguments that do not go together, or a model that no other process can import.
        NoDeviceError: there is no usable GPU, and none was named with `gpu`.
        TargetError: the model's code failed in every precision; `detail` has the traceback. Where
            another precision gave an answer, the failure is a result with the status `error`, and a warning.
        WorkerError: the process that ran it died, in every precision.
        TimeLimitError: the time was over before anything was known.

    Example:
        >>> report = bsfind.find("mypkg.models:Net", (3, 224, 224), gpu="rtx-4090")
        >>> report.batch_size
        392
        >>> ids, labels = torch.randint(0, 30522, (128,)), "int64:0..2"
        >>> bsfind.find(make_bert, {"input_ids": ids, "labels": f":{labels}"}, precision=["amp"])
    """
    raise NotImplementedError("the command answers")


@_answered_by(check_command)
def check(
    model: Any,
    inputs: Any = None,
    *,
    batch_size: int,
    model_arg: Mapping[str, Any] | None = None,
    app_dir: str | None = None,
    batch_fn: str | Callable[..., Any] | None = None,
    mode: str = "train",
    loss: str | Callable[..., Any] = "auto",
    optimizer: str | Callable[..., Any] = "adamw",
    optimizer_arg: Mapping[str, Any] | None = None,
    step: str | Callable[..., Any] | None = None,
    grad_checkpoint: bool = False,
    channels_last: bool = False,
    compile: bool = False,
    grad_accum: int = 1,
    precision: Names = "fp32,amp",
    steps: int = 3,
    trial_timeout: str | float = "10m",
    device: str = "auto",
    gpu: str | int | None = None,
    context_memory: str | int | None = None,
    memory_limit: str | int | None = None,
    no_lock: bool = False,
    on_trial: OnTrial | None = None,
) -> Report:
    """Try one batch size: does it fit (see `bsfind check`)?

    Args:
        model: see `find`; so are all the others.
        inputs: what the model is called with, without the batch dimension.
        batch_size: samples in the (micro-)batch.
        model_arg: keyword arguments of the class or function.
        app_dir: folder that is put first on `sys.path`.
        batch_fn: makes the batches.
        mode: `"train"` or `"infer"`.
        loss: the loss of the output.
        optimizer: the optimizer.
        optimizer_arg: keyword arguments of the optimizer.
        step: the forward pass, returns the loss.
        grad_checkpoint: recompute activations in the backward pass.
        channels_last: use the channels_last memory format.
        compile: run the model through `torch.compile`.
        grad_accum: micro-batches for each optimizer step.
        precision: in which to try it.
        steps: optimizer steps.
        trial_timeout: longest time for the trial in one precision.
        device: `"auto"`, `"cuda"`, `"cuda:1"`, or `"sim"`.
        gpu: predict for a GPU that need not be there.
        context_memory: what a process holds of a simulated GPU outside PyTorch's allocator.
        memory_limit: what PyTorch's allocator may reserve.
        no_lock: measure although another bsfind may be measuring on the same GPU.
        on_trial: called as `on_trial(precision, trial)` after each trial.

    Returns:
        The report, with one trial in each precision. `fits` tells whether it ran in all that gave an
        answer.

    Raises:
        BsfindError: as `find` does.

    Example:
        >>> assert bsfind.check("mypkg.models:Net", (3, 224, 224), batch_size=64, gpu="a10g").fits
    """
    raise NotImplementedError("the command answers")


def _search(
    command: Callable[..., Any], arguments: Mapping[str, Any], given: frozenset[str]
) -> Report:
    """Run a command whose options are the arguments of the function that stands for it."""
    try:
        if is_worker():
            raise UsageError(
                "a search was started by the module that it imports the model from",
                hint='put the call under `if __name__ == "__main__":`',
            )
        with tempfile.TemporaryDirectory(prefix="bsfind-") as folder:
            return _run(command, arguments, given, Path(folder))
    except BsfindError as error:
        # What the command line prints below the message, a traceback shows as notes.
        if sys.version_info >= (3, 11):
            for note in (error.detail, f"hint: {error.hint}" if error.hint else ""):
                if note:
                    error.add_note(note)
        raise


def _run(
    command: Callable[..., Any],
    arguments: Mapping[str, Any],
    given: frozenset[str],
    folder: Path,
) -> Report:
    target = locate(arguments["model"], folder)
    specs = input_specs(arguments["inputs"])
    options = {
        **read_keywords(command, _options(arguments, target)),
        "input_shape": [spec for spec in specs if spec.name is None] or None,
        "input": [spec for spec in specs if spec.name is not None] or None,
    }
    finder = Finder(
        settings_from(options, given),
        events=_TrialEvents(arguments["on_trial"]),
        use_lock=not options["no_lock"],
    )
    report = finder.run()
    if not report.results or not all(isinstance(e, TimeLimitError) for e in finder.errors):
        raise finder.errors[0]
    if target.is_pickled:
        report = dataclasses.replace(report, warnings=(*report.warnings, _NOT_REPRODUCIBLE))
    return Report.of(report)


class _TrialEvents(Events):
    """Passes trials on to a function of the user's."""

    def __init__(self, on_trial: OnTrial | None) -> None:
        self._on_trial = on_trial

    def trial(self, precision: str, trial: Trial) -> None:
        """Called after each trial."""
        if self._on_trial is not None:
            self._on_trial(precision, trial)


def _options(arguments: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """Return the arguments as options, objects by their names."""
    options = {
        **arguments,
        "target": target.path,
        "app_dir": arguments["app_dir"] or target.app_dir,
    }
    for option in _FUNCTIONS:
        if options[option] is not None:
            options[option] = callable_name(options[option], option)
    for option in _PAIRS:
        pairs = (options[option] or {}).items()
        options[option] = [f"{k}={_literal(k, v, option)}" for k, v in pairs] or None
    return options


_NOT_REPRODUCIBLE = ReportWarning(
    code="not_reproducible",
    message="the model was passed as an object: the command that reproduces the search cannot find it",
    hint="put the model into a module, and pass its class or its import path",
)


def _literal(name: str, value: Any, option: str) -> str:
    """Write a keyword argument as the command line has it.

    Raises:
        UsageError: a value that no text stands for.
    """
    text = repr(value)
    try:
        if isinstance(value, str) and not _is_literal(value):
            return value
        if ast.literal_eval(text) == value:
            return text
    except (ValueError, SyntaxError):
        pass
    raise UsageError(
        f"`{option}` has a `{type(value).__name__}` for `{name}`, which has no text to pass it on by",
        hint="a text such as 'pkg.configs:small()' passes what the call returns; so does a function "
        "of your own that makes the model",
    )


def _is_literal(text: str) -> bool:
    """Tell whether the command line would take a text for something else than a text."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text.lower() in ("true", "false")
    return True
