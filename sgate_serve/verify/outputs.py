"""The outputs of a converted folder on one engine against those of the masked dense model."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from converters.masked import MaskedCheckpoint
from sgate_serve.architecture.family import BASE, CAUSAL_LM
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import PRECISION_NAMES
from sgate_serve.engines.model_protocols import Floats, LogitsModel, Tokens
from sgate_serve.engines.table import ONNX
from sgate_serve.environment import library_versions
from sgate_serve.errors import SystemFailure
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

WIDE = frozenset({"F32", "F64"})


@dataclass(frozen=True)
class Comparable:
    """A converted folder, and the masked dense model that it must equal by `plan`.

    `masked` is rounded to the floating-point type that the folder stores.
    """

    out: Checkpoint
    masked: MaskedCheckpoint
    plan: Plan | None

    @property
    def unrounded(self) -> MaskedCheckpoint:
        """The masked dense model in the types of the base."""
        return replace(self.masked, precision=None)

    @property
    def narrowed(self) -> str | None:
        """The precision that weights of the base were narrowed to; None if rounding lost nothing.

        Nothing is lost to fp32 or fp64, since all outputs are computed in fp32.
        """
        precision, whole = self.masked.precision, self.unrounded
        if precision is None or precision in WIDE:
            return None
        if all(whole.dtype(name) == precision for name in self.masked.spec.tensor_shapes()):
            return None
        return PRECISION_NAMES[precision]

    @property
    def has_pooled(self) -> bool:
        """Whether the last row of the reference is a pooled state."""
        spec = self.masked.spec
        return spec.task == BASE and bool(spec.head.tensors)


NOTHING = LogitComparison(0.0, scale=0.0, num_tokens=0, tokens_equal=0, ties=0)


@dataclass(frozen=True)
class Outputs:
    """The comparison of outputs, before rounding, and what rounding costs.

    `compared` is `NOTHING` if no outputs were compared. `batch` is the comparison in one batch of
    all prompts, None if none was run. `lacking` says in words that the measured outputs lack rows.
    """

    engine: str
    engine_version: str
    graph: GraphComparison
    compared: LogitComparison
    difference: str | None = None
    batch: LogitComparison | None = None
    quantization: Quantization | None = None
    lacking: str | None = None

    @classmethod
    def not_compared(cls, engine: str, reason: str) -> "Outputs":
        """Return what is known where an engine gave no outputs for the reason given."""
        said = f"outputs on {engine} were not compared: {reason}"
        return cls(engine, "", GraphComparison(), NOTHING, said)

    @property
    def differences(self) -> list[str]:
        """Differences of the outputs, and of the graph that gave them."""
        found = [] if self.difference is None else [self.difference]
        found += [] if self.lacking is None else [self.lacking]
        if self.batch is not None:
            together = "texts of different lengths in one batch"
            if self.batch.lacking is not None:
                found.append(f"{together}: {self.engine} {self.batch.lacking}")
            # Not `>`: a NaN must count as different.
            if not self.batch.max_abs_diff <= self.compared.tolerance:
                found.append(f"{together} differ by {self.batch.max_abs_diff:.2e}")
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

    The last two are the same unless the engine rounds weights further than the folder. `unrounded`
    is the masked dense model with the base's own numbers, the same as `reference` unless the folder
    narrowed them to the type `stored`. `rounding` names what the served weights were rounded to.
    """

    unrounded: TorchModel
    reference: TorchModel
    exact: LogitsModel
    served: LogitsModel
    rounding: str
    stored: str | None

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
    except Exception as error:  # of the engine, or of outputs that have other shapes
        if graph.difference is None or prompts.engine != ONNX or is_of_the_system(error):
            raise
        reason = f"{graph.difference}; and {ONNX} does not run it: {error}"
        version = library_versions().get("onnxruntime", "")
        return Outputs(ONNX, version, GraphComparison(False, reason), NOTHING)


def is_of_the_system(error: Exception) -> bool:
    """Say whether memory or the operating system failed, which says nothing about a folder."""
    return isinstance(error, MemoryError) or SystemFailure.of(error) is not None


def _compared(
    pair: Comparable,
    prompts: PromptSet,
    limit: float | None,
    graph: GraphComparison,
    *,
    bisects: bool,
) -> Outputs:
    is_choice = output_kind(pair.out.spec).choice is not None
    with _loaded(pair, prompts, limit) as models:
        # Logits are compared prompt by prompt; the outputs of a pooling model are few and are kept.
        comparison, expected = OutputComparison(pair.has_pooled), list[Floats]()
        cost = Divergence(is_choice, pair.has_pooled)
        for prompt in prompts.all:
            wanted = models.reference.logits(prompt.tokens, prompt.types)
            doubtful = models.reference.doubtful(len(wanted))
            comparison.add(wanted, models.exact.logits(prompt.tokens, prompt.types), doubtful)
            if models.is_rounded and prompts.measures(prompt):
                cost.add(
                    models.unrounded.logits(prompt.tokens, prompt.types),
                    models.served.logits(prompt.tokens, prompt.types),
                )
            if pair.out.spec.task != CAUSAL_LM:
                expected.append(wanted)
        compared = comparison.result()
        bisected = prompts.all[compared.worst] if bisects else None
        return Outputs(
            engine=models.exact.name,
            engine_version=models.exact.version,
            graph=graph,
            compared=compared,
            difference=_difference(models, compared, pair.plan, bisected),
            batch=_together(models.exact, prompts.all, expected, pair.has_pooled),
            quantization=_quantization(models, cost, prompts, limit) if models.is_rounded else None,
            lacking=None if cost.lacking is None else f"{models.served.name} {cost.lacking}",
        )


def _difference(
    models: Models, compared: LogitComparison, plan: Plan | None, bisected: Prompt | None
) -> str | None:
    """Say how outputs differ: by missing rows, or from which layer on for the prompt to bisect."""
    if compared.holds:
        return None
    if compared.lacking is not None:
        return f"{models.exact.name} {compared.lacking}"
    if compared.max_abs_diff <= compared.tolerance and compared.rerouted:
        return (
            f"{compared.rerouted} rows differ after a close choice among experts, too many for "
            "accidents of rounding"
        )
    if bisected is None:
        return f"outputs differ by {compared.max_abs_diff:.2e}"
    return first_different_layer(
        models.reference, models.exact, bisected.tokens, plan, bisected.types
    )


@contextmanager
def _loaded(pair: Comparable, prompts: PromptSet, limit: float | None) -> Iterator[Models]:
    with ExitStack() as stack:
        served = load_logits_model(prompts.engine, pair.out, prompts.longest)
        stack.callback(served.close)
        rounding, narrowed = rounding_of(pair.out, served), pair.narrowed
        exact = served
        check_limit(limit, pair.out, served.name, narrowed or rounding)
        if rounding != FP32:
            exact = exact_model(pair.out, pair.masked, pair.plan)
            stack.callback(exact.close)
        reference = unrounded = TorchModel.masked_dense(pair.masked)
        if narrowed is not None:
            unrounded = TorchModel.masked_dense(pair.unrounded)
        if rounding == FP32 and narrowed is not None:
            rounding = narrowed
        yield Models(unrounded, reference, exact, served, rounding, narrowed)


def _together(
    engine: LogitsModel, prompts: Sequence[Prompt], expected: Sequence[Floats], has_pooled: bool
) -> LogitComparison | None:
    """Compare one batch of all prompts, whose lengths differ.

    None for an engine that reads texts one by one.
    """
    if not expected or not isinstance(engine, BatchEncoder):
        return None
    comparison = OutputComparison(has_pooled)
    found = engine.encode([p.tokens for p in prompts], [p.types for p in prompts])
    for wide, rows in zip(expected, found, strict=True):
        comparison.add(wide, np.atleast_2d(rows))
    return comparison.result()


def _quantization(
    models: Models, cost: Divergence, prompts: PromptSet, limit: float | None
) -> Quantization:
    is_choice = cost.is_choice
    return Quantization(
        precision=models.rounding,
        engine=models.served.name,
        engine_version=models.served.version,
        max_abs_diff=cost.max_abs_diff,
        mean_kl=cost.mean_kl if is_choice else None,
        greedy_agreement=cost.agreement if is_choice else None,
        max_divergence=limit,
        relative_error=cost.relative_error,
        data=prompts.data,
        stored=models.stored,
    )
