"""Seeded changes of a small config.json: own and foreign fields, spellings of rope, junk."""

import json
import random
from copy import deepcopy
from typing import Any

from sgate_serve.architecture.families import FAMILIES
from tests.families.config_judge import Config
from tests.families.config_values import LINEAR, LONGROPE, UNUSUAL
from tests.fuzz.mutations import DEEP, JUNK, LONG, mutate_json

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: list[dict[str, Any]] = [
    {},
    {"rope_theta": 7},
    {"rope_type": "default"},
    LINEAR,
    {"type": "linear", "factor": 2.0},
    {"type": "linear", "rope_type": "default", "factor": 2.0},
    {**LINEAR, "partial_rotary_factor": 0.5},
    {"partial_rotary_factor": 0.5},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    LLAMA3,
    {**LLAMA3, "original_max_position_embeddings": 16},
    LONGROPE,
    {**LONGROPE, "rope_type": "su"},
    {**LONGROPE, "rope_type": "su", "original_max_position_embeddings": 20},
    {**LONGROPE, "rope_type": "yarn"},
    {"full_attention": LINEAR, "sliding_attention": {"rope_theta": 5.0}},
    {"full_attention": {"type": "linear", "factor": 2.0}},
    {"sliding_attention": None, "full_attention": LLAMA3},
]
ROPE_KEYS = ("rope_scaling", "rope_parameters")
LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "attention")
# What no JSON encoder writes belongs to the tests of files; so do sizes that no memory holds.
VALUES = [value for value in JUNK if value not in (DEEP, LONG)]
LARGEST = 2**20


def mutated(config: Config, family: str, rng: random.Random) -> Config | None:
    """Return the config with one to three fields changed; None for what is no small config."""
    found, own = deepcopy(config), list(FAMILIES[family].fields)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change(found, rng.choice((own, own, list(UNUSUAL))), rng)
    try:
        if rng.random() < 0.15:
            found = json.loads(mutate_json(json.dumps(found).encode(), rng))
        json.dumps(found)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("model_type") != family:
        return None
    sizes = [value for value in found.values() if isinstance(value, int)]
    return None if any(abs(size) > LARGEST for size in sizes) else found


def _change(config: Config, keys: list[str], rng: random.Random) -> None:
    key, draw = rng.choice(keys), rng.random()
    if key in ROPE_KEYS or draw < 0.2:
        config[rng.choice(ROPE_KEYS)] = deepcopy(rng.choice(ROPES))
    elif key == "layer_types":
        known = LAYER_TYPES[: rng.choice((1, 2, 2, 2, 4))]
        config[key] = [rng.choice(known) for _ in range(rng.choice((2, 2, 2, 1, 3)))]
    elif draw < 0.4:
        config[key] = deepcopy(UNUSUAL.get(key))
    elif draw < 0.55:
        config.pop(key, None)
    elif draw < 0.7:
        config[key] = _retyped(config.get(key, UNUSUAL.get(key)), rng)
    elif draw < 0.8:
        config[key] = None
    else:
        config[key] = deepcopy(rng.choice(VALUES))


def _retyped(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, int | float):
        return [value]
    # The largest floats are around 2**1024.
    decimal = float(value) if abs(value) < 2**1000 else 1e300
    return rng.choice([decimal, int(value), -value, value + 1, bool(value), str(value), 0, 1])
