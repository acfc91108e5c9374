"""A report as Markdown; pictures are only in the page, their numbers in tables."""

from collections.abc import Iterator, Sequence
from html import escape

from sgate_serve.reports.pages.content import Report, Table


def markdown(report: Report) -> str:
    """Return the report as text; a section of pictures alone is left out."""
    blocks = [f"# {escape(report.title, quote=False)}"]
    for section in report.sections:
        tables = ["\n".join(_table(part.rows)) for part in section.parts if isinstance(part, Table)]
        points = "\n".join(
            f"- {escape(part, quote=False)}" for part in section.parts if isinstance(part, str)
        )
        shown = [block for block in (*tables, points) if block]
        blocks += [f"## {section.title}", *shown] if shown else []
    return "\n\n".join(blocks) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    head, *body = rows
    yield _row(head)
    yield "|" + "---|" + "---:|" * (len(head) - 1)
    yield from map(_row, body)


def _row(cells: Sequence[str]) -> str:
    escaped = (escape(cell, quote=False).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
