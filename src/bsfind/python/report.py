"""The report as `bsfind.find` and `bsfind.check` return it: with what notebooks show of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from bsfind import results
from bsfind.errors import UsageError
from bsfind.report.export import DRAWN_FORMATS, write_report
from bsfind.report.markup import to_html, to_markdown
from bsfind.report.plot import check_can_draw, to_svg
from bsfind.report.sentences import answer


@dataclass(frozen=True)
class Plot:
    """A picture of memory, which a notebook shows.

    Attributes:
        report: what it is of.
    """

    report: results.Report

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


class Report(results.Report):
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
    def of(cls, report: results.Report) -> Report:
        """Return the same report, with what notebooks show of it."""
        return cls(**{field.name: getattr(report, field.name) for field in fields(report)})

    @property
    def batch_size(self) -> int | None:
        """The recommended batch size, samples in a micro-batch; None if nothing is recommended."""
        return self.recommendation.batch_size if self.recommendation else None

    @property
    def axis_size(self) -> int | None:
        """The recommended size of the axis, where one was searched at the batch size; else None."""
        return self.recommendation.axis_size if self.recommendation else None

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
