"""The models of the engine tests: uneven layers, of every decoder family."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from converters.convert import open_masked
from converters.to_onnx import write_onnx
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.model_protocols import LoadedEngine
from sgate_serve.engines.sampling import Logits
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.onnx_format.precision import FP32, PRECISIONS
from tests.engines.rounded_cache import RoundedModel
from tests.families.test_equivalence import converted
from tests.families.zoo import ZOO
from tests.small_llama import UNEVEN, Kept, dense_llama, reference_logits, save_pruned

LoadEngine = Callable[[SlotOptions], LoadedEngine]
# Draft models: one that was pruned further, and one that has nothing to do with the model.
CHILD, STRANGER = "child", "stranger"
SIZES = SlotOptions(slots=3, max_model_len=48, threads=1, prefill_chunk=5)


class Case(NamedTuple):
    """The engine of a contract test, the family of the model, and what drafts for it, if any.

    On the onnx engine the KV cache may be in int8.
    """

    engine: str
    family: str
    draft: str | None = None
    int8_cache: bool = False

    @property
    def is_recurrent(self) -> bool:
        own = FAMILIES.get(self.family)
        return own is not None and own.is_recurrent

    @property
    def error(self) -> float:
        """The largest relative error of logits; a sum in another order may round a step away."""
        return 1e-2 if self.int8_cache else 1e-4


# Between them: norms of heads and of values, windows, soft caps, partial rotation, position tables,
# parallel blocks, sinks, experts, and layers that carry a state.
FAMILIES = {
    "mistral": ZOO["mistral"][1],
    "qwen2": ZOO["qwen2"][1],
    "qwen3": ZOO["qwen3"][1],
    "smollm3": ZOO["smollm3"][1],
    "granite": ZOO["granite"][1],
    "starcoder2": ZOO["starcoder2"][0],
    "phi3": ZOO["phi3"][0],
    "gemma2": ZOO["gemma2"][0],
    "gemma3_text": ZOO["gemma3_text"][0],
    "gemma4_text": ZOO["gemma4_text"][0],
    "olmo2": ZOO["olmo2"][0],
    "olmo3": ZOO["olmo3"][1],
    "gpt2": ZOO["gpt2"][0],
    "gpt_neox": ZOO["gpt_neox"][0],
    "gpt_oss": ZOO["gpt_oss"][1],
    "qwen3_5_text": ZOO["qwen3_5_text"][1],
    "qwen3_5_moe_text": ZOO["qwen3_5_moe_text"][0],
    "qwen3_next": ZOO["qwen3_next"][0],
}
RECURRENT = "qwen3_5_text"


@dataclass(frozen=True)
class UnevenModel:
    """The pruned model's folders, keyed as in `EngineRow.reads`, and the masked dense outputs.

    `logits` are the oracle's [s, vocab] of one prompt [s].
    """

    folders: dict[str, Path]
    logits: Callable[[NDArray[np.int64]], Logits]

    def greedy(self, prompt: tuple[int, ...], count: int) -> list[int]:
        """Return the oracle's greedy tokens, computed without a cache."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(_next(self.logits, tuple(tokens)))
        return tokens[len(prompt) :]


@cache
def _next(logits: Callable[[NDArray[np.int64]], Logits], tokens: tuple[int, ...]) -> int:
    return int(logits(np.array(tokens))[-1].argmax())


def write_uneven_llama(root: Path) -> UnevenModel:
    """Write a Llama with heads of a width that ONNX Runtime must pad."""
    oracle = dense_llama(num_hidden_layers=5, head_dim=12)
    checkpoint = save_pruned(oracle, UNEVEN, root / "model")
    write_onnx(checkpoint, root / "onnx")
    folders = {"model": root / "model", "onnx": root / "onnx"}
    return UnevenModel(folders, partial(reference_logits, oracle))


def write_drafts(root: Path) -> dict[str, dict[str, Path]]:
    """Write models that draft for the uneven Llama; return the folders of each."""
    drafts = {CHILD: dense_llama(num_hidden_layers=5, head_dim=12), STRANGER: dense_llama(1)}
    keeps = {CHILD: (*UNEVEN[:4], Kept((0,), tuple(range(24)))), STRANGER: UNEVEN[:2]}
    for name, model in drafts.items():
        checkpoint = save_pruned(model, keeps[name], root / name / "model")
        write_onnx(checkpoint, root / name / "onnx")
    return {name: {kind: root / name / kind for kind in ("model", "onnx")} for name in drafts}


def write_family(family: str, root: Path) -> UnevenModel:
    """Write the pruned model of another family, with index work in it and a layer skipped."""
    at = converted(FAMILIES[family], root, skip=1, index_price=0, to=("hf", "onnx"))
    oracle = TorchModel.masked_dense(open_masked(at["base"], at["gates"]))
    return UnevenModel({"model": at["out"], "onnx": at["out"] / "onnx"}, oracle.logits)


def with_int8_cache(model: UnevenModel, root: Path) -> UnevenModel:
    """Write a graph that holds int8; the oracle's cache holds the same."""
    checkpoint = Checkpoint.open(model.folders["model"])
    write_onnx(checkpoint, root, replace(PRECISIONS[FP32], int8_cache=True))
    oracle = RoundedModel(checkpoint.folder, root)
    return UnevenModel({"model": checkpoint.folder, "onnx": root}, oracle.logits)
