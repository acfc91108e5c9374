"""Our engines as contenders: the embedded one on ONNX Runtime, and vLLM with the plugin."""

from pathlib import Path

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.timed import Timed, TimedSizes
from sgate_serve.loaders.engines import load_timed


def load_onnx(
    folder: Path, batch: int, model_len: int, threads: int, arguments: tuple[str, ...]
) -> Timed:
    return load_timed(
        "onnx", Checkpoint.open(folder), TimedSizes(batch, model_len, threads), arguments
    )


def load_vllm(
    folder: Path, batch: int, model_len: int, threads: int, arguments: tuple[str, ...]
) -> Timed:
    """Load a dense or pruned folder into vLLM, which takes its threads from the environment."""
    return load_timed("vllm", Checkpoint.open(folder), TimedSizes(batch, model_len), arguments)
