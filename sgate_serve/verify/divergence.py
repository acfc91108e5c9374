"""The distance of a rounded model's outputs from those of the masked dense model in fp32."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.masked import MaskedCheckpoint
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.model_protocols import Floats, LogitsModel
from sgate_serve.errors import CheckpointError, EngineError
from sgate_serve.loaders.logits import load_onnx
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.onnx_format.precision import FP32
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.verify.comparison import lacking_rows, row_blocks
from sgate_serve.verify.output_kind import output_kind


def check_limit(limit: float | None, out: Checkpoint, engine: str, rounding: str) -> None:
    """Raise EngineError if the limit would have no effect on `engine`."""
    if limit is None:
        return
    option = f"--max-divergence {limit:g}"
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


@dataclass
class Divergence:
    """Collects the distance of two models' outputs, prompt by prompt.

    Errors of logits (`is_choice`) are those of their distances from the mean of their row: what all
    have in common changes no probability. `has_pooled` is that of an `OutputComparison`.
    """

    is_choice: bool = False
    has_pooled: bool = False
    lacking: str | None = None
    max_abs_diff: float = 0.0
    num_rows: int = 0
    divergence: float = 0.0
    num_equal: int = 0
    squared_error: float = 0.0
    squared_size: float = 0.0

    def add(self, expected: Floats, found: Floats) -> None:
        """Add one prompt's outputs, [rows, outputs] each."""
        self.lacking = self.lacking or lacking_rows(expected, found, self.has_pooled)
        for wide, narrow in row_blocks(expected, found):
            difference = np.abs(wide - narrow)
            self.max_abs_diff = float(np.maximum(self.max_abs_diff, difference.max()))
            self.num_rows += len(narrow)
            self.divergence += mean_kl(wide, narrow) * len(narrow)
            self.num_equal += int((wide.argmax(-1) == narrow.argmax(-1)).sum())
            error, size = (self._counted(rows) for rows in (wide - narrow, wide))
            self.squared_error += float(np.square(error).sum())
            self.squared_size += float(np.square(size).sum())

    def _counted(self, rows: Floats) -> NDArray[np.float64]:
        values = rows.astype(np.float64)
        return values - values.mean(axis=-1, keepdims=True) if self.is_choice else values

    @property
    def mean_kl(self) -> float:
        """KL(softmax(expected) ‖ softmax(found)) in nats, per row."""
        return self.divergence / self.num_rows if self.num_rows else math.nan

    @property
    def agreement(self) -> float:
        """The fraction of rows with the same largest output."""
        return self.num_equal / self.num_rows if self.num_rows else math.nan

    @property
    def relative_error(self) -> float:
        """The root mean square of the differences over that of the expected outputs."""
        return math.sqrt(self.squared_error / max(self.squared_size, np.finfo(float).tiny))


def mean_kl(expected: Floats, found: Floats) -> float:
    """Return the mean over rows of KL(softmax(expected) ‖ softmax(found)), in nats."""
    p, q = _log_softmax(expected), _log_softmax(found)
    # For equal rows the sum may be negative by a rounding error.
    return float(np.maximum((np.exp(p) * (p - q)).sum(-1), 0).mean())


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    values: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return values
