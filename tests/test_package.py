"""What `pip wheel` and the source distribution contain, and what an index would show of them."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import version
from pathlib import Path

import pytest

from sgate_serve.environment import EXTRAS

ROOT = Path(__file__).parent.parent
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools writes arguments of its own there
build_meta.build_sdist(out)
build_meta.build_wheel(out)
"""
LINK = re.compile(r"\]\(([^)]*)\)")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str], Message]:
    """The names in the source distribution and in the wheel, and the wheel's metadata."""
    # Importing it fails in a process that has imported the standard library's distutils.
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools is too old")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    # Building writes into the tree, so not here.
    for path in ROOT.iterdir():
        if path.name in ("sgate_serve", "converters", "deploy", "docs") or path.is_file():
            (source / path.name).symlink_to(path)
    command = [sys.executable, "-c", BUILD, str(out)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        return in_sdist, names, message_from_bytes(archive.read(metadata))


def test_both_contain_what_they_must(distributions: tuple[set[str], set[str], Message]) -> None:
    in_sdist, in_wheel, _ = distributions
    own = {"LICENSE", "README.md", "CHANGELOG.md", "docs/cli.md", "pyproject.toml"}
    assert own | {"deploy/grafana.json"} <= in_sdist
    for package in ("sgate_serve", "converters"):
        files = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert f"{package}/py.typed" in files
        assert files <= in_wheel and files <= in_sdist
    assert any(name.endswith("licenses/LICENSE") for name in in_wheel)
    assert not any(name.startswith("tests/") for name in in_wheel)


def test_an_index_shows_a_description_whose_links_work(
    distributions: tuple[set[str], set[str], Message],
) -> None:
    _, _, metadata = distributions
    text = metadata.get_payload()
    assert isinstance(text, str) and text.startswith("# sgate-serve")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert all(link.startswith("https://") for link in LINK.findall(text))
    urls = [url.rpartition(", ")[2] for url in metadata.get_all("Project-URL", [])]
    assert urls and all(url.startswith("https://") for url in urls)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Keywords"] and "Typing :: Typed" in metadata.get_all("Classifier", [])
    for command in re.findall(r"^sgate ([a-z]+)", text, re.MULTILINE):
        assert command in {"train", "convert", "verify", "serve", "bench"}


def test_the_table_of_extras_is_that_of_the_metadata(
    distributions: tuple[set[str], set[str], Message],
) -> None:
    _, _, metadata = distributions
    own = {"sklearn": "scikit-learn"}
    required: dict[str, set[str]] = {}
    for line in metadata.get_all("Requires-Dist", []):
        name = re.split(r"[<>=\[; ]", line)[0]
        found = re.search(r'extra == "([\w-]+)"', line)
        required.setdefault(found[1] if found else "", set()).add(name.replace("-", "_"))
    for extra, packages in EXTRAS.items():
        names = {own.get(package, package).replace("-", "_") for package in packages}
        assert names <= required[extra], extra
    assert set(EXTRAS[""]) == required[""]
