"""Rule 6: blocks that write nothing, and where constants of blocks go."""

from dataclasses import replace

import pytest

from converters.rules.blocks import constant_blocks, receiver_of, silent_blocks
from converters.rules.facts import ModelFacts
from converters.rules.findings import ModelView, Move
from converters.rules.fixpoint import indices_of
from converters.rules.layer_state import LayerAxis, LayerState
from sgate_serve.architecture.family import ATTENTION, MLP
from tests.converters.rules.by_hand import (
    EVERY,
    HIDDEN,
    facts_of,
    flags,
    found_by,
    layer_of,
    norm,
    spec_of,
    without,
)

RMS, SANDWICH = spec_of(), spec_of("gemma2")
POST = "model.layers.0.post_attention_layernorm"


def test_block_that_writes_nothing_dies_and_one_with_a_live_bias_does_not() -> None:
    silent, biased = {"rows": EVERY}, {"rows": EVERY, "bias": (0,)}
    facts = facts_of(RMS, layer_of(RMS, down=silent, output=biased))
    assert found_by(silent_blocks, facts, "mlp_units") == [0, 1, 2]
    assert found_by(silent_blocks, facts, "heads") == []


def test_block_that_writes_only_removed_dimensions_dies() -> None:
    facts = facts_of(RMS, layer_of(RMS, down={"rows": (0, 1, 2, 3, 4, 5)}))
    assert found_by(silent_blocks, without(facts, hidden=(6,)), "mlp_units") == []
    assert found_by(silent_blocks, without(facts, hidden=(6, 7)), "mlp_units") == [0, 1, 2]


def test_block_dies_where_the_norm_behind_it_passes_nothing_of_what_it_writes() -> None:
    every = facts_of(SANDWICH, norms={POST: norm(weight=EVERY)})
    assert found_by(silent_blocks, every, "heads") == [0, 1, 2, 3]
    # Each dimension is silent before the norm or behind it: zeros stay zeros under a norm.
    layer = layer_of(SANDWICH, output={"rows": (0, 1, 2, 3)})
    facts = facts_of(SANDWICH, layer, norms={POST: norm(weight=(4, 5, 6, 7))})
    assert found_by(silent_blocks, facts, "heads") == [0, 1, 2, 3]
    some = facts_of(SANDWICH, layer, norms={POST: norm(weight=(4, 5, 6))})
    assert found_by(silent_blocks, some, "heads") == []


def two_layers(model_type: str, **fields: object) -> ModelFacts:
    depth = "n_layer" if model_type == "gpt2" else "num_hidden_layers"
    spec = spec_of(model_type, **{depth: 2}, **fields)
    return facts_of(spec, layer_of(spec), layer_of(spec))


def target(facts: ModelFacts, index: int, block: str, *dead: tuple[int, LayerAxis]) -> str | None:
    """Return the tensor that receives a block's constant; the blocks `dead` have no units."""
    layers = [LayerState.of(facts.spec, i, zeros) for i, zeros in enumerate(facts.layers)]
    for place, axis in dead:
        layers[place] = layers[place].without(axis, flags(layers[place].alive(axis).size, EVERY))
    receiver = receiver_of(facts, layers, index, block)
    return None if receiver is None else receiver.tensor


def test_constant_goes_into_the_bias_of_the_block_before() -> None:
    facts = two_layers("llama")
    assert target(facts, 1, ATTENTION) == "model.layers.0.mlp.down_proj.bias"
    assert target(facts, 1, MLP) == "model.layers.1.self_attn.o_proj.bias"
    assert target(facts, 1, ATTENTION, (0, "mlp_units")) == "model.layers.0.self_attn.o_proj.bias"


def test_constant_passes_no_number_that_multiplies_the_stream() -> None:
    facts = two_layers("llama")
    family = replace(facts.spec.family, layer_scale="layer_scalar")
    facts = replace(facts, spec=replace(facts.spec, family=family))
    assert target(facts, 1, ATTENTION) is None
    assert target(facts, 1, MLP) is None


def test_constant_of_a_parallel_block_goes_into_the_other_or_past_the_layer() -> None:
    facts = two_layers("gpt_neox")
    layer = "gpt_neox.layers.{}"
    of_mlp, of_attention = f"{layer}.mlp.dense_4h_to_h.bias", f"{layer}.attention.dense.bias"
    assert target(facts, 1, ATTENTION) == of_mlp.format(1)
    assert target(facts, 1, MLP) == of_attention.format(1)
    assert target(facts, 1, ATTENTION, (1, "mlp_units")) == of_mlp.format(0)
    assert target(facts, 1, MLP, (1, "heads"), (0, "mlp_units")) == of_attention.format(0)
    assert target(facts, 0, MLP, (0, "heads")) == "gpt_neox.embed_in.weight"
    sequential = two_layers("gpt_neox", use_parallel_residual=False)
    assert target(sequential, 1, ATTENTION) == of_mlp.format(0)


def test_constant_of_the_first_block_goes_into_an_untied_embedding_or_a_position_table() -> None:
    assert target(two_layers("llama"), 0, ATTENTION) == "model.embed_tokens.weight"
    assert target(two_layers("gpt2"), 0, ATTENTION) == "transformer.wpe.weight"


def test_constant_of_the_first_block_stays_with_a_tied_or_16_bit_embedding() -> None:
    assert target(two_layers("llama", tie_word_embeddings=True), 0, ATTENTION) is None
    facts = replace(two_layers("llama"), has_exact_sums=False)
    assert target(facts, 0, ATTENTION) is None
    assert target(facts, 0, MLP) == "model.layers.0.self_attn.o_proj.bias"


@pytest.mark.parametrize(
    ("index", "block", "expected"),
    [
        (0, ATTENTION, "bert.embeddings.LayerNorm.bias"),
        (0, MLP, "bert.encoder.layer.0.attention.output.LayerNorm.bias"),
        (1, ATTENTION, "bert.encoder.layer.0.output.LayerNorm.bias"),
    ],
)
def test_constant_goes_into_the_norm_before_where_norms_are_on_the_sum(
    index: int, block: str, expected: str
) -> None:
    facts = two_layers("bert")
    assert target(facts, index, block) == expected
    # That norm stays when its own block goes.
    assert target(facts, index, block, (0, "heads"), (0, "mlp_units")) == expected


def test_constant_of_the_first_block_goes_into_the_norm_on_the_embedding() -> None:
    biased = two_layers("modernbert", norm_bias=True)
    assert target(biased, 0, ATTENTION) == "model.embeddings.norm.bias"
    assert target(biased, 0, MLP) == "model.layers.0.attn.Wo.bias"
    assert target(biased, 0, MLP, (0, "heads")) == "model.embeddings.norm.bias"
    assert target(two_layers("modernbert"), 0, ATTENTION) is None


@pytest.mark.parametrize("model_type", ["gemma2", "olmo2"])
def test_constant_before_a_post_norm_stays(model_type: str) -> None:
    assert target(two_layers(model_type, tie_word_embeddings=False), 1, MLP) is None


def moves(facts: ModelFacts, layer: LayerState) -> list[Move]:
    return list(constant_blocks(ModelView(facts, [layer], flags(HIDDEN, EVERY))))


def test_constant_block_is_one_without_units_whose_bias_lives_and_has_not_moved() -> None:
    spec = spec_of(mlp_bias=True)
    facts = facts_of(spec, layer_of(spec, bias=True, down={"bias": (0, 1, 2, 3, 4, 5)}))
    layer = without(facts, mlp_units=EVERY).layer
    (move,) = moves(facts, layer)
    assert (move.layer, move.block, move.receiver.writer) == (0, MLP, (0, ATTENTION))
    assert indices_of(move.dims) == (6, 7)
    assert moves(facts, without(facts).layer) == []
    assert moves(facts, without(facts, mlp_units=EVERY, hidden=(6, 7)).layer) == []
    assert moves(facts, replace(layer, moved=frozenset({MLP}))) == []
