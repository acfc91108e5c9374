"""The targets of a plan: the price of an index operation, padding, and widths that suit others.

Others are shards, stock model classes and the 4-bit kernels of other tools.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.shared_keys import NUM_SHARED
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import PlanError, did_you_mean
from sgate_serve.plan import Plan, Target


@dataclass(frozen=True)
class EngineTarget:
    """One engine's costs: the time of an index operation in weights read, and its head padding."""

    index_price: int
    head_multiple: int = 1


# A gather or scatter at decode takes as long as reading this many weights: on ONNX Runtime between
# 40,990 and 56,331 (benchmarks/results/row_col.json). On vLLM's CPU build 744,000: the extra time
# of a step at batch 1 compared with a coupled mask of the same size, divided by its 36 operations
# (benchmarks/results/vllm_row_col.json). Other engines are not measured.
ONNX_INDEX_PRICE = 45_000
VLLM_INDEX_PRICE = 740_000
INDEX_PRICE = 2**17
# GroupQueryAttention with do_rotary on ONNX Runtime's CPU provider takes head widths that are a
# multiple of 16.
ONNX_HEAD_MULTIPLE = 16
TARGETS: Mapping[str | None, EngineTarget] = {
    None: EngineTarget(INDEX_PRICE),
    "torch": EngineTarget(INDEX_PRICE),
    "onnx": EngineTarget(ONNX_INDEX_PRICE, ONNX_HEAD_MULTIPLE),
    "vllm": EngineTarget(VLLM_INDEX_PRICE),
}

# The 4-bit kernels of other tools, and the multiple of a matrix's input width that they work on. On
# other widths bitsandbytes is slow on GPUs and stops on CPUs ("N must be divisible by block_n" for
# 458 units), GPTQ and AWQ stop, and llama.cpp stores the matrix in a larger type.
KERNEL_MULTIPLES: Mapping[str, int] = {
    "bitsandbytes": 64,
    "GPTQ, AWQ": 128,
    "llama.cpp K-quants": 256,
}


# Halves in 16 bytes.
GROUPED_MULTIPLE = 8


def check_target(target: Target, spec: ModelSpec) -> None:
    """Raise PlanError for an unknown target, or one that this model cannot be cut for."""
    if target.align < 1:
        raise PlanError(f"--align {target.align}: give a whole number of at least 1")
    if target.tensor_parallel < 1:
        raise PlanError(
            f"--tensor-parallel {target.tensor_parallel}: give a whole number of at least 1"
        )
    if target.engine not in TARGETS:
        known = [name for name in TARGETS if name]
        raise PlanError(
            f"--target-engine {target.engine}: this release plans for {', '.join(known)}"
            f"{did_you_mean(str(target.engine), known)}"
        )
    if target.uniform:
        _check_stock(spec)
    has_shards = target.tensor_parallel > 1 and not target.uniform
    if has_shards and not all(layer.has_keys for layer in spec.layers):
        raise PlanError(
            f"--tensor-parallel {target.tensor_parallel}: layers of this model read the KV heads "
            f"of earlier ones ({NUM_SHARED}), and no engine with shards runs uneven ones; add "
            "--uniform, or leave it out"
        )
    for index, layer in enumerate(spec.layers):
        heads, kv_heads = layer.num_heads, layer.num_kv_heads
        if heads and not is_shardable(heads, kv_heads, target.tensor_parallel):
            raise PlanError(
                f"--tensor-parallel {target.tensor_parallel}: layer {index} has {heads} query and "
                f"{kv_heads} KV heads before pruning, which no engine can share out; give a "
                "divisor of them"
            )


def is_shardable(heads: int, kv_heads: int, shards: int) -> bool:
    """Say whether shards get equally many query heads, with whole or replicated KV heads."""
    return heads % shards == 0 and (kv_heads % shards == 0 or shards % kv_heads == 0)


def _check_stock(spec: ModelSpec) -> None:
    """Raise PlanError, naming the obstacle, unless a stock class can hold the model before pruning.

    Its layers may differ in widths: `converters.rules.uniform` finds out whether they can agree.
    """
    stock = f"a stock {spec.head.model_class}"
    if spec.extra_biases:
        raise PlanError(
            f"--uniform: {min(spec.extra_biases)} has a bias that {stock} lacks; give gates "
            "without it, such as those of sgate train --recovery lora"
        )
    if spec.norm_size != spec.hidden_size or spec.head_units != spec.hidden_size:
        raise PlanError(
            f"--uniform: this checkpoint has lost residual dimensions or units on top, which "
            f"{stock} cannot do without; give the dense checkpoint that it was made from"
        )
    layers = [*enumerate(spec.layers)]
    widths = {spec.head_type(index): one.head_dim for index, one in reversed(layers)}
    for index, layer in layers:
        if layer.skipped_blocks or layer.head_dim != widths[spec.head_type(index)]:
            found = " and no ".join(layer.skipped_blocks)
            raise PlanError(
                f"--uniform: layer {index} has "
                + (f"no {found} block" if found else f"heads of width {layer.head_dim}")
                + f" before pruning, unlike others, and {stock} has layers that are all alike; "
                "give the dense checkpoint that it was made from"
            )


def alignment_advice(plan: Plan) -> str | None:
    """Say which `--align` gives MLP widths that 4-bit kernels of other tools work on.

    None if all widths suit them, if the dense ones did not either, or if the plan has an alignment
    that suits one of them.
    """
    multiples = KERNEL_MULTIPLES.values()
    if any(plan.target.align % multiple == 0 for multiple in multiples):
        return None
    spoilt = [
        f"{multiple} ({kernels})"
        for kernels, multiple in KERNEL_MULTIPLES.items()
        if any(_fits(one.dense, multiple) and not _fits(one.shape, multiple) for one in plan.layers)
    ]
    if not spoilt:
        return grouped_advice(plan)
    # No stock model holds layers with different numbers of experts.
    can_agree = len({len(one.experts) for one in plan.layers if one.dense.experts}) <= 1
    uniform = "--uniform " if can_agree and not plan.target.uniform else ""
    return f"for 4-bit kernels of other tools: {uniform}--align {' or '.join(spoilt)}"


def grouped_advice(plan: Plan) -> str | None:
    """Say which `--align` lets transformers multiply experts in groups, on whole 16 bytes.

    Only a stock model has its experts multiplied so: one whose experts all have one width.
    """
    mixtures = {one.shape.experts for one in plan.layers if one.shape.experts}
    widths = {width for experts in mixtures for width in experts}
    if len(mixtures) != 1 or len(widths) != 1 or all(w % GROUPED_MULTIPLE == 0 for w in widths):
        return None
    return (
        f"transformers multiplies experts in groups, on whole 16 bytes: --align {GROUPED_MULTIPLE},"
        ' or load the folder with experts_implementation="eager"'
    )


def _fits(shape: LayerShape, multiple: int) -> bool:
    """Say whether the widths of a layer's MLP, or of its experts, are multiples of `multiple`."""
    return all(width % multiple == 0 for width in shape.mlp_widths)
