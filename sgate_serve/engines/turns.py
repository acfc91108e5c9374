"""How far each request of a slot engine is, and what a step feeds of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sgate_serve.engines.base import Request, TokenLogprobs
from sgate_serve.engines.logprobs import score_tokens
from sgate_serve.engines.runner import Feed
from sgate_serve.engines.sampling import Logits, Sampler

# Logits of every scored position are held at once: 128 over 150 000 tokens are 77 MB.
SCORED_CHUNK = 128


@dataclass
class Progress:
    """A request: its tokens so far, prompt first, and how many of them the cache holds."""

    request: Request
    sampler: Sampler
    tokens: list[int]
    slot: int = -1
    num_cached: int = 0
    prompt_scores: list[TokenLogprobs] = field(default_factory=list)

    @classmethod
    def of(cls, request: Request) -> "Progress":
        sampler = Sampler.start(request.sampling, request.prompt)
        return cls(request, sampler, list(request.prompt))

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self.num_cached

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def is_decoding(self) -> bool:
        return self.num_generated > 0 and self.num_left == 1

    @property
    def is_scored(self) -> bool:
        """Whether the tokens fed next are of a prompt whose scores are still to be sent."""
        return self.request.sampling.prompt_logprobs is not None and not self.num_generated


@dataclass(frozen=True)
class Turn:
    """What one step feeds of a sequence, and whether a token is chosen after it."""

    progress: Progress
    count: int

    @property
    def is_last(self) -> bool:
        return self.count == self.progress.num_left

    @property
    def chooses(self) -> bool:
        return self.is_last and self.progress.request.sampling.max_tokens > 0

    @property
    def num_logits(self) -> int:
        return self.count if self.progress.is_scored else int(self.chooses)

    @property
    def feed(self) -> Feed:
        start = self.progress.num_cached
        tokens = self.progress.tokens[start : start + self.count]
        return Feed(self.progress.slot, tokens, self.num_logits)

    def score(self, logits: Logits) -> None:
        """Keep the scores of a prompt's tokens, from the logits [count, vocab] after each fed."""
        prompt, scores = self.progress.request.prompt, self.progress.prompt_scores
        num_top = self.progress.request.sampling.prompt_logprobs
        assert num_top is not None
        start = self.progress.num_cached
        if start == 0:
            scores.append(TokenLogprobs(prompt[0], None))
        # Each position predicts the token after it; the last one that of the completion.
        targets = prompt[start + 1 : start + self.count + 1]
        scores += score_tokens(logits[: len(targets)], targets, [num_top] * len(targets))


def turns_of(running: Sequence[Progress], chunk: int) -> list[Turn]:
    """Choose what one step feeds: a token to each row that generates, and one chunk of prompts."""
    reading = [progress for progress in running if not progress.is_decoding]
    num_scored = sum(progress.is_scored for progress in reading)
    lengths = [
        min(progress.num_left, max(1, SCORED_CHUNK // num_scored))
        if progress.is_scored
        else progress.num_left
        for progress in reading
    ]
    turns = [Turn(progress, 1) for progress in running if progress.is_decoding]
    shares = share_chunk(lengths, chunk)
    return turns + [Turn(*pair) for pair in zip(reading, shares, strict=True) if pair[1]]


def share_chunk(lengths: Sequence[int], chunk: int) -> list[int]:
    """Return how much of prompts of such lengths one chunk holds, given in order of arrival.

    Half of it is the oldest one's, which therefore ends; the rest is for the shortest, so that none
    waits behind a long one; what they leave is the oldest one's again.
    """
    if not lengths:
        return []
    shares = [0] * len(lengths)
    shares[0] = min(lengths[0], -(-chunk // 2))
    left = chunk - shares[0]
    for index in sorted(range(1, len(lengths)), key=lambda index: lengths[index]):
        shares[index] = min(lengths[index], left)
        left -= shares[index]
    shares[0] += min(lengths[0] - shares[0], left)
    return shares
