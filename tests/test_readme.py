"""README and docs: `bash test` blocks run, generated blocks match the records, links work."""

import argparse
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.tables import blocks, read_records, render
from sgate_serve.cli import COMMANDS
from tests.small_llama import dense_llama
from tests.text_model import write_tokenizer

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
COMMAND_PAGE = ROOT / "docs" / "cli.md"
PAGES = sorted(
    [README, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md", *ROOT.glob("docs/*.md")]
)
BLOCK = re.compile(r"```bash test\n(.*?)```", re.DOTALL)
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"^<!-- ([\w-]+) -->$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
SECTION = re.compile(r"^## `sgate (\w+)`\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
FLAG_TABLE = re.compile(r"^\| flag \|.*\n\|---\|---\|\n((?:\|.*\n)+)", re.MULTILINE)
# The commands are run as they are written, but shorter and on a free port.
SHORTER = {"--steps 600": "--steps 4"}


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def test_the_walk_works_as_written(tmp_path: Path) -> None:
    model = dense_llama(vocab_size=400, max_position_embeddings=512, eos_token_id=1)
    model.save_pretrained(tmp_path / "my-model")
    write_tokenizer(tmp_path / "my-model")
    text = "\n\n".join(f"def function_{i}(x):\n    return x + {i}\n" for i in range(900))
    (tmp_path / "text.txt").write_text(text)
    (block,) = BLOCK.findall(README.read_text(encoding="utf-8"))
    for written, run in (SHORTER | {"8000": free_port()}).items():
        assert written in block
        block = block.replace(written, run)
    assert shutil.which("curl"), "the README's walk needs curl"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "\nverified\n" in result.stdout
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["object"] == "text_completion" and answer["usage"]["completion_tokens"] > 0


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_generated_blocks_match_the_records(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    expected = blocks(read_records()).get(name_of(page), {})
    assert set(GENERATED.findall(text)) == set(expected)
    assert render(text, expected) == text


def test_every_page_of_generated_blocks_is_checked() -> None:
    assert set(blocks(read_records())) <= {name_of(page) for page in PAGES}


def test_a_missing_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="found the block results 0 times"):
        render("no blocks here", {"results": "numbers"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in LINK.findall(text):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
    for command in re.findall(r"\bsgate ([a-z]+)\b", text):
        assert command in COMMANDS, command


def test_the_command_page_has_a_section_for_each_command() -> None:
    sections = SECTION.findall(COMMAND_PAGE.read_text(encoding="utf-8"))
    assert [command for command, _ in sections] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_the_command_page_exist(command: str) -> None:
    parser = argparse.ArgumentParser(prog=f"sgate {command}")
    importlib.import_module(f"sgate_serve.commands.{command}").add_arguments(parser)
    known = set(flags_of(parser))
    section = dict(SECTION.findall(COMMAND_PAGE.read_text(encoding="utf-8")))[command]
    rows = "".join(FLAG_TABLE.findall(section)).splitlines()
    shown = {flag for row in rows for flag in re.findall(r"`(--[\w-]+)`", row.split("|")[1])}
    assert shown and shown <= known


def flags_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the flags of a parser and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from flags_of(subparser)
