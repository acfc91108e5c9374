"""Load a model folder on an engine to read its logits: for verification and evaluation."""

from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import OnnxOptions, PoolingOptions, SlotOptions
from sgate_serve.engines.model_protocols import LogitsModel
from sgate_serve.engines.table import AUTO, ONNX, VLLM, check_engine
from sgate_serve.errors import EngineError
from sgate_serve.loaders.graph_cache import has_onnx
from sgate_serve.loaders.serving import load_pooling_engine, load_slot_engine
from sgate_serve.onnx_format.precision import FP32

TORCH = "torch"


def logits_engine(name: str, model: Checkpoint) -> str:
    """Return the engine that `name` means for a folder's outputs.

    "auto" is onnx if the folder holds a graph, else torch. Raises EngineError for an engine that is
    unknown or not installed.
    """
    if name == AUTO:
        name = ONNX if has_onnx(model) else TORCH
    check_engine(name)
    return name


def load_logits_model(
    name: str, model: Checkpoint, num_tokens: int, precision: str | None = None
) -> LogitsModel:
    """Load a folder on engine `name` for prompts of at most `num_tokens`; the caller closes it.

    Raises EngineError as `logits_engine` does, and for a precision on an engine other than onnx.
    """
    name = logits_engine(name, model)
    if name == ONNX:
        return load_onnx(model, precision)
    if precision is not None:
        raise EngineError(
            f"--precision {precision}: engine {name} computes as the folder is stored; give "
            f"--engine {ONNX}"
        )
    return _load_vllm(model, num_tokens) if name == VLLM else _load_torch(model)


def load_onnx(model: Checkpoint, precision: str | None = None) -> LogitsModel:
    """Load a folder's ONNX graph in a precision, by default its own."""
    if model.spec.task == CAUSAL_LM:
        return load_slot_engine(ONNX, model, OnnxOptions(slots=1, precision=precision))
    length = model.spec.max_positions
    return load_pooling_engine(ONNX, model, PoolingOptions(length, precision=precision))


def _load_torch(model: Checkpoint) -> LogitsModel:
    from sgate_serve.loaders.torch_model import TorchModel  # torch may not be installed

    return TorchModel.converted(model.folder)


def _load_vllm(model: Checkpoint, num_tokens: int) -> LogitsModel:
    from sgate_serve.engines.vllm.engine import VllmEngine  # vLLM may not be installed

    # vLLM generates one token after each prompt.
    length = min(num_tokens + 1, model.spec.max_positions)
    return VllmEngine.load(model.folder, SlotOptions(slots=1, max_model_len=length))


def rounding_of(model: Checkpoint, loaded: LogitsModel) -> str:
    """Return the name of the precision that a loaded folder's weights were rounded to.

    An engine that holds int8 weights as floats computes with rounded weights all the same.
    """
    held = loaded.precision.name
    return INT8 if model.is_int8 and held == FP32 else held
