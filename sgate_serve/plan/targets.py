"""The targets of a plan: the price of an index operation, padding, and counts that shard."""

from collections.abc import Mapping
from dataclasses import dataclass

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import PlanError, did_you_mean
from sgate_serve.plan import Target


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
