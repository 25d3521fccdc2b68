"""The report as Markdown: for pull requests, chats and job summaries."""

from __future__ import annotations

import re

from bsfind.records import Report
from bsfind.report import wording
from bsfind.report.sentences import answer, problems, sentences

_SPECIAL = re.compile(r"[\\`*_\[\]<>|~&$]")
"""What CommonMark and GitHub's extensions of it (tables, strikethrough, formulas) read as markup."""


def to_markdown(report: Report) -> str:
    """Return the comparison table and the sentences under it."""
    lines = [f"**bsfind** · {_escape(wording.subject(report))}", ""]
    for text in (wording.conditions(report), wording.assumed(report.assumptions)):
        if text is not None:
            lines.extend([_escape(text), ""])
    rows = [wording.cells(result, report) for result in wording.rows(report)]
    if rows:
        columns = list(rows[0])
        titles = [wording.title(column, report) for column in columns]
        lines.append("| " + " | ".join(titles) + " |")
        lines.append("|---|" + "---:|" * (len(columns) - 1))
        lines.extend("| " + " | ".join(row.values()) + " |" for row in rows)
        lines.append("")
    if report.status != "complete":
        lines.extend(
            [f"**{report.status}**: {_escape(report.message or 'a trial took too long')}", ""]
        )
    told = answer(report)
    lines.extend(_escape(text) for text in ([told] if told else []) + sentences(report))
    lines.extend(f"- {_escape(text)}" for text in problems(report))
    lines.extend(f"- warning: {_escape(warning.message)}" for warning in report.warnings)
    lines.extend(["", _code(report.reproduce), ""])
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Return a text that is shown as it is, in one line: in a paragraph, a list, or a table."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def _code(text: str) -> str:
    """Return a code span; its fence is longer than any in the text (CommonMark, "Code spans")."""
    text = " ".join(text.splitlines())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{text}{space}{fence}"
