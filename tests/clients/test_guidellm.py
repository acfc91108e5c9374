"""guidellm, which loads a server with streams of generated prompts and counts their tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.answers import REASON
from tests.server.onnx_server import serving_folder, tiny_folder

pytest.importorskip("guidellm", reason=REASON)
pytestmark = pytest.mark.slow

REQUESTS, INPUT_TOKENS, OUTPUT_TOKENS = 12, 24, 8


@pytest.mark.parametrize(
    ("endpoint", "profile"),
    [
        ("completions", "kind=concurrent,streams=3"),
        ("chat/completions", "kind=throughput,max_concurrency=8"),
    ],
)
def test_every_stream_is_complete(endpoint: str, profile: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    folder = tiny_folder(tmp_path / "model")
    with serving_folder(folder, slots=4) as client:
        record = run(str(client.base_url), endpoint, profile, folder, tmp_path / "record.json")
    (benchmark,) = record["benchmarks"]
    requests = benchmark["requests"]
    assert not requests["errored"] and not requests["incomplete"]
    assert len(requests["successful"]) == REQUESTS
    for request in requests["successful"]:
        assert request["output_tokens"] == OUTPUT_TOKENS
        assert request["prompt_tokens"] >= INPUT_TOKENS
        assert 0 < request["time_to_first_token_ms"] <= 1000 * request["request_latency"]


def run(url: str, endpoint: str, profile: str, folder: Path, record: Path) -> dict[str, Any]:
    """Run guidellm in its own process; return its record."""
    options = {
        "--backend": f"kind=openai_http,target={url},request_format=/v1/{endpoint}",
        "--profile": profile,
        "--constraint": f"kind=max_requests,count={REQUESTS}",
        "--tokenizer": f"kind=huggingface_auto,model={folder}",
        "--data": f"kind=synthetic_text,prompt_tokens={INPUT_TOKENS},output_tokens={OUTPUT_TOKENS}",
        "--output": f"kind=json,path={record}",
    }
    words = [word for pair in options.items() for word in pair]
    command = [sys.executable, "-m", "guidellm", "run", "--disable-console", *words]
    done = subprocess.run(
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found
