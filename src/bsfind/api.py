"""bsfind from Python: `bsfind.find` and `bsfind.check`, and the report that they return.

They take what `bsfind run` and `bsfind check` take, by the same names, and print nothing. Environment
variables (`BSFIND_*`) and pyproject.toml are not read: a program says what it wants.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ParamSpec, TypedDict

from bsfind import option_types as types
from bsfind import records
from bsfind.errors import BsfindError, TimeLimitError, UsageError
from bsfind.import_path import ModelRef, callable_name, locate, value_text
from bsfind.inputs import input_specs
from bsfind.records import ReportWarning, Trial
from bsfind.report.export import DRAWN_FORMATS, write_report
from bsfind.report.markup import to_html, to_markdown
from bsfind.report.plot import check_can_draw, to_svg
from bsfind.report.sentences import answer
from bsfind.search.events import Events
from bsfind.search.finder import Finder
from bsfind.search.request import settings_from
from bsfind.settings import SETTINGS, Settings

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
    batch_fn: Function | None
    mode: str
    loss: Function
    optimizer: Function
    optimizer_arg: Mapping[str, Any] | None
    step: Function | None
    grad_checkpoint: bool
    channels_last: bool
    compile: bool
    grad_accum: int
    precision: Names
    steps: int
    trial_timeout: str | float
    device: str
    gpu: str | int | None
    context_memory: str | int | None
    memory_limit: str | int | None
    no_lock: bool


class FindOptions(CheckOptions, total=False):
    """Keyword arguments of `find`, which describes them."""

    min_batch_size: int
    max_batch_size: int | None
    multiple_of: int
    tolerance: str | float
    headroom: str | int
    objective: str
    global_batch: int | None
    world_size: int
    compare: Names
    confirm_steps: int
    time_budget: str | float | None


_FUNCTIONS = ("batch_fn", "loss", "optimizer", "step")
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
    **options: Unpack[FindOptions],
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
        on_trial: called as `on_trial(precision, trial)` after each trial, in this thread.
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
        compare: what else to try, one result each: checkpointing, channels-last, compile, …
        steps: optimizer steps of a trial.
        confirm_steps: optimizer steps of the confirmation in a fresh process.
        trial_timeout: longest time for one trial.
        time_budget: longest time for everything; what is known by then is returned.
        device: `"auto"`, `"cuda"`, `"cuda:1"`, or `"sim"`: predict.
        gpu: predict for a GPU that need not be there: its name, or its memory (bytes or text).
        context_memory: what a process holds of a simulated GPU outside PyTorch's allocator.
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
    return _search(model, inputs, dict(options), on_trial)


@_with_options(CheckOptions)
def check(
    model: Any,
    inputs: Any = None,
    *,
    batch_size: int,
    on_trial: OnTrial | None = None,
    **options: Unpack[CheckOptions],
) -> Report:
    """Try one batch size: does it fit (see `bsfind check`)?

    Args:
        model: as for `find`.
        inputs: as for `find`.
        batch_size: samples in the (micro-)batch.
        on_trial: as for `find`.
        options: as for `find`, without those of a search.

    Returns:
        The report, with one trial in each precision. `fits` tells whether it ran in all that gave an
        answer.

    Raises:
        BsfindError: as `find` does.

    Example:
        >>> assert bsfind.check("mypkg.models:Net", (3, 224, 224), batch_size=64, gpu="a10g").fits
    """
    return _search(model, inputs, {**options, "batch_size": batch_size}, on_trial)


def _search(
    model: Any, inputs: Any, options: Mapping[str, Any], on_trial: OnTrial | None
) -> Report:
    given = {name: value for name, value in options.items() if value is not None}
    try:
        if _is_worker():
            raise UsageError(
                "a search was started by the module that it imports the model from",
                hint='put the call under `if __name__ == "__main__":`',
            )
        with tempfile.TemporaryDirectory(prefix="bsfind-") as folder:
            target = locate(model, Path(folder))
            return _run(_settings(target, inputs, given), target, given, on_trial)
    except BsfindError as error:
        # What the command line prints below the message, a traceback shows as notes.
        if sys.version_info >= (3, 11):
            for note in (error.detail, f"hint: {error.hint}" if error.hint else ""):
                if note:
                    error.add_note(note)
        raise


def _is_worker() -> bool:
    """Tell whether this process is a worker, which runs the module that a model is in."""
    entry = getattr(sys.modules.get("__main__"), "main", None)
    return getattr(entry, "__module__", None) == "bsfind.worker.loop"


def _settings(target: ModelRef, inputs: Any, given: Mapping[str, Any]) -> Settings:
    specs = input_specs(inputs)
    values = {name: _read(name, value) for name, value in given.items() if name in SETTINGS}
    if target.app_dir is not None:
        values.setdefault("app_dir", target.app_dir)
    return settings_from(target.path, {**values, "input": specs}, given)


def _read(name: str, value: Any) -> Any:
    """Return the value of an option, checked; functions by their import paths.

    Raises:
        UsageError: a value that the option does not take.
    """
    kind = SETTINGS[name].kind if name in SETTINGS else types.FLAG
    try:
        if kind is types.KEY_VALUE:
            return tuple((key, _argument(name, key, text)) for key, text in value.items())
        return kind.read(callable_name(value, name) if name in _FUNCTIONS else value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"`{name}`: {error}") from None


def _argument(option: str, key: str, value: Any) -> str:
    if not key.isidentifier():
        raise ValueError(f"`{key}` is not a name of an argument")
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
    settings: Settings, target: ModelRef, given: Mapping[str, Any], on_trial: OnTrial | None
) -> Report:
    no_lock = _read("no_lock", given.get("no_lock", False))
    finder = Finder(settings, events=_TrialEvents(on_trial), use_lock=not no_lock)
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


_NOT_REPRODUCIBLE = ReportWarning(
    code="not_reproducible",
    message="the model was passed as an object: the command that reproduces the search cannot find it",
    hint="put the model into a module, and pass its class or its import path",
)


@dataclass(frozen=True)
class Plot:
    """A picture of memory, which a notebook shows.

    Attributes:
        report: what it is of.
    """

    report: records.Report

    def save(self, path: str | Path) -> None:
        """Write the picture as `.svg` or `.png`.

        Raises:
            UsageError: another ending, or the file cannot be written.
        """
        file = Path(path)
        if file.suffix.lower() not in DRAWN_FORMATS:
            raise UsageError(f"`{file}` is not a picture, end it in .svg or .png")
        write_report(self.report, file)

    def _repr_svg_(self) -> str:
        """Return what a notebook shows."""
        return to_svg(self.report)


class Report(records.Report):
    """What `bsfind.find` and `bsfind.check` found out.

    The fields are those of the JSON document, sizes in bytes and times in seconds, None for what is
    not known. A notebook shows the comparison table.

    Example:
        >>> report = bsfind.find("mypkg.models:Net", (3, 224, 224), gpu="rtx-4090")
        >>> report.batch_size, report.recommendation.precision
        (392, 'amp-bf16')
        >>> [(r.precision, r.max_batch_size, r.peak_reserved_bytes) for r in report.results]
        [('fp32', 215, 23192403968), ('amp-bf16', 419, 23246929920)]
    """

    @classmethod
    def of(cls, report: records.Report) -> Report:
        """Return the same report, with what notebooks show of it."""
        return cls(**{field.name: getattr(report, field.name) for field in fields(report)})

    @property
    def batch_size(self) -> int | None:
        """The recommended batch size, samples in a micro-batch; None if nothing is recommended."""
        return self.recommendation.batch_size if self.recommendation else None

    @property
    def fits(self) -> bool:
        """Whether the answer is yes in every precision that gave one.

        For `check`: the batch size fits. For `find`: something fits.
        """
        answered = [r for r in self.results if r.status in ("ok", "nothing_fits", "unfinished")]
        return bool(answered) and all(result.max_batch_size is not None for result in answered)

    def to_markdown(self) -> str:
        """Return the comparison table and the sentences below it as Markdown."""
        return to_markdown(self)

    def plot(self) -> Plot:
        """Return the picture of peak memory against batch size, with the limits of the GPU.

        Raises:
            UsageError: matplotlib is not installed (the extra `bsfind[plot]`).
        """
        check_can_draw()
        return Plot(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return to_html(self)

    def __repr__(self) -> str:
        said = answer(self) or self.message or "nothing is recommended."
        return f"<bsfind.Report ({self.status}{', predicted' if self.simulated else ''}): {said}>"
