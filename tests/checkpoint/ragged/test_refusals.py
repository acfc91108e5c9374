"""Ragged checkpoints that are contradictory or ambiguous are refused with a clear error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.errors import CheckpointError
from tests.checkpoint.ragged.layouts import rewrite_config
from tests.checkpoint.ragged.shapes import CONFIG, SOURCE, shapes_of, understood
from tests.small_llama import UNEVEN, dense_llama, save_pruned

ATTENTION_0, MLP_0 = "model.layers.0.self_attn", "model.layers.0.mlp"
Q_0, K_0, V_0, O_0 = (f"{ATTENTION_0}.{name}_proj.weight" for name in "qkvo")
UP_0, DOWN_0 = f"{MLP_0}.up_proj.weight", f"{MLP_0}.down_proj.weight"

CHANGED_SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "cut query rows": ({Q_0: (28, 24)}, rf"{Q_0} has shape \[28, 24\]; expected 32 rows, to fit"),
    "cut output columns": ({O_0: (24, 28)}, rf"{Q_0} has shape \[32, 24\]; expected 28 rows"),
    "half a head": (
        {Q_0: (28, 24), O_0: (24, 28)},
        rf"{O_0} has shape \[24, 28\]; 28 is not a whole number of heads of head_dim 8: cut whole "
        "heads only",
    ),
    "half a KV head": (
        {K_0: (12, 24), V_0: (12, 24)},
        rf"{K_0} has shape \[12, 24\]; 12 is not a whole number of heads of head_dim 8",
    ),
    "keys unlike values": ({V_0: (8, 24)}, rf"{V_0} has shape \[8, 24\]; expected 16 rows, to fit"),
    "uneven groups": (
        {Q_0: (24, 24), O_0: (24, 24)},
        rf"{O_0} has shape \[24, 24\]; its 3 query heads are not a multiple of the 2 KV heads of "
        rf"{ATTENTION_0}.k_proj: cut as many query heads for each KV head",
    ),
    "gate unlike up": ({UP_0: (19, 24)}, rf"{UP_0} has shape \[19, 24\]; expected 20 rows"),
    "one axis": ({DOWN_0: (20,)}, rf"{DOWN_0} has shape \[20\]; expected rows and columns, or no"),
    "no rows": (
        {K_0: (0, 24)},
        rf"{K_0} has shape \[0, 24\]; expected rows and columns, or no tensor",
    ),
}


@pytest.mark.parametrize("case", CHANGED_SHAPES)
def test_shapes_that_contradict_each_other(case: str) -> None:
    changes, message = CHANGED_SHAPES[case]
    with pytest.raises(CheckpointError, match=f"^model.safetensors: tensor {message}"):
        understood(CONFIG, shapes_of(CONFIG) | changes)


def test_incomplete_blocks() -> None:
    shapes = shapes_of(CONFIG)
    del shapes[V_0]
    with pytest.raises(CheckpointError, match=rf"{SOURCE}: tensor {V_0} is missing .* lost, or is"):
        understood(CONFIG, shapes)
    low_rank = {f"{ATTENTION_0}.v_proj.w1": (4, 24), f"{ATTENTION_0}.v_proj.w2.weight": (16, 4)}
    with pytest.raises(CheckpointError, match=rf"{V_0} is missing .* quantized or of low rank\?"):
        understood(CONFIG, shapes | low_rank)
    packed = {name.replace(".weight", ".qweight"): shape for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=r"o_proj.weight is missing .* quantized or of low"):
        understood(CONFIG, packed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # 48 / 6 heads, or 24 rows / 6 heads.
        ({"hidden_size": 48}, r"of at most 24 rows it could be 4 or 8: add head_dim to the"),
        ({"num_attention_heads": 5}, r"of at most 24 rows it cannot be told: add head_dim"),
        ({"num_attention_heads": None}, r"of at most 24 rows it cannot be told: add head_dim"),
    ],
)
def test_an_ambiguous_head_dim(changes: dict[str, Any], message: str) -> None:
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
        r"config.json: per_layer_config\[3\] is not one of the 3 layers",
    ),
    "no number": (
        lambda: {"per_layer_config": {"first": {}}},
        r"per_layer_config\[first\] is not one of the 3 layers",
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
    with pytest.raises(
        CheckpointError,
        match=f"tensor {name} is missing: transformers would fill it with random .* download the",
    ):
        Checkpoint.open(tmp_path / "ragged")


def test_a_norm_of_a_removed_block_is_refused_in_an_sgate_folder(tmp_path: Path) -> None:
    save_pruned(dense_llama(num_hidden_layers=5), UNEVEN, tmp_path / "pruned")
    file, name = tmp_path / "pruned" / SINGLE_FILE, "model.layers.2.input_layernorm.weight"
    save_file(load_file(file) | {name: np.ones(48, np.float32)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"tensor {name} is not part of family llama"):
        Checkpoint.open(tmp_path / "pruned")


def test_a_bias_that_transformers_leaves_out_is_refused() -> None:
    shapes = shapes_of(CONFIG, (LayerShape(6, 3, 8, 20),) * 3)
    for added, remedy in (
        (f"{ATTENTION_0}.q_proj.bias", "set attention_bias to true, or remove it"),
        (f"{MLP_0}.down_proj.bias", "set mlp_bias to true, or remove it"),
    ):
        with pytest.raises(CheckpointError, match=rf"tensor {added} is no part of .*; {remedy}"):
            understood(CONFIG, shapes | {added: (24,)})
    mistral = CONFIG | {"model_type": "mistral"}
    with pytest.raises(CheckpointError, match=r"transformers leaves it out; remove it"):
        understood(mistral, shapes | {f"{ATTENTION_0}.q_proj.bias": (48,)})
