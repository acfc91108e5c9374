"""The engines that a converted folder can be verified on, behind two calls."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines import check_engine
from sgate_serve.engines.runner import all_logits
from sgate_serve.loaders.graph_cache import graph_precision, has_onnx, onnx_folder
from sgate_serve.onnx_format.precision import FP32

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


class VerifiedEngine(Protocol):
    """One loaded engine: logits [T, V] and residual streams [T, H] of token ids [T].

    `types` are the segments of a classifier's text pair. An engine that shows no residual streams
    returns None. `precision` is what its weights were
    rounded to, fp32 where they are the folder's own floats.
    """

    name: str
    version: str
    precision: str

    def logits(self, tokens: Tokens, types: Tokens | None = None) -> Floats: ...

    def residuals(self, tokens: Tokens) -> list[Floats] | None: ...


class OnnxGraph:
    """The ONNX graph of a folder in a precision."""

    name = "onnx"

    def __init__(self, folder: Checkpoint, precision: str | None = None) -> None:
        self.version = version("onnxruntime")
        self.precision = executed_name(folder, precision)
        self._folder = onnx_folder(folder, precision)

    def residuals(self, tokens: Tokens) -> list[Floats]:
        from sgate_serve.engines.onnx.engine import residuals

        return residuals(self._folder, tokens)


class OnnxModel(OnnxGraph):
    """A causal LM, run by the same runner that serves it."""

    def __init__(self, folder: Checkpoint, precision: str | None = None) -> None:
        from sgate_serve.engines.engine_options import SlotOptions
        from sgate_serve.engines.onnx.engine import load_runner

        super().__init__(folder, precision)
        self._runner = load_runner(self._folder, SlotOptions(slots=1))

    def logits(self, tokens: Tokens, types: Tokens | None = None) -> Floats:
        return all_logits(self._runner, tokens)


class OnnxTextModel(OnnxGraph):
    """A classifier or base model, run by the same engine that serves it."""

    def __init__(self, folder: Checkpoint, precision: str | None = None) -> None:
        from sgate_serve.engines.engine_options import EncoderOptions
        from sgate_serve.loaders.engines import load_text_encoder

        super().__init__(folder, precision)
        options = EncoderOptions(max_model_len=folder.spec.max_positions, precision=precision)
        self._encoder = load_text_encoder("onnx", folder, options)

    def logits(self, tokens: Tokens, types: Tokens | None = None) -> Floats:
        return np.atleast_2d(self._encoder.read([tokens], [types])[0])


def open_onnx(folder: Checkpoint, precision: str | None = None) -> VerifiedEngine:
    """Load a folder's graph in a precision, its own by default."""
    model = OnnxModel if folder.spec.task == CAUSAL_LM else OnnxTextModel
    return model(folder, precision)


def executed_name(folder: Checkpoint, precision: str | None) -> str:
    """Return what an ONNX graph's weights are worth: those of an int8 folder stay rounded."""
    graph = graph_precision(folder, precision).name
    return INT8 if folder.is_int8 and graph == FP32 else graph


class VllmModel:
    """The folder in vLLM, in this process and in fp32."""

    name = "vllm"

    def __init__(self, folder: Checkpoint, num_tokens: int) -> None:
        from sgate_serve.engines.engine_options import SlotOptions
        from sgate_serve.engines.vllm.engine import VllmEngine

        # vLLM generates a token behind each prompt.
        length = min(num_tokens + 1, folder.spec.max_positions)
        self._engine = VllmEngine.load(folder.folder, SlotOptions(slots=1, max_model_len=length))
        self.version = self._engine.version
        self.precision = INT8 if folder.is_int8 else FP32

    def logits(self, tokens: Tokens, types: Tokens | None = None) -> Floats:
        return self._engine.logits(tokens, types)

    def residuals(self, tokens: Tokens) -> None:
        return None


def paired_outputs(
    reference: Callable[[Tokens], Floats], engine: Callable[[Tokens], Floats], prompts: list[Tokens]
) -> tuple[Floats, Floats]:
    """Teacher-force the same prompts through both; return all rows of either.

    An engine may leave out the last row of a base model's outputs, its pooled state.
    """
    pairs = [(reference(prompt), engine(prompt)) for prompt in prompts]
    expected = [wide[: len(found)] for wide, found in pairs]
    return np.concatenate(expected), np.concatenate([found for _, found in pairs])


def open_engine(name: str, folder: Checkpoint, num_tokens: int) -> VerifiedEngine:
    """Load `name` for a converted folder and prompts of so many tokens.

    "auto" is onnx where the folder holds a graph. Raises EngineError for an engine that cannot be
    verified or is not installed.
    """
    if name == "auto":
        name = "onnx" if has_onnx(folder) else "torch"
    check_engine(name)
    if name == "torch":
        # Torch may be missing where another engine is asked for.
        from sgate_serve.verify.reference import TorchModel

        return TorchModel.converted(folder.folder)
    if name == "onnx":
        return open_onnx(folder)
    return VllmModel(folder, num_tokens)
