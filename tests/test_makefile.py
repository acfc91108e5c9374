"""`make` makes .venv with a Python that is new enough, and mends one that cannot work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parent.parent / "Makefile"
# A Python that is too old, and leaves a folder behind all the same.
OLD = """#!/bin/sh
[ "$1" = -c ] && exit 1
[ "$1" = -m ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
"""
# A Python that is new enough and makes environments of itself.
NEW = """#!/bin/sh
[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/pyvenv.cfg"
echo "$@" >> calls
exit 0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copyfile(MAKEFILE, tmp_path / "Makefile")
    for name, text in {"old": OLD, "new": NEW}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make, without the variables and flags of the one that may run these tests."""
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "VENV")
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(["make", *words], cwd=folder, env=env, capture_output=True, text=True)


def test_a_python_that_is_too_old_is_refused_before_anything_is_made(folder: Path) -> None:
    result = make(folder, "venv", "PYTHON=./old ./nowhere")
    assert result.returncode == 2
    assert "sgate-serve needs Python 3.11 or newer, and none of these is: ./old" in result.stderr
    assert "make demo PYTHON=/path/to/python" in result.stderr
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize("broken", ["old", "dangling", "empty", "absent"])
def test_a_broken_environment_is_made_again(folder: Path, broken: str) -> None:
    python = folder / ".venv" / "bin" / "python"
    (folder / "pyproject.toml").touch()
    if broken != "absent":
        python.parent.mkdir(parents=True)
        for name in ("pyvenv.cfg", ".demo"):
            (folder / ".venv" / name).touch()
    if broken == "old":
        shutil.copy(folder / "old", python)
    elif broken == "dangling":
        python.symlink_to("/nowhere/at/all")
    result = make(folder, ".venv/.demo", "PYTHON=./old ./new")
    assert result.returncode == 0, result.stderr
    assert python.read_text() == NEW
    # What was installed in the old one is installed again, but only once.
    install = "-m pip install --quiet --editable .[demo]\n"
    assert (folder / "calls").read_text().count(install) == 1
    assert make(folder, ".venv/.demo").returncode == 0
    assert (folder / "calls").read_text().count(install) == 1


def test_an_environment_that_works_is_kept(folder: Path) -> None:
    assert make(folder, "venv", "PYTHON=./new").returncode == 0
    (folder / ".venv" / "mine").touch()
    assert make(folder, "venv", "PYTHON=./old").returncode == 0
    assert (folder / ".venv" / "mine").exists()


def test_an_environment_without_pip_gets_it(folder: Path) -> None:
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(NEW.replace("exit 0", '[ "$*" != "-m pip --version" ]'))
    python.chmod(0o755)
    (folder / ".venv" / "mine").touch()
    assert make(folder, "venv").returncode == 0
    assert "-m ensurepip --upgrade\n" in (folder / "calls").read_text()
    assert (folder / ".venv" / "mine").exists()


def test_the_check_of_the_version_is_that_of_the_package() -> None:
    needed = (MAKEFILE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.11"' in needed
    check = next(
        line.partition(":= -c ")[2].strip("'")
        for line in MAKEFILE.read_text(encoding="utf-8").splitlines()
        if line.startswith("NEW_ENOUGH")
    )
    assert "(3, 11)" in check
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
