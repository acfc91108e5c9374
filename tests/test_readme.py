"""README and docs: `bash test` blocks run, measured blocks follow from the JSON, links lead on."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tables import blocks, read_records, render
from sgate_serve.cli import COMMANDS
from tests.small_llama import dense_llama
from tests.text_model import write_tokenizer

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```bash test\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#]+)\)")
# The commands are run as they stand, but shorter and on a port that is free.
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


@pytest.mark.parametrize("page", ["README.md", "docs/speed.md", "docs/training.md", "docs/vllm.md"])
def test_measured_blocks_follow_from_the_records(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert render(text, blocks(read_records())[page]) == text


def test_a_missing_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="found the block results 0 times"):
        render("no blocks here", {"results": "numbers"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        assert (page.parent / target).exists(), target
    for command in re.findall(r"\bsgate ([a-z]+)\b", text):
        assert command in COMMANDS, command
