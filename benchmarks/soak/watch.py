"""Watches a server from outside: memory, handles and threads of its process, and its /health.

/health is asked for by a process of its own, which the clients' work does not delay.
"""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event as ProcessEvent
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import httpx

from benchmarks.footprint import memory_of
from sgate_serve.errors import BenchError

POLL_SECONDS = 0.1
# Of the samples, before memory and handles are compared.
WARM_UP = 0.2
# Growth from the first third to the last that is none, and handles that come and go.
TOLERANCE, FEW_HANDLES = 0.05, 4
MAX_LISTED = 5
LISTENING = "0A"


@dataclass(frozen=True)
class Sample:
    """The state of a process, so many seconds after the start."""

    seconds: float
    rss_bytes: float
    handles: int
    threads: int


def process_at(url: str) -> int:
    """Return the id of the process that listens at an address of this machine.

    Raises BenchError if there is none whose files may be read.
    """
    ending = f":{httpx.URL(url).port or 80:04X}"
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        if (path := Path("/proc/net", table)).exists()
        for line in path.read_text("utf-8").splitlines()[1:]
    ]
    sockets = {
        f"socket:[{row[9]}]" for row in rows if row[3] == LISTENING and row[1].endswith(ending)
    }
    # A child that has inherited the socket comes after the one that opened it.
    for pid in sorted(int(process.name) for process in Path("/proc").glob("[0-9]*")):
        if sockets & {*_open_files(Path(f"/proc/{pid}"))}:
            return pid
    raise BenchError(f"no process of this user on this machine listens at {url}; start one here")


def _open_files(process: Path) -> Iterator[str]:
    """Yield what the handles of a process refer to; none if it is another user's, or gone."""
    try:
        for handle in (process / "fd").iterdir():
            yield str(handle.readlink())
    except OSError:
        return


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended has no memory, even if nobody has waited."""
    try:
        return memory_of(pid)["rss_bytes"] > 0
    except (OSError, KeyError):
        return False


def sample(pid: int, started: float) -> Sample:
    process = Path(f"/proc/{pid}")
    return Sample(
        time.monotonic() - started,
        memory_of(pid)["rss_bytes"],
        sum(1 for _ in (process / "fd").iterdir()),
        sum(1 for _ in (process / "task").iterdir()),
    )


@contextmanager
def sampling(pid: int, seconds: float) -> Iterator[list[Sample]]:
    """Take a sample every so many seconds while the context and the process last; yields them."""
    samples: list[Sample] = []
    over, started = Event(), time.monotonic()

    def take() -> None:
        while not over.wait(seconds) and is_alive(pid):
            samples.append(sample(pid, started))

    thread = Thread(target=take)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return the medians of the first and last third of the samples after the warm-up."""
    steady = samples[int(len(samples) * WARM_UP) :]
    third = max(1, len(steady) // 3)
    parts = {"first": steady[:third], "last": steady[-third:]}
    return {
        name: {part: median(getattr(one, name) for one in own) for part, own in parts.items()}
        for name in [own.name for own in fields(Sample)][1:]
    }


def growth_complaints(found: dict[str, dict[str, float]]) -> list[str]:
    """Say what has grown."""
    slack = {"rss_bytes": 0, "handles": FEW_HANDLES, "threads": FEW_HANDLES}
    return [
        f"{name} grew from {own['first']:.0f} to {own['last']:.0f}"
        for name, own in found.items()
        if own["last"] > own["first"] * (1 + TOLERANCE) + slack[name]
    ]


@dataclass
class Health:
    """The seconds that answers of /health took; by how much the poller itself overslept at most."""

    seconds: list[float] = field(default_factory=list)
    overslept: float = 0.0
    failures: list[str] = field(default_factory=list)

    def complaints(self, limit: float) -> list[str]:
        """Say what went wrong, and whether an answer took longer than so many seconds."""
        slow = [seconds for seconds in self.seconds if seconds > limit]
        if not slow:
            return self.failures[:MAX_LISTED]
        late = (
            f"/health took up to {max(slow):.3f} s, and more than {limit:g} s in {len(slow)} of "
            f"{len(self.seconds)} polls; the poller overslept by up to {self.overslept:.3f} s"
        )
        return [*self.failures[:MAX_LISTED], late]

    def summary(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        return {
            "count": len(ordered),
            "median": median(ordered),
            "p99": ordered[int(len(ordered) * 0.99)],
            "max": ordered[-1],
            "overslept_max": self.overslept,
        }


def _poll(url: str, over: ProcessEvent, results: Connection) -> None:
    found = Health()
    with httpx.Client(base_url=url, timeout=60) as client:
        while not over.is_set():
            begun = time.perf_counter()
            try:
                client.get("/health").raise_for_status()
            except httpx.HTTPError as error:
                found.failures.append(f"/health: {type(error).__name__}: {error}")
            ended = time.perf_counter()
            found.seconds.append(ended - begun)
            over.wait(POLL_SECONDS)
            found.overslept = max(found.overslept, time.perf_counter() - ended - POLL_SECONDS)
    results.send(found)


@contextmanager
def polling(url: str) -> Iterator[Health]:
    """Ask for /health while the context lasts; what it yields is filled in afterwards."""
    context = multiprocessing.get_context("spawn")
    over, (receiver, sender) = context.Event(), context.Pipe(duplex=False)
    process = context.Process(target=_poll, args=(url, over, sender))
    process.start()
    health = Health()
    try:
        yield health
    finally:
        over.set()
        vars(health).update(vars(receiver.recv()))
        process.join()
