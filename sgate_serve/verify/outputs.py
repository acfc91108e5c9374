"""The outputs of a converted folder on one engine against those of the masked dense model."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from converters.masked import MaskedCheckpoint
from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.model_protocols import Floats, LogitsModel, Tokens
from sgate_serve.engines.table import ONNX
from sgate_serve.environment import library_versions
from sgate_serve.errors import CheckpointError
from sgate_serve.loaders.logits import load_logits_model, rounding_of
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.onnx_format.precision import FP32
from sgate_serve.plan import Plan
from sgate_serve.verify.bisection import first_different_layer
from sgate_serve.verify.comparison import LogitComparison, OutputComparison
from sgate_serve.verify.divergence import Divergence, check_limit, exact_model
from sgate_serve.verify.output_kind import output_kind
from sgate_serve.verify.prompts import Prompt, PromptSet
from sgate_serve.verify.rounding import Quantization
from sgate_serve.verify.stored_parts import GraphComparison, compare_graph


@dataclass(frozen=True)
class Comparable:
    """A converted folder, and the masked dense model that it must equal by `plan`."""

    out: Checkpoint
    masked: MaskedCheckpoint
    plan: Plan | None


# Not a number, so that no check of it holds.
NOTHING = LogitComparison(math.nan, scale=0.0, num_tokens=0, tokens_equal=0, ties=0)


@dataclass(frozen=True)
class Outputs:
    """The comparison of outputs, before rounding, and what rounding costs.

    `compared` is `NOTHING` if a graph that differs does not run. `batch_diff` is the largest
    difference in one batch of all prompts, None if none was run.
    """

    engine: str
    engine_version: str
    graph: GraphComparison
    compared: LogitComparison
    difference: str | None = None
    batch_diff: float | None = None
    quantization: Quantization | None = None

    @property
    def differences(self) -> list[str]:
        """Differences of the outputs, and of the graph that gave them."""
        found = [] if self.difference is None else [self.difference]
        # Not `>`: a NaN must count as different.
        if self.batch_diff is not None and not self.batch_diff <= self.compared.tolerance:
            found.append(f"texts of different lengths in one batch differ by {self.batch_diff:.2e}")
        found += [] if self.graph.difference is None else [self.graph.difference]
        return found


@runtime_checkable
class BatchEncoder(Protocol):
    """An engine that reads several texts in one call."""

    def encode(
        self, prompts: Sequence[Tokens], types: Sequence[Tokens | None] | None = None
    ) -> Sequence[Floats]:
        """Return the outputs of each text, [labels] or [T, hidden]."""


@dataclass(frozen=True)
class Models:
    """The loaded models: the masked dense one, the exact converted one, and the one served.

    The last two are the same unless the served weights are rounded to `rounding`.
    """

    reference: TorchModel
    exact: LogitsModel
    served: LogitsModel
    rounding: str

    @property
    def is_rounded(self) -> bool:
        return self.rounding != FP32


def compare_outputs(
    pair: Comparable, prompts: PromptSet, limit: float | None, *, bisects: bool
) -> Outputs:
    """Load the folder on its engine and compare the outputs of every prompt.

    With `bisects`, a difference is traced to its layer. A graph that differs and does not run is a
    result. Raises EngineError for a `limit` on the divergence that would have no effect.
    """
    graph = compare_graph(pair.out, prompts.engine)
    try:
        return _compared(pair, prompts, limit, graph, bisects=bisects)
    except CheckpointError:
        raise
    except Exception as error:  # of the engine, or of outputs that have other shapes
        if graph.difference is None or prompts.engine != ONNX:
            raise
        reason = f"{graph.difference}; and {ONNX} does not run it: {error}"
        version = library_versions().get("onnxruntime", "")
        return Outputs(ONNX, version, GraphComparison(False, reason), NOTHING)


def _compared(
    pair: Comparable,
    prompts: PromptSet,
    limit: float | None,
    graph: GraphComparison,
    *,
    bisects: bool,
) -> Outputs:
    with _loaded(pair, prompts, limit) as models:
        # Logits are compared prompt by prompt; the outputs of a pooling model are few and are kept.
        comparison, cost, expected = OutputComparison(), Divergence(), list[Floats]()
        for prompt in prompts.all:
            wanted = models.reference.logits(prompt.tokens, prompt.types)
            comparison.add(wanted, models.exact.logits(prompt.tokens, prompt.types))
            if models.is_rounded and prompts.measures(prompt):
                cost.add(wanted, models.served.logits(prompt.tokens, prompt.types))
            if pair.out.spec.task != CAUSAL_LM:
                expected.append(wanted)
        compared, difference = comparison.result(), None
        if not compared.holds and bisects:
            worst = prompts.all[compared.worst]
            difference = first_different_layer(
                models.reference, models.exact, worst.tokens, pair.plan, worst.types
            )
        elif not compared.holds:
            difference = f"outputs differ by {compared.max_abs_diff:.2e}"
        return Outputs(
            engine=models.exact.name,
            engine_version=models.exact.version,
            graph=graph,
            compared=compared,
            difference=difference,
            batch_diff=_batch_diff(models.exact, prompts.all, expected),
            quantization=_quantization(models, cost, prompts, limit) if models.is_rounded else None,
        )


@contextmanager
def _loaded(pair: Comparable, prompts: PromptSet, limit: float | None) -> Iterator[Models]:
    with ExitStack() as stack:
        served = load_logits_model(prompts.engine, pair.out, prompts.longest)
        stack.callback(served.close)
        rounding = rounding_of(pair.out, served)
        check_limit(limit, pair.out, served.name, rounding)
        exact = served
        if rounding != FP32:
            exact = exact_model(pair.out, pair.masked, pair.plan)
            stack.callback(exact.close)
        yield Models(TorchModel.masked_dense(pair.masked), exact, served, rounding)


def _batch_diff(
    engine: LogitsModel, prompts: Sequence[Prompt], expected: Sequence[Floats]
) -> float | None:
    """Return the largest difference in one batch of all prompts, whose lengths differ.

    None for an engine that reads texts one by one.
    """
    if not expected or not isinstance(engine, BatchEncoder):
        return None
    found = engine.encode([p.tokens for p in prompts], [p.types for p in prompts])
    together = map(np.atleast_2d, found)
    pairs = zip(expected, together, strict=True)
    return float(np.max([np.abs(wide[: len(rows)] - rows).max() for wide, rows in pairs]))


def _quantization(
    models: Models, cost: Divergence, prompts: PromptSet, limit: float | None
) -> Quantization:
    is_choice = output_kind(models.reference.spec).choice is not None
    return Quantization(
        precision=models.rounding,
        engine=models.served.name,
        engine_version=models.served.version,
        max_abs_diff=cost.max_abs_diff,
        mean_kl=cost.mean_kl if is_choice else None,
        greedy_agreement=cost.agreement if is_choice else None,
        max_divergence=limit,
        relative_error=None if is_choice else cost.relative_error,
        data=prompts.data,
    )
