"""Loads a server for a long time with everything at once, and fails if anything goes wrong.

`python -m benchmarks.soak --json FILE --model FOLDER` starts `sgate serve`; with `--url` it loads a
server that runs on this machine. Clients ask for plain and streamed answers of every API, whose
texts must be those of a quiet run, for structured output and tool calls, which are validated, and
for prompts that begin alike; they hang up, and send what must be refused. Meanwhile /health must
answer in time. Memory, handles and threads of the server must not grow after the warm-up.

Use fp32: in int8 and int4 a close choice may depend on what else runs.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import httpx

from benchmarks.command import command_line, run_script
from benchmarks.soak.traffic import Traffic
from benchmarks.soak.watch import (
    FEW_HANDLES,
    Sample,
    growth,
    growth_complaints,
    is_alive,
    polling,
    process_at,
    sample,
    sampling,
)
from sgate_serve.demo.serving import running_server
from sgate_serve.environment import hardware, library_versions
from sgate_serve.errors import BenchError, SgateError
from sgate_serve.options import option
from sgate_serve.progress import activity

NUM_SAMPLES = 600
TIMEOUT_SECONDS = 120
DRAIN_SECONDS = 15
LOG_CHARACTERS = 4000


@dataclass(frozen=True)
class SoakOptions:
    """The server, and how it is loaded."""

    url: str = option("", "address of a running server on this machine; without it, one is started")
    model: str = option("sgate-demo/pruned", "folder that is served unless there is --url")
    precision: str = option("fp32", "precision of the server that is started")
    slots: int = option(4, "slots of the server that is started")
    minutes: float = option(30.0, "how long the load lasts")
    clients: int = option(8, "clients that ask at the same time")
    health_seconds: float = option(0.2, "the longest that an answer of /health may take")
    skip: str = option("", "requests that are left out, such as tool_calls,chats")
    seed: int = option(0, "seed of what is asked when")

    @property
    def skipped(self) -> list[str]:
        return [name for name in self.skip.split(",") if name]


def load(url: str, pid: int, traffic: Traffic, options: SoakOptions) -> None:
    """Run all clients for as long as the options say, and report how far they are.

    Raises BenchError with what went wrong so far if the process of the server ends.
    """
    total = options.minutes * 60
    deadline = time.monotonic() + total

    def visit(number: int) -> None:
        random = Random(options.seed * options.clients + number)
        with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as client:
            while time.monotonic() < deadline and is_alive(pid):
                traffic.ask(client, random)

    with activity("soak") as soak, ThreadPoolExecutor(options.clients) as pool:
        visits: list[Future[None]] = [pool.submit(visit, own) for own in range(options.clients)]
        while time.monotonic() < deadline and not all(own.done() for own in visits):
            time.sleep(min(1.0, total / 10))
            done = round(min(total, total - deadline + time.monotonic()))
            tally = traffic.tally
            values = {"requests": tally.num_requests, "failures": tally.num_failures}
            soak.report(done, round(total), "second", **values)
        for own in visits:
            own.result()
    if not is_alive(pid):
        failures = "; ".join(traffic.tally.failures)
        raise BenchError(f"the server ended under the load; what failed first: {failures}")


def drain(client: httpx.Client) -> list[str]:
    """Wait until no request runs or waits; return what is wrong if some stay."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        lines = client.get("/metrics").text.splitlines()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        own = [line for line in lines if line.startswith(names)]
        if own and all(line.endswith(" 0.0") for line in own):
            return []
        if time.monotonic() > deadline:
            return [f"after {DRAIN_SECONDS} s without clients: {', '.join(own)}"]
        time.sleep(0.2)


def idle(pid: int, client: httpx.Client) -> tuple[Sample, list[str]]:
    """Return the state of a server without requests, and what is wrong if some stay."""
    stay = drain(client)
    time.sleep(0.5)  # until connections are closed
    return sample(pid, time.monotonic()), stay


def soak(url: str, options: SoakOptions) -> dict[str, Any]:
    """Load a server and return what was found; `failures` is empty if all went well."""
    traffic, pid = Traffic(options.skipped), process_at(url)
    with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as client:
        traffic.learn(client)
        before, _ = idle(pid, client)
        seconds = max(0.2, options.minutes * 60 / NUM_SAMPLES)
        with sampling(pid, seconds) as samples, polling(url) as health:
            load(url, pid, traffic, options)
        after, stay = idle(pid, client)
    found = growth(samples)
    failures = [*traffic.tally.failures, *traffic.complaints(), *stay, *growth_complaints(found)]
    failures += health.complaints(options.health_seconds)
    if after.handles > before.handles + FEW_HANDLES:
        failures.append(f"{after.handles} handles are open afterwards, and {before.handles} before")
    return {
        "failures": failures,
        "requests": {name: asdict(count) for name, count in traffic.tally.counts.items()},
        "cached_tokens": traffic.tally.cached_tokens,
        "health_seconds": health.summary(),
        "growth": found,
        "idle": {"before": asdict(before), "after": asdict(after)},
        "samples": [asdict(own) for own in samples],
    }


@contextmanager
def server(options: SoakOptions) -> Iterator[str]:
    """Yield the address of the server of the options, which is started if it has none."""
    if options.url:
        yield options.url
        return
    engine = ("--slots", str(options.slots), "--precision", options.precision)
    with tempfile.TemporaryDirectory(prefix="sgate-soak-") as folder:
        log = Path(folder) / "serve.log"
        try:
            with running_server(Path(options.model), log, engine) as url:
                yield url
        except SgateError as error:
            end = log.read_text("utf-8", errors="replace")[-LOG_CHARACTERS:]
            raise BenchError(f"{error}; the log of the server ends with:\n{end}") from error


def run(options: SoakOptions) -> dict[str, Any]:
    """Load the server and return the record."""
    with server(options) as url:
        results = soak(url, options)
    named = replace(options, model=Path(options.model).name)
    return {
        "command": command_line("soak", named),
        "options": asdict(named),
        "results": results,
        "hardware": hardware(),
        "versions": library_versions(),
    }


def main() -> None:
    failures = run_script("soak", __doc__, SoakOptions, run)["results"]["failures"]
    if failures:
        sys.exit("\n".join(["the soak failed:", *failures]))


if __name__ == "__main__":
    main()
