"""The report as Markdown, for pull requests, chats and job summaries, and as HTML, for notebooks."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from bsfind.report import wording
from bsfind.report.columns import cells_of, title_of
from bsfind.report.sentences import answer, problems, sentences
from bsfind.report.visible import visible
from bsfind.results import PrecisionResult, Report
from bsfind.search.compared_gpus import ComparedGpus

_SPECIAL = re.compile(r"[\\`*_\[\]<>|~&$]")
"""What CommonMark and GitHub's extensions of it (tables, strikethrough, formulas) read as markup."""

# Notebooks bring their own style sheet, light or dark: nothing here sets a colour.
_NUMBER = ' style="text-align: right"'


def to_markdown(report: Report) -> str:
    """Return the comparison table and the sentences under it."""
    rows = [cells_of(result, report) for result in wording.rows(report)]
    told = answer(report)
    return markdown(
        report,
        heading=wording.heading(report),
        titles=[title_of(column, report) for column in rows[0]] if rows else [],
        rows=rows,
        texts=([told] if told else []) + sentences(report),
        notes=problems(report),
    )


def markdown(
    report: Report | ComparedGpus,
    *,
    heading: Sequence[str],
    titles: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    texts: Sequence[str],
    notes: Sequence[str],
) -> str:
    """Return a page about a report: all that these texts say, and its status, warnings and command line."""
    subject, *conditions = map(_escape, heading)
    lines = [f"**bsfind** · {subject}", ""]
    for text in conditions:
        lines.extend([text, ""])
    if rows:
        lines.append("| " + " | ".join(titles) + " |")
        lines.append("|---|" + "---:|" * (len(titles) - 1))
        lines.extend("| " + " | ".join(map(_escape, row.values())) + " |" for row in rows)
        lines.append("")
    if report.status != "complete":
        lines.extend([f"**{report.status}**: {_escape(report.message or wording.UNFINISHED)}", ""])
    lines.extend(map(_escape, texts))
    lines.extend(f"- {_escape(text)}" for text in notes)
    lines.extend(f"- warning: {_escape(warning.message)}" for warning in report.warnings)
    lines.extend(["", _code(report.reproduce), ""])
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Return a text that is shown as it is, in one line: in a paragraph, a list, or a table."""
    return _SPECIAL.sub(r"\\\g<0>", visible(" ".join(text.split())))


def _code(text: str) -> str:
    """Return a code span; its fence is longer than any in the text (CommonMark, "Code spans")."""
    text = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{text}{space}{fence}"


def _as_html(text: str) -> str:
    return html.escape(visible(text))


def to_html(report: Report) -> str:
    """Return the comparison table and the sentences under it; every text is escaped."""
    subject, *conditions = map(_as_html, wording.heading(report))
    parts = [f"<p><strong>bsfind</strong> · {subject}</p>"]
    parts.extend(f"<p>{text}</p>" for text in conditions)
    rows = wording.rows(report)
    if rows:
        parts.append(_table(report, rows))
    if report.status != "complete":
        why = report.message or wording.UNFINISHED
        parts.append(f"<p><strong>{report.status}</strong>: {_as_html(why)}</p>")
    said = answer(report)
    if said is not None:
        parts.append(f"<p><strong>{_as_html(said)}</strong></p>")
    parts.extend(f"<p>{_as_html(text)}</p>" for text in sentences(report))
    notes = [*problems(report), *(f"warning: {warning.message}" for warning in report.warnings)]
    if notes:
        parts.append(f"<ul>{''.join(f'<li>{_as_html(text)}</li>' for text in notes)}</ul>")
    return "\n".join(["<div>", *parts, "</div>"])


def _table(report: Report, rows: list[PrecisionResult]) -> str:
    columns = list(cells_of(rows[0], report))
    head = "".join(
        f'<th scope="col"{_style(column)}>{_as_html(title_of(column, report))}</th>'
        for column in columns
    )
    body = "\n".join(_row(result, report) for result in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _row(result: PrecisionResult, report: Report) -> str:
    is_best = result is wording.recommended(report) and len(report.results) > 1
    cells = []
    for column, cell in cells_of(result, report).items():
        text = f"<strong>{_as_html(cell)}</strong>" if is_best else _as_html(cell)
        cells.append(f"<td{_style(column)}>{text}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _style(column: str) -> str:
    return "" if column == "precision" else _NUMBER
