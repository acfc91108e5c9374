"""Widths read from shapes: the layouts of other tools, with any family's names."""

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import GATE, KEY, QUERY, UP, VALUE, Family
from sgate_serve.architecture.llama_families import LLAMA
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.ragged import normalize_config
from sgate_serve.checkpoint.ragged.claims import ffn_units
from sgate_serve.errors import CheckpointError
from tests.checkpoint.ragged.layouts import LAYOUTS, stored
from tests.checkpoint.ragged.shapes import CONFIG, LAYERS, SOURCE, shapes_of, spec_of, understood
from tests.families.config_values import on_by_default

ATTENTION_0, MLP_0 = "model.layers.0.self_attn", "model.layers.0.mlp"


def test_the_written_config_is_the_documented_one() -> None:
    found, layout = normalize_config(CONFIG, stored(shapes_of(CONFIG)), SOURCE)
    assert layout == (
        "llama checkpoint, sizes of each layer from the tensor shapes (2 blocks are gone)"
    )
    assert found == CONFIG | {
        "model_type": "sgate",
        "architectures": ["SGateLlamaForCausalLM"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "per_layer_config": {
            "1": {"intermediate_size": 7, "skip": ["attention"]},
            "2": {"num_attention_heads": 2, "num_key_value_heads": 1, "skip": ["mlp"]},
        },
        "sgate": {
            "version": 2,
            "family": "llama",
            "base_model_type": "llama",
            "extra_biases": [],
        },
    }


def test_layer_numbers_are_zero_padded() -> None:
    config = CONFIG | {"num_hidden_layers": 11}
    layers = (LayerShape(6, 3, 8, 20),) * 10 + (LayerShape(2, 1, 8, 20),)
    found, _ = normalize_config(config, stored(shapes_of(config, layers)), SOURCE)
    assert found["per_layer_config"].keys() == {"10"}
    found, _ = normalize_config(config, stored(shapes_of(config, layers[::-1])), SOURCE)
    assert found["per_layer_config"].keys() == {"00"}


# Families whose configs have KV heads; BERT and RoBERTa have a separate test, mixtures too. Where
# heads depend on the type of a layer, shapes do not tell them apart.
GROUPED = sorted(
    name
    for name, family in FAMILIES.items()
    if family.has_kv_heads
    and family.mixture is None
    and family.recurrence is None
    and not family.has_heads_by_type
)
# Without windows, as a block_configs checkpoint is.
FULL_ATTENTION: dict[str, dict[str, Any]] = {
    name: {"model_type": name}
    | ({"layer_types": ["full_attention"] * 3} if family.windows == "typed" else {})
    | ({"sliding_window": None} if family.windows == "always" else {})
    for name, family in FAMILIES.items()
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", GROUPED)
def test_every_layout_of_every_family_gives_the_same_spec(family: str, layout: str) -> None:
    config = CONFIG | FULL_ATTENTION[family]
    expected = spec_of(config)
    foreign = LAYOUTS[layout][0](config, expected)
    if layout == "block_configs":
        expected = spec_of(config | {"model_type": "llama"})
    assert understood(foreign, dict(expected.tensor_shapes())) == expected


SHAPES = st.builds(
    lambda group, kv_heads, units: LayerShape(group * kv_heads, kv_heads, 8, units),
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(0, 9),
)


@given(st.lists(SHAPES, min_size=3, max_size=3).map(tuple), st.sampled_from(GROUPED))
def test_uneven_layers_round_trip(layers: tuple[LayerShape, ...], family: str) -> None:
    config = CONFIG | FULL_ATTENTION[family]
    shapes = shapes_of(config, layers)
    found, layout = normalize_config(config, stored(shapes), SOURCE)
    if any(layer.num_heads or layer.mlp_units for layer in layers):
        assert ModelSpec.from_config(found, SOURCE).layers == layers
    else:
        assert (found, layout) == (config, None)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_encoders_with_pruned_heads_are_read_from_their_shapes(family: str) -> None:
    config = CONFIG | {"model_type": family, "hidden_size": 48, "head_dim": None}
    layers = (LayerShape(4, 4, 8, 20), LayerShape(0, 0, 8, 7), LayerShape(6, 6, 8, 0))
    spec = understood(config, shapes_of(config, layers))
    assert spec == spec_of(config, layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_config_that_fits_comes_back_untouched(family: str) -> None:
    own, refused = FAMILIES[family].keys, FAMILIES[family].refused
    sizes = {own.get(key, key): value for key, value in CONFIG.items() if key not in refused}
    config = sizes | {"model_type": family, "full_attention_interval": 2}
    config |= dict.fromkeys(on_by_default(family), 0)
    if not FAMILIES[family].has_kv_heads:
        config |= {own.get("hidden_size", "hidden_size"): 48}
    shapes = stored(ModelSpec.from_config(config, SOURCE).tensor_shapes())
    found, layout = normalize_config(config, shapes, SOURCE)
    assert found is config and layout is None


@pytest.mark.parametrize("model_type", ["sgate", "mamba", None, [], 3])
def test_configs_of_unknown_families_come_back_untouched(model_type: Any) -> None:
    config = CONFIG | {"model_type": model_type, "num_hidden_layers": "x"}
    assert normalize_config(config, {}, SOURCE) == (config, None)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size"])
def test_missing_config_keys_are_named_by_the_reader(key: str) -> None:
    tensors = stored(shapes_of(CONFIG))
    config = {name: value for name, value in CONFIG.items() if name != key}
    assert normalize_config(config, tensors, SOURCE) == (config, None)
    with pytest.raises(CheckpointError, match=f"{key} must be a whole number, found None"):
        normalize_config(config | {"model_type": "nemotron-nas"}, tensors, SOURCE)


def test_tensor_names_of_another_family_are_left_to_the_checkpoint() -> None:
    shapes = {name.removeprefix("model."): shape for name, shape in shapes_of(CONFIG).items()}
    assert normalize_config(CONFIG, stored(shapes), SOURCE) == (CONFIG, None)


def test_a_70b_checkpoint_takes_no_noticeable_time() -> None:
    config = CONFIG | {
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 28672,
    }
    tensors = stored(ModelSpec.from_config(config, SOURCE).tensor_shapes())
    start = time.perf_counter()
    found, _ = normalize_config(config, tensors, SOURCE)
    assert found is config
    assert time.perf_counter() - start < 5  # a hundred times what it takes


def test_head_dim_comes_from_listed_heads_norms_or_hidden_size() -> None:
    silent = CONFIG | {"head_dim": None}
    assert understood(silent | {"layer_head_num": [4, 0, 2]}, shapes_of(CONFIG)).layers == LAYERS
    qwen3 = shapes_of(CONFIG | {"model_type": "qwen3"})
    assert understood(silent | {"model_type": "qwen3"}, qwen3).layers == LAYERS
    wide, layers = {"hidden_size": 48}, (LayerShape(6, 3, 8, 20), *LAYERS[1:])
    assert understood(silent | wide, shapes_of(CONFIG | wide, layers)).layers == layers
    # 24 / 4 heads would be 6, which no projection is a multiple of; 32 rows / 4 heads are 8.
    assert understood(silent | {"num_attention_heads": 4}, shapes_of(CONFIG)).layers == LAYERS


def test_head_dim_of_single_layers() -> None:
    layers = (LayerShape(6, 3, 8, 20), LayerShape(6, 3, 4, 20), LayerShape(6, 3, 8, 20))
    config = CONFIG | {"per_layer_config": {"1": {"head_dim": 4}}}
    assert understood(config, shapes_of(CONFIG, layers)).layers == layers
    qwen3 = CONFIG | {"model_type": "qwen3", "head_dim": None}
    shapes = shapes_of(CONFIG | {"model_type": "qwen3"}, layers)
    assert understood(qwen3, shapes).layers == layers


def fused(family: Family = LLAMA) -> Family:
    joined = dict.fromkeys((QUERY, KEY, VALUE), "self_attn.qkv_proj")
    return replace(
        family, linears={**family.linears, **joined, **dict.fromkeys((GATE, UP), "mlp.gate_up")}
    )


def fuse(shapes: dict[str, Any]) -> dict[str, Any]:
    """Join the rows of q, k, v and of gate and up."""
    for parts, whole in ((("q", "k", "v"), "qkv_proj"), (("gate", "up"), "gate_up")):
        for index in range(3):
            block = f"model.layers.{index}.{'self_attn' if whole == 'qkv_proj' else 'mlp'}"
            found = [shapes.pop(f"{block}.{part}_proj.weight", None) for part in parts]
            if found[0]:
                rows = sum(shape[0] for shape in found)
                shapes[f"{block}.{whole}.weight"] = (rows, found[0][1])
    return shapes


def test_fused_projections_are_split_by_their_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = fuse(shapes_of(CONFIG))
    monkeypatch.setitem(FAMILIES, "llama", fused())
    assert understood(CONFIG, shapes).layers == LAYERS
    name = f"{ATTENTION_0}.qkv_proj.weight"
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[63, 24\]; expected 62 rows"):
        understood(CONFIG, shapes | {name: (63, 24)})
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[32, 24\]; expected 34 rows"):
        understood(CONFIG, shapes | {name: (32, 24)})
    name = f"{MLP_0}.gate_up.weight"
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[39, 24\]; expected 40 rows"):
        understood(CONFIG, shapes | {name: (39, 24)})


def test_mlps_without_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    linears = {role: name for role, name in LLAMA.linears.items() if role != GATE}
    shapes = {n: shape for n, shape in shapes_of(CONFIG).items() if "gate_proj" not in n}
    monkeypatch.setitem(FAMILIES, "llama", replace(LLAMA, linears=linears))
    found, _ = normalize_config(CONFIG, stored(shapes), SOURCE)
    assert found["per_layer_config"]["1"] == {"intermediate_size": 7, "skip": ["attention"]}


@pytest.mark.parametrize(
    ("ffn_mult", "hidden", "units"),
    # Widths in the configs of published models: 51B and 49B, hidden size 8192.
    [(5.25, 8192, 28672), (1.3125, 8192, 7168), (1.0, 8192, 5632), (0.5, 8192, 2816), (8, 48, 256)],
)
def test_ffn_mult_is_rounded_as_nvidia_does(ffn_mult: float, hidden: int, units: int) -> None:
    assert ffn_units(ffn_mult, hidden) == units


def test_block_configs_with_ffn_mult_and_kv_heads() -> None:
    layers = (LayerShape(6, 3, 8, 256), LayerShape(6, 2, 8, 512), LayerShape(6, 6, 8, 256))
    blocks = [
        {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 10.0}},
        {"attention": {"num_key_value_heads": 2}, "ffn": {"ffn_mult": 20, "hidden_act": "silu"}},
        {"attention": {"n_heads_in_group": 1, "weights_precision": "bf16"}, "ffn": None},
    ]
    config = CONFIG | {"model_type": "nemotron-nas", "hidden_act": "silu", "block_configs": blocks}
    assert understood(config, shapes_of(CONFIG, layers)).layers == layers


def test_deci_checkpoints_with_kv_heads_of_their_own() -> None:
    layers = (LayerShape(6, 3, 8, 20), LayerShape(6, 2, 8, 20), LayerShape(6, 1, 8, 20))
    config = CONFIG | {"model_type": "deci", "num_key_value_heads_per_layer": [3, 2, 1]}
    spec = understood(config, shapes_of(CONFIG, layers))
    assert (spec.layers, spec.family.name) == (layers, "llama")


def test_a_size_of_the_config_that_no_layer_has_is_said() -> None:
    shapes = shapes_of(CONFIG, (LayerShape(6, 3, 8, 20),) * 3)
    _, words = normalize_config(CONFIG | {"intermediate_size": 19}, stored(shapes), SOURCE)
    assert words is not None
    assert words.endswith("shapes (intermediate_size is 20 in every layer and 19 in config.json)")
