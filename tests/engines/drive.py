"""Drive an engine like its caller: add requests, step, collect the events."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sgate_serve.engines.contract import Engine, FinishReason, Request, SamplingParams
from sgate_serve.engines.runner import Runner, TokenChunk
from sgate_serve.engines.sampling import Logits
from tests.small_llama import random_tokens


@dataclass
class Answer:
    """The answer to a request: its tokens, and why it ended (None while it is running)."""

    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


def greedy(max_tokens: int = 8, stop: Sequence[int] = ()) -> SamplingParams:
    return SamplingParams(max_tokens, temperature=0.0, stop_token_ids=frozenset(stop))


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random_tokens(length, seed).tolist())


def step(engine: Engine, answers: Mapping[str, Answer], *, looked_up: int = 0) -> None:
    """Do one step; no request may get more events than were drafted and one, or any after its end.

    Of tokens that are looked up there are at most `looked_up` in a draft.
    """
    events = engine.step()
    counts = Counter(event.request_id for event in events)
    drafter = getattr(engine, "drafter", None)
    drafted = 0 if drafter is None else drafter.num_tokens
    assert max(counts.values(), default=0) <= 1 + max(looked_up, drafted)
    for event in events:
        answer = answers[event.request_id]
        assert answer.finish_reason is None
        if event.token is not None:
            answer.tokens.append(event.token)
        answer.finish_reason = event.finish_reason


def load_of(engine: Engine) -> tuple[int, int, float]:
    """Return the running and the waiting requests, and the usage of the cache."""
    stats = engine.stats()
    return stats.num_running, stats.num_waiting, stats.kv_cache_usage


def run(
    engine: Engine, requests: Sequence[Request], every: int = 0, *, looked_up: int = 0
) -> dict[str, Answer]:
    """Answer all requests; one arrives every `every` steps, or all at once for 0."""
    answers = {request.request_id: Answer() for request in requests}
    queue, num_steps = list(requests), 0
    while queue or engine.has_work():
        while queue and (not every or num_steps % every == 0):
            engine.add(queue.pop(0))
            if every:
                break
        step(engine, answers, looked_up=looked_up)
        num_steps += 1
        assert num_steps < 1000, "the engine does not come to an end"
    return answers


def prefill(runner: Runner, slot: int, tokens: Sequence[int]) -> Logits:
    """Append tokens to a slot; return the logits [vocab] after the last."""
    (logits,) = runner.forward([TokenChunk(slot, tokens)])
    return np.asarray(logits)


def decode(runner: Runner, slots: Sequence[int], tokens: Sequence[int]) -> Logits:
    """Append one token to each slot; return [len(slots), vocab] in that order."""
    return runner.forward(
        [TokenChunk(slot, (token,)) for slot, token in zip(slots, tokens, strict=True)]
    )
