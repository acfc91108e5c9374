"""llama.cpp as a contender, through its C interface.

`pip install llama-cpp-python gguf ml_dtypes safetensors`; tested with 0.3.36, built from source for
this machine's CPU (`CMAKE_ARGS=-DGGML_NATIVE=ON`). The folder contains `model.gguf`; all rows are
sequences of one context.
"""

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp as lib
import numpy as np

FILE = "model.gguf"
MAX_BATCH = 512


class LlamaTimed:
    """A model and one context for `batch` sequences of `model_len` tokens."""

    def __init__(self, path: Path, batch: int, model_len: int, threads: int) -> None:
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(
            str(path).encode(), lib.llama_model_default_params()
        )
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = batch * model_len, batch
        params.n_batch = params.n_ubatch = MAX_BATCH
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, params)
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        """Fill `batch` sequences, untimed; time `steps` calls that add one token to each."""
        self._clear()
        for row in range(batch):
            self._feed([row] * context_tokens, range(context_tokens), generator)
        start = time.perf_counter()
        for step in range(steps):
            self._feed(range(batch), [context_tokens + step] * batch, generator, all_logits=True)
        return time.perf_counter() - start

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        self._clear()
        start = time.perf_counter()
        for first in range(0, num_tokens, MAX_BATCH):
            positions = range(first, min(first + MAX_BATCH, num_tokens))
            self._feed([0] * len(positions), positions, generator)
        return time.perf_counter() - start

    def close(self) -> None:
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)

    def _clear(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)

    def _feed(
        self,
        rows: Sequence[int],
        positions: Sequence[int],
        generator: np.random.Generator,
        *,
        all_logits: bool = False,
    ) -> None:
        """Decode one token per row at its position, with logits of the last row or of all rows."""
        batch = lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        tokens = generator.integers(0, self._vocab, len(rows))
        for index, (row, position) in enumerate(zip(rows, positions, strict=True)):
            batch.token[index], batch.pos[index] = int(tokens[index]), position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = all_logits or index == len(rows) - 1
        status = lib.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode returned {status}"
        # The call may return before computing ends; reading a logit waits for it.
        ctypes.cast(lib.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))[0]
        lib.llama_batch_free(batch)


def load(
    folder: Path, batch: int, model_len: int, threads: int, arguments: tuple[str, ...]
) -> LlamaTimed:
    return LlamaTimed(folder / FILE, batch, model_len, threads)
