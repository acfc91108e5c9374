"""Runs a command in the process of the test."""

from pathlib import Path

import pytest

from sgate_serve.cli import main


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Return the exit status, stdout and stderr of a command."""
    capsys.readouterr()
    try:
        status = main([str(word) for word in words])
    except SystemExit as stopped:
        status = int(str(stopped.code))
    out, err = capsys.readouterr()
    return status, out, err
