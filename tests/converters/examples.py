"""Random examples of exactness, each from one number."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sgate_serve.families import FAMILIES
from sgate_serve.plan import Target
from tests.converters.exactness import Example
from tests.converters.zeroing import WAYS
from tests.families.zoo import VARIANTS, Variant

HEADS = ((4, 2), (4, 4), (4, 1))
# The longest rope tables and layer types of the zoo fix these.
FIXED_DEPTH = ("layer_types", "max_window_layers")
ACTIVATIONS = (None, None, "relu", "sigmoid", "tanh")
ENGINES = (None, "onnx", "vllm", "torch")


def random_example(number: int) -> Example:
    random = np.random.default_rng(number)
    variant = VARIANTS[number % len(VARIANTS)]
    has_gates = random.random() < 0.3
    names = [str(name) for name in random.choice(list(WAYS), random.integers(1, 9))]
    ways = tuple((name, int(random.integers(2**16))) for name in names)
    aligned = random.random() < 0.4
    return Example(
        variant=random_size(random_task(variant, random), random),
        seed=int(random.integers(2**16)),
        ways=() if has_gates and random.random() < 0.7 else ways,
        gates=random_gates(random) if has_gates else None,
        has_added_biases=bool(random.random() < 0.5),
        target=random_target(random) if aligned else Target(),
        index_price=[0, 0, 40, None][random.integers(4)],
        dtype=[torch.float64, torch.float64, torch.float32, torch.bfloat16][random.integers(4)],
    )


def random_task(variant: Variant, random: np.random.Generator) -> Variant:
    tasks: list[Any] = sorted(FAMILIES[variant.family].tasks)
    task = tasks[random.integers(len(tasks))]
    return variant if random.random() < 0.5 else replace(variant, task=task)


def random_size(variant: Variant, random: np.random.Generator) -> Variant:
    """Return the variant with other widths, where its own fields leave that open."""
    family = FAMILIES[variant.family]
    heads, kv_heads = HEADS[random.integers(len(HEADS))]
    sizes: dict[str, Any] = {"intermediate_size": int(random.choice([6, 12, 30]))}
    if family.has_kv_heads:
        sizes["num_key_value_heads"] = kv_heads
    if family.has_stated_head_width:
        sizes |= {"hidden_size": 24, "num_attention_heads": heads, "head_dim": 8}
    if not any(field in variant.config for field in FIXED_DEPTH):
        sizes["num_hidden_layers"] = int(random.integers(1, 4))
    activation = ACTIVATIONS[random.integers(len(ACTIVATIONS))]
    if activation is not None:
        sizes["hidden_act"] = activation
    named = {family.keys.get(key, key): value for key, value in sizes.items()}
    return replace(variant, config=_merged(variant.config, named))


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config) | dict(changes)


def random_gates(random: np.random.Generator) -> tuple[str, float]:
    kind = "coupled" if random.random() < 0.4 else "row-col"
    return kind, float(random.choice([0.25, 0.5, 0.8]))


def random_target(random: np.random.Generator) -> Target:
    return Target(
        align=int(random.choice([1, 2, 4, 8])),
        tensor_parallel=int(random.choice([1, 1, 2, 4])),
        engine=ENGINES[random.integers(len(ENGINES))],
    )
