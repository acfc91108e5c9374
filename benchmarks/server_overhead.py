"""Overhead of the server per decode step: HTTP, scheduling, sampling, detokenisation at batch 8.

`python -m benchmarks.server_overhead --json FILE` creates a random Llama-shaped model, then times
eight streams in two processes that take turns: the bare steps of the engine, and `sgate serve` with
eight clients that stream sampled answers. The time of a server step is the extra time of a longer
answer over a shorter one, divided by its extra tokens, so prompts and starts cancel out. The
clients run on the same CPUs, and only collect what comes.
"""

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.command import command_line, run_script
from benchmarks.contenders.running import Contender, Worker
from benchmarks.contenders.tokenizer import write_tokenizer
from benchmarks.shapes import LlamaShape
from benchmarks.synthetic import write_noise
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.demo.serving import running_server
from sgate_serve.environment import hardware, library_versions
from sgate_serve.options import option
from sgate_serve.progress import activity, counted

BATCH = 8
PROMPT_TOKENS = 32
SHORT_ANSWER = 32


@dataclass(frozen=True)
class OverheadOptions(LlamaShape):
    """The shape of the model, the precision of its weights, and the length of an answer."""

    precision: str = option("int4", "precision of the weights; overhead shows most in fast steps")
    steps: int = option(128, "decode steps that are timed")


def request(seed: int, max_tokens: int) -> bytes:
    """Return one streaming request over HTTP/1.1; the server closes the connection afterwards."""
    generator = np.random.default_rng(seed)
    body = json.dumps(
        {
            "prompt": generator.integers(1, 1000, PROMPT_TOKENS).tolist(),
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": True,
            "temperature": 0.8,
            "top_p": 0.95,
            "seed": seed,
        }
    )
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


class Reader(asyncio.Protocol):
    """Collects an answer as it comes, in less time than a StreamReader, which wakes its task."""

    def __init__(self) -> None:
        self.answer = bytearray()
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.answer += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)


async def stream(url: str, seed: int, max_tokens: int) -> None:
    """Read one answer to its end; raise RuntimeError if it is incomplete."""
    address, loop = urlsplit(url), asyncio.get_running_loop()
    assert address.hostname is not None and address.port is not None
    transport, reader = await loop.create_connection(Reader, address.hostname, address.port)
    transport.write(request(seed, max_tokens))
    await reader.ended
    if b"[DONE]" not in reader.answer:
        raise RuntimeError(f"the server broke off: {reader.answer[-500:].decode(errors='replace')}")


def answer_seconds(url: str, seed: int, max_tokens: int) -> float:
    """Return the seconds that eight concurrent streams take."""

    async def together() -> None:
        await asyncio.gather(
            *(stream(url, seed * BATCH + index, max_tokens) for index in range(BATCH))
        )

    started = time.perf_counter()
    asyncio.run(together())
    return time.perf_counter() - started


def measure(url: str, worker: Worker, options: OverheadOptions) -> dict[str, Any]:
    """Return seconds per step of the engine and of the server, and the share that it adds."""
    generator = np.random.default_rng(options.seed)
    engine: list[list[float]] = []
    server: list[list[float]] = []

    def time_engine() -> None:
        seconds = worker.decode_seconds(
            BATCH, PROMPT_TOKENS + SHORT_ANSWER, options.steps, generator
        )
        engine[-1].append(seconds / options.steps)

    def time_server() -> None:
        seed = int(generator.integers(2**20))
        times = [answer_seconds(url, seed, SHORT_ANSWER + more) for more in (0, options.steps)]
        server[-1].append((times[1] - times[0]) / options.steps)

    with activity("measuring"):
        for number in counted(range(options.rounds + 1), "round"):
            engine.append([])
            server.append([])
            turns = (time_engine, time_server, time_server, time_engine)
            for turn in turns if number % 2 else reversed(turns):
                turn()
    # The first round warms up.
    own, served = ([sum(pair) / 2 for pair in times[1:]] for times in (engine, server))
    shares = [both / alone - 1 for both, alone in zip(served, own, strict=True)]
    return {
        "engine_step_seconds": median(own),
        "server_step_seconds": median(served),
        "overhead": asdict(median_with_interval(shares, options.seed)),
        "seconds": {"engine": own, "server": served},
    }


def run(options: OverheadOptions) -> dict[str, Any]:
    """Create the model in a temporary folder, start both processes and measure them."""
    model_len = PROMPT_TOKENS + SHORT_ANSWER + options.steps + 8
    with tempfile.TemporaryDirectory(prefix="sgate-overhead-") as folder:
        root = Path(folder)
        model = root / "model"
        write_noise(model, options.config, 1, options.seed)
        write_tokenizer(model, options.vocab_size)
        precision = ("--precision", options.precision)
        arguments = ("--slots", str(BATCH), "--max-model-len", str(model_len), *precision)
        worker = Worker(Contender(sys.executable, "onnx", model, precision), BATCH, model_len)
        with running_server(model, root / "serve.log", arguments) as url:
            results = measure(url, worker, options)
        worker.close()
    return {
        "command": command_line("server_overhead", options),
        "options": asdict(options),
        "results": results,
        "hardware": hardware(),
        "versions": library_versions(),
    }


def main() -> None:
    run_script("server_overhead", __doc__, OverheadOptions, run)


if __name__ == "__main__":
    main()
