"""The cost of rounding: the distance of outputs from those of the masked dense model in fp32.

The weights of an int8 folder are rounded, as are those of an ONNX graph in fp16, int8 or int4.
Quantization is an approximation, so its cost is information; `--max-divergence` makes it a check.
"""

import math

import numpy as np
from numpy.typing import NDArray

from converters.masked import MaskedCheckpoint
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.model_protocols import Floats, LogitsModel, Tokens
from sgate_serve.errors import CheckpointError, EngineError
from sgate_serve.loaders.logits import load_onnx
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.onnx_format.precision import FP32
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.verify.certificate import Quantization
from sgate_serve.verify.comparison import paired_outputs
from sgate_serve.verify.output_kind import output_kind


def check_limit(limit: float | None, out: Checkpoint, engine: str, rounding: str) -> None:
    """Raise EngineError if the limit is not a valid number, or would have no effect on `engine`."""
    if limit is None:
        return
    option = f"--max-divergence {limit:g}"
    if not 0 <= limit < math.inf:
        raise EngineError(f"{option}: give a number of nats, at least 0")
    if rounding == FP32:
        raise EngineError(f"{option}: {out.folder} is not quantized on {engine}; omit the option")
    if output_kind(out.spec).choice is None:
        raise EngineError(
            f"{option}: the outputs of {out.folder} are not logits of tokens or classes, so their "
            "divergence is undefined; omit the option"
        )


def exact_model(out: Checkpoint, masked: MaskedCheckpoint, plan: Plan | None) -> LogitsModel:
    """Return the model before rounding, which must equal the masked dense model.

    For a rounded graph this is the fp32 graph of the same folder; for an int8 folder the plan's
    rewriting of the masked model. Raises CheckpointError for an int8 folder without a plan.
    """
    if not out.is_int8:
        return load_onnx(out, FP32)
    if plan is None:
        raise CheckpointError(
            f"{out.folder} is int8 and has no {PLAN_FILE} of this base, which defines the weights "
            "before rounding; convert the base again"
        )
    return TorchModel.rewritten(masked, plan)


def measure_quantization(
    reference: TorchModel,
    engine: LogitsModel,
    rounding: str,
    prompts: list[Tokens],
    limit: float | None,
) -> Quantization:
    """Teacher-force the prompts through the masked dense model and a rounded model."""
    expected, found = paired_outputs(reference.logits, engine.logits, prompts)
    is_choice = output_kind(reference.spec).choice is not None
    return Quantization(
        precision=rounding,
        engine=engine.name,
        engine_version=engine.version,
        max_abs_diff=float(np.abs(expected - found).max()),
        mean_kl=mean_kl(expected, found) if is_choice else None,
        greedy_agreement=(
            float((expected.argmax(-1) == found.argmax(-1)).mean()) if is_choice else None
        ),
        max_divergence=limit,
    )


def mean_kl(expected: Floats, found: Floats) -> float:
    """Return the mean over rows of KL(softmax(expected) ‖ softmax(found)), in nats."""
    p, q = _log_softmax(expected), _log_softmax(found)
    # For equal rows the sum may be negative by a rounding error.
    return float(np.maximum((np.exp(p) * (p - q)).sum(-1), 0).mean())


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    values: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return values
