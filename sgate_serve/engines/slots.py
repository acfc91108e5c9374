"""The slots of an engine's KV cache: who runs in which, and what idle ones keep for others."""

from collections.abc import Collection

from sgate_serve.engines.prefix_cache import PrefixCache, num_common
from sgate_serve.engines.runner import Runner
from sgate_serve.engines.sequence import Sequence

# A prompt is not begun while another one that runs computes so many tokens more of its beginning.
WORTH_WAITING = 16


class Slots:
    """The slots of a runner. A sequence that runs has one; idle slots keep tokens while they may.

    `queries` and `hits` count the prompt tokens that were looked up and found.
    """

    def __init__(self, runner: Runner, prefill_chunk: int) -> None:
        self.idle = PrefixCache()
        self.queries = self.hits = 0
        self._runner = runner
        # Tokens are shared in multiples of this number.
        self._unit = prefill_chunk if runner.precision.rounds_activations else 1

    def prefix_of(self, sequence: Sequence, running: Collection[Sequence]) -> tuple[int, int]:
        """Return the slot that holds most of a sequence's prompt, and how many tokens."""
        if not self._shares(sequence):
            return -1, 0
        others = ((other.slot, other.cached_prompt) for other in running)
        source, length = self.idle.longest(sequence.prompt, others)
        return source, self._whole(length)

    def is_worth_waiting(
        self, sequence: Sequence, length: int, running: Collection[Sequence]
    ) -> bool:
        """Say whether a running prompt soon holds much more of this one than the `length` now."""
        return self._shares(sequence) and any(
            self._whole(num_common(sequence.prompt[:-1], other.prompt)) >= length + WORTH_WAITING
            for other in running
            if self._shares(other) and other.num_left > 1
        )

    def place(
        self, sequence: Sequence, source: int, length: int, running: Collection[Sequence]
    ) -> None:
        """Give a sequence a slot, with `length` tokens that `source` holds of its prompt."""
        sequence.slot = slot = self._slot_for(source, length, running)
        sequence.num_cached = length
        if slot in self.idle:
            self.idle.drop(slot)
            if slot != source or not length:
                self._runner.release(slot)
        if length:
            self._runner.share(source, slot, length)
        if self._shares(sequence) and not sequence.num_generated:
            sequence.num_shared = length
            self.queries += len(sequence.tokens)
            self.hits += length

    def leave(self, sequence: Sequence) -> None:
        """Make the slot of an ended sequence idle; it keeps what others may share."""
        num_kept = self._num_kept(sequence)
        if num_kept:
            self._runner.share(sequence.slot, sequence.slot, num_kept)
            self.idle.keep(sequence.slot, sequence.tokens[:num_kept])
        else:
            self._runner.release(sequence.slot)

    def make_room(self, num_tokens: int) -> None:
        """Empty idle slots, the least recently used first, until running ones can hold so much."""
        while self.idle and num_tokens + self.idle.num_tokens > self._runner.cache_tokens:
            slot = self.idle.oldest()
            self.idle.drop(slot)
            self._runner.release(slot)

    def _slot_for(self, source: int, length: int, running: Collection[Sequence]) -> int:
        """Return the slot that a new sequence takes, which shares `length` tokens of `source`.

        It is the source if that is idle and the sequence continues all of it; else the lowest empty
        slot, so that the rows of a call are close together; else the idle slot used least recently.
        """
        if source in self.idle and length == self.idle.length(source):
            return source
        taken = {sequence.slot for sequence in running}
        free = (slot for slot in range(self._runner.num_slots) if slot not in taken)
        empty = next((slot for slot in free if slot not in self.idle), None)
        return self.idle.oldest() if empty is None else empty

    def _num_kept(self, sequence: Sequence) -> int:
        """Return how many tokens of an ended sequence others may share.

        Integers keep only what was fed in chunks, as it would be again: keys and values of single
        tokens differ in their last bits, by which an activation may be rounded to another integer.
        """
        if not self._runner.shares_prefixes:
            return 0
        is_float = self._unit == 1
        return sequence.num_cached if is_float else self._whole(len(sequence.cached_prompt))

    def _shares(self, sequence: Sequence) -> bool:
        # Log-probabilities of a prompt need the logits at all of its positions.
        return self._runner.shares_prefixes and not sequence.needs_prompt_logprobs

    def _whole(self, num_tokens: int) -> int:
        return num_tokens // self._unit * self._unit
