"""The report as HTML: what a notebook shows."""

from __future__ import annotations

from html import escape

from bsfind.records import PrecisionResult, Report
from bsfind.report import wording
from bsfind.report.sentences import answer, problems, sentences

# Notebooks bring their own style sheet, light or dark: nothing here sets a colour.
_NUMBER = ' style="text-align: right"'


def to_html(report: Report) -> str:
    """Return the comparison table and the sentences under it; every text is escaped."""
    parts = [f"<p><strong>bsfind</strong> · {escape(wording.subject(report))}</p>"]
    told = (wording.conditions(report), wording.assumed(report.assumptions))
    parts.extend(f"<p>{escape(text)}</p>" for text in told if text is not None)
    rows = wording.rows(report)
    if rows:
        parts.append(_table(report, rows))
    if report.status != "complete":
        why = report.message or "a trial took too long"
        parts.append(f"<p><strong>{report.status}</strong>: {escape(why)}</p>")
    said = answer(report)
    if said is not None:
        parts.append(f"<p><strong>{escape(said)}</strong></p>")
    parts.extend(f"<p>{escape(text)}</p>" for text in sentences(report))
    notes = [*problems(report), *(f"warning: {warning.message}" for warning in report.warnings)]
    if notes:
        parts.append(f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in notes)}</ul>")
    return "\n".join(["<div>", *parts, "</div>"])


def _table(report: Report, rows: list[PrecisionResult]) -> str:
    columns = list(wording.cells(rows[0], report))
    head = "".join(
        f'<th scope="col"{_style(column)}>{escape(wording.title(column, report))}</th>'
        for column in columns
    )
    body = "\n".join(_row(result, report) for result in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _row(result: PrecisionResult, report: Report) -> str:
    is_best = result is wording.recommended(report) and len(report.results) > 1
    cells = []
    for column, cell in wording.cells(result, report).items():
        text = f"<strong>{escape(cell)}</strong>" if is_best else escape(cell)
        cells.append(f"<td{_style(column)}>{text}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _style(column: str) -> str:
    return "" if column == "precision" else _NUMBER
