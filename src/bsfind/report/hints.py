"""What could be done next; only what is not done already."""

from __future__ import annotations

from bsfind.records import Report
from bsfind.report import wording
from bsfind.search.recommend import is_fragmented


def hints(report: Report) -> list[str]:
    """Return what could be done next; only what is not done already."""
    if report.recommendation is None:
        if any(result.status in ("nothing_fits", "ok") for result in report.results):
            return _remedies(report)
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


def _remedies(report: Report) -> list[str]:
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
