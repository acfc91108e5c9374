"""The scheduler of slot engines: which tokens of which sequences one step feeds."""

from dataclasses import dataclass

from sgate_serve.engines.contract import TokenLogprobs
from sgate_serve.engines.runner import TokenChunk
from sgate_serve.engines.sampling import Logits
from sgate_serve.engines.sequence import Sequence
from sgate_serve.engines.token_logprobs import token_logprobs

# Logits of all positions of such a chunk are held at once: 128 over 150 000 tokens are 77 MB.
LOGPROBS_CHUNK = 128


@dataclass(frozen=True)
class ScheduledChunk:
    """The next `num_tokens` tokens of a sequence, scheduled for one step, and a draft of more."""

    sequence: Sequence
    num_tokens: int
    draft: tuple[int, ...] = ()

    @property
    def num_fed(self) -> int:
        return self.num_tokens + len(self.draft)

    @property
    def is_last(self) -> bool:
        """Whether all tokens of the sequence are in the KV cache after this step."""
        return self.num_tokens == self.sequence.num_left

    @property
    def is_sampled(self) -> bool:
        """Whether this step chooses a new token for the sequence."""
        return self.is_last and self.sequence.request.sampling.max_tokens > 0

    @property
    def num_logits(self) -> int:
        if self.sequence.needs_prompt_logprobs:
            return self.num_tokens
        return self.is_sampled + len(self.draft)

    @property
    def token_chunk(self) -> TokenChunk:
        """The runner's input."""
        start = self.sequence.num_cached
        tokens = self.sequence.tokens[start : start + self.num_tokens]
        return TokenChunk(self.sequence.slot, [*tokens, *self.draft], self.num_logits)

    def draft_size(self, wanted: int, chunk: int) -> int:
        """Return how many of the `wanted` tokens a draft may have, in chunks of `chunk` at most."""
        sequence = self.sequence
        # One more token than is drafted comes of a step.
        room = sequence.limit - sequence.num_generated - 1
        return max(0, min(wanted, room, chunk - 1)) if sequence.is_decoding else 0

    def keep_prompt_logprobs(self, logits: Logits) -> None:
        """Store the prompt's log-probabilities from the chunk's logits [num_tokens, vocab]."""
        sequence, start = self.sequence, self.sequence.num_cached
        prompt, num_top = sequence.request.prompt, sequence.request.sampling.prompt_logprobs
        assert num_top is not None
        if start == 0:
            sequence.prompt_logprobs.append(TokenLogprobs(prompt[0], None))
        # Each position predicts the token after it; the last one predicts the completion's first.
        targets = prompt[start + 1 : start + self.num_tokens + 1]
        sequence.prompt_logprobs += token_logprobs(
            logits[: len(targets)], targets, [num_top] * len(targets)
        )


def schedule(running: list[Sequence], chunk: int) -> list[ScheduledChunk]:
    """Schedule one step: a token for each decoding sequence, and `chunk` prompt tokens in all."""
    prefilling = [sequence for sequence in running if not sequence.is_decoding]
    num_with_logprobs = sum(sequence.needs_prompt_logprobs for sequence in prefilling)
    lengths = [
        min(sequence.num_left, max(1, LOGPROBS_CHUNK // num_with_logprobs))
        if sequence.needs_prompt_logprobs
        else sequence.num_left
        for sequence in prefilling
    ]
    scheduled = [ScheduledChunk(sequence, 1) for sequence in running if sequence.is_decoding]
    shares = share_chunk(lengths, chunk)
    return scheduled + [ScheduledChunk(*p) for p in zip(prefilling, shares, strict=True) if p[1]]


def share_chunk(lengths: list[int], chunk: int) -> list[int]:
    """Divide one chunk among prompts with `lengths` tokens left, given in order of arrival.

    The oldest prompt gets half of the chunk, so it always progresses; the rest goes to the shortest
    prompts first, so none waits for a long one; the oldest gets what remains.
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
