"""What rounding costs: how far outputs are from the masked dense model's in fp32.

Rounded are the weights of an int8 folder, and those of an ONNX graph in fp16, int8 or int4.

Quantization is an approximation, so this is information; `--max-divergence` makes it a check.
"""

import math

import numpy as np
from numpy.typing import NDArray

from converters.masked import MaskedCheckpoint
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError, EngineError
from sgate_serve.onnx_format.precision import FP32
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.verify.certificate import Quantization
from sgate_serve.verify.engines import VerifiedEngine, open_onnx, paired_outputs
from sgate_serve.verify.outputs import outputs_of
from sgate_serve.verify.reference import TorchModel

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


def check_limit(limit: float | None, out: Checkpoint, engine: VerifiedEngine) -> None:
    """Raise EngineError where the limit is no number, or would have no effect on this engine."""
    if limit is None:
        return
    option = f"--max-divergence {limit:g}"
    if not 0 <= limit < math.inf:
        raise EngineError(f"{option}: give a number of nats, at least 0")
    if engine.precision == FP32:
        raise EngineError(
            f"{option}: {out.folder} is not quantized on {engine.name}; leave the option out"
        )
    if outputs_of(out.spec).choice is None:
        raise EngineError(
            f"{option}: the outputs of {out.folder} are no logits of tokens or classes, so that "
            "nothing can diverge; leave the option out"
        )


def exact_model(
    engine: VerifiedEngine, out: Checkpoint, masked: MaskedCheckpoint, plan: Plan | None
) -> VerifiedEngine:
    """Return what must equal the masked dense model: the engine, or what its weights were before.

    Of a rounded graph that is an fp32 graph of the same folder, of an int8 folder what the plan
    makes of the masked model. Raises CheckpointError for an int8 folder without a plan.
    """
    if engine.precision == FP32:
        return engine
    if not out.is_int8:
        return open_onnx(out, FP32)
    if plan is None:
        raise CheckpointError(
            f"{out.folder} is int8 and has no {PLAN_FILE} of this base, which says what was "
            "rounded; convert the base again"
        )
    return TorchModel.rewritten(masked, plan)


def measure_quantization(
    reference: TorchModel, engine: VerifiedEngine, prompts: list[Tokens], limit: float | None
) -> Quantization:
    """Teacher-force the prompts through the masked dense model and a rounded model's engine."""
    expected, found = paired_outputs(reference.logits, engine.logits, prompts)
    is_choice = outputs_of(reference.spec).choice is not None
    return Quantization(
        precision=engine.precision,
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
    # Of equal rows the sum may be a rounding error below zero.
    return float(np.maximum((np.exp(p) * (p - q)).sum(-1), 0).mean())


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    values: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return values
