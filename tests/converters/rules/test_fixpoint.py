"""Rules together: what one death brings about, what moves, and when a matrix is read again."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.rules import (
    LAYER_RULES,
    MODEL_RULES,
    ModelFacts,
    Zeros,
    find_dead,
    zeros_of_weight,
    zeros_on,
)
from converters.rules.facts import Flags
from converters.rules.fixpoint import Fixpoint, indices_of
from converters.rules.layer_state import LayerAxis
from converters.rules.merges import joined
from sgate_serve.plan import BlockFold, Merge, UnitFold, receiving_tensor
from tests.converters.rules.by_hand import (
    EVERY,
    HIDDEN,
    facts_of,
    flags,
    layer_of,
    norm,
    spec_of,
    zeros,
)

SPEC, GPT2, BERT, GEMMA = (spec_of(name) for name in ("llama", "gpt2", "bert", "gemma2"))


def alive(found: Fixpoint, axis: LayerAxis, index: int = 0) -> tuple[int, ...]:
    return indices_of(found.layers[index].alive(axis).reshape(-1))


def test_nothing_zero_nothing_dead() -> None:
    found = find_dead(facts_of(SPEC, layer_of(SPEC, bias=True)))
    assert not (found.removals or found.folds or found.merges or found.layer_removals[0])


def test_dead_values_carry_to_heads_and_their_kv_head() -> None:
    found = find_dead(facts_of(SPEC, layer_of(SPEC, value={"rows": (2, 3)})))
    assert alive(found, "heads") == (0, 1)
    assert alive(found, "kv_heads") == (0,)
    causes = {removal.axis: removal.cause for removal in found.layer_removals[0]}
    assert causes["value_dims"] == "value rows and biases are zero"
    assert causes["heads"] == "value dimensions are dead"
    assert causes["kv_heads"] == "no query head is left"


def test_unread_columns_make_rows_zero_and_those_make_units_die() -> None:
    unread = {INPUT: norm(weight=EVERY) for INPUT in ["model.layers.0.post_attention_layernorm"]}
    found = find_dead(facts_of(SPEC, norms=unread))
    assert alive(found, "mlp_units") == ()
    assert alive(found, "heads") == (0, 1, 2, 3)


def test_unembedded_dimension_goes_with_its_columns() -> None:
    layer = layer_of(SPEC, output={"rows": (4,)}, down={"rows": (4,)})
    found = find_dead(facts_of(SPEC, layer, unembedded=flags(HIDDEN, (3, 4))))
    assert indices_of(~found.hidden) == (4,)
    assert indices_of(~found.layers[0].inputs["query"]) == (3, 4)
    assert indices_of(~found.layers[0].inputs["up"]) == (4,)


def test_constant_of_a_unit_makes_the_down_bias_live() -> None:
    layer = layer_of(GPT2, up={"rows": EVERY, "bias": ()}, down={"bias": EVERY})
    found = find_dead(facts_of(GPT2, layer))
    assert found.folds == [
        UnitFold(0, (0, 1, 2)),
        BlockFold(0, "mlp", "transformer.h.0.attn.c_proj.bias"),
    ]


def test_constants_of_several_blocks_move_on_together() -> None:
    spec = spec_of(num_hidden_layers=2, attention_bias=True, mlp_bias=True)
    whole = layer_of(spec, bias=True)
    constant = layer_of(
        spec,
        bias=True,
        output={"columns": EVERY, "rows": EVERY, "bias": ()},
        down={"columns": EVERY, "rows": EVERY, "bias": ()},
    )
    found = find_dead(facts_of(spec, whole, constant))
    down = "model.layers.0.mlp.down_proj.bias"
    assert found.folds == [BlockFold(1, "attention", down), BlockFold(1, "mlp", down)]
    found = find_dead(facts_of(spec, constant, constant))
    received = [receiving_tensor(fold, spec) for fold in found.folds]
    assert received == ["model.embed_tokens.weight"] * 4


def test_block_that_keeps_its_constant_still_writes_it() -> None:
    spec = spec_of(tie_word_embeddings=True, attention_bias=True)
    layer = layer_of(
        spec,
        output={"rows": EVERY, "columns": EVERY, "bias": (0, 1)},
        down={"rows": EVERY, "columns": EVERY},
    )
    found = find_dead(facts_of(spec, layer, unembedded=flags(HIDDEN, EVERY)))
    assert found.folds == []
    # The bias writes 2 to 7 though no head is left: only 0 and 1 may go.
    assert indices_of(~found.hidden) == (0, 1)


def test_post_norm_keeps_a_constant_block() -> None:
    spec = spec_of("gemma2", attention_bias=True, tie_word_embeddings=False)
    layer = layer_of(spec, output={"rows": EVERY, "columns": EVERY, "bias": ()})
    found = find_dead(facts_of(spec, layer))
    assert found.folds == [] and not found.layers[0].has("attention")


def test_merges_that_follow_each_other_become_one() -> None:
    merges: list[Merge] = []
    for indices in ((1, 3), (0, 1), (0, 2)):
        merges = joined(merges, Merge("heads", 0, indices))
    assert merges == [Merge("heads", 0, (0, 1, 2, 3))]
    for other in (Merge("key_dims", 0, (0, 1)), Merge("heads", 1, (0, 1))):
        merges = joined(merges, other)
    assert len(merges) == 3


def test_column_of_merged_heads_is_zero_only_where_all_of_them_are() -> None:
    layer = layer_of(SPEC, query={"rows": (0, 1, 2, 3)}, output={"columns": (0, 2, 3)})
    # Heads 0 and 1 average alike; head 1 has no columns at all, so it dies before they merge.
    assert find_dead(facts_of(SPEC, layer)).merges == []
    layer = layer_of(SPEC, query={"rows": (0, 1, 2, 3)}, output={"columns": (0, 3)})
    found = find_dead(facts_of(SPEC, layer))
    assert found.merges == [Merge("heads", 0, (0, 1))]
    assert indices_of(found.layers[0].zeros["output"].columns) == (3,)


class Scanner:
    """Matrices to look at again, with a count of how often that was done."""

    def __init__(self, matrices: dict[str, NDArray[Any]]) -> None:
        self.matrices, self.looks = matrices, 0

    def __call__(self, index: int, role: str, rows: Flags, columns: Flags) -> Zeros:
        self.looks += 1
        return zeros_on(self.matrices[role], rows, columns)

    def facts(self, **fields: Any) -> ModelFacts:
        changes = {role: fields.pop(role) for role in list(fields) if role in layer_of(SPEC)}
        layer = layer_of(SPEC, **changes)
        for role, matrix in self.matrices.items():
            layer[role] = zeros_of_weight(matrix, None)
        return facts_of(SPEC, layer, scan=self, **fields)


def test_row_that_reads_only_dying_columns_becomes_zero() -> None:
    up = np.ones((3, HIDDEN), np.float32)
    up[1, 2:] = 0
    scanner = Scanner({"up": up})
    found = find_dead(scanner.facts(unembedded=flags(HIDDEN, (0, 1))))
    # Attention writes all dimensions, so that the MLP's columns live.
    assert alive(found, "mlp_units") == (0, 1, 2)
    unread = {"model.layers.0.post_attention_layernorm": norm(weight=(0, 1))}
    found = find_dead(scanner.facts(norms=unread))
    assert alive(found, "mlp_units") == (0, 2)


def test_matrix_is_looked_at_again_where_zero_lines_leave_few_scattered_zeros() -> None:
    down = np.ones((HIDDEN, 3), np.float32)
    # Columns of units 1 and 2 must not be zero, or they would die by themselves.
    up = np.ones((3, HIDDEN), np.float32)
    up[1, 2:], up[:, 3:] = 0, 0
    scanner = Scanner({"up": up, "down": down})
    unread = {"model.layers.0.post_attention_layernorm": norm(weight=(0, 1))}
    # Of row 1 one zero is scattered; the others are in zero columns.
    assert zeros_of_weight(up, None).scattered == 1
    assert alive(find_dead(scanner.facts(norms=unread)), "mlp_units") == (0, 2)


def test_matrix_without_scattered_zeros_is_read_once() -> None:
    scanner = Scanner({"up": np.ones((3, HIDDEN), np.float32)})
    unread = {"model.layers.0.post_attention_layernorm": norm(weight=(0, 1))}
    find_dead(scanner.facts(norms=unread))
    assert scanner.looks == 0


def test_zeros_within_what_lives() -> None:
    given = zeros(SPEC, "up", rows=(0,), columns=(0, 1))
    columns = ~flags(HIDDEN, (2, 3, 4, 5, 6, 7))
    assert given.within(flags(3, EVERY), columns).rows.all()
    assert given.within(flags(3, (0,)), flags(HIDDEN, EVERY)).columns.all()
    assert not given.within(flags(3, EVERY), flags(HIDDEN, EVERY)).rows[1:].any()


def test_row_that_a_constant_does_not_reach_keeps_its_zero_bias() -> None:
    down = np.ones((HIDDEN, 3), np.float32)
    down[:4, 1:] = 0
    down[4:, 1:], down[4, 0] = 2, 0
    layer = {"up": {"rows": (1, 2), "bias": ()}, "gate": {"rows": (1, 2)}}
    facts = Scanner({"down": down}).facts(**layer)
    facts = replace(facts, spec=spec_of(hidden_act="sigmoid"))
    folded = find_dead(facts).layers[0].folded["down"]
    assert indices_of(~folded) == (0, 1, 2, 3)


def test_stream_that_dies_bit_by_bit_keeps_a_width() -> None:
    layer = layer_of(SPEC, output={"rows": EVERY}, down={"rows": (0, 1)})
    facts = facts_of(SPEC, layer, unembedded=flags(HIDDEN, EVERY))
    found = Fixpoint(facts, LAYER_RULES, MODEL_RULES)
    found.run_model_rules()
    assert indices_of(~found.hidden) == (0, 1)
    # Only now the units die, and with them all that writes.
    found.run()
    assert not found.layers[0].mlp_units.any()
    assert found.hidden.any()


def test_norm_on_the_sum_takes_a_constant_over() -> None:
    layer = layer_of(BERT, bias=True, down={"rows": EVERY, "columns": EVERY, "bias": ()})
    found = find_dead(facts_of(BERT, layer))
    target = "bert.encoder.layer.0.attention.output.LayerNorm.bias"
    assert found.folds == [BlockFold(0, "mlp", target)]


def test_gemma_dimension_stays_while_a_post_norm_counts_it() -> None:
    names = ("post_attention_layernorm", "post_feedforward_layernorm")
    norms = {f"model.layers.0.{name}": norm(weight=(1,)) for name in names}
    found = find_dead(facts_of(GEMMA, norms=norms, unembedded=flags(HIDDEN, (1,))))
    assert found.hidden.all()
    assert indices_of(~found.layers[0].inputs["up"]) == (1,)
