"""Facts made by hand: small specs, zeros given by index, and the findings of a rule in them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from converters.rules import ModelFacts, NormZeros, Zeros
from converters.rules.facts import Flags
from converters.rules.findings import LayerRule, LayerView
from converters.rules.layer_state import LayerAxis, LayerState
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
    "pad_token_id": 0,
}
GPT2_SIZES: dict[str, Any] = {
    "n_layer": 1,
    "n_embd": HIDDEN,
    "n_head": HEADS,
    "n_inner": UNITS,
    "vocab_size": 5,
    "pad_token_id": 0,
}
ENCODER_SIZES: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "intermediate_size": UNITS,
    "vocab_size": 5,
    "pad_token_id": 0,
}

NEOX_SIZES = ENCODER_SIZES | {"rotary_pct": 1.0}


def spec_of(model_type: str = "llama", **fields: Any) -> ModelSpec:
    """Return a family's spec: two query heads for each KV head, or one without grouped queries."""
    sizes = {"gpt2": GPT2_SIZES, "gpt_neox": NEOX_SIZES}
    sizes |= dict.fromkeys(("bert", "roberta", "modernbert"), ENCODER_SIZES)
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
    """Return a layer whose only zeros are those of `changes`: arguments of `zeros`, by role."""
    plain = {"bias": () if bias else None}
    return {
        role: zeros(spec, role, **plain | changes.get(role, {})) for role in spec.linear_shapes(0)
    }


def facts_of(spec: ModelSpec, *layers: Mapping[str, Zeros], **fields: Any) -> ModelFacts:
    return ModelFacts(spec, layers or (layer_of(spec),), **fields)


def view_of(
    facts: ModelFacts, layer: LayerState | None = None, unwritten: Indices = ()
) -> LayerView:
    """Return a rule's view of layer 0; `unwritten` are dimensions not written before its blocks."""
    state = layer or LayerState.of(facts.spec, 0, facts.layers[0])
    return LayerView(facts, state, dict.fromkeys(BLOCKS, flags(facts.spec.hidden_size, unwritten)))


def found_by(
    rule: LayerRule, view: LayerView | ModelFacts, axis: LayerAxis, *, constants: bool = False
) -> list[int]:
    """Return the indices on `axis` that a rule finds dead, or those that leave a constant."""
    view = view if isinstance(view, LayerView) else view_of(view)
    found: Flags = np.zeros_like(view.layer.alive(axis).reshape(-1))
    for finding in rule(view):
        if finding.axis == axis:
            part = finding.constant if constants else finding.dead
            found = found | (False if part is None else part.reshape(-1))
    indices: list[int] = np.flatnonzero(found).tolist()
    return indices


def without(facts: ModelFacts, **dead: Indices) -> LayerView:
    """Return the view of layer 0 after removals, by axis."""
    state = LayerState.of(facts.spec, 0, facts.layers[0])
    for name, indices in dead.items():
        axis = cast(LayerAxis, name)
        alive = state.alive(axis)
        state = state.without(axis, flags(alive.size, indices).reshape(alive.shape))
    return view_of(facts, state)


def norm(weight: Indices = (), bias: Indices = EVERY) -> NormZeros:
    """Return a norm's zeros; without `bias` it has none, as RMSNorm, which counts as zeros."""
    return NormZeros(flags(HIDDEN, weight), flags(HIDDEN, bias))


def half_rotated(spec: ModelSpec) -> ModelSpec:
    ropes = (Rope({"rope_type": "default"}, rotated_share=0.5) for _ in spec.ropes)
    return replace(spec, ropes=tuple(ropes))


def with_softcap(spec: ModelSpec) -> ModelSpec:
    return replace(spec, attention_softcap=50.0)
