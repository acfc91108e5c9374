"""The reference engine: transformers in fp32 behind the same slots. The oracle, not for speed.

Each slot has a cache of its own and each row is computed by itself, so no batching of any kind
stands between a request and what transformers says.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from sgate_serve.checkpoint import Checkpoint
from sgate_serve.engines.sampling import Logits
from sgate_serve.engines.scheduler import SlotEngine, SlotOptions
from sgate_serve.errors import EngineError
from sgate_serve.models.loading import load_model

logger = logging.getLogger(__name__)

DEFAULT_SLOTS = 4
DEFAULT_PREFILL_CHUNK = 512


class TorchEngine(SlotEngine):
    """`SlotEngine` over a `TorchRunner`."""

    @classmethod
    def load(cls, folder: Path, options: SlotOptions | None = None) -> "TorchEngine":
        """Load a model folder, stock or `sgate`, upcast to fp32.

        Raises CheckpointError for a broken folder, EngineError for sizes that do not fit it.
        """
        options = options or SlotOptions()
        runner = load_runner(folder, options)
        chunk = options.prefill_chunk or DEFAULT_PREFILL_CHUNK
        logger.info(
            "torch engine: slots=%d max_model_len=%d threads=%d prefill_chunk=%d",
            runner.num_slots,
            runner.max_model_len,
            torch.get_num_threads(),
            chunk,
        )
        return cls("torch", runner, chunk)


class TorchRunner:
    """A transformers model and one cache per slot; a `Runner` of engines/scheduler.py."""

    def __init__(self, model: Any, num_slots: int, max_model_len: int) -> None:
        self.model, self.num_slots, self.max_model_len = model, num_slots, max_model_len
        self.vocab_size = int(model.config.vocab_size)
        self._caches = [DynamicCache() for _ in range(num_slots)]
        # A cache whose first layer has no attention reports length 0, so positions are kept here.
        self._lengths = [0] * num_slots

    def prefill(self, slot: int, tokens: Sequence[int]) -> Logits:
        """Append tokens to what the slot holds; return the logits [vocab] after the last."""
        return np.asarray(self._append(slot, tokens, logits_to_keep=1)[0])

    def prefill_scored(self, slot: int, tokens: Sequence[int]) -> Logits:
        """Append tokens to what the slot holds; return the logits [len(tokens), vocab] of all."""
        return self._append(slot, tokens, logits_to_keep=0)

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Logits:
        """Append one token to each slot; return [len(slots), vocab] in that order."""
        pairs = zip(slots, tokens, strict=True)
        return np.concatenate([self._append(slot, [token], 1) for slot, token in pairs])

    def logits(self, tokens: NDArray[np.int64]) -> Logits:
        """Return the logits [s, vocab] at every position of `tokens` [s]; needs an idle runner."""
        assert not any(self._lengths), "logits() needs an idle runner"
        logits = self._append(0, tokens.tolist(), logits_to_keep=0)
        self.release(0)
        return logits

    def release(self, slot: int) -> None:
        self._caches[slot], self._lengths[slot] = DynamicCache(), 0

    @torch.inference_mode()
    def _append(self, slot: int, tokens: Sequence[int], logits_to_keep: int) -> Logits:
        """Return logits [kept positions, vocab]; `logits_to_keep` 0 keeps all."""
        start = self._lengths[slot]
        positions = torch.arange(start, start + len(tokens))
        output = self.model(
            input_ids=torch.tensor([list(tokens)]),
            position_ids=positions[None],
            past_key_values=self._caches[slot],
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        self._lengths[slot] += len(tokens)
        return np.asarray(output.logits[0].float().numpy())


def load_runner(folder: Path, options: SlotOptions) -> TorchRunner:
    """Load the model in `folder`; positions beyond its config's maximum are refused."""
    checkpoint = Checkpoint.open(folder)
    spec = checkpoint.spec
    length = options.max_model_len or spec.max_positions
    if length > spec.max_positions:
        raise EngineError(
            f"max_model_len {length} exceeds the {spec.max_positions} positions of "
            f"{folder / 'config.json'}; give at most that"
        )
    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_model(checkpoint).eval()
    return TorchRunner(model, options.slots or DEFAULT_SLOTS, length)
