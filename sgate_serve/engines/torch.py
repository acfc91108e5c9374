"""The torch engine: transformers in fp32 with the same slots, for comparison and not for speed.

Each slot has its own cache and each row is computed by itself, so results are those of
transformers without any batching.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from sgate_serve.architecture.family import LINEAR_ATTENTION
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.runner import TokenChunk
from sgate_serve.engines.sampling import Logits
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.errors import EngineError
from sgate_serve.models.experts import without_router_loss
from sgate_serve.models.loading import load_model
from sgate_serve.onnx_format.precision import FP32, PRECISIONS

logger = logging.getLogger(__name__)

DEFAULT_SLOTS = 4
DEFAULT_PREFILL_CHUNK = 512


class TorchEngine(SlotEngine):
    """`SlotEngine` over a `TorchRunner`."""

    name = "torch"
    version = str(torch.__version__)

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
        return cls(runner, chunk)


class TorchRunner:
    """A transformers model with one cache per slot; a `Runner` of engines/runner.py."""

    precision = PRECISIONS[FP32]

    def __init__(self, model: Any, num_slots: int, max_model_len: int) -> None:
        self.model, self.num_slots, self.max_model_len = model, num_slots, max_model_len
        self.cache_tokens = num_slots * max_model_len
        self.vocab_size = int(model.config.vocab_size)
        # Caches keep all tokens, those outside of a sliding window too. A recurrent layer keeps one
        # state, which cannot be cut back to fewer tokens.
        types = getattr(model.config, "layer_types", None) or ()
        self.shares_prefixes = LINEAR_ATTENTION not in types
        self._caches = [self._new_cache() for _ in range(num_slots)]
        # A cache whose first layer has no attention reports length 0, so lengths are kept here.
        self._lengths = [0] * num_slots

    def forward(self, chunks: Sequence[TokenChunk]) -> Logits:
        """Append tokens to distinct slots; return the logits [n, vocab] in the order of chunks."""
        return np.concatenate([self._append(chunk) for chunk in chunks])

    def release(self, slot: int) -> None:
        self._caches[slot], self._lengths[slot] = self._new_cache(), 0

    def _new_cache(self) -> DynamicCache:
        # By the config, one would forget what is outside of a window.
        return DynamicCache() if self.shares_prefixes else DynamicCache(config=self.model.config)

    def share(self, source: int, slot: int, length: int) -> None:
        """Let `slot` hold the first `length` tokens of `source`, which may be `slot` itself."""
        assert length <= self._lengths[source], "there are fewer tokens to share"
        shared = DynamicCache()
        for index, layer in enumerate(self._caches[source].layers):
            # A layer without attention holds nothing.
            if layer.get_seq_length():
                held = layer.keys[..., :length, :], layer.values[..., :length, :]
                shared.update(*held, index)
        self._caches[slot], self._lengths[slot] = shared, length

    @torch.inference_mode()
    def _append(self, chunk: TokenChunk) -> Logits:
        start = self._lengths[chunk.slot]
        positions = torch.arange(start, start + len(chunk.tokens))
        output = self.model(
            input_ids=torch.tensor([list(chunk.tokens)]),
            position_ids=positions[None],
            past_key_values=self._caches[chunk.slot],
            use_cache=True,
            # transformers takes 0 for all logits, so one is computed and dropped below.
            logits_to_keep=max(1, chunk.num_logits),
            **without_router_loss(self.model.config),
        )
        self._lengths[chunk.slot] += len(chunk.tokens)
        return np.asarray(output.logits[0, : chunk.num_logits].float().numpy())


def load_runner(folder: Path, options: SlotOptions) -> TorchRunner:
    """Load the model in `folder`; raise EngineError for a length beyond its positions."""
    checkpoint = Checkpoint.open(folder)
    spec = checkpoint.spec
    length = options.max_model_len or spec.max_positions
    if length > spec.max_positions:
        raise EngineError(
            f"max_model_len {length} exceeds the {spec.max_positions} positions of "
            f"{folder / CONFIG_FILE}; give at most that"
        )
    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_model(checkpoint).eval()
    return TorchRunner(model, options.slots or DEFAULT_SLOTS, length)
