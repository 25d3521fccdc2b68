"""What bsfind assumed where the user did not say: the loss, the optimizer, inputs, what a loop keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from bsfind.inputs import InputSpec
from bsfind.records import Assumption, DeviceInfo, OutputMemory, ReportWarning
from bsfind.settings import Settings, Workload
from bsfind.trial import Trial
from bsfind.units import format_bytes

_LARGE_OUTPUT = 0.02
"""Share of the peak from which on it matters how long a training loop keeps the output."""


def with_proposed_inputs(settings: Settings, inputs: tuple[InputSpec, ...]) -> Settings:
    """Return the settings with the inputs that follow from the model.

    As they are if there are none, or if each of several lengths has its own.
    """
    if not inputs or len(settings.seq_lens) > 1:
        return settings
    workload = dataclasses.replace(settings.workload, inputs=inputs, seq_len=None, image_size=None)
    return dataclasses.replace(settings, workload=workload, seq_lens=())


def assumptions_of(
    settings: Settings,
    device: DeviceInfo | None,
    optimizer: str | None,
    of_the_steps: Sequence[Assumption],
) -> tuple[Assumption, ...]:
    """Return what the user did not say and bsfind chose, if it bears on the answer.

    Args:
        settings: what was asked for.
        device: the device that was opened; None before that.
        optimizer: class of the optimizer; None in inference, or before the model was loaded.
        of_the_steps: what the worker has chosen for the steps.
    """
    made = list(of_the_steps)
    if len(settings.seq_lens) > 1:
        at_longest = f"inputs at {max(settings.seq_lens):,} tokens"
        made = [dataclasses.replace(m, what=at_longest) if m.what == "inputs" else m for m in made]
    is_told = any(assumption.what == "optimizer" for assumption in made)
    if optimizer is not None and "optimizer" not in settings.given and not is_told:
        made.append(
            Assumption(
                what="optimizer",
                value=optimizer,
                why="no optimizer was named, and most models are trained with this one; "
                "`--optimizer` names another",
            )
        )
    for number, spec in enumerate(settings.workload.inputs, 1):
        made.extend(_of_input(spec, number))
    if device is not None and device.traced_by is not None:
        made.append(
            Assumption(
                what="torch",
                value=f"{device.torch_version}, for what {device.traced_by} traces",
                why="`--torch-version` predicts what the release's allocator and kernels take for the Python "
                "code and the operators of the torch that is installed",
            )
        )
    if settings.device.is_simulated and "gpu" not in settings.given and device is not None:
        made.append(
            Assumption(
                what="GPU",
                value=device.name,
                why="no GPU was named, and none is measured; `--gpu` names another",
            )
        )
    return tuple(made)


def stand_in_warning(
    output: OutputMemory | None,
    batch_size: int | None,
    peak_bytes: int | None,
    searched: str = "batch size",
    *,
    assumptions: Iterable[Assumption],
) -> ReportWarning | None:
    """Return the warning that a mean is trained because no loss is known; None if a loss is known.

    Args:
        output: what the model returned to the loss; None: unknown.
        batch_size: batch size of a trial, or size of the axis; None: no trial ran.
        peak_bytes: peak allocated of that trial.
        searched: the name of that size.
        assumptions: what was assumed, with the reason why no loss is known.
    """
    if output is None or not output.is_stand_in:
        return None
    why = next((f" ({made.why})" for made in assumptions if made.what == "loss"), "")
    message = f"no loss is known for the model's output{why}: its mean is trained, a stand-in"
    if batch_size is not None and peak_bytes:
        size = output.bytes_per_sample * batch_size
        share = size / peak_bytes
        percent = "<1 %" if share < 0.005 else f"{share:.0%}".replace("%", " %")
        message += (
            f"; at {searched} {batch_size:,} the output is {format_bytes(size)} of the peak of "
            f"{format_bytes(peak_bytes)} ({percent}), of which the real loss may keep several copies"
        )
    return ReportWarning(
        code="loss_stand_in",
        message=message,
        hint="name the loss: `--loss cross-entropy`, `--loss mse` or `--loss pkg.mod:fn`, called as "
        "`fn(output)`; or the whole step: `--step pkg.mod:fn`",
    )


def assumption_of_output(
    output: OutputMemory | None,
    batch_size: int | None,
    peak_bytes: int | None,
    searched: str = "batch size",
) -> Assumption | None:
    """Return what is assumed of the model's output after the loss; None if the output is small.

    The arguments are those of `stand_in_warning` with the same names.
    """
    if output is None or batch_size is None or not peak_bytes:
        return None
    size = output.bytes_per_sample * batch_size
    if size < _LARGE_OUTPUT * peak_bytes:
        return None
    return Assumption(
        what="outputs",
        value="released before the backward pass",
        why="a loop that keeps a reference to them (`logits, loss = model(x, y)`) needs up to "
        f"{format_bytes(size)} more at {searched} {batch_size:,}",
    )


def short_batch(
    trials: Sequence[Trial], workload: Workload
) -> tuple[ReportWarning, Assumption] | None:
    """Return what to say of a search that ended where no larger batch is delivered; None if it did not."""
    trial = next((trial for trial in trials if trial.delivered_batch_size is not None), None)
    if trial is None or trial.message is None:
        return None
    limit = f"{trial.delivered_batch_size:,}"
    warning = ReportWarning(
        code="short_batch",
        message=f"{trial.message}: the search ends there, and memory for more may be left",
        hint="a data set with more samples, or one that repeats them, delivers larger batches"
        if workload.axis is None
        else None,
    )
    what = f"largest {workload.searched}"
    return warning, Assumption(what=what, value=limit, why=trial.message)


def late_buckets(trial: Trial | None, settings: Settings) -> ReportWarning | None:
    """Return the warning that DDP may need more in the step in which it makes its buckets anew.

    Args:
        trial: the trial of the recommended batch size, or the last that ran; None if none did.
        settings: what was asked for.
    """
    if trial is None or trial.fits_with_old_buckets is not False:
        return None
    size = f"{settings.workload.searched} {trial.size:,}"
    return ReportWarning(
        code="ddp_rebuild",
        message="DDP makes its buckets anew after the first steps: if steps are shorter than about 0.1 s, "
        f"the old ones stay for one step more, and {size} runs out of memory then",
        hint="`--parallel-arg gradient_as_bucket_view=true` needs less; a larger `--headroom` leaves room",
    )


def varying_batches(
    workload: Workload, trial: Trial | None
) -> tuple[ReportWarning, Assumption] | None:
    """Return what to say of batches that vary from call to call; None if they do not.

    Args:
        workload: what is trained.
        trial: the trial of the recommended batch size, or the last that ran; None if none did.
    """
    if trial is None or trial.batches is None:
        return None
    found = trial.batches
    value = f"the largest of {found.batches:,}, {found.most_elements:,} elements"
    why = f"`--batch-fn {workload.batch_fn}` returns batches of varying shapes"
    warning = ReportWarning(
        code="batches_vary",
        message=f"{why}: the answer is about the largest of {found.batches:,} at "
        f"{workload.searched} {trial.batch_size:,}, which had {found.least_elements:,} to "
        f"{found.most_elements:,} elements; larger ones are not covered",
        hint="return the largest batch that training can meet: padded to the longest sample of the data "
        "set, say; `--steps` and `--confirm-steps` ask for more batches",
    )
    return warning, Assumption(what="batches", value=value, why=why)


def _of_input(spec: InputSpec, number: int) -> Iterator[Assumption]:
    name = f"input {number}" if spec.name is None else f"input `{spec.name}`"
    if "dtype" in spec.assumed:
        why = "no dtype was given; write one behind the shape: `128:int64`"
        yield Assumption(what=f"dtype of {name}", value=spec.dtype, why=why)
    if "range" in spec.assumed:
        yield Assumption(
            what=f"values of {name}",
            value=f"{spec.low}..{spec.high}",
            why="no range was given, and 0 and 1 are valid in every vocabulary; write one behind the "
            f"dtype: `{spec.dtype}:0..30522`",
        )
