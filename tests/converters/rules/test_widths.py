"""Uniform plans: the least widths on which all layers agree, and what they do without."""

from dataclasses import replace
from typing import Any

import pytest

from converters.rules import ModelFacts, compile_plan
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.architecture.stock_shape import is_stock_shape
from sgate_serve.errors import PlanError
from sgate_serve.plan import Plan, Target
from sgate_serve.plan.figures import Figures
from sgate_serve.plan.placement import pruned_spec
from tests.converters.rules.by_hand import EVERY, HIDDEN, facts_of, flags, layer_of, spec_of

UNITS = 12
# Four KV heads of two query heads each: 1, 2, 4 or 8 query heads divide the hidden size of 8.
SIZES: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": UNITS,
    "num_hidden_layers": 3,
}
SPEC = spec_of(**SIZES)


def facts(*layers: tuple[int, tuple[int, ...]], spec: ModelSpec = SPEC) -> ModelFacts:
    """Return layers by their living MLP units, which are the last, and their living query heads."""
    made = []
    for units, heads in layers:
        width = spec.layers[0].head_dim
        closed = [h * width + i for h in range(8) if h not in heads for i in range(width)]
        down, output = {"columns": tuple(range(UNITS - units))}, {"columns": tuple(closed)}
        made.append(layer_of(spec, down=down, output=output))
    return facts_of(spec, *made)


def uniform(found: ModelFacts, align: int = 1, shards: int = 1) -> Plan:
    plan = compile_plan(found, "base", Target(align, shards, uniform=True))
    assert is_stock_shape(pruned_spec(plan, found.spec))
    return plan


@pytest.mark.parametrize(
    ("layers", "align", "shards", "shape"),
    [
        # The most units of a layer; two KV heads of one query head each hold everything.
        (((3, (0, 4)), (5, (2,)), (1, (6, 1))), 1, 1, LayerShape(2, 2, 2, 5)),
        (((3, (0, 4)), (5, (2,)), (1, (6, 1))), 4, 1, LayerShape(2, 2, 2, 8)),
        (((3, (0, 4)), (5, (2,)), (1, (6, 1))), 2, 2, LayerShape(2, 2, 2, 8)),
        # No multiple of 8 from 9 on fits, so the dense width stays.
        (((9, (0,)), (1, (2,)), (1, (3,))), 8, 1, LayerShape(1, 1, 2, 12)),
        # One group keeps both of its query heads, so every group of every layer does.
        (((1, (0, 1)), (1, (2, 4)), (1, (7,))), 1, 1, LayerShape(4, 2, 2, 1)),
        # Three KV heads: 3 and 6 query heads do not divide the hidden size, 4 do.
        (((1, (0, 2, 4)), (1, (2,)), (1, (7,))), 1, 1, LayerShape(4, 4, 2, 1)),
        # Removed blocks come back with the others' widths, or with the least where none is left.
        (((0, ()), (4, (0,)), (0, ())), 1, 1, LayerShape(1, 1, 2, 4)),
        (((0, ()), (0, ()), (0, ())), 1, 1, LayerShape(1, 1, 2, 1)),
        (((0, ()), (0, ()), (0, ())), 4, 2, LayerShape(2, 1, 2, 8)),
    ],
)
def test_all_layers_get_the_least_widths_that_hold_the_survivors_of_each(
    layers: tuple[tuple[int, tuple[int, ...]], ...], align: int, shards: int, shape: LayerShape
) -> None:
    plan = uniform(facts(*layers), align, shards)
    assert [layer.shape for layer in plan.layers] == [shape] * 3
    for layer, (units, heads) in zip(plan.layers, layers, strict=True):
        assert set(range(UNITS - units, UNITS)) == {*layer.mlp_units} - layer.revived("mlp_units")
        assert set(heads) == {*layer.heads} - layer.revived("heads")
    reasons = {one.reason for layer in plan.layers for one in layer.revivals}
    assert all(reason.startswith("every layer has ") for reason in reasons)


def test_the_price_of_agreement_is_the_weight_of_what_is_revived() -> None:
    found = facts((4, (0,)), (1, (0,)), (4, ()))
    uneven, even = compile_plan(found, "base"), uniform(found)
    # Three units of layer 1, and the only head of layer 2: q, k, v and o.
    weights = 3 * 3 * HIDDEN + 4 * 2 * HIDDEN
    assert Figures.of(even, SPEC).revived == pytest.approx(weights / SPEC.num_gateable)
    assert Figures.of(uneven, SPEC).removed - Figures.of(even, SPEC).removed == pytest.approx(
        weights / SPEC.num_gateable
    )


def test_heads_stay_where_the_config_derives_their_width() -> None:
    bert = spec_of("bert", num_attention_heads=4, intermediate_size=UNITS)
    closed = {"columns": tuple(range(6))}
    (layer,) = uniform(facts_of(bert, layer_of(bert, bias=True, output=closed))).layers
    assert layer.heads == (0, 1, 2, 3) and layer.revived("heads") == {0, 1, 2}


QWEN2 = spec_of("qwen2")
BIASED = spec_of(attention_bias=True)


@pytest.mark.parametrize(("spec", "heads"), [(QWEN2, (0, 1, 2, 3)), (BIASED, (0, 1))])
def test_constant_moves_only_into_a_bias_that_the_stock_class_has(
    spec: ModelSpec, heads: tuple[int, ...]
) -> None:
    """Values of the second group are constant; of these families one has no output bias."""
    made = layer_of(spec, value={"rows": (2, 3), "bias": ()}, output={"bias": EVERY})
    layers = uniform(facts_of(spec, made)).layers
    assert layers[0].heads == heads
    assert compile_plan(facts_of(spec, made), "base").layers[0].heads == (0, 1)


def test_constant_of_a_block_stays_in_its_own_bias() -> None:
    gpt2 = spec_of("gpt2", n_layer=2)
    only_bias = layer_of(gpt2, bias=True, down={"columns": EVERY, "bias": (0,)})
    found = facts_of(gpt2, layer_of(gpt2, bias=True), only_bias)
    assert compile_plan(found, "base").layers[1].mlp_units == ()
    plan = uniform(found)
    assert plan.folds == () and len(plan.layers[1].mlp_units) == 3


def test_stream_and_units_on_top_keep_their_widths() -> None:
    unwritten = {"rows": (4,)}
    layer = layer_of(SPEC, output=unwritten, down=unwritten)
    found = facts_of(SPEC, *[layer] * 3, unembedded=flags(HIDDEN, (4,)))
    assert compile_plan(found, "base").hidden is not None
    assert uniform(found).hidden is None


def test_zero_rows_stay_without_a_price() -> None:
    found = facts_of(SPEC, *[layer_of(SPEC, query={"rows": (0, 1)})] * 3)
    for layer in uniform(found).layers:
        (lowering,) = layer.lowerings
        assert (lowering.roles, lowering.side, lowering.saved) == (("query",), "rows", 2 * HIDDEN)
        assert (lowering.how, lowering.cost) == ("dense", 0)


def with_shape(index: int, **sizes: Any) -> ModelSpec:
    layers = list(SPEC.layers)
    layers[index] = replace(layers[index], **sizes)
    return replace(SPEC, layers=tuple(layers))


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (
            replace(SPEC, extra_biases=frozenset({"model.layers.1.mlp.down_proj"})),
            "--uniform: model.layers.1.mlp.down_proj has a bias that a stock LlamaForCausalLM",
        ),
        (replace(SPEC, norm_size=9), "--uniform: this checkpoint has lost residual dimensions"),
        (replace(SPEC, head_units=7), "--uniform: this checkpoint has lost residual dimensions"),
        (
            with_shape(2, num_heads=0, num_kv_heads=0),
            "--uniform: layer 2 has no attention block before pruning, unlike others",
        ),
        (with_shape(1, head_dim=4), "--uniform: layer 1 has heads of width 4 before pruning"),
        (
            with_shape(1, mlp_units=7),
            "--uniform: layer 1 has 7 MLP units before pruning, but another keeps 12",
        ),
        (
            with_shape(1, num_kv_heads=2, num_heads=4),
            "--uniform: layer 1 has 2 KV heads before pruning, but another keeps 4",
        ),
        (
            replace(SPEC, hidden_size=7, norm_size=7, head_units=7),
            "--uniform: a layer keeps 4 KV heads with up to 2 query heads each, and a stock "
            "LlamaForCausalLM of hidden size 7 has no number of heads that holds them",
        ),
    ],
)
def test_checkpoint_that_no_stock_class_can_hold_is_refused_by_name(
    spec: ModelSpec, match: str
) -> None:
    layers = []
    for index in range(3):
        one = replace(spec, layers=(spec.layers[index],))
        layers.append(layer_of(one))
    with pytest.raises(PlanError, match=match):
        uniform(facts_of(spec, *layers))


def test_price_of_index_work_is_refused_for_a_result_without_index_vectors() -> None:
    with pytest.raises(PlanError, match="--index-price with --uniform: a stock model has no index"):
        compile_plan(facts_of(SPEC), "base", Target(uniform=True), index_price=0)


def test_narrower_layers_are_enough_if_all_survivors_fit_in_them() -> None:
    spec = with_shape(1, mlp_units=7)
    layers = [layer_of(spec, down={"columns": tuple(range(6))}) for _ in range(3)]
    layers[1] = layer_of(replace(spec, layers=(spec.layers[1],)))
    assert {layer.shape.mlp_units for layer in uniform(facts_of(spec, *layers)).layers} == {7}


def test_layers_of_each_type_get_kv_heads_of_their_own_and_as_many_heads_as_others() -> None:
    """Sliding layers have four KV heads of two query heads each, the last one of eight heads."""
    spec = spec_of(
        "gemma4_text",
        **SIZES | {"hidden_size_per_layer_input": 0, "global_head_dim": 4},
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
    )
    found = facts((3, (0, 4)), (5, (2,)), (1, ()), spec=spec)
    last = layer_of(spec_of_last(spec), output={"columns": tuple(range(12, 32))})
    plan = uniform(replace(found, layers=(*found.layers[:2], last)))
    sliding, wide = LayerShape(4, 2, 2, 12), LayerShape(4, 1, 4, 12, has_values=False)
    assert [layer.shape for layer in plan.layers] == [sliding, sliding, wide]


def spec_of_last(spec: ModelSpec) -> ModelSpec:
    return replace(spec, layers=spec.layers[-1:])
