"""`sgate bench serve`: loads one server, two by turns, or one with growing concurrency.

A run keeps what it has measured, so that an interrupted one can be reported as far as it came.
"""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from sgate_serve.bench.load.arrivals import arrival_times
from sgate_serve.bench.load.client import Client
from sgate_serve.bench.load.dataset import Dataset, read_dataset
from sgate_serve.bench.load.options import ROUNDS, USERS, LoadOptions
from sgate_serve.bench.load.target import Target, prepare
from sgate_serve.bench.load.trace import Trace
from sgate_serve.bench.load.turn import Shape, Turn, run_turn
from sgate_serve.errors import BenchError
from sgate_serve.progress import Activity, activity

# A sweep stops when twice the concurrency gives less than this much more throughput.
SATURATED, MOST_USERS = 1.05, 1024
# How far a sum of gaps may be off, relative to itself.
ROUNDING = 1e-9


@dataclass
class LoadRun:
    """The load of one server, or of two by turns: A B B A in each round.

    `turns` has the turns of each server, in the order of `urls`; `first` is the index of the first
    prompt. Raises BenchError for a second server that is the first, or a flag without effect.
    """

    urls: Sequence[str]
    options: LoadOptions
    dataset: Dataset | None = None
    first: int = 0
    targets: list[Target] = field(default_factory=list)
    turns: list[list[Turn]] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = self.options
        if len(set(self.urls)) < len(self.urls):
            raise BenchError(
                f"--against {self.urls[-1]}: the same server, whose cache would know the prompts"
            )
        if options.rounds is not None and not self.is_comparison:
            raise BenchError("--rounds has an effect only with --against; leave it out")
        self.turns = [[] for _ in self.urls]

    @property
    def is_comparison(self) -> bool:
        return len(self.urls) > 1

    @property
    def has_traces(self) -> bool:
        """Whether any request has ended."""
        return any(turn.traces for turns in self.turns for turn in turns)

    @property
    def is_trace(self) -> bool:
        """Whether requests are sent at the times of the dataset."""
        return self.dataset is not None and self.dataset.is_trace

    @property
    def users(self) -> int | None:
        """How many requests may run at a time; None for no limit."""
        is_open_loop = self.is_trace or self.options.is_open_loop
        return self.options.max_concurrency or (None if is_open_loop else USERS)

    @property
    def has_answers(self) -> bool:
        """Whether any request was answered whole."""
        return any(
            not trace.error for turns in self.turns for turn in turns for trace in turn.traces
        )

    @property
    def num_requests(self) -> int | None:
        """The requests of each turn; None for no limit."""
        if self.is_trace:
            return self.options.num_prompts or self._num_in_dataset
        return self.options.num_requests(self._num_in_dataset, is_turn=self.is_comparison)

    @property
    def _num_in_dataset(self) -> int | None:
        return len(self.dataset.records) if self.dataset else None

    def measure(self) -> None:
        """Load the servers; what was measured before an interruption is in `turns`."""
        asyncio.run(self._measure())

    async def _measure(self) -> None:
        async with AsyncExitStack() as stack:
            with activity("asking the server", is_brief=True):
                for url in self.urls:
                    client = await stack.enter_async_context(Client(url, self.options.timeout))
                    self.targets.append(await prepare(client, self.options, self.dataset))
            with activity("load", is_brief=True) as opened:
                await self._take_turns(opened)

    async def _take_turns(self, opened: Activity) -> None:
        order = list(self._order())
        total = (self.num_requests or 0) * len(order)
        counts = {"done": 0, "failed": 0}

        def count(trace: Trace) -> None:
            counts["done"] += 1
            counts["failed"] += bool(trace.error)
            failed = {"failed": counts["failed"]} if counts["failed"] else {}
            if total and self.options.duration is None:
                opened.report(counts["done"], total, "request", **failed)

        if total and self.options.duration is None:
            opened.report(0, total, "request")
        for server, number in order:
            turn = Turn()
            self.turns[server].append(turn)
            shape = Shape(
                self.users, self._arrivals(number), self.num_requests, self.options.duration
            )
            first = self._first_of(number)
            await run_turn(self.targets[server].send, shape, first, turn, count)

    def _order(self) -> Iterator[tuple[int, int]]:
        """Yield the server of each turn, and the turn's number; both servers have every number."""
        if not self.is_comparison:
            yield 0, 0
            return
        for number in range(self.options.rounds or ROUNDS):
            yield from ((0, 2 * number), (1, 2 * number), (1, 2 * number + 1), (0, 2 * number + 1))

    def _first_of(self, number: int) -> int:
        """Return the index of a turn's first prompt; a trace begins anew.

        What was sent before is not sent again: a server may remember it.
        """
        sent = None if self.is_trace else self.num_requests
        return self.first + number * (sent or self._num_in_dataset or 2**16)

    def _arrivals(self, number: int) -> tuple[float, ...] | None:
        """Return when a turn's requests arrive, in seconds; None if each waits for another."""
        options, num = self.options, self.num_requests
        if self.dataset is not None and self.is_trace:
            times = self.dataset.arrivals[:num]
        elif options.is_open_loop:
            seed = options.seed + number
            times = arrival_times(options.rates(num), options.burstiness or 1.0, seed)
        else:
            return None
        # Sums of gaps that fill the duration may exceed it by their rounding.
        latest = math.inf if options.duration is None else options.duration * (1 + ROUNDING)
        return tuple(time for time in times if time <= latest)


def measure_all(urls: Sequence[str], options: LoadOptions, runs: list[LoadRun]) -> None:
    """Measure the run, or those of a sweep, and append each to `runs` before it is measured.

    Raises BenchError for flags or a dataset that cannot be run, and for a server that refuses.
    """
    if options.sweep and len(urls) > 1:
        raise BenchError("--sweep loads one server; leave out --against")
    dataset = read_dataset(options.dataset, options) if options.dataset else None
    if not options.sweep:
        runs.append(LoadRun(urls, options, dataset))
        runs[-1].measure()
        return
    best, users, first = 0.0, 1, 0
    while users <= MOST_USERS:
        runs.append(LoadRun(urls, _with_users(options, users), dataset, first))
        runs[-1].measure()
        (turn,) = runs[-1].turns[0]
        ended = (trace for trace in turn.traces if not trace.error)
        tokens = sum(trace.output_len for trace in ended) / turn.seconds
        if tokens < SATURATED * best or all(trace.error for trace in turn.traces):
            return
        best, users, first = tokens, 2 * users, first + len(turn.traces)


def _with_users(options: LoadOptions, users: int) -> LoadOptions:
    own = replace(options, sweep=False, max_concurrency=users)
    if own.num_prompts is None and own.duration is None:
        return replace(own, num_prompts=max(8, 4 * users))
    return own
