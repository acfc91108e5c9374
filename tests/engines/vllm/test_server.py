"""`sgate serve --engine vllm` as a process: our plugin in vLLM's own server."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from sgate_serve.engines.contract import Request
from sgate_serve.engines.table import load_engine
from sgate_serve.environment import cpu_ids
from tests.engines.drive import greedy, prompt, run
from tests.families.test_equivalence import converted
from tests.families.zoo import ZOO

pytestmark = pytest.mark.vllm

START_SECONDS, STOP_SECONDS = 150, 30


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def served(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the server and wait until it answers; stop what is left of its group at the end."""
    sgate = [sys.executable, "-m", "sgate_serve.cli", "serve", str(folder), "--engine", "vllm"]
    # The whole machine's memory is not the test's.
    memory = ["--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", str(2**26)]
    words = ["--port", str(port), "--", "--dtype", "float32", "--enforce-eager", *memory]
    # Two threads on cores that others use would wait for each other for minutes.
    core = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": str(cpu_ids()[0])}
    command = [*sgate, *words]
    with subprocess.Popen(command, start_new_session=True, env=os.environ | core) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, f"the server ended with {process.returncode}"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.5)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_server_answers_with_the_references_tokens_and_ends(tmp_path: Path) -> None:
    out = converted(ZOO["llama"][0], tmp_path, skip=0, index_price=0)["out"]
    reference = load_engine("torch", out)
    expected = run(reference, [Request("a", prompt(9), greedy(8))])["a"].tokens
    port = free_port()
    body = {"model": "out", "prompt": prompt(9), "max_tokens": 8, "temperature": 0}
    with served(out, port) as process:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=60)
        models = client.get("/models").json()["data"]
        assert [model["id"] for model in models] == ["out", str(out)]
        answer = client.post("/completions", json=body | {"return_token_ids": True})
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        assert choice["token_ids"] == expected
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=STOP_SECONDS)
