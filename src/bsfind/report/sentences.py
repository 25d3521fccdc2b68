"""What the report says in sentences: the answer, its evidence, other findings, problems, hints."""

from __future__ import annotations

from collections.abc import Iterator

from bsfind.records import Prediction
from bsfind.report import wording
from bsfind.results import PrecisionResult, Report
from bsfind.search.recommend import baseline, is_fragmented, recommend, speed_up
from bsfind.trial import Trial
from bsfind.units import format_batch_sizes, format_bytes, format_count

_FLAT = 0.001
"""Peaks that differ by no more than this part are the same: rounding to blocks, random lengths."""


def answer(report: Report) -> str | None:
    """Return the recommendation in one sentence; None if there is none."""
    recommendation, result = report.recommendation, wording.recommended(report)
    if recommendation is None or result is None:
        return None
    verb = "Train" if wording.is_training(report) else "Infer"
    number = f"batch size {recommendation.batch_size}"
    if recommendation.axis_size is not None:
        number = f"{report.axis} up to {recommendation.axis_size:,} at {number}"
    if result.global_batch_size is not None:
        number += f" per GPU, {result.global_batch_size:,} in all,"
    text = f"{verb} with {number}{wording.in_which(result, report)}"
    if report.status == "partial":
        text += " at least (the search is not complete)"
    reasons = []
    ratio = speed_up(result, report.results)
    reference = baseline(report.results, result.seq_len)
    if ratio is not None and reference is not None:
        reasons.append(f"{ratio:.1f} x the samples per second of {reference.precision}")
    trial = wording.recommended_trial(result)
    if report.device is not None and trial is not None and result.peak_reserved_bytes is not None:
        capacity = trial.limiting_capacity_bytes(report.device.capacity_bytes)
        reasons.append(f"{format_bytes(capacity - result.peak_reserved_bytes)} left free")
    return f"{text}: {', '.join(reasons)}." if reasons else f"{text}."


def sentences(report: Report) -> list[str]:
    """Return the lines below the answer, one sentence or more to a line."""
    result = wording.recommended(report)
    lines = [] if result is None else [_evidence(result, report)]
    lines += _refused_sizes(report)
    if result is not None:
        lines += _neighbours(result, report)
        lines += [*global_batch(report), *_evaluation(result)]
        lines += [*_gpu_memory(result, report), *_throughput(result)]
        lines += _estimate(result, report)
    lines += _gpus_needed(report)
    bound = accuracy(report)
    lines += [] if bound is None else [bound]
    return [*lines, *_other_lengths(report), *_variants(report)]


def _evidence(result: PrecisionResult, report: Report) -> str:
    """Return what the recommendation is based on."""
    if report.simulated:
        confirmed = _predicted(result, report)
    elif result.confirmation is not None:
        confirmed = _confirmed(result.confirmation)
    else:
        confirmed = "Not confirmed in a fresh process."
    outcomes = _outcomes(report)
    maximum = f"{result.max_size:,} {outcomes['ok']}"
    largest = [trial for trial in result.trials if trial.size == result.max_size]
    if any(trial.traced_steps == 0 for trial in largest):
        maximum += " as far as other sizes tell"
    if largest and any(warning.code == "confirmation_failed" for warning in report.warnings):
        steps = largest[0].steps
        maximum += f" for {steps} step{'s' * (steps != 1)}"
    if result.smallest_failed_size is not None:
        failed = next(t for t in result.trials if t.size == result.smallest_failed_size)
        why = {"timeout": "did not end in time", "error": "failed", **outcomes}[failed.status]
        if failed.is_refused and failed.status == "error":
            why = "is refused"
        if failed.status == "oom" and failed.evaluation is not None:
            why += " in the evaluation"
        if failed.error_kind == "untraceable":
            why = "cannot be traced: more may fit"
        return f"{confirmed} {maximum}, {failed.size:,} {why}."
    if result.is_maximum_proven:
        is_short = any(trial.is_at_limit for trial in result.trials)
        limit = (
            "was allowed (`--max-batch-size`)"
            if report.axis is None
            else "was allowed (`--max-size`)"
        )
        if is_short:
            limit = "is delivered" if report.axis is None else "the model takes"
        return f"{confirmed} {maximum}, the largest that {limit}."
    return f"{confirmed} {maximum}, more may fit."


def _predicted(result: PrecisionResult, report: Report) -> str:
    """Return what the recommended size of a prediction is based on."""
    trial = wording.recommended_trial(result)
    assert trial is not None
    if trial.traced_steps in (None, trial.steps):
        return f"Predicted, not run: {trial.steps} steps, replayed within the budget."
    traced = (
        f"{trial.traced_steps} steps were traced"
        if trial.traced_steps
        else "steps of other sizes were traced"
    )
    up_to = f"up to {trial.steps}"
    others = ((other, wording.recommended_trial(other)) for other in report.results)
    for other, that in others:
        if that is not None and that.traced_steps == that.steps == trial.steps:
            up_to += f" (all of them were traced in {other.precision})"
            break
    return f"Predicted, not run: {traced} and the last was repeated, {up_to}, within the budget."


def _neighbours(result: PrecisionResult, report: Report) -> Iterator[str]:
    """Yield what is odd about the sizes just below the recommended one; nothing where all of them run."""
    found, size = result.neighbours, result.recommended_size
    if found is None or size is None:
        return
    fit = "fit" if report.simulated else "run"
    failed = sorted(found.failed, reverse=True)
    which = format_batch_sizes(failed) if failed else ""
    do = "do" if len(failed) > 1 else "does"
    if found.moved_from is not None:
        yield f"{found.moved_from:,} {fit}s within the budget too, but {which} below it {do} not."
    elif failed:
        yield f"Of the sizes just below it, {which} {do} not {fit} within the budget."
    if not found.all_tried and (found.moved_from is not None or not failed):
        tried = {0: "none was", 1: "one was"}.get(len(found.ran), f"{len(found.ran)} were")
        yield f"Whether all sizes just below it {fit} too is not known: {tried} tried in the time there was."


def _outcomes(report: Report) -> dict[str, str]:
    if report.simulated:
        return {"ok": "fits", "oom": "runs out of memory"}
    return {"ok": "ran", "oom": "ran out of memory"}


def _confirmed(trial: Trial) -> str:
    """Return what the steps of the confirmation show."""
    text = f"Confirmed: {trial.steps} steps in a fresh process"
    peaks = trial.peaks_by_step
    if len(peaks) > 1:
        least = max(peaks) * (1 - _FLAT)
        reached = next(step for step, peak in enumerate(peaks, 1) if peak >= least)
        if min(peaks[reached - 1 :]) >= least and reached <= len(peaks) // 2:
            text += f", peak memory flat from step {reached} on"
        else:
            text += f", the highest peak in step {reached}"
    retries = trial.num_alloc_retries
    if retries:
        when = "" if trial.steady_alloc_retries else " in the first steps"
        text += f", {retries} allocation retr{'y' if retries == 1 else 'ies'}{when}"
    return f"{text}."


def _refused_sizes(report: Report) -> list[str]:
    """Return at which batch sizes the model's own code raises, and at which it does not."""
    chosen = wording.recommended(report)
    lines: dict[str | None, str] = {}  # by the sizes that run
    for result in sorted(report.results, key=lambda result: result is not chosen):
        refused = result.refused_sizes
        if result.status != "ok" or refused is None or refused.accepted in lines:
            continue
        several = len(refused.sizes) > 1
        name = report.axis or ("Batch sizes" if several else "Batch size")
        fail = f"{name} {format_batch_sizes(refused.sizes)} fail{'' if several else 's'}"
        text = f"{fail} with `{refused.error}`"
        if refused.batch_sizes == (1,):
            text = f"Batch size 1 does not run: {refused.error}"
        elif refused.accepted is not None:
            text += f"; {refused.accepted} run"
        elif result.max_size is not None:
            text += f"; {result.max_size:,} runs"
        lines[refused.accepted] = f"{text} ({wording.full_label(result)})." if lines else f"{text}."
    return list(lines.values())


def global_batch(report: Report) -> Iterator[str]:
    """Yield the factors of the global batch."""
    parts = report.recommendation.global_batch if report.recommendation else None
    if parts is None:
        return
    nearest = "" if parts.reached == parts.asked else f", the nearest to {parts.asked:,}"
    steps = f"{parts.accumulation_steps} accumulation step{'s' * (parts.accumulation_steps > 1)}"
    gpus = f"{parts.world_size} GPU{'s' * (parts.world_size > 1)}"
    factors = f"micro-batch {parts.micro_batch_size:,} x {steps} x {gpus}"
    yield f"Global batch {parts.reached:,}{nearest}: {factors}."


def _gpus_needed(report: Report) -> Iterator[str]:
    """Yield how many GPUs it would take where nothing fits on one, and the arithmetic."""
    needed, device = report.gpus_needed, report.device
    if needed is None or device is None:
        return
    terms = {
        "parameters": needed.parameter_bytes,
        "gradients": needed.gradient_bytes,
        "optimizer state": needed.optimizer_bytes,
        "activations and gathered parameters": needed.activation_bytes,
    }
    number = needed.world_size - 1
    less = f"{number} do not suffice" if number > 1 else "one does not suffice"
    listed = " + ".join(
        f"{format_bytes(nbytes)} {name}" for name, nbytes in terms.items() if nbytes
    )
    yield (
        f"It takes {needed.world_size:,} GPUs of this kind: with FSDP2 (`--parallel fsdp --world-size "
        f"{needed.world_size}`) in {needed.precision}, batch size {needed.batch_size} per GPU trains. Each "
        f"holds {listed}, and reserves {format_bytes(needed.peak_reserved_bytes)} of "
        f"the budget of {format_bytes(needed.capacity_bytes)}; {less}."
    )


def _evaluation(result: PrecisionResult) -> Iterator[str]:
    """Yield whether training or evaluation sets the peak at the recommended batch size."""
    text = evaluation_against_training(wording.recommended_trial(result))
    if text is not None:
        yield f"{text}."


def evaluation_against_training(trial: Trial | None) -> str | None:
    """Return whether training or evaluation sets the peak of a trial; None without an evaluation."""
    evaluation = trial.evaluation if trial is not None else None
    if trial is None or evaluation is None or evaluation.peak_allocated_bytes is None:
        return None
    training = f"training up to {format_bytes(max(trial.peaks_by_step))}"
    evaluating = (
        f"the evaluation of {evaluation.batch_size:,} samples up to "
        f"{format_bytes(evaluation.peak_allocated_bytes)}"
    )
    who = "Evaluation" if evaluation.is_decisive else "Training"
    return f"{who} sets the peak: {training} allocated, {evaluating}"


def _gpu_memory(result: PrecisionResult, report: Report) -> Iterator[str]:
    """Yield what takes the GPU's memory at the recommended batch size."""
    device, reserved = report.device, result.peak_reserved_bytes
    if device is None or reserved is None:
        return
    trial = wording.recommended_trial(result)
    limiting = None if trial is None else trial.limiting
    if limiting is None:
        whose, total = "Each card's" if report.parallel else "The card's", device.total_bytes
        outside = {
            "context": device.context_bytes,
            "NCCL": device.nccl_bytes,
            "other processes": device.others_bytes,
        }
    else:
        whose, total = f"Of rank {limiting.rank}, the card's", limiting.total_bytes
        outside = {"contexts, NCCL and other processes": total - limiting.capacity_bytes}
    allocated = result.peak_allocated_bytes or 0
    parts = [(allocated, "allocated"), (reserved - allocated, "fragmentation")]
    parts += [(nbytes, name) for name, nbytes in outside.items() if nbytes]
    parts.append((max(0, total - sum(nbytes for nbytes, _ in parts)), "free"))
    listed = ", ".join(f"{format_bytes(nbytes)} {name}" for nbytes, name in parts)
    yield f"{whose} {format_bytes(total)}: {listed}."


def _throughput(result: PrecisionResult) -> Iterator[str]:
    """Yield from which batch size on throughput no longer grows."""
    enough, chosen = result.saturation_batch_size, result.recommended_size or 0
    if enough is None:
        return
    if enough > chosen:
        yield "Throughput still grows at this batch size."
        return
    size = "this batch size" if enough == chosen else f"batch size {enough:,}"
    yield f"Throughput is within 2 % of its best from {size} on."


def _estimate(result: PrecisionResult, report: Report) -> Iterator[str]:
    """Yield what was predicted before the search against what it measured."""
    predicted = result.predicted
    if report.simulated or predicted is None:
        return
    text = f"Predicted maximum: {predicted.max_size:,}"
    if predicted.peak_reserved_bytes is not None:
        text += f", peak reserved {format_bytes(predicted.peak_reserved_bytes)}"
        if predicted.recommended_size != result.recommended_size:
            text += f" at {report.searched} {predicted.recommended_size:,}"
    measured = f"measured: {result.max_size:,}, {format_bytes(result.peak_reserved_bytes)}"
    yield f"{text}; {measured}."


def accuracy(report: Report) -> str | None:
    """Return how exact a prediction is, in one line; None if nothing was predicted."""
    prediction = report.prediction
    if prediction is None:
        return None
    told = _workspaces(prediction)
    if prediction.no_accuracy_because is not None:
        return f"Error bound: {prediction.no_accuracy_because}.{told}"
    measured = prediction.accuracy
    if measured is None:
        return told.strip() or None
    allocated, reserved = measured.allocated, measured.reserved
    return (
        f"Error bound for {prediction.model_kind} models: peak allocated {_error(allocated.median)} "
        f"(median) and {_error(allocated.p95)} (95th percentile), peak reserved "
        f"{_error(reserved.median)} and {_error(reserved.p95)}, in {measured.runs} runs against "
        f"{measured.against}.{told}"
    )


def _workspaces(prediction: Prediction) -> str:
    """Return what workspaces of convolutions rest on, as a further sentence; empty without any."""
    found = prediction.convolution_workspaces
    if found is None:
        return ""
    accuracy, bound = prediction.accuracy, ""
    if accuracy is not None and found.startswith("cuDNN") and not accuracy.asks_cudnn:
        bound = "; the error bound was measured with fitted trees instead"
    return f" Workspaces of convolutions: {found}{bound}."


def _error(part: float) -> str:
    """Write an error as a part of what is right: `0.02 %`, `3.1 %`."""
    return f"{part * 100:.2g} %" if part else "0 %"


def _other_lengths(report: Report) -> Iterator[str]:
    """Yield what would be recommended at the lengths that the recommendation is not for."""
    recommendation = report.recommendation
    for seq_len in wording.lengths(report):
        if seq_len is None or (recommendation and recommendation.seq_len == seq_len):
            continue
        best = recommend(report.results, report.search["objective"], seq_len)
        if best is not None:
            yield f"At {seq_len:,} tokens: batch size {best.batch_size:,} in {best.precision}."


def _variants(report: Report) -> Iterator[str]:
    """Yield what each variant of `--compare` changes against the plain row."""
    plain = {wording.row_of(r): r for r in report.results if r.remedy is None}
    for result in report.results:
        if result.remedy is None or not result.recommended_size:
            continue
        beside = plain[wording.row_of(result)]
        text = f"With {result.remedy}: {report.searched} {result.recommended_size:,}"
        if beside.recommended_size:
            text += f" ({result.recommended_size / beside.recommended_size:.2f} x)"
        if result.samples_per_s:
            text += f", {format_count(result.samples_per_s)} samples/s"
            if beside.samples_per_s and report.axis is None:
                text += f" ({result.samples_per_s / beside.samples_per_s:.2f} x)"
        yield f"{text}."


def problems(report: Report) -> list[str]:
    """Return why a precision has no answer, one line each."""
    lines = []
    for result in report.results:
        if result.message and result.recommended_size is None:
            tried = _tried(result, report) if result.status == "error" else ""
            text = f"{wording.full_label(result)}: {result.message}"
            lines.append(f"{text}; before that, {tried}" if tried else text)
    return lines


def tried_before_an_error(report: Report) -> bool:
    """Tell whether a batch size was tried with another outcome than an error."""
    return any(_tried(result, report) for result in report.results)


def _tried(result: PrecisionResult, report: Report) -> str:
    """Return the outcomes of trials before an error ended the search; empty if there are none."""
    outcomes = _outcomes(report)
    return ", ".join(
        f"{trial.size:,} {outcomes[trial.status]}"
        for trial in sorted(result.trials, key=lambda trial: trial.size)
        if trial.status in outcomes
    )


def hints(report: Report) -> list[str]:
    """Return what could be done next; only what is not done already."""
    recommendation, result = report.recommendation, wording.recommended(report)
    if recommendation is None or result is None:
        has_answer = any(result.status in ("nothing_fits", "ok") for result in report.results)
        return list(_ways_to_fit(report)) if has_answer else []
    hints = []
    expandable = result.expandable_segments
    if expandable is not None and result.recommended_size:
        more = expandable.batch_size / result.recommended_size - 1
        ran = "fits" if report.simulated else "ran"
        hints.append(
            f"`PYTORCH_ALLOC_CONF=expandable_segments:True` {ran} batch size "
            f"{expandable.batch_size:,} in the same memory ({more:+.0%})"
        )
    compared = {other.remedy for other in report.results}
    if (
        report.simulated
        and report.launch is None
        and report.parallel is None
        and recommendation.global_batch is None
        and is_fragmented(result.peak_allocated_bytes, result.peak_reserved_bytes)
        and "expandable-segments" not in compared
        and not (report.prediction and report.prediction.allocator.get("expandable_segments"))
    ):
        hints.append("what less fragmentation would buy: `--compare expandable-segments`")
    if report.launch is not None and recommendation.check:
        hints.append(f"this trains with it: `{recommendation.check}`")
    if recommendation.global_batch is not None and recommendation.check:
        hints.append(f"this tries the micro-batch again: `{recommendation.check}`")
    return hints


def _ways_to_fit(report: Report) -> Iterator[str]:
    """Yield what makes more fit, in the order of what it costs."""
    precisions = {result.precision for result in report.results}
    trials = [trial for result in report.results for trial in result.trials]
    if not trials:
        if "bf16" not in precisions:
            yield "the model in half precision takes half the memory: `--precision bf16`"
        if report.gpus_needed is None:
            is_hopeless = any(warning.code == "no_number_of_gpus" for warning in report.warnings)
            several = "" if is_hopeless else ", or several: `--world-size auto`"
            yield f"a model that does not fit alone needs a larger GPU{several}"
        return
    if not any(trial.status == "oom" for trial in trials):
        return
    evaluated = [t.evaluation.batch_size for t in trials if t.status == "oom" and t.evaluation]
    if evaluated and min(evaluated) > 1:
        half = min(evaluated) // 2
        yield f"a smaller batch may fit in the evaluation: `--eval-batch-size {half}`"
    if report.launch is not None:
        yield (
            "mixed precision, recomputed activations (checkpointing) or smaller inputs need less memory: "
            "compare them with `--variant`"
        )
        return
    if not precisions & {"amp-fp16", "amp-bf16", "bf16"}:
        yield "mixed precision may make it fit: `--precision amp`"
    is_training = report.workload["mode"] == "train"
    if is_training and not report.workload["grad_checkpoint"]:
        yield "recomputing activations saves memory for time: `--grad-checkpoint`"
    if report.axis is not None:
        smallest, batch_size = report.search["min_size"] or 1, report.workload["axis"]["batch_size"]
        if smallest > 1:
            yield f"a smaller {report.axis} may fit: `--min-size {max(1, smallest // 2)}`"
        if batch_size > 1:
            yield f"fewer samples need less memory: `--batch-size {max(1, batch_size // 2)}`"
        return
    smallest = report.search["min_batch_size"]
    if smallest > 1:
        yield f"a smaller batch may fit: `--min-batch-size {max(1, smallest // 2)}`"
    if is_training and report.workload["optimizer"].lower() in ("adam", "adamw"):
        yield "an optimizer with less state saves memory: `--optimizer sgd`"
    yield "smaller inputs need less memory: `--input-shape`, `--input`"
