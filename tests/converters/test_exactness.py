"""Exactness as a property: any model of the zoo, any zeros, any target (see `exactness`).

Every bug that this has found is a small example of its own below.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import DOWN, GATE, KEY, OUTPUT, QUERY, UP, VALUE
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import PlanError
from sgate_serve.plan import BlockFold, ColumnFold, Merge, Target
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.exactness import Example, check, write_base, write_random_gates
from tests.converters.zeroing import WAYS, Weights, unwrite
from tests.families.zoo import VARIANTS, ZOO, Variant

CHECKS = settings(deadline=None, suppress_health_check=list(HealthCheck))
# The longest rope tables and the layer types of the zoo fix the number of layers.
FIXED_DEPTH = (
    *("layer_types", "max_window_layers", "no_rope_layers", "mlp_only_layers"),
    "full_attention_interval",
)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """On models this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    """Draw a variant of the zoo, for any task of its family, at other sizes."""
    variant = draw(st.sampled_from(VARIANTS))
    family = FAMILIES[variant.family]
    sizes: dict[str, Any] = {"intermediate_size": draw(st.sampled_from([6, 12, 30]))}
    if family.has_kv_heads:
        sizes["num_key_value_heads"] = draw(st.sampled_from([2, 4, 1]))
    if family.has_stated_head_width:
        sizes |= {"hidden_size": 24, "num_attention_heads": 4, "head_dim": 8}
    if family.has_heads_by_type:
        sizes["global_head_dim"] = draw(st.sampled_from([8, 12]))
        sizes["num_global_key_value_heads"] = draw(st.sampled_from([1, 2, 4]))
        sizes["attention_k_eq_v"] = draw(st.booleans())
    if family.mixture is not None:
        sizes["num_experts"] = draw(st.sampled_from([2, 5]))
        sizes["moe_intermediate_size"] = draw(st.sampled_from([4, 10, 14]))
    if not any(field in variant.config for field in FIXED_DEPTH):
        sizes["num_hidden_layers"] = draw(st.integers(1, 3))
    activation = draw(st.sampled_from([None, None, "relu", "sigmoid", "tanh"]))
    if activation is not None:
        sizes["hidden_act"] = activation
    task: Any = draw(st.sampled_from([variant.task, *sorted(FAMILIES[variant.family].tasks)]))
    named = {family.keys.get(key, key): value for key, value in sizes.items()}
    return Variant(variant.family, variant.name, task, dict(variant.config) | named)


WAYS_TO_ZERO = st.lists(
    st.tuples(st.sampled_from(sorted(WAYS)), st.integers(0, 2**16)), max_size=8
).map(tuple)
GATES = st.tuples(st.sampled_from(["coupled", "row-col"]), st.sampled_from([0.25, 0.5, 0.8]))
TARGETS = st.just(Target()) | st.builds(
    Target,
    align=st.sampled_from([1, 2, 4, 8]),
    tensor_parallel=st.sampled_from([1, 2, 4]),
    engine=st.sampled_from([None, "onnx", "vllm", "torch"]),
    uniform=st.booleans(),
)
EXAMPLES = st.builds(
    Example,
    variant=variants(),
    seed=st.integers(0, 2**16),
    ways=WAYS_TO_ZERO,
    gates=st.none() | st.none() | GATES,
    has_added_biases=st.booleans(),
    target=TARGETS,
    index_price=st.sampled_from([0, 0, 40, None]),
    dtype=st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]),
)


def check_unless_refused(example: Example, root: Path) -> None:
    try:
        check(example, root)
    except PlanError as error:
        # Only widths that shards cannot share may be refused, and what a stock class lacks: biases,
        # and layers with fewer experts than others.
        is_added = example.target.uniform and example.has_added_biases
        is_closed = example.target.uniform and example.gates is not None
        assert (
            "no multiple of" in str(error)
            or (is_added and "has a bias that a stock" in str(error))
            or (is_closed and "a closed expert cannot come back" in str(error))
            or "no engine with shards runs uneven ones" in str(error)
        ), error
        assume(False)


@settings(CHECKS, max_examples=200)
@given(example=EXAMPLES)
def test_conversion_is_exact_and_leaves_nothing_dead(
    tmp_path_factory: pytest.TempPathFactory, example: Example
) -> None:
    check_unless_refused(example, tmp_path_factory.mktemp("example"))


@pytest.mark.slow
@settings(CHECKS, max_examples=5000)
@given(example=EXAMPLES)
def test_conversion_is_exact_for_many_more_examples(
    tmp_path_factory: pytest.TempPathFactory, example: Example
) -> None:
    check_unless_refused(example, tmp_path_factory.mktemp("example"))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_quarter_of_rows_and_columns_closed_loses_every_dead_unit(
    variant: Variant, tmp_path: Path
) -> None:
    example = Example(variant, gates=("row-col", 0.25), dtype=torch.float32)
    base, gates, out = (tmp_path / name for name in ("base", "gates", "out"))
    write_base(example, base)
    write_random_gates(Checkpoint.open(base), gates, ("row-col", 0.25), seed=3)
    plan = convert(ConvertOptions(str(base), out, gates))
    result = verify(VerifyOptions(str(base), str(out), gates, "torch", num_prompts=2))
    assert result.passed, result.difference
    kept = [len(layer.mlp_units) for layer in plan.layers]
    assert kept == [expected_units(Checkpoint.open(base), gates, i) for i in range(len(kept))]


def expected_units(base: Checkpoint, gates: Path, layer: int) -> int:
    """Count the units that neither a closed column nor closed rows make dead or constant.

    Where 1 is added to up (GPT-OSS), a unit is alive as long as its gate is, if only by its bias;
    and each expert keeps one for the bias of its output.
    """
    masked, family = open_masked(base.folder, gates), base.spec.family
    # A closed row closes its bias too. A linear that is closed on one side is on the other as well.
    is_open = {}
    is_clamped = base.spec.clamped_units is not None
    readers = {GATE} if is_clamped else {GATE, UP}
    for role in (DOWN, *(readers & family.linears.keys())):
        parts = []
        for part in base.spec.parts(layer, role):
            gate = masked.masks[part.module]
            assert gate.rows is not None and gate.columns is not None
            rows, columns = gate.rows[part.rows] != 0, gate.columns != 0
            reads = is_clamped or columns.any()
            parts.append(columns & rows.any() if role == DOWN else rows & reads)
        is_open[role] = np.concatenate(parts)
    is_alive = np.logical_and.reduce(list(is_open.values()))
    if not is_clamped:
        return int(is_alive.sum())
    return sum(max(int(is_alive[span].sum()), 1) for span in base.spec.layers[layer].expert_spans)


def zoo(family: str, number: int = 0, task: Any = None, **fields: Any) -> Variant:
    variant = ZOO[family][number]
    config = dict(variant.config) | fields
    return Variant(family, variant.name, task or variant.task, config)


def silence(weights: Weights, layer: int, role: str) -> None:
    """Zero a whole matrix; its bias stays."""
    weights.matrix(layer, role)[:] = 0


def two_unwritten(weights: Weights) -> None:
    unwrite(weights, [0, 3], len(weights.spec.layers))


def test_narrow_stream_keeps_the_width_of_heads_that_follows_from_it_elsewhere(
    tmp_path: Path,
) -> None:
    plan = check(Example(zoo("phi3"), change=two_unwritten), tmp_path)
    assert plan.hidden is not None and len(plan.hidden) == 46


def test_residual_dimensions_are_removed_only_without_gates(tmp_path: Path) -> None:
    base, gates, out = (tmp_path / name for name in ("base", "gates", "out"))
    write_base(Example(zoo("llama"), change=two_unwritten), base)
    write_random_gates(Checkpoint.open(base), gates, ("coupled", 0.5), seed=0)
    assert convert(ConvertOptions(str(base), out, gates)).hidden is None
    again = convert(ConvertOptions(str(out), tmp_path / "again"))
    assert again.hidden == tuple(i for i in range(48) if i not in (0, 3))


def test_residual_stream_that_is_the_output_keeps_its_dimensions(tmp_path: Path) -> None:
    plan = check(Example(zoo("llama", task="base"), change=two_unwritten), tmp_path)
    assert plan.hidden is None
    assert {removal.axis for removal in plan.layers[0].removals} >= {"query.columns"}


def test_constant_block_that_stays_keeps_the_dimensions_that_it_writes(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        two_unwritten(weights)
        silence(weights, 0, OUTPUT)
        bias = weights.bias(0, OUTPUT)
        assert bias is not None
        bias[0] = 1

    # Its head is tied, so that the first block's constant has nowhere to go.
    plan = check(Example(zoo("llama", 1), change=change), tmp_path)
    assert plan.hidden == tuple(i for i in range(48) if i != 3)
    assert plan.layers[0].heads == (0, 1)


def test_dimension_that_a_post_norm_silences_stays(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        unwrite(weights, [0], 0)
        for layer in range(3):
            for name in ("post_attention_layernorm", "post_feedforward_layernorm"):
                norm = weights.named(f"model.layers.{layer}.{name}.weight")
                assert norm is not None
                norm[0] = -1

    plan = check(Example(zoo("gemma2"), change=change), tmp_path)
    assert plan.hidden is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_model_without_any_block_converts_again(family: str, tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for layer in range(3):
            silence(weights, layer, OUTPUT)
            silence(weights, layer, DOWN)

    plan = check(Example(zoo(family), change=change), tmp_path)
    assert {layer.skipped_blocks for layer in plan.layers} == {("attention", "mlp")}


def test_16_bit_embedding_takes_no_constant(tmp_path: Path) -> None:
    variant = zoo("llama", 1, tie_word_embeddings=False)
    example = Example(
        variant, dtype=torch.bfloat16, change=lambda weights: silence(weights, 0, OUTPUT)
    )
    assert check(example, tmp_path / "half").folds == ()
    whole = Example(variant, change=example.change)
    (fold,) = check(whole, tmp_path / "whole").folds
    assert fold == BlockFold(0, "attention", "model.embed_tokens.weight")


def test_heads_that_become_uniform_one_after_another_merge_into_one(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        unwrite(weights, [0, 1], 0)
        query = weights.matrix(0, QUERY)
        query[: 2 * 12] = 0
        # Head 2 reads dimensions that nothing has written before: seen at a second look only.
        query[2 * 12 : 3 * 12, 2:] = 0

    plan = check(Example(zoo("llama", num_key_value_heads=1), change=change), tmp_path)
    assert plan.merges == (Merge("heads", 0, (0, 1, 2)),)


@pytest.mark.parametrize("target", [Target(), Target(tensor_parallel=2)])
def test_columns_of_revived_heads_are_not_stored(target: Target, tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, OUTPUT)[:, :12] = 0

    plan = check(Example(zoo("llama"), change=change, target=target), tmp_path)
    assert plan.layers[0].revived("heads") == {0}
    (lowering,) = plan.layers[0].lowerings
    assert lowering.roles == (OUTPUT,) and len(lowering.kept) == 36


def test_relu_below_zero_leaves_nothing_behind(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        up, bias = weights.matrix(0, UP), weights.bias(0, UP)
        assert bias is not None
        up[:4], bias[:4] = 0, -1

    plan = check(Example(zoo("gpt2", 1), change=change), tmp_path)
    assert plan.folds == () and len(plan.layers[0].mlp_units) == 26


def test_column_that_only_a_dead_row_reads_is_seen_beside_merged_rows(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        query, bias, key = weights.matrix(0, QUERY), weights.bias(0, QUERY), weights.matrix(0, KEY)
        assert bias is not None
        query[:5], bias[4] = 0, 0
        key[torch.arange(len(key)) != 4, 5] = 0

    plan = check(Example(zoo("bert"), change=change), tmp_path)
    assert plan.merges == (Merge("key_dims", 0, (0, 1, 2, 3)),)
    (columns,) = (one for one in plan.layers[0].lowerings if one.side == "columns")
    assert columns.roles == (KEY,) and 5 not in columns.kept


def test_constant_of_a_first_block_moves_into_the_norm_on_the_embedding(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        silence(weights, 0, OUTPUT)

    example = Example(zoo("modernbert", 3), change=change)
    (fold,) = check(example, tmp_path / "biased").folds
    assert fold == BlockFold(0, "attention", "model.embeddings.norm.bias")
    # Without a bias there, the block keeps one KV group, whose zeros leave only its constant.
    bare = zoo("modernbert", 3, norm_bias=False)
    plan = check(Example(bare, change=change), tmp_path / "bare")
    assert plan.folds == () and len(plan.layers[0].heads) == 1


@pytest.mark.parametrize(("pair", "is_dead"), [((4, 9), True), ((3, 8), True), ((4, 8), False)])
def test_an_odd_number_of_rotated_dimensions_turns_one_more(
    pair: tuple[int, int], is_dead: bool, tmp_path: Path
) -> None:
    def change(weights: Weights) -> None:
        fused = weights.named("model.layers.0.self_attn.qkv_proj.weight")
        assert fused is not None
        for head in range(4):
            fused[[12 * head + dim for dim in pair]] = 0

    # 9 of 12 dimensions, and so 10: dimension i turns with i + 5.
    variant = zoo("phi3", partial_rotary_factor=0.75)
    plan = check(Example(variant, change=change), tmp_path)
    gone = set(range(24)) - set(plan.layers[0].key_dims)
    assert gone == ({12 * head + dim for head in range(2) for dim in pair} if is_dead else set())


def test_first_block_loses_the_columns_that_the_norm_on_the_embedding_silences(
    tmp_path: Path,
) -> None:
    def change(weights: Weights) -> None:
        norm = weights.named("model.embeddings.norm.weight")
        assert norm is not None
        norm[:5] = 0

    plan = check(Example(zoo("modernbert", 3), change=change), tmp_path)
    roles = (QUERY, KEY, VALUE)
    (columns,) = plan.layers[0].lowerings
    assert columns.roles == roles and columns.kept == tuple(range(5, 48))
    assert set(plan.folds) == {ColumnFold(0, role, tuple(range(5))) for role in roles}
    assert not plan.layers[1].lowerings


def test_units_before_a_norm_on_top_stay(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        inner, outer = (weights.named(f"{name}.weight") for name in ("head.dense", "classifier"))
        assert inner is not None and outer is not None
        inner[:5], outer[:, 5:9] = 0, 0

    assert check(Example(zoo("modernbert", 1), change=change), tmp_path).head_units is None
