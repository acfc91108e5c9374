"""The mix of a soak: what each client asks next, whether the answer is right, and the tally."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from threading import Lock
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from benchmarks.soak.answers import COMPARED, PROMPTS, SAMPLING, AnswerError, Ask, post
from benchmarks.soak.hostile import hang_up, send_bad_body, send_half
from sgate_serve.errors import BenchError

MAX_LISTED = 50
# The last three are of answers in another shape.
WRONG = (AnswerError, httpx.HTTPError, OSError, LookupError, TypeError, ValueError)
PERSON: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog", None]}, "maxItems": 3},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
TOOL = {"name": "add_person", "parameters": PERSON}
PREFIX = (
    "The following people live in a small town by the sea, and all of them know each other. " * 4
)


@dataclass
class Count:
    """How often something was asked, how long it took, and how often it went wrong."""

    requests: int = 0
    failures: int = 0
    total_seconds: float = 0.0
    max_seconds: float = 0.0


@dataclass
class Tally:
    """What has happened so far, counted by the threads of all clients."""

    counts: dict[str, Count]
    failures: list[str] = field(default_factory=list)
    cached_tokens: int = 0
    _lock: Lock = field(default_factory=Lock)

    @property
    def num_requests(self) -> int:
        return sum(count.requests for count in self.counts.values())

    @property
    def num_failures(self) -> int:
        return sum(count.failures for count in self.counts.values())

    def add(self, name: str, seconds: float, failure: str | None) -> None:
        with self._lock:
            count = self.counts[name]
            count.requests += 1
            count.total_seconds += seconds
            count.max_seconds = max(count.max_seconds, seconds)
            if failure is not None:
                count.failures += 1
                if len(self.failures) < MAX_LISTED:
                    self.failures.append(f"{name}: {failure}")

    def add_cached(self, num_tokens: int) -> None:
        with self._lock:
            self.cached_tokens += num_tokens


class Traffic:
    """Asks at random for everything but what is named in `skip`; `learn` comes first."""

    def __init__(self, skip: Collection[str]) -> None:
        checked = {
            "structured_output": self._structured_output,
            "tool_calls": self._tool_calls,
            "prefixes": self._prefixes,
            "cancellations": hang_up,
            "bad_bodies": send_bad_body,
            "half_sent": send_half,
        }
        compared = {name: self._comparison(name) for name in COMPARED}
        everything: dict[str, Callable[[httpx.Client, Random], None]] = {**compared, **checked}
        unknown = sorted({*skip} - everything.keys())
        if unknown:
            raise BenchError(f"--skip {unknown[0]}: give some of {', '.join(everything)}")
        self._asks = {name: ask for name, ask in everything.items() if name not in skip}
        self.tally = Tally({name: Count() for name in self._asks})
        self._quiet: dict[tuple[Ask, int], list[str]] = {}

    def learn(self, client: httpx.Client) -> None:
        """Ask for everything once while nobody else does, and remember the answers.

        Raises AnswerError if something cannot be had, such as tools of a model without them.
        """
        references = {COMPARED[name][1] for name in self._asks if name in COMPARED}
        for ask in references:
            for index in range(len(PROMPTS)):
                self._quiet[ask, index] = ask(client, index, False)
        for own in self._asks.values():
            own(client, Random(0))

    def ask(self, client: httpx.Client, random: Random) -> None:
        """Ask for something and count it."""
        name = random.choice([*self._asks])
        begun, failure = time.perf_counter(), None
        try:
            self._asks[name](client, random)
        except WRONG as error:
            failure = f"{type(error).__name__}: {error}"
        self.tally.add(name, time.perf_counter() - begun, failure)

    def _comparison(self, name: str) -> Callable[[httpx.Client, Random], None]:
        ask, reference = COMPARED[name]

        def compare(client: httpx.Client, random: Random) -> None:
            index, stream = random.randrange(len(PROMPTS)), random.random() < 0.5
            found, quiet = ask(client, index, stream), self._quiet[reference, index]
            if found != quiet:
                raise AnswerError(f"{found} (stream {stream}), but without load {quiet}")

        return compare

    def _structured_output(self, client: httpx.Client, random: Random) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
        body = {**_chat(random), "response_format": wanted}
        [choice] = post(client, "/v1/chat/completions", body)["choices"]
        _check_person(choice["message"]["content"])

    def _tool_calls(self, client: httpx.Client, random: Random) -> None:
        tools = [{"type": "function", "function": TOOL}]
        forced = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
        [choice] = post(client, "/v1/chat/completions", {**_chat(random), **forced})["choices"]
        [call] = choice["message"]["tool_calls"]
        _check_person(call["function"]["arguments"])

    def _prefixes(self, client: httpx.Client, random: Random) -> None:
        """Ask twice for what begins alike; under load the first may be forgotten by then."""
        for _ in range(2):
            prompt = f"{PREFIX} {random.randrange(100)}"
            usage = post(client, "/v1/completions", {"prompt": prompt, "max_tokens": 4})["usage"]
            details = usage.get("prompt_tokens_details") or {}
            self.tally.add_cached(details.get("cached_tokens") or 0)

    def complaints(self) -> Sequence[str]:
        """What is wrong with the whole, apart from the failures."""
        if "prefixes" in self._asks and not self.tally.cached_tokens:
            return ["no token of a shared prefix was found in the cache"]
        return []


def _chat(random: Random) -> dict[str, Any]:
    messages = [{"role": "user", "content": random.choice(PROMPTS)}]
    return {"messages": messages, "max_tokens": 200, "seed": random.randrange(2**31), **SAMPLING}


def _check_person(text: str) -> None:
    """Raise AnswerError unless a text is JSON that follows the schema."""
    for error in Draft202012Validator(PERSON).iter_errors(json.loads(text)):
        raise AnswerError(f"{text[:200]!r} does not follow the schema: {error.message[:200]}")
