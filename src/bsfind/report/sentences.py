"""What the report says in sentences: the answer, its evidence, other findings, problems, hints."""

from __future__ import annotations

from bsfind.records import PrecisionResult, RefusedSizes, Report, Trial
from bsfind.report import wording
from bsfind.search.recommend import baseline, is_fragmented, speed_up
from bsfind.units import format_bytes, format_count

_NAMED_SIZES = 4
"""How many of the sizes that a model refuses are named."""

_FLAT = 0.001
"""Peaks that differ by no more than this part are the same: rounding to blocks, random lengths."""


def sentences(report: Report) -> list[str]:
    """Return what stands under the answer, one sentence or more to a line."""
    lines = (
        _evidence(report),
        *_refused_sizes(report),
        _global_batch(report),
        _account(report),
        _throughput(report),
        _foresight(report),
        accuracy(report),
    )
    return [line for line in lines if line is not None] + _remedies(report)


def answer(report: Report) -> str | None:
    """Return the recommendation in one sentence; None if there is none."""
    recommendation, result = report.recommendation, wording.recommended(report)
    if recommendation is None or result is None:
        return None
    verb = "Train" if report.workload["mode"] == "train" else "Infer"
    text = f"{verb} with batch size {recommendation.batch_size} in {wording.precision(result)}"
    reasons = []
    if report.status == "partial":
        text += " at least (the search is not complete)"
    ratio = speed_up(result, report.results)
    reference = baseline(report.results)
    if ratio is not None and reference is not None:
        reasons.append(f"{ratio:.1f} x the samples per second of {reference.precision}")
    if report.device is not None and result.peak_reserved_bytes is not None:
        left = report.device.capacity_bytes - result.peak_reserved_bytes
        reasons.append(f"{format_bytes(left)} left free")
    return f"{text}: {', '.join(reasons)}." if reasons else f"{text}."


def _evidence(report: Report) -> str | None:
    """Return what the recommendation rests on; None if there is none."""
    result = wording.recommended(report)
    if result is None:
        return None
    parts = []
    if report.simulated:
        steps = report.search["confirm_steps"]
        parts.append(f"Predicted, not run: {steps} steps, replayed within the budget.")
    elif result.confirmation is not None:
        parts.append(_confirmed(result.confirmation))
    else:
        parts.append("Not confirmed in a fresh process.")
    ran = "fits" if report.simulated else "ran"
    if result.smallest_failed_batch_size is not None:
        failed = next(t for t in result.trials if t.batch_size == result.smallest_failed_batch_size)
        what = {"oom": "ran out of memory", "timeout": "did not end in time", "error": "failed"}
        if failed.is_refused:
            what["error"] = "is refused by the model"
        if report.simulated:
            what["oom"] = "runs out of memory"
        parts.append(
            f"{result.max_batch_size:,} {ran}, {failed.batch_size:,} {what[failed.status]}."
        )
    elif result.is_maximum_proven:
        parts.append(f"{result.max_batch_size:,} {ran}, the largest that was allowed.")
    else:
        parts.append(f"{result.max_batch_size:,} {ran}, more may fit.")
    return " ".join(parts)


def _refused_sizes(report: Report) -> list[str]:
    """Return at which batch sizes the model's own code raises, and at which it does not."""
    chosen = wording.recommended(report)
    told: list[RefusedSizes | None] = []
    lines = []
    for result in sorted(report.results, key=lambda result: result is not chosen):
        text = refused_sizes(result)
        accepted = [refused.accepted for refused in told if refused is not None]
        if text is None or result.status != "ok" or result.refused_sizes is None:
            continue
        if result.refused_sizes.accepted not in accepted:
            lines.append(f"{text}." if not told else f"{text} ({wording.full_label(result)}).")
            told.append(result.refused_sizes)
    return lines


def refused_sizes(result: PrecisionResult) -> str | None:
    """Return which sizes the model's code refuses, and which run; None if it has refused none."""
    refused = result.refused_sizes
    if refused is None:
        return None
    sizes = refused.batch_sizes
    if sizes == (1,):
        return f"Batch size 1 does not run: {refused.error}"
    named = [f"{size:,}" for size in sizes[:_NAMED_SIZES]]
    if len(sizes) > _NAMED_SIZES:
        named.append(f"{len(sizes) - _NAMED_SIZES} others")
    listed = " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))
    fail = "Batch sizes {} fail" if len(sizes) > 1 else "Batch size {} fails"
    text = f"{fail.format(listed)} with `{refused.error}`"
    if refused.accepted is not None:
        return f"{text}; {refused.accepted} run"
    if result.max_batch_size is not None:
        return f"{text}; {result.max_batch_size:,} runs"
    return text


def accuracy(report: Report) -> str | None:
    """Return how exact a prediction is, in one line; None if nothing was predicted."""
    prediction = report.prediction
    if prediction is None:
        return None
    if prediction.no_accuracy_because is not None:
        return f"Error bound: {prediction.no_accuracy_because}."
    measured = prediction.accuracy
    if measured is None:
        return None
    allocated, reserved = measured.allocated, measured.reserved
    return (
        f"Error bound for {prediction.model_kind} models: peak allocated {_error(allocated.median)} "
        f"(median) and {_error(allocated.p95)} (95th percentile), peak reserved "
        f"{_error(reserved.median)} and {_error(reserved.p95)}, in {measured.runs} runs against "
        f"{measured.against}."
    )


def _error(part: float) -> str:
    """Write an error as a part of what is right: `0.02 %`, `3.1 %`."""
    return f"{part * 100:.2g} %" if part else "0 %"


def _foresight(report: Report) -> str | None:
    """Return what was predicted against what was measured; None if nothing was, or nothing ran."""
    result = wording.recommended(report)
    predicted = result.predicted if result else None
    if report.simulated or result is None or predicted is None:
        return None
    text = f"Predicted beforehand: {predicted.max_batch_size:,} at most"
    if predicted.peak_reserved_bytes is not None:
        text += f", peak reserved {format_bytes(predicted.peak_reserved_bytes)}"
        if predicted.recommended_batch_size != result.recommended_batch_size:
            text += f" at batch size {predicted.recommended_batch_size:,}"
    measured = f"measured: {result.max_batch_size:,}, {format_bytes(result.peak_reserved_bytes)}"
    return f"{text}; {measured}."


def _confirmed(trial: Trial) -> str:
    """Return what the steps of the confirmation show."""
    text = f"Confirmed: {trial.steps} steps in a fresh process"
    peaks = trial.peaks_by_step
    if len(peaks) > 1:
        highest = max(peaks)
        reached = next(i for i, peak in enumerate(peaks, 1) if peak >= highest * (1 - _FLAT))
        is_flat = min(peaks[reached - 1 :]) >= highest * (1 - _FLAT)
        if is_flat and reached <= len(peaks) // 2:
            text += f", peak memory flat from step {reached} on"
        else:
            text += f", the highest peak in step {reached}"
    if trial.num_alloc_retries:
        when = "" if trial.steady_alloc_retries else " in the first steps"
        times = "once" if trial.num_alloc_retries == 1 else f"{trial.num_alloc_retries} times"
        text += f", the cache flushed {times}{when}"
    return f"{text}."


def _account(report: Report) -> str | None:
    """Return what the card's memory is taken by at the recommended batch size."""
    result, device = wording.recommended(report), report.device
    if result is None or device is None or result.peak_reserved_bytes is None:
        return None
    allocated, reserved = result.peak_allocated_bytes or 0, result.peak_reserved_bytes
    parts = [
        f"{format_bytes(allocated)} allocated",
        f"{format_bytes(reserved - allocated)} fragmentation",
    ]
    outside = 0
    for nbytes, name in (
        (device.context_bytes, "context"),
        (device.others_bytes, "other processes"),
    ):
        if nbytes:
            parts.append(f"{format_bytes(nbytes)} {name}")
            outside += nbytes
    free = device.total_bytes - reserved - outside
    parts.append(f"{format_bytes(max(0, free))} free")
    return f"The card's {format_bytes(device.total_bytes)}: {', '.join(parts)}."


def _throughput(report: Report) -> str | None:
    """Return from which batch size on throughput no longer grows."""
    result = wording.recommended(report)
    if result is None or result.saturation_batch_size is None:
        return None
    enough, chosen = result.saturation_batch_size, result.recommended_batch_size or 0
    if enough > chosen:
        return "Throughput still grows at this batch size."
    if enough == chosen:
        return "Throughput is within 2 % of its best from this batch size on."
    return f"Throughput is within 2 % of its best from batch size {enough:,} on."


def _global_batch(report: Report) -> str | None:
    parts = report.recommendation.global_batch if report.recommendation else None
    if parts is None:
        return None
    nearest = "" if parts.reached == parts.asked else f", the nearest to {parts.asked:,}"
    steps = f"{parts.accumulation_steps} accumulation step{'s' * (parts.accumulation_steps > 1)}"
    gpus = f"{parts.world_size} GPU{'s' * (parts.world_size > 1)}"
    factors = f"micro-batch {parts.micro_batch_size:,} x {steps} x {gpus}"
    return f"Global batch {parts.reached:,}{nearest}: {factors}."


def _remedies(report: Report) -> list[str]:
    """Return what each remedy of `--compare` buys, against the row that it was tried beside."""
    lines = []
    for result in report.results:
        if result.remedy is None or not result.recommended_batch_size:
            continue
        beside = next(
            r for r in report.results if r.precision == result.precision and r.remedy is None
        )
        text = f"With {result.remedy}: batch size {result.recommended_batch_size:,}"
        if beside.recommended_batch_size:
            text += f" ({result.recommended_batch_size / beside.recommended_batch_size:.2f} x)"
        if result.samples_per_s:
            text += f", {format_count(result.samples_per_s)} samples/s"
            if beside.samples_per_s:
                text += f" ({result.samples_per_s / beside.samples_per_s:.2f} x)"
        lines.append(f"{text}.")
    return lines


def problems(report: Report) -> list[str]:
    """Return why a precision has no answer, one line each."""
    lines = []
    for result in report.results:
        if result.message and result.recommended_batch_size is None:
            tried = _tried(result, report) if result.status == "error" else None
            lines.append(
                f"{wording.full_label(result)}: {result.message}{f'; before that, {tried}' if tried else ''}"
            )
    return lines


def tried_before_an_error(report: Report) -> bool:
    """Tell whether some batch size was tried with another outcome than an error."""
    return any(_tried(result, report) for result in report.results)


def _tried(result: PrecisionResult, report: Report) -> str | None:
    """Return what came of the trials before an error broke the search off; None if nothing did."""
    came = {"ok": "fits" if report.simulated else "ran", "oom": "ran out of memory"}
    if report.simulated:
        came["oom"] = "runs out of memory"
    outcomes = [
        f"{trial.batch_size:,} {came[trial.status]}"
        for trial in sorted(result.trials, key=lambda trial: trial.batch_size)
        if trial.status in came
    ]
    return ", ".join(outcomes) or None


def hints(report: Report) -> list[str]:
    """Return what could be done next; only what is not done already."""
    if report.recommendation is None:
        if any(result.status in ("nothing_fits", "ok") for result in report.results):
            return _ways_to_fit(report)
        return []
    hints = []
    result = wording.recommended(report)
    bought = result.expandable_segments if result else None
    if bought is not None and result is not None and result.recommended_batch_size:
        more = bought.batch_size / result.recommended_batch_size - 1
        hints.append(
            f"`PYTORCH_ALLOC_CONF=expandable_segments:True` ran batch size {bought.batch_size:,} in the "
            f"same memory ({more:+.0%})"
        )
    compared = {other.remedy for other in report.results}
    if (
        report.simulated
        and result is not None
        and report.recommendation.global_batch is None
        and is_fragmented(result.peak_allocated_bytes, result.peak_reserved_bytes)
        and "expandable-segments" not in compared
        and not (report.prediction and report.prediction.allocator.get("expandable_segments"))
    ):
        hints.append("what less fragmentation would buy: `--compare expandable-segments`")
    if report.recommendation.global_batch is not None and report.recommendation.check:
        hints.append(f"this tries the micro-batch again: `{report.recommendation.check}`")
    return hints


def _ways_to_fit(report: Report) -> list[str]:
    """Return what makes more fit, in the order of what it costs."""
    tried = {result.precision for result in report.results}
    workload = report.workload
    remedies = []
    if not any(result.trials for result in report.results):
        if "bf16" not in tried:
            remedies.append("the model in half precision takes half the memory: `--precision bf16`")
        remedies.append(
            "a model that does not fit alone needs a larger GPU, or to be sharded (FSDP)"
        )
        return remedies
    if not any(trial.status == "oom" for result in report.results for trial in result.trials):
        return []
    if not tried & {"amp-fp16", "amp-bf16", "bf16"}:
        remedies.append("mixed precision may make it fit: `--precision amp`")
    training = workload["mode"] == "train"
    if training and not workload["grad_checkpoint"]:
        remedies.append("recomputing activations saves memory for time: `--grad-checkpoint`")
    smallest = report.search["min_batch_size"]
    if smallest > 1:
        remedies.append(f"a smaller batch may fit: `--min-batch-size {max(1, smallest // 2)}`")
    if training and workload["optimizer"].lower() in ("adam", "adamw"):
        remedies.append("an optimizer with less state saves memory: `--optimizer sgd`")
    remedies.append("smaller inputs need less memory: `--input-shape`, `--input`")
    return remedies
