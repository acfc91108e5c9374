"""onnxruntime-genai as a contender: `pip install onnxruntime-genai`, tested with 0.18.

The folder is the output of its model builder.
"""

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray


class GenaiTimed:
    """A model whose generators each run one batch of rows that start together."""

    def __init__(self, folder: Path, threads: int) -> None:
        config = og.Config(str(folder))
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = og.Model(config)
        settings = json.loads((folder / "genai_config.json").read_text("utf-8"))
        self._vocab = int(settings["model"]["vocab_size"])

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        """Feed `batch` rows of `context_tokens`, untimed; time `steps` greedy tokens of each."""
        tokens = self._tokens((batch, context_tokens), generator)
        running = self._empty(batch, context_tokens + 1 + steps)
        running.append_tokens(tokens)
        running.generate_next_token()
        start = time.perf_counter()
        for _ in range(steps):
            running.generate_next_token()
        return time.perf_counter() - start

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        tokens = self._tokens((1, num_tokens), generator)
        running = self._empty(1, num_tokens + 1)
        start = time.perf_counter()
        running.append_tokens(tokens)
        return time.perf_counter() - start

    def close(self) -> None:
        del self._model

    def _empty(self, batch: int, row_tokens: int) -> "og.Generator":
        params = og.GeneratorParams(self._model)
        # Minimum and maximum length are equal, so that no token ends a row early.
        params.set_search_options(
            batch_size=batch,
            do_sample=False,
            max_length=row_tokens,
            min_length=row_tokens,
        )
        return og.Generator(self._model, params)

    def _tokens(self, shape: tuple[int, int], generator: np.random.Generator) -> NDArray[np.int32]:
        return generator.integers(0, self._vocab, shape, dtype=np.int32)


def load(
    folder: Path, batch: int, model_len: int, threads: int, arguments: tuple[str, ...]
) -> GenaiTimed:
    return GenaiTimed(folder, threads)
