"""Facts made by hand: a spec of a few numbers, zeros by index, and what a rule finds in them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from converters.rules import ModelFacts, NormZeros, Zeros
from converters.rules.facts import Context, Flags, LayerState, Rule
from sgate_serve.architecture.family import BLOCKS
from sgate_serve.architecture.rope import Rope
from sgate_serve.architecture.spec import ModelSpec

HIDDEN, UNITS, HEADS, HEAD_DIM = 8, 3, 4, 2
EVERY = slice(None)
Indices = tuple[int, ...] | slice

SIZES: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "intermediate_size": UNITS,
    "vocab_size": 5,
}
GPT2_SIZES: dict[str, Any] = {
    "n_layer": 1,
    "n_embd": HIDDEN,
    "n_head": HEADS,
    "n_inner": UNITS,
    "vocab_size": 5,
}
ENCODER_SIZES: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "intermediate_size": UNITS,
    "vocab_size": 5,
}


def spec_of(model_type: str = "llama", **fields: Any) -> ModelSpec:
    """Return a family's spec: two query heads for each KV head, one where it has none of these."""
    sizes = {"gpt2": GPT2_SIZES, "bert": ENCODER_SIZES, "roberta": ENCODER_SIZES}
    config = sizes.get(model_type, SIZES) | {"model_type": model_type} | fields
    return ModelSpec.from_config(config, "config.json")


def flags(size: int, indices: Indices) -> Flags:
    found = np.zeros(size, np.bool_)
    found[list(indices) if isinstance(indices, tuple) else indices] = True
    return found


def zeros(
    spec: ModelSpec,
    role: str,
    rows: Indices = (),
    columns: Indices = (),
    bias: Indices | None = None,
    inactive: Indices | None = None,
) -> Zeros:
    """Return the zeros of a role by index; `bias=None` is a linear without one."""
    num_rows, num_columns = spec.linear_shapes(0)[role]
    return Zeros(
        rows=flags(num_rows, rows),
        columns=flags(num_columns, columns),
        bias=flags(num_rows, EVERY if bias is None else bias),
        inactive=None if inactive is None else flags(num_rows, inactive),
    )


def layer_of(spec: ModelSpec, *, bias: bool = False, **changes: Any) -> dict[str, Zeros]:
    """Return a layer without zeros but those of `changes`: by role, arguments of `zeros`."""
    plain = {"bias": () if bias else None}
    return {
        role: zeros(spec, role, **plain | changes.get(role, {})) for role in spec.linear_shapes(0)
    }


def facts_of(spec: ModelSpec, *layers: Mapping[str, Zeros], **fields: Any) -> ModelFacts:
    return ModelFacts(spec, layers or (layer_of(spec),), **fields)


def context(facts: ModelFacts, layer: LayerState | None = None, unwritten: Indices = ()) -> Context:
    """Return what a rule sees of layer 0; `unwritten` are dimensions not written so far."""
    state = layer or LayerState.of(facts.spec, 0, facts.layers[0])
    written = flags(facts.spec.hidden_size, unwritten)
    return Context(facts, state, dict.fromkeys(BLOCKS, written))


def found_by(
    rule: Rule, at: Context | ModelFacts, axis: str, *, constants: bool = False
) -> list[int]:
    """Return the indices on `axis` that a rule finds dead, or those that leave a constant."""
    at = at if isinstance(at, Context) else context(at)
    found: Flags = np.zeros_like(at.layer.alive(axis).reshape(-1))
    for death in rule(at):
        if death.axis == axis:
            part = death.constant if constants else death.dead
            found = found | (False if part is None else part.reshape(-1))
    indices: list[int] = np.flatnonzero(found).tolist()
    return indices


def without(facts: ModelFacts, **dead: Indices) -> Context:
    """Return the context of layer 0 after deaths, by axis."""
    state = LayerState.of(facts.spec, 0, facts.layers[0])
    for axis, indices in dead.items():
        alive = state.alive(axis)
        state = state.without(axis, flags(alive.size, indices).reshape(alive.shape))
    return context(facts, state)


def norm(weight: Indices = (), bias: Indices = EVERY) -> NormZeros:
    """Return a norm's zeros; one without bias, as RMSNorm, has none but zeros."""
    return NormZeros(flags(HIDDEN, weight), flags(HIDDEN, bias))


def half_rotated(spec: ModelSpec) -> ModelSpec:
    ropes = (Rope({"rope_type": "default"}, rotated_share=0.5) for _ in spec.ropes)
    return replace(spec, ropes=tuple(ropes))


def with_softcap(spec: ModelSpec) -> ModelSpec:
    return replace(spec, attention_softcap=50.0)
