"""Run a verification: stored tensors first, then logits, then bisection to the layer that differs.

Two independent checks. The stored tensors must equal the plan's rewriting of the masked dense
model, byte for byte; and the logits of an engine must equal the masked dense model's. The first
catches a changed weight wherever it hides, the second a plan that is wrong. Of an int8 folder, or a
graph in another precision than fp32, the second is about the model before rounding, and what
rounding costs is measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.convert import open_masked
from converters.masked import MaskedCheckpoint
from converters.quantize import stored_tensors
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import DTYPE_NAMES
from sgate_serve.environment import library_versions
from sgate_serve.errors import CheckpointError
from sgate_serve.onnx_format.precision import FP32
from sgate_serve.plan import PLAN_FILE, BlockFold, Plan
from sgate_serve.plan.json_form import read_plan
from sgate_serve.verify.certificate import Verification, VerifyOptions
from sgate_serve.verify.divergence import check_limit, exact_model, measure_quantization
from sgate_serve.verify.engines import VerifiedEngine, open_engine, paired_outputs
from sgate_serve.verify.outputs import outputs_of
from sgate_serve.verify.reference import TorchModel

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]

# fp32 sums in another order differ by some 1e-6 of the logits' scale; a wrong weight by far more.
RELATIVE_TOLERANCE = 1e-4
TIE_TOLERANCES = 10


@dataclass(frozen=True)
class LogitComparison:
    """Reference and engine over all prompts: the largest difference and the greedy tokens."""

    max_abs_diff: float
    scale: float
    num_tokens: int
    tokens_equal: int
    ties: int

    @property
    def tolerance(self) -> float:
        return RELATIVE_TOLERANCE * max(1.0, self.scale)

    @property
    def holds(self) -> bool:
        unequal = self.num_tokens - self.tokens_equal - self.ties
        return self.max_abs_diff <= self.tolerance and unequal == 0


def verify(options: VerifyOptions) -> Verification:
    """Compare the masked dense model with the converted one on one engine.

    Raises SgateError for bad input; a difference is a result, not an error.
    """
    out = Checkpoint.open(options.out)
    masked = open_masked(options.checkpoint, options.gates, gates_kind=options.gates_kind)
    masked = rounded_like(masked, out)
    check_same_model(masked.spec, out)
    plan = _plan_of(out, masked)
    tensor = None if plan is None else first_different_tensor(masked, plan, out)
    prompts = random_prompts(options, out.spec)
    served = open_engine(options.engine, out, len(prompts[0]))
    check_limit(options.max_divergence, out, served)
    engine = exact_model(served, out, masked, plan)
    reference = TorchModel.masked_dense(masked)
    compared = compare_logits(reference.logits, engine.logits, prompts)
    quantization = None
    if served.precision != FP32:
        quantization = measure_quantization(reference, served, prompts, options.max_divergence)
    difference = None
    if tensor is not None:
        difference = describe_tensor(out.spec, tensor)
    elif not compared.holds:
        difference = first_different_layer(reference, engine, prompts[0], plan)
    elif quantization is not None:
        difference = quantization.excess
    return Verification(
        passed=difference is None,
        difference=difference,
        engine=engine.name,
        engine_version=engine.version,
        max_abs_diff=compared.max_abs_diff,
        tolerance=compared.tolerance,
        num_tokens=compared.num_tokens,
        tokens_equal=compared.tokens_equal,
        ties=compared.ties,
        tensors_equal=None if plan is None else tensor is None,
        seed=options.seed,
        prompts=tuple(tuple(prompt.tolist()) for prompt in prompts),
        versions=library_versions(),
        quantization=quantization,
        outputs=outputs_of(out.spec),
    )


def rounded_like(masked: MaskedCheckpoint, out: Checkpoint) -> MaskedCheckpoint:
    """Return the masked model with weights rounded as `out` has them: its own, or one precision."""
    name = f"{out.spec.family.embedding}.weight"
    converted = out.tensors[name].dtype
    return masked if converted == masked.dtype(name) else replace(masked, precision=converted)


def check_same_model(dense: ModelSpec, out: Checkpoint) -> None:
    """Raise CheckpointError unless `out` can be a pruned form of the dense model."""
    small = out.spec
    same = ("family", "task", "norm_size", "vocab_size", "num_labels")
    unequal = [name for name in same if getattr(dense, name) != getattr(small, name)]
    if unequal or len(dense.layers) != len(small.layers):
        raise CheckpointError(
            f"{out.folder} is no conversion of this checkpoint: they differ in "
            f"{', '.join(unequal) or 'the number of layers'}"
        )


def random_prompts(options: VerifyOptions, spec: ModelSpec) -> list[Tokens]:
    """Return `num_prompts` arrays of uniformly random token ids, [prompt_tokens] each.

    Where the padding id takes no position of its own, as in RoBERTa, it is left out: no engine but
    transformers gives it a meaning inside a prompt.
    """
    generator = np.random.default_rng(options.seed)
    length = min(options.prompt_tokens, spec.max_positions)
    draws = (
        generator.integers(0, spec.vocab_size - spec.family.has_padded_positions, length)
        for _ in range(options.num_prompts)
    )
    if not spec.family.has_padded_positions:
        return list(draws)
    padding = spec.first_position - 1
    return [np.where(draw >= padding, draw + 1, draw) for draw in draws]


def first_different_tensor(masked: MaskedCheckpoint, plan: Plan, out: Checkpoint) -> str | None:
    """Return the first stored tensor that is not what the plan makes of the base, or None."""
    headers, arrays = stored_tensors(masked, plan, out.is_int8)
    for header, array in zip(headers, arrays, strict=True):
        stored = out.read(header.name)
        if array.shape != stored.shape or DTYPE_NAMES[array.dtype] != DTYPE_NAMES[stored.dtype]:
            return header.name
        if np.ascontiguousarray(array).tobytes() != stored.tobytes():
            return header.name
    return None


def describe_tensor(spec: ModelSpec, tensor: str) -> str:
    """Say which layer a differing tensor belongs to."""
    for index in range(len(spec.layers)):
        if tensor.startswith(f"{spec.family.layer_name(index)}."):
            return f"first differing layer: {index} (tensor {tensor})"
    return f"outside the layers: tensor {tensor}"


def compare_logits(
    reference: Callable[[Tokens], Floats], engine: Callable[[Tokens], Floats], prompts: list[Tokens]
) -> LogitComparison:
    """Teacher-force the same prompts through both and compare logits and greedy tokens."""
    expected, found = paired_outputs(reference, engine, prompts)
    scale = float(np.abs(expected).max())
    tolerance = RELATIVE_TOLERANCE * max(1.0, scale)
    # A regression has one output, beside which nothing can be chosen.
    beside = np.pad(expected, ((0, 0), (1, 0)), constant_values=-np.inf)
    best = np.sort(beside, axis=-1)[:, -2:]
    is_equal = expected.argmax(-1) == found.argmax(-1)
    is_tie = best[:, 1] - best[:, 0] < TIE_TOLERANCES * tolerance
    return LogitComparison(
        max_abs_diff=float(np.abs(expected - found).max()),
        scale=scale,
        num_tokens=len(expected),
        tokens_equal=int(is_equal.sum()),
        ties=int((~is_equal & is_tie).sum()),
    )


def first_different_layer(
    reference: TorchModel, engine: VerifiedEngine, prompt: Tokens, plan: Plan | None = None
) -> str:
    """Compare the residual stream after every layer; name the first that differs.

    The engine's stream has the dimensions that `plan` keeps. Layers between a block whose constant
    moved and the tensor that took it over have it early: they cannot be compared.
    """
    kept = None if plan is None else plan.hidden
    shifted = set() if plan is None else layers_with_moved_constants(plan, reference.spec)
    streams = engine.residuals(prompt)
    if streams is None:
        return f"{engine.name} shows no residual streams; verify with --engine torch to find where"
    pairs = zip(reference.residuals(prompt), streams, strict=True)
    for layer, (wide, found) in enumerate(pairs):
        if layer in shifted:
            continue
        expected = wide if kept is None else wide[:, list(kept)]
        if expected.shape != found.shape:
            return f"the residual stream is {found.shape[1]} wide and no plan says which dimensions"
        scale = max(1.0, float(np.abs(expected).max()))
        difference = float(np.abs(expected - found).max())
        # Not `>`: a NaN must count as different.
        if not difference <= RELATIVE_TOLERANCE * scale:
            return f"first differing layer: {layer}, by {difference:.2e} in the residual stream"
    return "after the last layer: the final norm or the head"


def layers_with_moved_constants(plan: Plan, spec: ModelSpec) -> set[int]:
    """Return the layers whose stream already holds the constant of a later block (rule 6)."""
    shifted: set[int] = set()
    for fold in plan.folds:
        if isinstance(fold, BlockFold):
            starts = (
                index
                for index in range(len(spec.layers))
                if fold.target.startswith(f"{spec.family.layer_name(index)}.")
            )
            shifted |= set(range(next(starts, 0), fold.layer))
    return shifted


def _plan_of(out: Checkpoint, masked: MaskedCheckpoint) -> Plan | None:
    """Return the folder's plan, or None where it has none for this base."""
    path: Path = out.folder / PLAN_FILE
    plan = read_plan(path) if path.exists() else None
    if plan is None or plan.base_fingerprint != masked.base.fingerprint:
        return None
    return plan
