"""Widths read off shapes: every layout understood, every contradiction refused by name."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sgate_serve.checkpoint import SINGLE_FILE, Checkpoint
from sgate_serve.errors import CheckpointError
from sgate_serve.families import FAMILIES, LLAMA
from sgate_serve.family import GATE, KEY, QUERY, UP, VALUE, Family
from sgate_serve.ragged import normalize_config
from sgate_serve.ragged.claims import ffn_units
from sgate_serve.spec import LayerShape, ModelSpec
from tests.ragged_layouts import LAYOUTS, Config, rewrite_config, stored
from tests.small_llama import UNEVEN, dense_llama, save_pruned

SOURCE = "model/config.json"
CONFIG: Config = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 20,
    "vocab_size": 11,
    "tie_word_embeddings": True,
}
# What is left: two KV heads of three, no attention, no MLP.
LAYERS = (LayerShape(4, 2, 8, 20), LayerShape(0, 0, 8, 7), LayerShape(2, 1, 8, 0))
ATTENTION_0, MLP_0 = "model.layers.0.self_attn", "model.layers.0.mlp"
Q_0, K_0, V_0, O_0 = (f"{ATTENTION_0}.{name}_proj.weight" for name in "qkvo")
UP_0, DOWN_0 = f"{MLP_0}.up_proj.weight", f"{MLP_0}.down_proj.weight"


def spec_of(config: Config, layers: tuple[LayerShape, ...] = LAYERS) -> ModelSpec:
    return replace(ModelSpec.from_config(config, SOURCE), layers=layers)


def shapes_of(config: Config, layers: tuple[LayerShape, ...] = LAYERS) -> dict[str, Any]:
    return dict(spec_of(config, layers).tensor_shapes())


def understood(config: Config, shapes: dict[str, Any]) -> ModelSpec:
    found, layout = normalize_config(config, stored(shapes), SOURCE)
    assert layout is not None and found["model_type"] == "sgate"
    return ModelSpec.from_config(found, SOURCE)


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
            "version": 1,
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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_of_every_family_gives_the_same_spec(family: str, layout: str) -> None:
    config = CONFIG | {"model_type": family, "sliding_window": None}
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


@given(st.lists(SHAPES, min_size=3, max_size=3).map(tuple), st.sampled_from(sorted(FAMILIES)))
def test_any_uneven_layers_are_read_back(layers: tuple[LayerShape, ...], family: str) -> None:
    config = CONFIG | {"model_type": family, "sliding_window": None}
    shapes = shapes_of(config, layers)
    found, layout = normalize_config(config, stored(shapes), SOURCE)
    if any(layer.num_heads or layer.mlp_units for layer in layers):
        assert ModelSpec.from_config(found, SOURCE).layers == layers
    else:
        assert (found, layout) == (config, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_config_that_fits_comes_back_untouched(family: str) -> None:
    config = CONFIG | {"model_type": family}
    shapes = stored(ModelSpec.from_config(config, SOURCE).tensor_shapes())
    found, layout = normalize_config(config, shapes, SOURCE)
    assert found is config and layout is None


@pytest.mark.parametrize("model_type", ["sgate", "bert", None, [], 3])
def test_configs_of_others_than_stock_families_come_back_untouched(model_type: Any) -> None:
    config = CONFIG | {"model_type": model_type, "num_hidden_layers": "x"}
    assert normalize_config(config, {}, SOURCE) == (config, None)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size"])
def test_what_a_config_lacks_is_named_by_its_reader(key: str) -> None:
    tensors = stored(shapes_of(CONFIG))
    config = {name: value for name, value in CONFIG.items() if name != key}
    assert normalize_config(config, tensors, SOURCE) == (config, None)
    found, _ = normalize_config(config | {"model_type": "nemotron-nas"}, tensors, SOURCE)
    with pytest.raises(CheckpointError, match=f"{key} must be a whole number, found None"):
        ModelSpec.from_config(found, SOURCE)


def test_names_unlike_the_family_are_left_to_the_checkpoint() -> None:
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
    assert time.perf_counter() - start < 0.5


def test_head_dim_comes_from_the_heads_named_the_norms_or_the_hidden_size() -> None:
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


def test_fused_projections_are_split_by_what_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
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


CHANGED_SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "cut query rows": ({Q_0: (28, 24)}, rf"{Q_0} has shape \[28, 24\]; expected 32 rows, to fit"),
    "cut output columns": ({O_0: (24, 28)}, rf"{Q_0} has shape \[32, 24\]; expected 28 rows"),
    "half a head": (
        {Q_0: (28, 24), O_0: (24, 28)},
        rf"{O_0} has shape \[24, 28\]; 28 are no whole heads of head_dim 8: cut whole heads only",
    ),
    "half a KV head": (
        {K_0: (12, 24), V_0: (12, 24)},
        rf"{K_0} has shape \[12, 24\]; 12 are no whole heads of head_dim 8",
    ),
    "keys unlike values": ({V_0: (8, 24)}, rf"{V_0} has shape \[8, 24\]; expected 16 rows, to fit"),
    "uneven groups": (
        {Q_0: (24, 24), O_0: (24, 24)},
        rf"{O_0} has shape \[24, 24\]; its 3 query heads are no multiple of the 2 KV heads of "
        rf"{ATTENTION_0}.k_proj: cut as many query heads for each KV head",
    ),
    "gate unlike up": ({UP_0: (19, 24)}, rf"{UP_0} has shape \[19, 24\]; expected 20 rows"),
    "one axis": ({DOWN_0: (20,)}, rf"{DOWN_0} has shape \[20\]; expected rows and columns, and no"),
    "no rows": (
        {K_0: (0, 24)},
        rf"{K_0} has shape \[0, 24\]; expected rows and columns, and no tensor",
    ),
}


@pytest.mark.parametrize("case", CHANGED_SHAPES)
def test_shapes_that_contradict_each_other(case: str) -> None:
    changes, message = CHANGED_SHAPES[case]
    with pytest.raises(CheckpointError, match=f"^model.safetensors: tensor {message}"):
        understood(CONFIG, shapes_of(CONFIG) | changes)


def test_blocks_that_are_only_half_there() -> None:
    shapes = shapes_of(CONFIG)
    del shapes[V_0]
    with pytest.raises(CheckpointError, match=rf"{SOURCE}: tensor {V_0} is missing .* lost, or is"):
        understood(CONFIG, shapes)
    low_rank = {f"{ATTENTION_0}.v_proj.w1": (4, 24), f"{ATTENTION_0}.v_proj.w2.weight": (16, 4)}
    with pytest.raises(CheckpointError, match=rf"{V_0} is missing .* quantised or of low rank\?"):
        understood(CONFIG, shapes | low_rank)
    packed = {name.replace(".weight", ".qweight"): shape for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=r"o_proj.weight is missing .* quantised or of low"):
        understood(CONFIG, packed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # 48 / 6 heads, or 24 rows / 6 heads.
        ({"hidden_size": 48}, r"with at most 24 rows it could be 4 or 8: add head_dim to the"),
        ({"num_attention_heads": 5}, r"with at most 24 rows it cannot be told: add head_dim"),
        ({"num_attention_heads": None}, r"with at most 24 rows it cannot be told: add head_dim"),
    ],
)
def test_a_head_dim_that_the_shapes_leave_open(changes: dict[str, Any], message: str) -> None:
    layers = (LayerShape(3, 1, 8, 20),) * 3
    shapes = shapes_of(CONFIG, layers)
    config = CONFIG | {"head_dim": None} | changes
    with pytest.raises(CheckpointError, match=f"^{SOURCE} lacks head_dim, and .* {message}"):
        understood(config, shapes)
    assert understood(config | {"head_dim": 8}, shapes).layers == layers
    assert understood(config | {"layer_head_num": [3, 3, 3]}, shapes).layers == layers


CLAIMS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "heads": (
        lambda: {"layer_head_num": [4, 0, 4]},
        r"layers.2.self_attn.o_proj.weight has shape \[24, 16\]; that makes num_attention_heads 2, "
        r"but layer_head_num\[2\] in config.json says 4: correct it, or give the tensors",
    ),
    "KV heads": (
        lambda: {"num_key_value_heads_per_layer": [1, 0, 1]},
        r"layers.0.self_attn.k_proj.weight has shape \[16, 24\]; that makes num_key_value_heads 2",
    ),
    "units": (
        lambda: {"layer_inter_size": [20, 8, 0]},
        r"layers.1.mlp.down_proj.weight has shape \[24, 7\]; that makes intermediate_size 7, but "
        r"layer_inter_size\[1\] in config.json says 8",
    ),
    "a block that is lost": (
        lambda: {"per_layer_config": {"1": {"num_attention_heads": 6}}},
        r"config.json: tensor model.layers.1.self_attn.o_proj.weight is missing from the checkpoint"
        r"; that makes num_attention_heads 0, but per_layer_config\[1\].num_attention_heads",
    ),
    "a block that is not gone": (
        lambda: {"per_layer_config": {"1": {"skip": ["mlp"]}}},
        r"layers.1.mlp.down_proj.weight has shape \[24, 7\]; that makes intermediate_size 7, but "
        r"per_layer_config\[1\].skip in config.json says 0",
    ),
    "the group size": (
        lambda: {"block_configs": [{"attention": {"n_heads_in_group": 4}}, {}, {}]},
        r"that makes queries_per_kv 2, but block_configs\[0\].attention.n_heads_in_group .* says 4",
    ),
    "ffn_mult": (
        lambda: {"block_configs": [{"ffn": {"ffn_mult": 2.0}}, {}, {}]},
        r"that makes intermediate_size 20, but block_configs\[0\].ffn.ffn_mult .* says 256",
    ),
    "a linear attention": (
        lambda: {"block_configs": [{"attention": {"replace_with_linear": True}}, {}, {}]},
        r"config.json: block_configs\[0\].attention.replace_with_linear is True; this release "
        "reads layers that differ in their widths and in skipped blocks, nothing else",
    ),
    "experts": (
        lambda: {"block_configs": [{}, {"ffn": {"moe": {"num_local_experts": 8}}}, {}]},
        r"block_configs\[1\].ffn.moe is {'num_local_experts': 8}; this release",
    ),
    "newer blocks": (
        lambda: {"block_configs": [{"subblock_configs": [{"kind": "attention"}]}, {}, {}]},
        r"block_configs\[0\].subblock_configs is \[{'kind': 'attention'}\]; this release",
    ),
    "a window": (
        lambda: {"per_layer_config": {"0": {"sliding_window": 128}}},
        r"per_layer_config\[0\].sliding_window is 128; this release",
    ),
    "full attention beside a window": (
        lambda: {"sliding_window": 64, "per_layer_config": {"0": {"sliding_window": None}}},
        r"per_layer_config\[0\].sliding_window is None; this release",
    ),
    "an unknown block": (
        lambda: {"per_layer_config": {"0": {"skip": ["norm"]}}},
        r'per_layer_config\[0\].skip must be a list of "attention" and "mlp", found \[\'norm\'\]',
    ),
    "skip that is no list": (
        lambda: {"per_layer_config": {"0": {"skip": "mlp"}}},
        r'per_layer_config\[0\].skip must be a list of "attention" and "mlp", found \'mlp\'',
    ),
    "no layer": (
        lambda: {"per_layer_config": {"3": {}}},
        r"config.json: per_layer_config\[3\] is none of the 3 layers",
    ),
    "no number": (
        lambda: {"per_layer_config": {"first": {}}},
        r"per_layer_config\[first\] is none of the 3 layers",
    ),
    "no object": (
        lambda: {"per_layer_config": {"0": 1}},
        r"per_layer_config\[0\] must be an object, found 1",
    ),
    "no objects": (
        lambda: {"per_layer_config": []},
        r"per_layer_config must be an object, found \[\]",
    ),
    "no list of blocks": (
        lambda: {"block_configs": {"0": {}}},
        r"config.json: block_configs must be a list, found {'0': {}}",
    ),
    "too few blocks": (
        lambda: {"block_configs": [{}]},
        r"block_configs has 1 entries for 3 layers; correct it or num_hidden_layers",
    ),
    "too many sizes": (
        lambda: {"layer_inter_size": [20, 7, 0, 20]},
        r"layer_inter_size has 4 entries for 3 layers; correct it or num_hidden_layers",
    ),
    "no list of sizes": (
        lambda: {"layer_head_num": 4},
        r"layer_head_num must be a list of whole numbers, one per layer, found 4",
    ),
    "a size that is none": (
        lambda: {"per_layer_config": {"0": {"intermediate_size": -1}}},
        r"per_layer_config\[0\]: intermediate_size must be a whole number, found -1",
    ),
    "no factor": (
        lambda: {"block_configs": [{"ffn": {"ffn_mult": 1e308}}, {}, {}]},
        r"block_configs\[0\].ffn: ffn_mult must be a number above 0, at most 1000, found 1e\+308",
    ),
    "a mistyped field": (
        lambda: {"num_attention_heads": "6"},
        "config.json: num_attention_heads must be a whole number, found '6'",
    ),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_configs_that_the_tensors_contradict(case: str) -> None:
    changes, message = CLAIMS[case]
    with pytest.raises(CheckpointError, match=message):
        understood(CONFIG | changes(), shapes_of(CONFIG))


def test_a_missing_norm_is_named(tmp_path: Path) -> None:
    save_pruned(dense_llama(num_hidden_layers=5), UNEVEN, tmp_path / "ragged")
    rewrite_config(tmp_path / "ragged", "stock")
    file, name = tmp_path / "ragged" / SINGLE_FILE, "model.layers.1.input_layernorm.weight"
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing; is a shard"):
        Checkpoint.open(tmp_path / "ragged")


def test_a_norm_of_a_layer_that_has_none_is_refused_in_a_folder_of_ours(tmp_path: Path) -> None:
    save_pruned(dense_llama(num_hidden_layers=5), UNEVEN, tmp_path / "pruned")
    file, name = tmp_path / "pruned" / SINGLE_FILE, "model.layers.2.input_layernorm.weight"
    save_file(load_file(file) | {name: np.ones(48, np.float32)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"tensor {name} is no part of family llama"):
        Checkpoint.open(tmp_path / "pruned")
