"""A report as one HTML page: its style and pictures are inside, and it follows light and dark."""

from collections.abc import Iterator, Sequence
from html import escape

from sgate_serve.reports.pages.charts import bars, curves, profile
from sgate_serve.reports.pages.content import Bars, Curves, Part, Profile, Report, Section, Table

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5f6b7a; --line: #d5dbe3; --page: #fff;
  --c0: #3b6ea5; --c1: #c8553d; --c2: #5b8c5a; --c3: #c9963b; --c4: #8a6bb1; --c5: #4aa3a2;
  --c6: #7a5c4f; --c7: #b0568f; --c8: #6b7785; --c9: #a3a948; --c10: #2f4b7c; --c11: #d1a3a4;
  --gone: #e3e8ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #a3aebb; --line: #3a4350;
  --page: #14181d; --c0: #6fa3dc; --c1: #e58a73; --c2: #86bd84; --c3: #e0b862; --c4: #b298dc;
  --c5: #72c9c7; --c6: #b3917f; --c7: #d987bd; --c8: #96a2b0; --c9: #c8ce72; --c10: #8fa6d9;
  --c11: #e8c4c5; --gone: #2a313a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
svg { display: block; margin: 1rem 0; max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .soft { fill: var(--soft); }
svg .axis { stroke: var(--line); } svg .gone { fill: var(--gone); }
"""


def page(report: Report) -> str:
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    title = escape(report.title)
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title>\n<style>{STYLE}</style></head>\n<body><h1>{title}</h1>"
    for section in report.sections:
        yield from _section(section)
    yield "</body></html>"


def _section(section: Section) -> Iterator[str]:
    yield f"<h2>{escape(section.title)}</h2>"
    texts = [part for part in section.parts if isinstance(part, str)]
    yield from (_picture(part) for part in section.parts if not isinstance(part, str))
    if texts:
        yield f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def _picture(part: Part) -> str:
    match part:
        case Bars():
            return bars(part)
        case Curves():
            return curves(part)
        case Profile():
            return profile(part)
        case Table():
            return _table(part)
        case _:
            return escape(part)


def _table(table: Table) -> str:
    head, *body = table.rows
    lines = [_row(head, "th"), *(_row(row, "td") for row in body)]
    named = ' class="text"' if table.is_text else ""
    return f"<table{named}>{''.join(lines)}</table>"


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
