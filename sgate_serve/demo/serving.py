"""Starts the real server on a free port, queries it with the openai client, and stops it."""

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgate_serve.errors import EngineError
from sgate_serve.progress import activity, counted

START_SECONDS = 60
STOP_SECONDS = 30
ANSWER_SECONDS = 600
AT_ONCE = 8
PROMPT = "def parse_args(self, args=None"
QUESTION = "How do I read a file line by line?"


@contextmanager
def running_server(folder: Path, log: Path, arguments: Sequence[str] = ()) -> Iterator[str]:
    """Run `sgate serve folder -- arguments`, yield its URL once it is healthy, and stop it.

    Raises EngineError naming `log` if it does not start or exits with a status other than 0.
    """
    command = [sys.executable, "-m", "sgate_serve.cli", "serve", str(folder), "--port", "0"]
    command += ["--", *arguments] if arguments else []
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            with activity("starting the server", is_brief=True):
                url = process.stdout.readline().rpartition(" ")[2].strip()
                wait_until_healthy(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    if status != 0:
        raise EngineError(f"the server exited with status {status}; its log is {log}")


def wait_until_healthy(url: str, process: "subprocess.Popen[str]", log: Path) -> None:
    """Poll /health until it answers 200; raise EngineError if the process exits or on timeout."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ValueError):
            time.sleep(0.1)
    raise EngineError(f"the server did not become healthy; its log is {log}")


def stream_answers(url: str, max_tokens: int, show: Callable[[str], None]) -> dict[str, Any]:
    """Stream a greedy completion and a sampled chat answer; return both with their usage."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    model = client.models.list().data[0].id
    settings: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    show(f"completion of {PROMPT!r}:\n{PROMPT}")
    completion = _collect(client.completions.create(prompt=PROMPT, temperature=0, **settings), show)
    show(f"\nchat answer to {QUESTION!r} (a model of Python sources, not a chat model):\n")
    messages: Any = [{"role": "user", "content": QUESTION}]
    sampling: Any = {"temperature": 0.7, "top_p": 0.9, "seed": 0}
    answer = client.chat.completions.create(messages=messages, **sampling, **settings)
    chat = _collect(answer, show)
    show("\n")
    return {"completion": {"prompt": PROMPT, **completion}, "chat": {"prompt": QUESTION, **chat}}


@dataclass(frozen=True)
class Answer:
    """The text of a chat answer, and whether the model ended it itself."""

    text: str
    is_whole: bool


def ask(url: str, prompts: Sequence[str], max_tokens: int) -> list[Answer]:
    """Return greedy chat answers to `prompts`, several asked at a time."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=ANSWER_SECONDS)
    model = client.models.list().data[0].id

    def answer(prompt: str) -> Answer:
        messages: Any = [{"role": "user", "content": prompt}]
        settings: Any = {"model": model, "max_tokens": max_tokens, "temperature": 0}
        choice = client.chat.completions.create(messages=messages, **settings).choices[0]
        return Answer(choice.message.content or "", choice.finish_reason == "stop")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(counted(pool.map(answer, prompts), "answer", len(prompts)))


def _collect(stream: Any, show: Callable[[str], None]) -> dict[str, Any]:
    text, usage = "", None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            delta = choice.delta.content if hasattr(choice, "delta") else choice.text
            text += delta or ""
            show(delta or "")
    return {"text": text, "usage": None if usage is None else usage.model_dump()}
