"""`sgate --print-completion`: the scripts are what the shells read, and complete our words."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sgate_serve.cli import COMMANDS, SHELLS
from tests.commands.running import run

pytest.importorskip("shtab", reason="shtab is not installed: pip install shtab")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_read_by_its_shell(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, script, err = run(capsys, "--print-completion", shell)
    assert (status, err) == (0, "")
    assert all(name in script for name in COMMANDS)
    assert "--text-column" in script and "--served-model-name" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script)
    checked = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sgate", "ver"], {"verify"}),
        (["sgate", "train", "--eval-b"], {"--eval-blocks"}),
        (["sgate", "bench", ""], {"compare", "latency", "serve", "throughput"}),
        (["sgate", "plan", "--out", "pla"], {"plan.json"}),
        (["sgate", "serve", "my"], {"my-model"}),
    ],
)
def test_bash_completes(
    words: list[str], expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    _, script, _ = run(capsys, "--print-completion", "bash")
    (tmp_path / "my-model").mkdir()
    (tmp_path / "plan.json").write_text("{}")
    ask = (
        f"{script}\nCOMP_WORDS=({' '.join(map(repr, words))}) COMP_CWORD={len(words) - 1}\n"
        "compopt() { :; }\n_shtab_sgate\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    found = subprocess.run([bash, "-c", ask], cwd=tmp_path, capture_output=True, text=True)
    assert set(found.stdout.split()) == expected, found.stderr
