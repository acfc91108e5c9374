"""vLLM as the comparison times it: an engine in processes of its own, with vLLM's own settings.

What is timed is all of vLLM between two tokens: scheduler, model, sampler, messages.
"""

import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vllm
from vllm.inputs import TokensPrompt
from vllm.v1.engine.llm_engine import LLMEngine

from sgate_serve.checkpoint import Checkpoint
from sgate_serve.engines.vllm.start import engine_args, start_engine, stop_engine, use_cpus
from sgate_serve.spec import ModelSpec

logger = logging.getLogger(__name__)

# Rows are sent one after the other and the first is some steps ahead when the last one decodes.
HEAD_START = 64
NARROWEST_HEAD = 32
# Several models share a device in a comparison; the cache has the size that it needs.
DEVICE_SHARE = 0.25
SPARE_CACHE_BYTES = 2**26


class TimedVllm:
    """A `Timed` (engines/timed.py) over an `LLMEngine` that runs by itself."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self.max_model_len = engine.model_config.max_model_len
        self._vocab_size = engine.model_config.get_vocab_size()
        self._ids = itertools.count()

    @classmethod
    def load(
        cls,
        folder: Path,
        batch: int,
        model_len: int,
        threads: int | None,
        arguments: Sequence[str],
    ) -> "TimedVllm":
        """Start vLLM on a folder; `arguments` are vLLM's and win over what is chosen here.

        Raises EngineError for arguments that vLLM does not know or refuses.
        """
        use_cpus(threads)
        spec = Checkpoint.open(folder).spec
        model_len = min(model_len + HEAD_START, spec.max_positions)
        args = engine_args(
            folder,
            arguments,
            max_num_seqs=batch,
            max_model_len=model_len,
            max_num_batched_tokens=max(model_len, batch),
            kv_cache_memory_bytes=cache_bytes(spec, batch * model_len),
            gpu_memory_utilization=DEVICE_SHARE,
            skip_tokenizer_init=True,
        )
        logger.info("vllm %s: starting on %s", vllm.__version__, folder)
        return cls(start_engine(args, in_process=False))

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        """Fill `batch` rows, untimed; then time `steps` tokens of the row that came last."""
        rows = [self._add(context_tokens, self.max_model_len, generator) for _ in range(batch)]
        self._until(rows[-1], 1)
        start = time.perf_counter()
        self._until(rows[-1], 1 + steps)
        seconds = time.perf_counter() - start
        self._engine.abort_request(rows)
        # Messages keep their order: behind this one the engine is idle.
        self._until(self._add(1, 1, generator), 1)
        return seconds

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        """Time one prompt from its arrival to its first token."""
        start = time.perf_counter()
        self._until(self._add(num_tokens, 1, generator), 1)
        return time.perf_counter() - start

    def close(self) -> None:
        stop_engine(self._engine)

    def _add(self, num_tokens: int, max_tokens: int, generator: np.random.Generator) -> str:
        request_id = str(next(self._ids))
        tokens = generator.integers(0, self._vocab_size, num_tokens).tolist()
        room = self.max_model_len - num_tokens
        params = vllm.SamplingParams(
            max_tokens=min(max_tokens, room), temperature=0.0, ignore_eos=True, detokenize=False
        )
        self._engine.add_request(request_id, TokensPrompt(prompt_token_ids=tokens), params)
        return request_id

    def _until(self, request_id: str, num_tokens: int) -> None:
        """Take what the engine sends until a request has so many tokens."""
        while True:
            for output in self._engine.step():
                if output.request_id == request_id and _num_tokens(output) >= num_tokens:
                    return


def cache_bytes(spec: ModelSpec, num_tokens: int) -> int:
    """Return what the keys and values of so many tokens take at most, in fp32 and padded heads."""
    widths = (layer.num_kv_heads * max(layer.head_dim, NARROWEST_HEAD) for layer in spec.layers)
    return 2 * 4 * sum(widths) * num_tokens + SPARE_CACHE_BYTES


def _num_tokens(output: Any) -> int:
    return len(output.outputs[0].token_ids)
