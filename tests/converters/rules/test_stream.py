"""Rules 7 and 8 of the residual stream's dimensions and the columns that read them."""

from dataclasses import replace

import numpy as np
import pytest

from converters.rules.facts import ModelFacts
from converters.rules.findings import ModelView
from converters.rules.fixpoint import indices_of
from converters.rules.layer_state import Columns, LayerState
from converters.rules.stream import (
    dead_columns,
    norm_before,
    unwritten_before,
    unwritten_dims,
    written_by,
)
from sgate_serve.architecture.family import ATTENTION, BASE, CLASSIFICATION, MLP
from sgate_serve.architecture.spec import ModelSpec
from tests.converters.rules.by_hand import (
    EVERY,
    HIDDEN,
    Indices,
    facts_of,
    flags,
    found_by,
    layer_of,
    norm,
    spec_of,
    view_of,
    without,
)

RMS, LAYER_NORM, POST_LN, SANDWICH = (spec_of(n) for n in ("llama", "gpt2", "bert", "gemma2"))
INPUT_NORM = "model.layers.0.input_layernorm"


def test_column_of_a_dimension_that_is_not_written_yet_dies_under_rms_norm_only() -> None:
    at = view_of(facts_of(RMS), unwritten=(2,))
    assert found_by(dead_columns, at, Columns("query")) == [2]
    assert found_by(dead_columns, at, Columns("gate")) == [2]
    layer_norm = view_of(facts_of(LAYER_NORM), unwritten=(2,))
    assert found_by(dead_columns, layer_norm, Columns("up")) == []


def test_column_behind_a_zero_norm_weight_dies_in_the_block_that_the_norm_is_before() -> None:
    facts = facts_of(RMS, norms={INPUT_NORM: norm(weight=(5,))})
    for role in ("query", "key", "value"):
        assert found_by(dead_columns, facts, Columns(role)) == [5]
        assert found_by(dead_columns, facts, Columns(role), constants=True) == []
    assert found_by(dead_columns, facts, Columns("up")) == []


def test_layer_norm_passes_its_bias_where_its_weight_is_zero() -> None:
    norms = {"transformer.h.0.ln_2": norm(weight=(1, 2, 3), bias=(2,))}
    facts = facts_of(LAYER_NORM, layer_of(LAYER_NORM, up={"columns": (3,)}), norms=norms)
    assert found_by(dead_columns, facts, Columns("up")) == [1, 2, 3]
    # The column that is zero already reads nothing of the bias.
    assert found_by(dead_columns, facts, Columns("up"), constants=True) == [1]


def test_no_block_no_columns() -> None:
    facts = facts_of(RMS, norms={INPUT_NORM: norm(weight=EVERY)})
    assert found_by(dead_columns, without(facts, heads=EVERY), Columns("query")) == []


@pytest.mark.parametrize(
    ("spec", "block", "expected"),
    [
        (RMS, MLP, "model.layers.1.post_attention_layernorm"),
        (SANDWICH, MLP, "model.layers.1.pre_feedforward_layernorm"),
        (POST_LN, ATTENTION, "bert.encoder.layer.0.output.LayerNorm"),
        (POST_LN, MLP, "bert.encoder.layer.1.attention.output.LayerNorm"),
    ],
)
def test_norm_before_a_block(spec: ModelSpec, block: str, expected: str) -> None:
    assert norm_before(spec.family, 1, block) == expected


def test_block_without_a_norm_before_it_reads_the_stream() -> None:
    spec = spec_of("olmo2")
    assert norm_before(spec.family, 0, MLP) is None
    # The norm after a block says nothing of what the block reads.
    silent = facts_of(spec, norms={POST: norm(weight=EVERY)})
    assert found_by(dead_columns, view_of(silent, unwritten=(2,)), Columns("up")) == [2]


def test_norms_on_the_sum_start_behind_the_embedding() -> None:
    assert norm_before(POST_LN.family, 0, ATTENTION) == "bert.embeddings.LayerNorm"


def test_first_block_without_a_norm_reads_that_of_the_embedding() -> None:
    spec = spec_of("modernbert", norm_bias=True)
    assert norm_before(spec.family, 0, ATTENTION) == "model.embeddings.norm"
    assert norm_before(spec.family, 1, ATTENTION) == "model.layers.1.attn_norm"
    facts = facts_of(spec, norms={"model.embeddings.norm": norm(weight=(1, 2), bias=(2,))})
    assert found_by(dead_columns, facts, Columns("value")) == [1, 2]
    assert found_by(dead_columns, facts, Columns("value"), constants=True) == [1]


def written(facts: ModelFacts, block: str, *dead: str, moved: str = "") -> tuple[int, ...]:
    layer = without(facts, **dict.fromkeys(dead, EVERY)).layer
    if moved:
        layer = LayerState(**vars(layer) | {"moved": frozenset({moved})})
    return indices_of(written_by(facts, layer, block))


def test_a_row_or_a_bias_writes() -> None:
    down = {"rows": (0, 1), "bias": (1, 2)}
    assert written(facts_of(RMS, layer_of(RMS, down=down)), MLP) == (0, 2, 3, 4, 5, 6, 7)


def test_block_without_units_writes_its_bias_until_that_has_moved() -> None:
    facts = facts_of(RMS, layer_of(RMS, down={"bias": (0, 1, 2, 3, 4, 5)}))
    assert written(facts, MLP, "mlp_units") == (6, 7)
    assert written(facts, MLP, "mlp_units", moved=MLP) == ()


POST = "model.layers.0.post_attention_layernorm"


def test_norm_behind_a_block_passes_nothing_where_its_weight_is_zero() -> None:
    facts = facts_of(SANDWICH, norms={POST: norm(weight=(0, 3))})
    assert written(facts, ATTENTION) == (1, 2, 4, 5, 6, 7)


def test_dimensions_are_unwritten_up_to_the_first_that_writes_them() -> None:
    layer = layer_of(RMS, output={"rows": (1, 2, 3)}, down={"rows": (2, 3)})
    facts = facts_of(RMS, layer)
    states = [LayerState.of(RMS, 0, layer)]
    (found,) = unwritten_before(facts, states, ~flags(HIDDEN, (0, 1, 2, 3)))
    assert indices_of(found[ATTENTION]) == (0, 1, 2, 3)
    assert indices_of(found[MLP]) == (1, 2, 3)


def test_parallel_blocks_read_what_is_written_before_their_layer() -> None:
    parallel = replace(spec_of(num_hidden_layers=2), has_parallel_blocks=True)
    layer = layer_of(parallel, output={"rows": (1, 2, 3)}, down={"rows": (2, 3)})
    facts = facts_of(parallel, layer, layer)
    states = [LayerState.of(parallel, index, layer) for index in range(2)]
    first, second = unwritten_before(facts, states, ~flags(HIDDEN, (0, 1, 2, 3)))
    assert indices_of(first[ATTENTION]) == indices_of(first[MLP]) == (0, 1, 2, 3)
    assert indices_of(second[ATTENTION]) == indices_of(second[MLP]) == (2, 3)


def removable(spec: ModelSpec, embedded: Indices = (), **fields: object) -> tuple[int, ...]:
    layer = layer_of(spec, output={"rows": (1, 2)}, down={"rows": (1, 2)})
    facts = facts_of(spec, layer, **fields)
    view = ModelView(facts, [LayerState.of(spec, 0, layer)], flags(8, embedded))
    return tuple(i for finding in unwritten_dims(view) for i in indices_of(finding.dead))


def test_dimension_that_nothing_writes_goes() -> None:
    assert removable(RMS) == (1, 2)
    assert removable(RMS, embedded=(2,)) == (1,)


def test_layer_norm_never_loses_dimensions() -> None:
    assert removable(LAYER_NORM) == removable(POST_LN) == ()


def test_dimension_that_only_a_post_norm_silences_counts_in_that_norm() -> None:
    names = ("post_attention_layernorm", "post_feedforward_layernorm")
    norms = {f"model.layers.0.{name}": norm(weight=(0, 1)) for name in names}
    assert removable(SANDWICH, norms=norms) == (1, 2)


def test_model_without_a_head_puts_all_its_dimensions_out() -> None:
    base = spec_of(architectures=["LlamaModel"])
    assert base.task == BASE
    assert removable(base) == ()
    classifier = spec_of(architectures=["LlamaForSequenceClassification"])
    assert classifier.task == CLASSIFICATION
    assert removable(classifier) == (1, 2)


def test_facts_without_a_norm_know_no_zero_of_it() -> None:
    assert not facts_of(RMS).norm("any").weight.any()
    assert facts_of(RMS).norm("any").bias.all()
    assert not facts_of(LAYER_NORM).norm("any").bias.any()
    assert np.array_equal(
        facts_of(RMS, norms={"any": norm((1,))}).norm("any").weight, flags(8, (1,))
    )
