"""Compile facts into a Plan: both tables of rules to a fixpoint, then revivals, then lowering."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from converters.rules.blocks import constant_blocks, silent_blocks
from converters.rules.dense_head import dead_head_units
from converters.rules.experts import closed_experts, closed_units
from converters.rules.facts import ModelFacts
from converters.rules.findings import LayerRule, ModelRule
from converters.rules.fixpoint import Fixpoint, indices_of
from converters.rules.layer_state import LayerState
from converters.rules.lowering import lower_layer, nonzero_weights
from converters.rules.mlp import constant_units, silent_units, unread_units
from converters.rules.query_key import constant_query_dims, dead_key_dims, uniform_heads
from converters.rules.recurrent import dead_recurrent_heads
from converters.rules.revive import revive, uniform_widths
from converters.rules.stream import dead_columns, unwritten_dims
from converters.rules.value import (
    constant_value_dims,
    dead_heads,
    dead_kv_heads,
    dead_value_dims,
)
from sgate_serve.architecture.family import MLP, READERS, WRITERS
from sgate_serve.architecture.stock_shape import is_stock_shape
from sgate_serve.errors import PlanError
from sgate_serve.plan import AXES, LayerPlan, Lowering, Plan, Revival, Target, receiving_tensor
from sgate_serve.plan.placement import pruned_spec
from sgate_serve.plan.targets import TARGETS, check_target

# Rules on one layer. Where several find the same part dead, the first names the cause.
LAYER_RULES: Mapping[str, LayerRule] = {
    "13 closed expert": closed_experts,
    "6 silent block": silent_blocks,
    "8 column": dead_columns,
    "1 MLP unit never read": unread_units,
    "1 MLP unit silent": silent_units,
    "2 MLP unit constant": constant_units,
    "3 value dimension": dead_value_dims,
    "2 value dimension constant": constant_value_dims,
    "4 query head": dead_heads,
    "14 recurrent head": dead_recurrent_heads,
    "4 KV head": dead_kv_heads,
    "5 key dimension": dead_key_dims,
    "10 uniform heads": uniform_heads,
    "10 constant queries": constant_query_dims,
}

# Rules on the model as a whole.
MODEL_RULES: Mapping[str, ModelRule] = {
    "6 constant block": constant_blocks,
    "7 residual dimension": unwritten_dims,
    "11 unit on top": dead_head_units,
}


def compile_plan(
    facts: ModelFacts,
    base_fingerprint: str,
    target: Target | None = None,
    index_price: int | None = None,
) -> Plan:
    """Decide what to remove, given the zeros of the masked dense model.

    `index_price` is the cost of one gather or scatter in weights, by default the target engine's.
    Raises PlanError for a target that no widths of this model can meet.
    """
    target = target or Target()
    check_target(target, facts.spec)
    if target.uniform and index_price is not None:
        raise PlanError(
            "--index-price with --uniform: a stock model has no index vectors; drop one of the two"
        )
    price = TARGETS[target.engine].index_price if index_price is None else index_price
    found = find_dead(facts, is_uniform=target.uniform)
    layers = list(_layer_plans(found, target, price))
    plan = Plan(
        family=facts.spec.family.name,
        base_fingerprint=base_fingerprint,
        target=target,
        layers=tuple(layers),
        dense_hidden=facts.spec.hidden_size,
        dense_head_units=facts.spec.head_units,
        closed=found.num_weights - _count_open(facts),
        dead=found.num_weights - sum(nonzero_weights(state) for state in found.layers),
        hidden=None if found.hidden.all() else indices_of(found.hidden),
        head_units=None if found.head_units.all() else indices_of(found.head_units),
        folds=tuple(found.folds),
        merges=tuple(found.merges),
        removals=tuple(found.removals),
    )
    plan = _with_biases(plan, facts)
    plan.check(facts.spec)
    is_stock = is_stock_shape(pruned_spec(plan, facts.spec))
    assert is_stock or not target.uniform, "the layers are alike, but no stock class holds them"
    return plan


def find_dead(facts: ModelFacts, *, is_uniform: bool = False) -> Fixpoint:
    """Apply all rules until none finds more; with `is_uniform` only what a stock class allows.

    A stock class has all residual dimensions, all units on top and the biases of its family, and no
    block of it has lost its output bias to another tensor.
    """
    model_rules = {} if is_uniform else MODEL_RULES
    found = Fixpoint(facts, LAYER_RULES, model_rules, may_add_biases=not is_uniform)
    found.run()
    return found


def _layer_plans(found: Fixpoint, target: Target, price: int) -> Iterator[LayerPlan]:
    common = uniform_widths(found.facts, found.layers, target) if target.uniform else None
    for state in found.layers:
        widths = None if common is None else common[state.index]
        revived, revivals = revive(found.facts, state, target, widths)
        kept = {axis: indices_of(getattr(revived, axis)) for axis in AXES}
        yield LayerPlan(
            index=state.index,
            dense=state.shape,
            **kept,
            lowerings=tuple(_lowerings(revived, revivals, target, price)),
            removals=tuple(found.layer_removals[state.index]),
            revivals=tuple(revivals),
        )


def _lowerings(
    state: LayerState, revivals: Sequence[Revival], target: Target, price: int
) -> Iterator[Lowering]:
    if not target.uniform:
        yield from lower_layer(state, revivals, target.align, price)
        return
    # No cut saves more than the layer has, so all stay dense: a stock model has no index vectors.
    whole = state.spec.layer_weights(state.index)
    for lowering in lower_layer(state, revivals, target.align, whole):
        yield replace(lowering, cost=0)


def _count_open(facts: ModelFacts) -> int:
    """Count the block weights in rows, columns and experts that are not closed themselves."""
    total = 0
    for index, layer in enumerate(facts.layers):
        closed = closed_units(facts, index)
        for role, zeros in layer.items():
            rows = zeros.rows | closed if role in READERS[MLP] else zeros.rows
            columns = zeros.columns | closed if role == WRITERS[MLP] else zeros.columns
            total += int((~rows).sum()) * int((~columns).sum())
    return total


def _with_biases(plan: Plan, facts: ModelFacts) -> Plan:
    """Add the biases that folds need and the family lacks; drop those whose linear is removed."""
    spec, small = facts.spec, pruned_spec(plan, facts.spec)
    stay, own = small.module_names(), spec.tensor_shapes()
    wanted = {name for name in spec.extra_biases if name in stay or name == spec.family.head}
    for fold in plan.folds:
        tensor = receiving_tensor(fold, spec)
        module = tensor.removesuffix(".bias")
        if module in stay and tensor not in own:
            wanted.add(module)
    return replace(plan, extra_biases=tuple(sorted(wanted)))
