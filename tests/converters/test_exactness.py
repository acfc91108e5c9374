"""Exactness as a property: any model of the zoo, any zeros, any target (see `exactness`).

Every bug that this has found is a small example of its own below.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.checkpoint import Checkpoint
from sgate_serve.errors import PlanError
from sgate_serve.families import FAMILIES
from sgate_serve.plan import Target
from sgate_serve.verify.certificate import VerifyOptions
from sgate_serve.verify.run import verify
from tests.converters.exactness import Example, check, write_base, write_random_gates
from tests.converters.zeroing import WAYS
from tests.families.zoo import VARIANTS, Variant

CHECKS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
# The longest rope tables and the layer types of the zoo fix the number of layers.
FIXED_DEPTH = ("layer_types", "max_window_layers")


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
        # Only widths that shards cannot share may be refused.
        assert "no multiple of" in str(error), error
        assume(False)


@settings(max_examples=250, **CHECKS)
@given(example=EXAMPLES)
def test_conversion_is_exact_and_leaves_nothing_dead(
    tmp_path_factory: pytest.TempPathFactory, example: Example
) -> None:
    check_unless_refused(example, tmp_path_factory.mktemp("example"))


@pytest.mark.slow
@settings(max_examples=5000, **CHECKS)
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
    """Count the units that neither a closed column nor closed rows make dead or constant."""
    masked, family = open_masked(base.folder, gates), base.spec.family
    columns = masked.masks[family.linear(layer, "down")].columns
    assert columns is not None
    alive = columns != 0
    rows = {}
    for role in base.spec.linear_shapes(layer):
        gate = masked.masks[family.linear(layer, role)].rows
        assert gate is not None
        rows[role] = gate[base.spec.role_rows(layer, role)] != 0
    # A closed row closes its bias too: the unit is silent, or where act(0) is not 0 a constant.
    alive &= rows["up"] & rows["gate"] if family.is_gated else rows["up"]
    return int(alive.sum())
