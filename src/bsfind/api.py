"""bsfind from Python: `bsfind.find` and `bsfind.check`, and the report that they return.

They take what `bsfind run` and `bsfind check` take, by the same names, and print nothing. Environment
variables (`BSFIND_*`) and pyproject.toml are not read: a program says what it wants.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, ParamSpec, TypedDict

from bsfind import option_types as types
from bsfind.errors import BsfindError, TargetError, TimeLimitError, UsageError
from bsfind.import_path import value_text
from bsfind.inputs import input_specs
from bsfind.option_fields import SETTINGS
from bsfind.option_types import OptionType
from bsfind.python import notebook
from bsfind.python.object_paths import ModelRef
from bsfind.python.objects import PassedObjects
from bsfind.python.report import Report
from bsfind.records import ReportWarning
from bsfind.search.events import Events, Progress
from bsfind.search.finder import Finder
from bsfind.search.request import settings_from
from bsfind.settings import Settings
from bsfind.trial import Trial
from bsfind.worker import processes

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

Names = str | Sequence[str]
"""`"fp32,amp"` or `("fp32", "amp")`."""

Function = str | Callable[..., Any]
"""A name or an import path, or the function itself."""

OnTrial = Callable[[str, Trial], None]


class CheckOptions(TypedDict, total=False):
    """Keyword arguments of `check` and of `find`, which describes them."""

    model_arg: Mapping[str, Any] | None
    app_dir: str | None
    seq_len: int | str | Sequence[int] | None
    image_size: int | None
    batch_fn: Function | None
    batch_arg: Mapping[str, Any] | None
    mode: str
    loss: Function
    optimizer: Function
    optimizer_arg: Mapping[str, Any] | None
    step: Function | None
    grad_checkpoint: bool
    channels_last: bool
    compile: bool
    grad_accum: int
    with_eval: bool
    eval_batch_size: int | None
    parallel: Function
    world_size: int
    replicas: int | None
    shard_by: str
    parallel_arg: Mapping[str, Any] | None
    precision: Names
    steps: int
    trial_timeout: str | float
    device: str
    gpu: str | int | None
    context_memory: str | int | None
    nccl_memory: str | int | None
    torch_version: str | None
    memory_limit: str | int | None
    no_lock: bool


class FindOptions(CheckOptions, total=False):
    """Keyword arguments of `find`, which describes them."""

    min_batch_size: int
    max_batch_size: int | None
    axis: str | None
    batch_size: int | None
    min_size: int | None
    max_size: int | None
    multiple_of: int
    tolerance: str | float
    headroom: str | int
    objective: str
    global_batch: int | None
    nproc_per_node: str | int | None
    compare: Names
    confirm_steps: int
    time_budget: str | float | None


_FUNCTIONS = ("batch_fn", "loss", "optimizer", "step", "parallel")
Arguments = ParamSpec("Arguments")


def _with_options(
    options: type,
) -> Callable[[Callable[Arguments, Report]], Callable[Arguments, Report]]:
    """Give a function the signature that its keyword arguments have, with the defaults of the settings."""

    def decorated(function: Callable[Arguments, Report]) -> Callable[Arguments, Report]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(name))
            for name in options.__annotations__
        ]
        signature = signature.replace(parameters=[*own, *more])

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Report:
            signature.bind(*args, **kwargs)  # a TypeError names what is missing or unknown
            return function(*args, **kwargs)

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorated


def _default(name: str) -> Any:
    if name == "app_dir":
        return None  # where the model's module is
    return SETTINGS[name].shown_default if name in SETTINGS else False


@_with_options(FindOptions)
def find(
    model: Any,
    inputs: Any = None,
    *,
    on_trial: OnTrial | None = None,
    progress: bool = True,
    **options: Unpack[FindOptions],
) -> Report:
    """Find the batch size that a model should train with (see `bsfind run`).

    The model is trained for a few steps in processes of its own, at several batch sizes and in each
    precision; with `gpu`, nothing runs and the same is predicted. Sizes are texts (`"8GiB"`) or bytes,
    durations are texts (`"90s"`) or seconds.

    Args:
        model: an import path (`"package.module:Net"`, `"path/file.py:Net"`); an `nn.Module` class or a
            function that returns one; or an instance, which must be on the CPU. What another process
            cannot import (of a notebook's cells, say) is pickled, with the extra `bsfind[notebook]`.
        inputs: what the model is called with, without the batch dimension: a shape `(3, 224, 224)`
            (float32), the text of an option (`"128:int64:0..30522"`), an `InputSpec`, or an example,
            the tensor of one sample, whose shape, dtype and range of integers are taken. A list of
            them: several positional inputs; a dict: keyword inputs, among which there may be constants
            (True, None, a number), `"@name"` for the tensor of another input, and dicts. None with
            `batch_fn`, or where they follow from the model: of transformers, timm, torchvision or
            diffusers, or with an example.
        on_trial: called as `on_trial(precision, trial)` after each trial, in this thread; with several
            lengths, as `on_trial("fp32 at 512 tokens", trial)`.
        progress: in a notebook, show a line that says what is tried, until the end.
        model_arg: keyword arguments of the class or function.
        app_dir: folder that is put first on `sys.path`; None: where the model's module is, if it
            was passed as an object, else the current folder.
        seq_len: tokens of each sample, where inputs follow from the model or `batch_fn` takes it; several
            lengths, `(128, 512)`, have results of their own, and the longest has the recommendation.
        image_size: height and width of images, likewise.
        batch_fn: makes the batches: `fn(batch_size, device)` returns a tensor, tuple, dict or
            `(args, kwargs)`.
        batch_arg: keyword arguments of `batch_fn`; Python literals.
        mode: `"train"`: training steps; `"infer"`: forward passes alone.
        loss: `"auto"`, `"cross-entropy"`, `"mse"`, `"mean"`, or a function of the output.
        optimizer: a name or class of `torch.optim`, or a function of the parameters.
        optimizer_arg: keyword arguments of the optimizer; Python literals.
        step: the forward pass: `fn(model, *args, **kwargs)`, runs inside autocast, returns the loss; None if
            it has stepped its own optimizers.
        grad_checkpoint: recompute activations in the backward pass.
        channels_last: use the channels_last memory format.
        compile: run the model through `torch.compile`.
        grad_accum: micro-batches for each optimizer step.
        with_eval: evaluate after the steps of a trial, as a trainer does between epochs.
        eval_batch_size: samples in a batch of the evaluation; None: as many as in training.
        parallel: how several GPUs share the training: `"none"`, `"ddp"`, `"fsdp"`, `"hsdp"`, `"zero1"`, or a
            function of the model and the device mesh, which returns the wrapped model.
        world_size: GPUs in all, one for each rank, which share the global batch.
        replicas: with `"hsdp"`: groups of GPUs that have a whole model each.
        shard_by: with `"fsdp"` and `"hsdp"`: the classes of modules that are sharded, `"Block,Embedding"`.
        parallel_arg: arguments of the strategy.
        precision: of fp32, tf32, amp-fp16, amp-bf16, bf16, mp-bf16 (FSDP2's policy) and amp.
        min_batch_size: smallest useful answer, samples.
        max_batch_size: largest batch size to try, samples.
        axis: search this size instead of the batch size: `"seq-len"`, `"image-size"`, or a name that stands
            in place of a number in `inputs`: `{"ids": "L:int64:0..50257"}`. The answer is `axis_size`.
        batch_size: with `axis`: samples in each batch.
        min_size: with `axis`: the smallest useful answer.
        max_size: with `axis`: the largest size to try.
        multiple_of: every size that is tried is a multiple of this.
        tolerance: gap that may remain between the largest that ran and the smallest that did not,
            as a part of it; 0: exact.
        headroom: memory that the recommended size leaves free: part of the capacity, or bytes.
        objective: `"largest"`, or `"fastest"`: the smallest within 2 % of the best samples/s.
        nproc_per_node: run so many ranks on the GPUs of this machine; `"gpu"`: one on each.
        global_batch: samples for each optimizer step over all GPUs, reached with accumulation.
        compare: what else to try, one result each: checkpointing, channels-last, compile, …
        steps: optimizer steps of a trial.
        confirm_steps: optimizer steps of the confirmation in a fresh process.
        trial_timeout: longest time for one trial.
        time_budget: longest time for everything; what is known by then is returned.
        device: `"auto"`, `"cuda"`, `"cuda:1"`, or `"sim"`: predict.
        gpu: predict for a GPU that need not be there: its name, or its memory (bytes or text).
        context_memory: what a process holds of a simulated GPU outside PyTorch's allocator.
        nccl_memory: what NCCL takes of each GPU, where it does not run.
        torch_version: predict for another release of PyTorch than the one that is installed: `"2.9"`.
        memory_limit: what PyTorch's allocator may reserve.
        no_lock: do not wait for another bsfind that is using this GPU.
        options: the above; one that is None has its default.

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
    if options.get("batch_size") is not None and options.get("axis") is None:
        raise UsageError("`batch_size` goes with `axis`; `bsfind.check` tries one batch size")
    return _search(model, inputs, dict(options), _Observer(on_trial, shows=progress))


@_with_options(CheckOptions)
def check(
    model: Any,
    inputs: Any = None,
    *,
    batch_size: int,
    on_trial: OnTrial | None = None,
    progress: bool = True,
    **options: Unpack[CheckOptions],
) -> Report:
    """Try one batch size: does it fit (see `bsfind check`)?

    Args:
        model: as for `find`.
        inputs: as for `find`.
        batch_size: samples in the (micro-)batch.
        on_trial: as for `find`.
        progress: as for `find`.
        options: as for `find`, without those of a search.

    Returns:
        The report, with one trial in each precision. `fits` tells whether it ran in all that gave an
        answer.

    Raises:
        BsfindError: as `find` does.

    Example:
        >>> assert bsfind.check("mypkg.models:Net", (3, 224, 224), batch_size=64, gpu="a10g").fits
    """
    if batch_size is None:  # which would ask for a search
        raise UsageError("`batch_size` is None: `bsfind.find` looks for one")
    observer = _Observer(on_trial, shows=progress)
    return _search(model, inputs, {**options, "batch_size": batch_size}, observer)


def _search(model: Any, inputs: Any, options: Mapping[str, Any], observer: _Observer) -> Report:
    given = {name: value for name, value in options.items() if value is not None}
    try:
        if _is_worker():
            raise UsageError(
                "a search was started by the module that it imports the model from",
                hint='put the call under `if __name__ == "__main__":`, or install `bsfind[notebook]`',
            )
        with _temporary_folder() as folder:
            passed = PassedObjects(Path(folder))
            model, given = _with_arguments(model, given)
            settings = _settings(passed.model(model), inputs, given, passed)
            passed.write()
            try:
                return _run(settings, passed, given, observer)
            except BsfindError as error:
                error.message, error.hint = map(passed.shown, (error.message, error.hint))
                error.args = (error.message,)
                if passed.on_host and isinstance(error, TargetError):
                    told = _on_host(passed.on_host)
                    error.hint = f"{told.message}; {told.hint}"
                raise
    except BsfindError as error:
        # What the command line prints below the message, a traceback shows as notes.
        if sys.version_info >= (3, 11):
            for note in (error.detail, f"hint: {error.hint}" if error.hint else ""):
                if note:
                    error.add_note(note)
        raise


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="bsfind-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UsageError(
            "there is no folder for temporary files",
            detail=str(error),
            hint="the variable TMPDIR names one",
        ) from None


def _is_worker() -> bool:
    """Tell whether this process is a worker, which runs the module that a model is in."""
    return processes.MARK in os.environ


def _with_arguments(model: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a model that has the arguments which no text stands for, and the options without these."""
    arguments = given.get("model_arg")
    if not isinstance(model, (type, FunctionType)) or not isinstance(arguments, Mapping):
        return model, given
    others = {key: value for key, value in arguments.items() if not _has_text(value)}
    if not others or not all(isinstance(key, str) for key in others):
        return model, given
    rest = {key: value for key, value in arguments.items() if key not in others}
    return functools.partial(model, **others), {**given, "model_arg": rest}


def _settings(
    target: ModelRef, inputs: Any, given: Mapping[str, Any], passed: PassedObjects
) -> Settings:
    specs = input_specs(inputs)
    values = {
        name: _read(name, passed.function(value, name) if name in _FUNCTIONS else value)
        for name, value in given.items()
        if name in SETTINGS
    }
    _value(types.IMPORT_PATH, "model", target.path)
    if target.app_dir is not None:
        values.setdefault("app_dir", target.app_dir)
    return settings_from(target.path, {**values, "input": specs}, given)


def _read(name: str, value: Any) -> Any:
    """Return the value of an option, checked.

    Raises:
        UsageError: a value that the option does not take.
    """
    kind = SETTINGS[name].kind
    if kind is types.KEY_VALUE:
        if not isinstance(value, Mapping):
            raise UsageError(f"`{name}` is a `{type(value).__name__}`, not a mapping")
        return tuple((key, _argument(name, key, text)) for key, text in value.items())
    return _value(kind, name, value)


def _value(kind: OptionType, name: str, value: Any) -> Any:
    try:
        return kind.read(value)
    except ValueError as error:
        raise UsageError(f"`{name}`: {error}") from None
    except UsageError as error:
        raise error.about(f"`{name}`") from None


def _has_text(value: Any) -> bool:
    try:
        value_text(value)
    except ValueError:
        return False
    return True


def _argument(option: str, key: Any, value: Any) -> str:
    if not isinstance(key, str) or not key.isidentifier():
        raise UsageError(f"`{option}`: `{key}` is not a name of an argument")
    try:
        return value_text(value)
    except ValueError:
        raise UsageError(
            f"`{option}` has a `{type(value).__name__}` for `{key}`, which cannot be passed to the "
            "worker process",
            hint="a text such as 'pkg.configs:small()' passes what the call returns; so does a function "
            "of your own that makes the model",
        ) from None


def _run(
    settings: Settings, passed: PassedObjects, given: Mapping[str, Any], observer: _Observer
) -> Report:
    no_lock = _value(types.FLAG, "no_lock", given.get("no_lock", False))
    finder = Finder(settings, events=observer, use_lock=not no_lock)
    with observer:
        report = finder.run()
    if not report.results or not all(isinstance(e, TimeLimitError) for e in finder.errors):
        raise finder.errors[0]
    if passed:
        named = {
            name: passed.shown(value) if isinstance(value, str) else value
            for name, value in report.workload.items()
        }
        warnings = (*report.warnings, _NOT_REPRODUCIBLE)
        if passed.on_host and report.simulated:
            warnings = (*warnings, _on_host(passed.on_host))
        report = dataclasses.replace(report, workload=named, warnings=warnings)
    return Report.of(report)


class _Observer(Events):
    """Passes trials on to a function of the user's, and shows a line in a notebook while inside.

    Raises:
        UsageError: it is no function.
    """

    def __init__(self, on_trial: OnTrial | None, *, shows: bool) -> None:
        if on_trial is not None and not callable(on_trial):
            raise UsageError(f"`on_trial` is a `{type(on_trial).__name__}`, not a function")
        self._on_trial = on_trial
        self._shows = shows
        self._show: Callable[[str], object] | None = None

    def __enter__(self) -> None:
        self._show = notebook.line() if self._shows else None

    def __exit__(self, *_: object) -> None:
        if self._show is not None:
            self._show("")

    def progress(self, progress: Progress) -> None:
        """Called before each step."""
        if self._show is not None:
            self._show(" · ".join((progress.precision, *progress.words)))

    def trial(self, precision: str, trial: Trial) -> None:
        """Called after each trial."""
        if self._on_trial is not None:
            self._on_trial(precision, trial)


_NOT_REPRODUCIBLE = ReportWarning(
    code="not_reproducible",
    message="the model or a function was passed as an object: the command that reproduces the search "
    "cannot find it",
    hint="put it into a module, and pass the class, the function, or an import path",
)


def _on_host(names: Sequence[str]) -> ReportWarning:
    listed = ", ".join(f"`{name}`" for name in names)
    return ReportWarning(
        code="host_device",
        message=f"{listed}: not on the GPU that is predicted, as this machine has none; what the code puts "
        "on that device is not counted",
        hint='take the device of the inputs (`x.device`), or write `device = "cuda" if '
        'torch.cuda.is_available() else "cpu"` in a cell or a script: it is asked again for the GPU',
    )
