"""How far two models agree on the answer to one request. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sgate_serve.engines.contract import FinishReason, TokenLogprobs

# The tokens of an answer whose distributions are compared, and the likeliest tokens of each.
FIRST_TOKENS, NUM_TOP = 8, 20
# Rounding may leave no probability, or less, for an outcome.
LEAST = 1e-9


@dataclass
class Answer:
    """The tokens of one model's answer, and when they came, in seconds since it was asked.

    `first` are the log-probabilities of the first tokens.
    """

    tokens: list[int] = field(default_factory=list)
    first: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    first_token_seconds: float | None = None
    seconds: float = 0.0

    @property
    def token_seconds(self) -> float | None:
        """The mean time from one token to the next, None for fewer than two tokens."""
        if self.first_token_seconds is None or len(self.tokens) < 2:
            return None
        return (self.seconds - self.first_token_seconds) / (len(self.tokens) - 1)


@dataclass(frozen=True)
class Agreement:
    """How an answer compares with the reference's.

    `first_token` says whether both find the same first token likeliest. `divergence` is the mean KL
    of the reference's distributions to the answer's, in nats. `distance` is that of the texts'
    tokens, from 0 (equal) to 1, and None where tokens were drawn at random.
    """

    first_token: bool
    divergence: float
    distance: float | None

    @classmethod
    def of(cls, answer: Answer, reference: Answer, *, is_greedy: bool) -> "Agreement | None":
        """Compare two answers; None if one of them has no token."""
        pairs = list(zip(answer.first, reference.first, strict=False))
        if not pairs:
            return None
        # A distribution depends on the tokens before, so the comparison ends where these differ.
        tokens = zip(answer.tokens, reference.tokens, strict=False)
        same = next((i for i, (a, b) in enumerate(tokens) if a != b), len(pairs))
        divergences = [divergence(ours, theirs) for ours, theirs in pairs[: same + 1]]
        return cls(
            first_token=_likeliest(pairs[0][0]) == _likeliest(pairs[0][1]),
            divergence=sum(divergences) / len(divergences),
            distance=edit_distance(answer.tokens, reference.tokens) if is_greedy else None,
        )


def divergence(ours: TokenLogprobs, reference: TokenLogprobs) -> float:
    """Return a lower bound of KL(reference ‖ ours) from the likeliest tokens of both, in nats.

    Merging outcomes never raises a divergence. Those merged here are the tokens that are only among
    the reference's likeliest, and all that are not among them. We give the former a probability
    that is not stated: at most that of our least likely token each, and what our other tokens
    leave. The one that is best for the bound is taken.
    """
    q, p = dict(ours.top), dict(reference.top)
    shared, missing = p.keys() & q.keys(), p.keys() - q.keys()
    terms = [math.exp(p[token]) * (p[token] - q[token]) for token in shared]
    in_q, in_p, only = _sum(q, q), _sum(p, p), _sum(p, missing)
    left, others = max(LEAST, 1 - _sum(q, shared)), max(LEAST, 1 - in_p)
    if only:
        most = min(len(missing) * math.exp(min(q.values())), 1 - in_q)
        own_only = max(LEAST, min(most, left * only / (only + others)))
        terms.append(only * math.log(only / own_only))
        left = max(LEAST, left - own_only)
    return max(0.0, sum(terms) + others * math.log(others / left))


def edit_distance(ours: Sequence[int], reference: Sequence[int]) -> float:
    """Return the Levenshtein distance of two texts over the length of the longer one."""
    longest = max(len(ours), len(reference))
    if not longest:
        return 0.0
    other, places = np.array(reference, np.int64), np.arange(len(reference) + 1)
    row = places.copy()
    for number, token in enumerate(ours, 1):
        kept_or_replaced = row[:-1] + (other != token)
        row[1:] = np.minimum(row[1:] + 1, kept_or_replaced)
        row[0] = number
        # Inserting tokens: each costs one more than the place before it.
        row = np.minimum.accumulate(row - places) + places
    return float(row[-1]) / longest


def _likeliest(token: TokenLogprobs) -> int:
    return token.top[0][0]


def _sum(logprobs: Mapping[int, float], tokens: Iterable[int]) -> float:
    return sum(math.exp(logprobs[token]) for token in tokens)
