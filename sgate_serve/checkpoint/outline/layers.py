"""The stack: as many layers in the files, and as many entries of each per-layer array, as said."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from sgate_serve.checkpoint.outline.config import AnyConfig
from sgate_serve.checkpoint.outline.faults import Fault, gaps, ranges
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, TensorInfo

LAYER = re.compile(r"(?P<stack>(?:.*?\.)?(?:layers|h|blocks|layer))\.(?P<number>\d+)\.")
# Stacks beside the language model's.
OTHER_STACKS = re.compile(r"(?:^|[._])(?:vision|visual|audio|mtp|projector)")
# Fields with an entry for each layer, where they are lists or texts.
PER_LAYER = (
    *("layer_types", "mlp_layer_types", "layers_block_type", "hybrid_override_pattern"),
    *("block_configs", "no_rope_layers", "layer_rope_theta", "ffn_multipliers"),
    *("num_attention_heads_per_layer", "num_key_value_heads_per_layer", "num_query_heads"),
    *("num_attention_heads", "num_key_value_heads", "num_kv_heads", "intermediate_size"),
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_topk", "num_shared_expert"),
    *("moe_intermediate_size", "activation_sparsity_pattern", "layer_block_type"),
)
# Fields that list numbers of layers.
NUMBERS = (
    *("mlp_only_layers", "moe_layers", "attn_layer_indices", "full_attn_idxs"),
    *("local_layer_ids", "cross_attention_layers", "global_attention_layers"),
)


def stack_of(tensors: Mapping[str, TensorInfo]) -> dict[int, list[TensorInfo]]:
    """Return layer number → tensors of the language model's stack: the one with the most."""
    stacks: dict[str, dict[int, list[TensorInfo]]] = defaultdict(lambda: defaultdict(list))
    for name, info in tensors.items():
        match = LAYER.match(name)
        if match and not OTHER_STACKS.search(match["stack"]):
            stacks[match["stack"]][int(match["number"])].append(info)
    sizes = Counter({stack: sum(map(len, layers.values())) for stack, layers in stacks.items()})
    return dict(stacks[sizes.most_common(1)[0][0]]) if sizes else {}


def layer_faults(config: AnyConfig, stack: Mapping[int, list[TensorInfo]]) -> Iterator[Fault]:
    """Yield layers that are missing or too many, and arrays that are not as long as the stack."""
    number = config.num_layers
    if number is None:
        return
    if not stack:
        yield Fault(CONFIG_FILE, f"it says {number} layers, but no tensor is of a numbered layer")
        return
    most = number + config.num_predicted
    if extra := {index for index in stack if index >= most}:
        yield Fault(CONFIG_FILE, f"it says {number} layers, but files hold layer {ranges(extra)}")
    may_be_empty = {index for index, block in enumerate(config.blocks) if is_empty(block)}
    if missing := gaps(stack.keys() | may_be_empty, number):
        yield Fault(
            CONFIG_FILE,
            f"it says {number} layers, but there are no tensors of layer {missing}; "
            "layers that are left are numbered anew from 0",
        )
    predicted = {index for index in stack if number <= index < most}
    if predicted and len(predicted) < config.num_predicted:
        yield Fault(
            CONFIG_FILE,
            f"it says {config.num_predicted} layers that predict further tokens, but files hold "
            f"{len(predicted)}",
        )
    yield from _array_faults(config, number, most)
    for index, block in enumerate(config.blocks[:number]):
        for how in _block_faults(block, stack.get(index, []), config):
            yield Fault(f"layer {index}", how)


def _array_faults(config: AnyConfig, number: int, most: int) -> Iterator[Fault]:
    for name in PER_LAYER:
        value = config.values.get(name)
        if isinstance(value, list | str) and value and len(value) not in (number, most):
            yield Fault(
                CONFIG_FILE,
                f"{name} has {len(value)} entries for {number} layers; keep those of the kept "
                "layers",
            )
    for name in NUMBERS:
        value = config.values.get(name)
        if isinstance(value, list) and (over := [n for n in value if _is_over(n, most)]):
            yield Fault(
                CONFIG_FILE, f"{name} names layer {ranges(over)}, but there are {number} layers"
            )


def _is_over(value: Any, most: int) -> bool:
    return isinstance(value, int) and value >= most


def _parts(block: Any) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, ...]]]:
    """Yield the parts of one of `block_configs`, and how the modules that they describe begin."""
    names = {"attention": (".self_attn.",), "ffn": (".mlp.", ".feed_forward.")}
    for part, modules in names.items():
        own = block.get(part) if isinstance(block, Mapping) else None
        yield part, own if isinstance(own, Mapping) else {}, modules


def is_empty(block: Any) -> bool:
    """Say whether one of `block_configs` has neither attention nor MLP."""
    return all(own.get("no_op") for _, own, _ in _parts(block))


def _block_faults(block: Any, tensors: list[TensorInfo], config: AnyConfig) -> Iterator[str]:
    """Yield where one of Puzzle's `block_configs` and the layer's tensors disagree."""
    for part, own, modules in _parts(block):
        here = [info for info in tensors if any(module in info.name for module in modules)]
        if own.get("no_op") and here:
            yield f"block_configs gives it no {part}, but files hold {here[0].name}"
        elif own and not own.get("no_op") and not here:
            yield f"block_configs gives it {part}, but files hold none"
        for info in here:
            units = own.get("intermediate_size")
            is_down = info.name.endswith(".mlp.down_proj.weight") and len(info.shape) == 2
            if is_down and isinstance(units, int) and info.shape[-1] != units:
                yield (
                    f"block_configs says intermediate_size {units}, but {info.name} reads "
                    f"{info.shape[-1]} units"
                )
