"""The model of the engine tests: uneven layers, heads of a width that ONNX Runtime must pad."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import LlamaForCausalLM

from converters.to_onnx import write_onnx
from sgate_serve.engines.base import LoadedEngine
from sgate_serve.engines.options import SlotOptions
from tests.small_llama import UNEVEN, dense_llama, save_pruned

LoadEngine = Callable[[SlotOptions], LoadedEngine]
SIZES = SlotOptions(slots=3, max_model_len=48, threads=1, prefill_chunk=5)


@dataclass(frozen=True)
class UnevenModel:
    """The pruned model's folders by what an engine reads, and the masked dense oracle."""

    folders: dict[str, Path]
    oracle: LlamaForCausalLM


def write_uneven_model(root: Path) -> UnevenModel:
    oracle = dense_llama(num_hidden_layers=5, head_dim=12)
    checkpoint = save_pruned(oracle, UNEVEN, root / "model")
    write_onnx(checkpoint, root / "onnx")
    return UnevenModel({"model": root / "model", "onnx": root / "onnx"}, oracle)
