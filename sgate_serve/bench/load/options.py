"""What load to put on a server: how many requests, when, with which prompts, and how it is judged.

Nothing is read or asked here; what cannot be run is refused by the name of its flag.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sgate_serve.bench.load.ramp import MOST_RATE, Ramp
from sgate_serve.errors import BenchError, did_you_mean
from sgate_serve.options import flag_of, option

LOAD, PROMPTS, SERVERS = "load", "prompts", "servers"
OBJECTIVES = ("ttft", "tpot", "e2el")
USERS, INPUT_LEN, OUTPUT_LEN, ROUNDS = 8, 128, 64, 5
NUM_PROMPTS, NUM_PROMPTS_OF_TURN = 64, 16
# The least requests per second, and the most requests that a client keeps the times of.
LEAST_RATE, MOST_REQUESTS = 1e-4, 10**6
RAMP = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")


@dataclass(frozen=True)
class LoadOptions:
    """The load; a field of None has the default that its text says.

    Raises BenchError for values that cannot be run, and for flags that would have no effect.
    """

    max_concurrency: int | None = option(
        None,
        f"requests at a time: each sends its next one when it has its answer (default: {USERS}, or "
        "no limit where requests arrive at a rate or at times)",
        group=LOAD,
    )
    request_rate: str | None = option(
        None,
        "requests per second that arrive whatever the server does, or inf for all at once",
        group=LOAD,
    )
    ramp_up_strategy: str | None = option(
        None,
        "let the rate grow from request to request by the same difference or factor: linear or "
        "exponential",
        group=LOAD,
    )
    ramp_up_start_rps: float | None = option(
        None, "requests per second at the first request of the ramp", group=LOAD
    )
    ramp_up_end_rps: float | None = option(
        None, "requests per second at its last request", group=LOAD
    )
    burstiness: float | None = option(
        None,
        "shape of the gaps between arrivals: below 1 in bursts, above 1 more even (default: 1, a "
        "Poisson process)",
        group=LOAD,
    )
    num_prompts: int | None = option(
        None,
        f"requests (default: {NUM_PROMPTS}, or {NUM_PROMPTS_OF_TURN} in each turn with --against, "
        "and no more than the dataset has; all of a dataset with times)",
        group=LOAD,
    )
    duration: float | None = option(
        None, "seconds after which no more requests are sent", group=LOAD
    )
    sweep: bool = option(
        False, "double --max-concurrency from 1 until the throughput grows no more", group=LOAD
    )
    input_len: int | None = option(
        None, f"random tokens of each prompt (default: {INPUT_LEN})", group=PROMPTS
    )
    output_len: int | None = option(
        None,
        f"tokens that each request generates, or at most if its dataset says nothing (default: "
        f"{OUTPUT_LEN})",
        group=PROMPTS,
    )
    shared_prefix_len: int = option(
        0, "tokens that all random prompts begin with, before --input-len others", group=PROMPTS
    )
    dataset: Path | None = option(
        None,
        "JSON lines with `prompt`, `messages` or `input_length`, `output_tokens` if each has its "
        "own length, and `timestamp` (ms) if each is sent at its own time, as in Mooncake's traces",
        group=PROMPTS,
    )
    chat: bool = option(
        False, "send chats; a dataset with `messages` is sent so anyway", group=PROMPTS
    )
    model: str | None = option(
        None, "the model's name (default: the first that the server lists)", group=SERVERS
    )
    rounds: int | None = option(
        None,
        f"with --against: rounds, in each of which both servers are loaded twice (default: "
        f"{ROUNDS})",
        group=SERVERS,
    )
    timeout: float = option(
        600.0, "seconds without a sign of life after which a request has failed", group=SERVERS
    )
    seed: int = option(0, "seed of prompts, arrivals and intervals", group=LOAD)
    slo: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_concurrency", "num_prompts", "input_len", "output_len", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BenchError(f"{flag_of(name)} {value}: must be at least 1")
        for name in ("burstiness", "duration", "timeout"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BenchError(f"{flag_of(name)} {value:g}: must be above 0")
        if max(self.num_prompts or 1, (self.duration or 0) * self._fastest) > MOST_REQUESTS:
            raise BenchError(
                f"this run would send more than {MOST_REQUESTS:,} requests; lower --num-prompts, "
                "--duration or the rate"
            )
        self._check_combinations()
        _ = self.rate, self.ramp, self.objectives

    def _check_combinations(self) -> None:
        has_rate = self.rate is not None and not math.isinf(self.rate)
        if self.burstiness is not None and not has_rate and self.ramp is None:
            raise BenchError("--burstiness shapes the arrivals of --request-rate; give a rate too")
        if self.request_rate is not None and self.ramp is not None:
            raise BenchError("--ramp-up-strategy sets the rate; leave out --request-rate")
        self._check_ramp_length()
        if self.dataset is not None and self.input_len is not None:
            raise BenchError("--input-len is for random prompts; leave it out with --dataset")
        if self.dataset is not None and self.shared_prefix_len:
            raise BenchError("--shared-prefix-len is for random prompts; leave it out")
        if self.duration is not None and self.rate == math.inf and self.num_prompts is None:
            raise BenchError("--request-rate inf needs --num-prompts, not only --duration")
        for name in ("max_concurrency", "request_rate", "ramp_up_strategy", "burstiness"):
            if self.sweep and getattr(self, name) is not None:
                raise BenchError(f"--sweep sets the concurrency; leave out {flag_of(name)}")

    @property
    def _fastest(self) -> float:
        """The highest rate of arrivals that is known beforehand; 0 in a closed loop."""
        rate = self.rate
        return self.ramp.end if self.ramp is not None else rate if rate and rate < math.inf else 0

    @property
    def rate(self) -> float | None:
        """The requests per second of an open loop; None for a closed one."""
        if self.request_rate is None:
            return None
        try:
            rate = float(self.request_rate)
        except ValueError:
            rate = math.nan
        if not (LEAST_RATE <= rate <= MOST_RATE or rate == math.inf):
            raise BenchError(
                f"--request-rate {self.request_rate}: give a number from {LEAST_RATE:g} to "
                f"{MOST_RATE:,.0f}, or inf for all at once"
            )
        return rate

    def _check_ramp_length(self) -> None:
        """Raise BenchError for a ramp that a duration would cut off, or leaves no request."""
        if self.ramp is None or self.duration is None:
            return
        if self.num_prompts is not None:
            raise BenchError(
                "a ramp reaches its end rate with the last request, before or after --duration; "
                "give --num-prompts or --duration, not both"
            )
        if self.duration < 1 / self.ramp.start:
            raise BenchError(
                f"--duration {self.duration:g}: the first request of the ramp is due after "
                f"{1 / self.ramp.start:g} s; give more, or raise --ramp-up-start-rps"
            )

    @property
    def ramp(self) -> Ramp | None:
        """The growing rate of an open loop; None for a closed one, or a constant rate."""
        strategy, start, end = (getattr(self, name) for name in RAMP)
        missing = [flag_of(name) for name in RAMP if getattr(self, name) is None]
        if len(missing) == len(RAMP):
            return None
        if missing:
            raise BenchError(f"a ramp needs {', '.join(map(flag_of, RAMP))}; give {missing[0]}")
        return Ramp(strategy, start, end)

    @property
    def objectives(self) -> Mapping[str, float]:
        """The limits of --slo, in milliseconds."""
        limits: dict[str, float] = {}
        for text in self.slo:
            name, _, limit = text.partition(":")
            if name not in OBJECTIVES:
                raise BenchError(
                    f"--slo {text}: unknown; give ttft, tpot or e2el, and milliseconds, such as "
                    f"ttft:200{did_you_mean(name, OBJECTIVES)}"
                )
            if name in limits:
                raise BenchError(f"--slo {text}: {name} is given twice")
            try:
                limits[name] = float(limit)
            except ValueError:
                limits[name] = math.nan
            if not 0 < limits[name] < math.inf:
                raise BenchError(f"--slo {text}: give milliseconds above 0, such as {name}:200")
        return limits

    @property
    def is_open_loop(self) -> bool:
        """Whether requests arrive at a rate, whatever the server does."""
        return self.rate is not None or self.ramp is not None

    @property
    def prompt_len(self) -> int:
        """The tokens of a random prompt."""
        return self.shared_prefix_len + (self.input_len or INPUT_LEN)

    @property
    def answer_len(self) -> int:
        return self.output_len or OUTPUT_LEN

    def num_requests(self, in_dataset: int | None, *, is_turn: bool) -> int | None:
        """Return the requests of a run, or of one turn of a comparison; None for no limit.

        `in_dataset` is the number of prompts that there are, None for any number.
        """
        if self.num_prompts is not None or self.duration is not None:
            return self.num_prompts
        default = NUM_PROMPTS_OF_TURN if is_turn else NUM_PROMPTS
        return default if in_dataset is None else min(default, in_dataset)

    def rates(self, num: int | None) -> list[float]:
        """Return the rates at which requests of an open loop arrive; `num` limits their number."""
        if self.ramp is not None:
            return self.ramp.rates(num or self.ramp.num_within(self.duration or 0))
        rate = self.rate or math.inf
        if self.duration is not None and not math.isinf(rate):
            most = max(1, round(rate * self.duration))
            num = most if num is None else min(num, most)
        return [rate] * (num or 0)
