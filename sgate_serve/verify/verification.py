"""Run a verification: stored tensors first, then logits, then bisection to the layer that differs.

The two checks are independent. The stored tensors must equal the plan's rewriting of the masked
dense model, byte for byte; and the logits of an engine must equal those of the masked dense model.
The first catches every changed weight, the second a wrong plan. For an int8 folder, or a graph in
another precision than fp32, the second check uses the model before rounding, and the error of
rounding is measured.
"""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from converters.convert import open_masked
from converters.masked import MaskedCheckpoint
from converters.quantize import stored_tensors
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import DTYPE_NAMES
from sgate_serve.engines.loaded import Tokens
from sgate_serve.environment import library_versions
from sgate_serve.errors import CheckpointError
from sgate_serve.loaders.logits import load_logits_model, rounding_of
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.models.config_check import check_reading
from sgate_serve.onnx_format.precision import FP32
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan.json_form import read_plan
from sgate_serve.verify.bisection import first_different_layer
from sgate_serve.verify.certificate import Verification, VerifyOptions
from sgate_serve.verify.comparison import compare_logits
from sgate_serve.verify.divergence import check_limit, exact_model, measure_quantization
from sgate_serve.verify.output_kind import output_kind


def verify(options: VerifyOptions) -> Verification:
    """Compare the masked dense model with the converted one on one engine.

    Raises SgateError for bad input; a difference is a result, not an error.
    """
    out = Checkpoint.open(options.out)
    masked = open_masked(options.checkpoint, options.gates, gates_kind=options.gates_kind)
    if masked.base.layout is None:
        check_reading(masked.base.folder)
    masked = rounded_like(masked, out)
    check_same_model(masked.spec, out)
    plan = _plan_of(out, masked)
    tensor = None if plan is None else first_different_tensor(masked, plan, out)
    prompts = random_prompts(options, out.spec)
    with ExitStack() as stack:
        served = load_logits_model(options.engine, out, len(prompts[0]))
        stack.callback(served.close)
        rounding = rounding_of(out, served)
        check_limit(options.max_divergence, out, served.name, rounding)
        engine, quantization = served, None
        if rounding != FP32:
            engine = exact_model(out, masked, plan)
            stack.callback(engine.close)
        reference = TorchModel.masked_dense(masked)
        compared = compare_logits(reference.logits, engine.logits, prompts)
        if rounding != FP32:
            limit = options.max_divergence
            quantization = measure_quantization(reference, served, rounding, prompts, limit)
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
        outputs=output_kind(out.spec),
    )


def rounded_like(masked: MaskedCheckpoint, out: Checkpoint) -> MaskedCheckpoint:
    """Return the masked model with its weights in the floating-point type of `out`."""
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
            f"{out.folder} is not a conversion of this checkpoint: they differ in "
            f"{', '.join(unequal) or 'the number of layers'}"
        )


def random_prompts(options: VerifyOptions, spec: ModelSpec) -> list[Tokens]:
    """Return `num_prompts` arrays of uniformly random token ids, [prompt_tokens] each.

    The padding id is left out if it takes no position of its own, as in RoBERTa: only transformers
    gives it a meaning inside a prompt.
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
    """Return the first stored tensor that differs from the plan's rewriting, or None."""
    headers, arrays = stored_tensors(masked, plan, out.is_int8)
    for header, array in zip(headers, arrays, strict=True):
        stored = out.read(header.name)
        if array.shape != stored.shape or DTYPE_NAMES[array.dtype] != DTYPE_NAMES[stored.dtype]:
            return header.name
        if np.ascontiguousarray(array).tobytes() != stored.tobytes():
            return header.name
    return None


def describe_tensor(spec: ModelSpec, tensor: str) -> str:
    """Return the place of a differing tensor: its layer, or outside the layers."""
    for index in range(len(spec.layers)):
        if tensor.startswith(f"{spec.family.layer_name(index)}."):
            return f"first differing layer: {index} (tensor {tensor})"
    return f"outside the layers: tensor {tensor}"


def _plan_of(out: Checkpoint, masked: MaskedCheckpoint) -> Plan | None:
    """Return the folder's plan, or None if it has none for this base."""
    path: Path = out.folder / PLAN_FILE
    plan = read_plan(path) if path.exists() else None
    if plan is None or plan.base_fingerprint != masked.base.fingerprint:
        return None
    return plan
