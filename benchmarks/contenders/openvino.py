"""OpenVINO as a contender, through the pipeline of OpenVINO GenAI, with its defaults for a CPU.

`pip install openvino-genai "optimum-intel[openvino]"`, tested with 2026.4 and 2.2. The folder is
what `optimum-cli export openvino` writes. Where the CPU multiplies bf16, activations are bf16, and
keys and values take 8 bits.
"""

import time
from pathlib import Path

import numpy as np
import openvino_genai as genai
from numpy.typing import NDArray
from openvino import Tensor

from sgate_serve.json_fields import read_json


class OpenVinoTimed:
    """A model that generates for one batch of rows of equal length at a time."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._pipeline = genai.LLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)
        self._vocab = int(read_json(folder / "config.json")["vocab_size"])

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        """Feed `batch` rows of `context_tokens`, untimed; time `steps` greedy tokens of each."""
        result = self._generate(self._tokens((batch, context_tokens), generator), steps + 1)
        milliseconds = result.perf_metrics.raw_metrics.m_new_token_times
        assert len(milliseconds) == steps + 1
        return float(milliseconds[-1] - milliseconds[0]) / 1000

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        tokens = self._tokens((1, num_tokens), generator)
        start = time.perf_counter()
        self._generate(tokens, 1)
        return time.perf_counter() - start

    def close(self) -> None:
        del self._pipeline

    def _generate(self, tokens: NDArray[np.int64], num_new: int) -> "genai.EncodedResults":
        config = genai.GenerationConfig(
            max_new_tokens=num_new, min_new_tokens=num_new, ignore_eos=True, do_sample=False
        )
        inputs = genai.TokenizedInputs(Tensor(tokens), Tensor(np.ones_like(tokens)))
        return self._pipeline.generate(inputs, config)

    def _tokens(self, shape: tuple[int, int], generator: np.random.Generator) -> NDArray[np.int64]:
        return generator.integers(0, self._vocab, shape, dtype=np.int64)


def load(
    folder: Path, batch: int, model_len: int, threads: int, arguments: tuple[str, ...]
) -> OpenVinoTimed:
    return OpenVinoTimed(folder, threads)
