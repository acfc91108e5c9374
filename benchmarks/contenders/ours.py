"""Our engines as contenders: the embedded one on ONNX Runtime, and vLLM with the plugin."""

from pathlib import Path

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.timed import TimedDecoder, TimedSizes
from sgate_serve.loaders.timing import load_timed


def load_onnx(
    folder: Path, batch: int, model_len: int, threads: int, arguments: tuple[str, ...]
) -> TimedDecoder:
    return load_timed(
        "onnx", Checkpoint.open(folder), TimedSizes(batch, model_len, threads), arguments
    )


def load_vllm(
    folder: Path, batch: int, model_len: int, threads: int, arguments: tuple[str, ...]
) -> TimedDecoder:
    """Load a dense or pruned folder into vLLM, which takes its threads from the environment."""
    return load_timed("vllm", Checkpoint.open(folder), TimedSizes(batch, model_len), arguments)
