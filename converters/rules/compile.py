"""Masks to a Plan: run every rule to a fixpoint, then revive what widths require. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np

from converters.rules.attention import dead_heads, dead_kv_heads, dead_value_dims
from converters.rules.blocks import silent_blocks
from converters.rules.facts import Flags, LayerFacts, Liveness, Rule, Zeros
from converters.rules.mlp import silent_units, unread_units
from converters.rules.revive import align_mlp, even_out_groups, keep_constant_blocks
from sgate_serve.errors import PlanError
from sgate_serve.plan import AXES, LayerPlan, Plan, Removal
from sgate_serve.spec import ModelSpec

# The order decides which cause is named where two rules agree: the most telling first.
RULES: Mapping[str, Rule] = {
    "6 silent block": silent_blocks,
    "1 MLP unit never read": unread_units,
    "1 MLP unit silent": silent_units,
    "3 value dimension": dead_value_dims,
    "4 query head": dead_heads,
    "4 KV head": dead_kv_heads,
}

LayerZeros = Mapping[str, Zeros]


def compile_plan(
    spec: ModelSpec, zeros: Sequence[LayerZeros], base_fingerprint: str, align: int = 1
) -> Plan:
    """Decide what goes, given the zeros of every layer's linears in the masked dense model.

    `align` rounds MLP widths up. Raises PlanError for an `align` below 1.
    """
    if align < 1:
        raise PlanError(f"--align {align}: give a whole number of at least 1")
    layers = [
        _compile_layer(index, LayerFacts(shape, layer_zeros, spec.activation), align)
        for index, (shape, layer_zeros) in enumerate(zip(spec.layers, zeros, strict=True))
    ]
    plan = Plan(
        family=spec.family.name,
        base_fingerprint=base_fingerprint,
        align=align,
        layers=tuple(layers),
        extra_biases=_surviving_biases(spec, layers),
    )
    plan.check(spec)
    return plan


def find_dead(facts: LayerFacts) -> tuple[Liveness, list[Removal]]:
    """Apply all rules until none finds more; return what lives and each new finding in order."""
    live, removals = Liveness.of(facts.shape), []
    changed = True
    while changed:
        changed = False
        for name, rule in RULES.items():
            for death in rule(facts, live):
                new: Flags = death.dead & getattr(live, death.axis)
                if not new.any():
                    continue
                changed = True
                live = live.without(death.axis, new)
                if death.axis != "value_dims":
                    indices = tuple(np.flatnonzero(new).tolist())
                    removals.append(Removal(death.axis, indices, name, death.cause))
    return live, removals


def _compile_layer(index: int, facts: LayerFacts, align: int) -> LayerPlan:
    live, removals = find_dead(facts)
    live, constant = keep_constant_blocks(facts, live)
    live, evened = even_out_groups(facts, live)
    live, aligned = align_mlp(live, align)
    kept = {axis: tuple(np.flatnonzero(getattr(live, axis)).tolist()) for axis in AXES}
    revivals = (*constant, *evened, *aligned)
    return LayerPlan(index, facts.shape, **kept, removals=tuple(removals), revivals=revivals)


def _surviving_biases(spec: ModelSpec, layers: Sequence[LayerPlan]) -> tuple[str, ...]:
    """Return the added biases whose linear is still there."""
    names = {
        spec.family.linear(layer.index, role)
        for layer in layers
        for role in layer.shape.linear_shapes(spec.hidden_size)
    }
    return tuple(sorted(spec.extra_biases & names))
