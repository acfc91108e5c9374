"""vLLM for benchmarks: with vLLM's own settings, stepped in this process.

Scheduler, model and sampler are timed. A server adds messages between its processes, which take as
long for a small model as for a large one.
"""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import vllm
from vllm.inputs import TokensPrompt
from vllm.v1.engine.llm_engine import LLMEngine

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.timed import Stopwatch
from sgate_serve.engines.vllm.precision import held_precision
from sgate_serve.engines.vllm.recurrence import largest_state, num_state_values
from sgate_serve.engines.vllm.start import engine_args, start_engine, stop_engine
from sgate_serve.errors import EngineError
from sgate_serve.onnx_format.precision import Precision

logger = logging.getLogger(__name__)

# Tokens that the first rows may decode while the last ones are still being filled.
HEAD_START = 16
NARROWEST_HEAD = 32
# Several models of a comparison share a device; the cache gets exactly the size that it needs.
DEVICE_SHARE = 0.25
SPARE_CACHE_BYTES = 2**26
# Of vLLM's CPU build; a page is as much longer as the largest state needs.
PAGE_TOKENS = 128


class TimedVllm:
    """A `TimedDecoder` (engines/timed.py) over an `LLMEngine` in this process."""

    name = "vllm"
    version = str(vllm.__version__)

    def __init__(self, engine: LLMEngine, precision: Precision) -> None:
        self.model, self.precision, self.watch = engine, precision, Stopwatch()
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
        """Start vLLM on a folder; `arguments` are vLLM's and override the settings chosen here.

        Raises EngineError for arguments that vLLM does not know or refuses, and for int8 experts,
        which it does not compute in int8.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        model = Checkpoint.open(folder)
        spec = model.spec
        if model.is_int8 and spec.has_experts:
            raise EngineError(
                f"{folder}: vLLM would hold its int8 experts in floats, so that no ideal is known; "
                "compare folders without int8, or measure on the onnx engine"
            )
        model_len = min(model_len + HEAD_START, spec.max_positions)
        args = engine_args(
            folder,
            arguments,
            max_num_seqs=batch,
            max_model_len=model_len,
            max_num_batched_tokens=max(model_len, batch),
            kv_cache_memory_bytes=cache_bytes(spec, batch, model_len),
            gpu_memory_utilization=DEVICE_SHARE,
            skip_tokenizer_init=True,
        )
        logger.info("vllm %s: starting on %s", vllm.__version__, folder)
        engine = start_engine(args, in_process=True)
        dtype = str(engine.model_config.dtype).removeprefix("torch.")
        return cls(engine, held_precision(model, dtype))

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        """Fill `batch` rows, untimed; then time `steps` steps, each a token for every row."""
        rows = [self._add(context_tokens, self.max_model_len, generator) for _ in range(batch)]
        empty = set(rows)
        while empty:
            empty -= {output.request_id for output in self.model.step()}
        seconds = self.watch.seconds(lambda: [self.model.step() for _ in range(steps)])
        self.model.abort_request(rows)
        self._finish()
        return seconds

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        """Time one prompt from its arrival to its first token."""

        def prefill() -> None:
            self._add(num_tokens, 1, generator)
            self._finish()

        return self.watch.seconds(prefill)

    def generate_seconds(
        self, requests: int, input_tokens: int, output_tokens: int, generator: np.random.Generator
    ) -> float:
        """Time all requests from their arrival to the last token."""

        def generate() -> None:
            for _ in range(requests):
                self._add(input_tokens, output_tokens, generator)
            self._finish()

        return self.watch.seconds(generate)

    def close(self) -> None:
        stop_engine(self.model)

    def _add(self, num_tokens: int, max_tokens: int, generator: np.random.Generator) -> str:
        request_id = str(next(self._ids))
        tokens = generator.integers(0, self._vocab_size, num_tokens).tolist()
        room = self.max_model_len - num_tokens
        params = vllm.SamplingParams(
            max_tokens=min(max_tokens, room), temperature=0.0, ignore_eos=True, detokenize=False
        )
        self.model.add_request(request_id, TokensPrompt(prompt_token_ids=tokens), params)
        return request_id

    def _finish(self) -> None:
        while self.model.has_unfinished_requests():
            self.model.step()


def cache_bytes(spec: ModelSpec, rows: int, row_tokens: int) -> int:
    """Return an upper bound of the cache of some sequences: fp32, in padded heads."""
    attending = [layer for layer in spec.layers if not layer.is_recurrent]
    widths = [layer.num_kv_heads * max(layer.head_dim, NARROWEST_HEAD) for layer in attending]
    # Where layers have states, each of these takes two pages, and attention may waste one.
    state = num_state_values(largest_state(spec, num_shards=1))
    page = state + 2 * max(widths, default=0) * PAGE_TOKENS if state else 0
    num_pages = rows * (2 * len(spec.layers) - len(attending))
    return 4 * (2 * sum(widths) * rows * row_tokens + num_pages * page) + SPARE_CACHE_BYTES
