"""Reports of `sgate bench` records: one HTML page that needs no network, or Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgate_serve.errors import SgateError, writing
from sgate_serve.reports.pages.html import page
from sgate_serve.reports.pages.markdown import markdown
from sgate_serve.reports.pages.sections import report_of

WRITERS = {".html": page, ".md": markdown}


def check_report(path: Path) -> None:
    """Raise SgateError for an unsupported file type."""
    if path.suffix.lower() not in WRITERS:
        raise SgateError(f"--report {path}: give a file name that ends in {', '.join(WRITERS)}")


def write_report(record: Mapping[str, Any], path: Path) -> None:
    """Write the report of a record, in the format that the file's name says."""
    check_report(path)
    text = WRITERS[path.suffix.lower()](report_of(record))
    with writing(path):
        path.write_text(text, encoding="utf-8")
