"""The kinds of values that fields of transformers' config classes take."""

from collections.abc import Mapping
from typing import Any

from sgate_serve.json_fields import (
    MAX_SIZE,
    POSITIVE,
    TEXT,
    TEXTS,
    Kind,
    is_number,
    is_whole,
)

# The deepest published models have a few hundred layers; a spec holds one shape for each.
MAX_LAYERS = 10_000
LAYERS = Kind(
    f"a whole number from 1 to {MAX_LAYERS}",
    lambda value: is_whole(value) and 1 <= value <= MAX_LAYERS,
)
# Some classes tell 30 from 30.0 and refuse the first.
DECIMAL = Kind(
    "a positive number with a decimal point",
    lambda value: isinstance(value, float) and POSITIVE.accepts(value),
)
FRACTION = Kind(
    "a number with a decimal point from 0.0 to 1.0",
    lambda value: isinstance(value, float) and 0 <= value <= 1,
)
SHARE = Kind("a number above 0, at most 1", lambda value: POSITIVE.accepts(value) and value <= 1)
RATE = Kind("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_SIZE


INTEGER = Kind("a whole number, possibly negative", _is_integer)
TOKEN_IDS = Kind(
    "a token id or a list of token ids",
    lambda value: _is_integer(value) or (isinstance(value, list) and all(map(_is_integer, value))),
)
SWITCHES = Kind(
    "a list of 0s and 1s",
    lambda value: (
        isinstance(value, list) and all(type(one) is int and one in (0, 1) for one in value)
    ),
)
LAYER_NUMBERS = Kind(
    "a list of numbers of layers",
    lambda value: isinstance(value, list) and all(type(one) is int and one >= 0 for one in value),
)
LONE_GROUP = Kind(
    "1, for experts are chosen among all of them and not by groups",
    lambda value: type(value) is int and value == 1,
)
TRUE = Kind("true", lambda value: value is True)
DTYPES = ("float16", "bfloat16", "float32", "float64")
DTYPE = Kind(f"one of {', '.join(DTYPES)}", lambda value: value in DTYPES)
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
PROBLEM = Kind(f"one of {', '.join(PROBLEMS)}", lambda value: value in PROBLEMS)
LABEL_NAMES = Kind(
    "an object of label names",
    lambda value: isinstance(value, Mapping) and all(map(TEXT.accepts, value.values())),
)
LABEL_IDS = Kind(
    "an object of label numbers",
    lambda value: (
        isinstance(value, Mapping)
        and any(all(map(kind.accepts, value.values())) for kind in (INTEGER, TEXT))
    ),
)
POOLINGS = ("cls", "mean")
POOLING = Kind(f"one of {', '.join(POOLINGS)}", lambda value: value in POOLINGS)
LAYER_TYPES = ("full_attention", "sliding_attention")
ROPE_BY_TYPE = Kind(
    f"an object of rotary settings for {' and '.join(LAYER_TYPES)}",
    lambda value: (
        isinstance(value, dict)
        and set(value) <= set(LAYER_TYPES)
        and all(isinstance(own, dict) for own in value.values())
    ),
)
VISION = Kind('"vision", which a model of text does not follow', lambda value: value == "vision")
STRATEGIES = ("default", "full")
STRATEGY = Kind(f"one of {', '.join(STRATEGIES)}", lambda value: value in STRATEGIES)
# The attention kernels that compute the same function and need no other package.
KERNELS = ("eager", "sdpa")
KERNEL = Kind(f"one of {', '.join(KERNELS)}", lambda value: value in KERNELS)
# The remote code that a folder offers; it is never run.
CLASS_NAMES = Kind(
    "an object of class names",
    lambda value: (
        isinstance(value, dict)
        and all(TEXT.accepts(names) or TEXTS.accepts(names) for names in value.values())
    ),
)
# Those of transformers' ACT2FN without weights of their own.
ACTIVATION_NAMES = frozenset(
    {
        *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python"),
        *("gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear"),
        *("mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus"),
        *("swish", "tanh"),
    }
)
ACTIVATION = Kind(
    "the name of an activation without weights that transformers has",
    lambda value: isinstance(value, str) and value in ACTIVATION_NAMES,
)
