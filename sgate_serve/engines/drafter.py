"""Drafts of a second model: a pruned child proposes what its dense parent may say next.

The draft model has a slot for each of the target's. It reads what the target reads, in the same
chunks, and a slot always holds the beginning of what the target's slot holds. Drafts are greedy,
and checked like those of prompt lookup (prompt_lookup.py).
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from sgate_serve.engines.runner import Runner, TokenChunk
from sgate_serve.engines.sampling import Logits
from sgate_serve.engines.scheduler import ScheduledChunk, share_chunk

# The last token of a draft that was all right is read in the next step, with the one after it.
NOT_YET_READ = 2


class Drafter:
    """A draft model, which drafts up to `num_tokens` at a time for each sequence."""

    def __init__(self, runner: Runner, num_tokens: int, prefill_chunk: int) -> None:
        assert 0 < num_tokens < prefill_chunk, "a chunk cannot hold a draft"
        self.runner, self.num_tokens, self.prefill_chunk = runner, num_tokens, prefill_chunk
        self._held = [0] * runner.num_slots

    def with_drafts(self, chunks: list[ScheduledChunk], free: int) -> list[ScheduledChunk]:
        """Read as far as the target does in this step, and add drafts for decoding sequences.

        Does neither if the drafts do not fit into `free` tokens of the target's cache.
        """
        followed = {chunk.sequence.slot: chunk for chunk in chunks if _is_followed(chunk)}
        most = (self.num_tokens, self.prefill_chunk)
        sizes = {slot: chunk.draft_size(*most) for slot, chunk in followed.items()}
        if sum(sizes.values()) > free:
            return chunks
        drafts = self._drafts(followed, sizes)
        for slot, draft in drafts.items():
            followed[slot] = replace(followed[slot], draft=tuple(draft))
        return [followed.get(chunk.sequence.slot, chunk) for chunk in chunks]

    def release(self, slot: int) -> None:
        """Empty a slot, as the target does."""
        self.runner.release(slot)
        self._held[slot] = 0

    def share(self, source: int, slot: int, length: int) -> None:
        """Let `slot` hold the first `length` tokens of `source`, or as many as that has read."""
        length = min(length, self._held[source])
        self.runner.share(source, slot, length)
        self._held[slot] = length

    def _drafts(
        self, followed: Mapping[int, ScheduledChunk], sizes: Mapping[int, int]
    ) -> dict[int, list[int]]:
        """Read on; return drafts of the given sizes for the slots that have read everything."""
        unread = self._unread(followed)
        drafts: dict[int, list[int]] = {
            slot: []
            for slot, tokens in unread.items()
            if sizes[slot] and self._held[slot] + len(tokens) == len(followed[slot].sequence.tokens)
        }
        while unread:
            found = self._next_tokens(unread, drafts)
            for slot, token in found.items():
                drafts[slot].append(token)
            unread = {
                slot: [token] for slot, token in found.items() if len(drafts[slot]) < sizes[slot]
            }
        return drafts

    def _unread(self, followed: Mapping[int, ScheduledChunk]) -> dict[int, list[int]]:
        """Return the tokens that slots read next: in all prompts no more than a chunk.

        They are more than the target's only after steps in which drafts did not fit.
        """
        lags = {
            slot: chunk.sequence.num_cached + chunk.num_tokens - self._held[slot]
            for slot, chunk in followed.items()
        }
        long = [slot for slot, lag in lags.items() if lag > NOT_YET_READ]
        shares = share_chunk([lags[slot] for slot in long], self.prefill_chunk)
        counts = lags | dict(zip(long, shares, strict=True))
        starts = {slot: self._held[slot] for slot in counts}
        return {
            slot: followed[slot].sequence.tokens[starts[slot] : starts[slot] + count]
            for slot, count in counts.items()
            if count
        }

    def _next_tokens(
        self, unread: Mapping[int, list[int]], wanted: Container[int]
    ) -> dict[int, int]:
        """Read tokens; return the likeliest next one of each slot that is wanted."""
        chunks = [TokenChunk(slot, tokens, int(slot in wanted)) for slot, tokens in unread.items()]
        logits = self.runner.forward(chunks)
        for slot, tokens in unread.items():
            self._held[slot] += len(tokens)
        slots = [slot for slot in unread if slot in wanted]
        return dict(zip(slots, logits.argmax(axis=1).tolist(), strict=True))


class FollowedRunner:
    """A target's runner whose slots a drafter follows; a `Runner` of engines/runner.py.

    Its slots hold no more tokens than those of either model may.
    """

    def __init__(self, target: Runner, drafter: Drafter) -> None:
        self._target, self._drafter = target, drafter
        self.num_slots, self.max_model_len = target.num_slots, target.max_model_len
        self.cache_tokens = min(target.cache_tokens, drafter.runner.cache_tokens)
        self.vocab_size = target.vocab_size
        self.precision, self.shares_prefixes = target.precision, target.shares_prefixes

    def forward(self, chunks: Sequence[TokenChunk]) -> Logits:
        return self._target.forward(chunks)

    def release(self, slot: int) -> None:
        self._target.release(slot)
        self._drafter.release(slot)

    def share(self, source: int, slot: int, length: int) -> None:
        self._target.share(source, slot, length)
        self._drafter.share(source, slot, length)


def _is_followed(chunk: ScheduledChunk) -> bool:
    """Say whether a sequence does not look its drafts up, and gets more than one further token."""
    sequence = chunk.sequence
    is_looked_up = sequence.request.sampling.drafted_tokens > 0
    return not is_looked_up and sequence.num_generated + 1 < sequence.limit
