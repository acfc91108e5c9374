"""Protocols of a loaded model, shared by verification, evaluation and benchmarks.

Every loaded model has the identity that certificates, scores and benchmark records name, and is
closed by whoever loaded it. The server needs less: its protocols are in `base`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import Engine, PoolingEngine
from sgate_serve.onnx_format.precision import Precision

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


class EngineModel(Protocol):
    """A model loaded on an engine.

    `name` is the engine's, `version` that of the library which executes the model, `precision` the
    format in which the engine holds the weight matrices.
    """

    name: str
    version: str
    precision: Precision

    def close(self) -> None:
        """Free the model and its memory; no other method may be called afterwards."""


class LogitsModel(EngineModel, Protocol):
    """A loaded model whose outputs can be compared or scored; it must be idle."""

    def logits(self, tokens: Tokens, types: Tokens | None = None) -> Floats:
        """Return the outputs for one prompt of T token ids.

        Logits [T, vocab] of a causal LM, [1, labels] of a classifier; the last hidden states
        [T, hidden] of a base model, followed by its pooled state if the engine computes one.
        `types` [T] are the segment ids of a text pair; None means segment 0 everywhere.
        """

    def residuals(self, tokens: Tokens, types: Tokens | None = None) -> list[Floats] | None:
        """Return the residual stream [T, hidden] after each layer, or None if it is not exposed."""


class PoolingModel(EngineModel, Protocol):
    """A loaded classifier or embedding model that encodes a batch in one call."""

    max_model_len: int
    vocab_size: int

    def encode(self, prompts: Sequence[Tokens]) -> Sequence[Floats]:
        """Return for each prompt [T] its logits [labels] or last hidden states [T, hidden]."""


class LoadedEngine(Engine, LogitsModel, Protocol):
    """A generation engine as the table loads it."""


class LoadedPoolingEngine(PoolingEngine, LogitsModel, Protocol):
    """A pooling engine as the table loads it."""

    def encode(
        self, prompts: Sequence[Tokens], types: Sequence[Tokens | None] | None = None
    ) -> Sequence[Floats]:
        """Return logits [labels] or last hidden states [T, hidden], bypassing the queue.

        `types` are the segment ids of each prompt; None means segment 0 everywhere.
        """
