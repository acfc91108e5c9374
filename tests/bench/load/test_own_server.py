"""Our own server on a real engine under load, without torch and transformers in the client."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.running import run
from tests.server.onnx_server import serving_folder, tiny_folder

SIZES = ("--input-len", "12", "--output-len", "5", "--num-prompts", "6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("words", [(), ("--chat",), ("--request-rate", "100"), ("--duration", "9")])
def test_every_request_of_the_load_succeeds(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    path = tmp_path / "r.json"
    with serving_folder(folder, slots=4) as client:
        url = str(client.base_url)
        status, out, err = run(capsys, "bench", "serve", url, *SIZES, *words, "--json", path)
    assert status == 0, err
    record = json.loads(path.read_text())
    assert (record["completed"], record["failed"]) == (6, 0)
    assert record["total_output_tokens"] == 30
    assert record["output_lens"] == [5] * 6
    server = record["server"]
    assert server["model"] == folder.name and server["version"]
    assert server["fields"] == ["ignore_eos", "stream_options"]
    if "--chat" in words:
        assert server["prompts"] == "random words" and record["total_input_tokens"] > 72
    else:
        assert server["prompts"] == "random tokens" and record["input_lens"] == [12] * 6
    for ttft, gaps, latency in zip(
        record["ttfts"], record["itls"], record["latencies"], strict=True
    ):
        assert 0 < ttft <= latency == pytest.approx(ttft + sum(gaps))
    assert record["command"].startswith("sgate bench serve http://")
    assert record["seed"] == 0 and record["hardware"]["cpu_flags"] and record["versions"]["httpx"]
    assert "TTFT" in out and folder.name in out


def test_lengths_beyond_the_model_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving_folder(folder, slots=2) as client:
        words = ("bench", "serve", str(client.base_url), "--input-len", "5000")
        status, out, err = run(capsys, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "lower --input-len, --shared-prefix-len or --output-len" in err


def test_the_client_needs_neither_torch_nor_an_engine(folder: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnxruntime'): sys.modules[name] = None\n"
        "from sgate_serve.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    with serving_folder(folder, slots=2) as client:
        words = ("bench", "serve", str(client.base_url), *SIZES)
        result = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60
        )
    assert result.returncode == 0, result.stderr
