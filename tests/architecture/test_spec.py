"""Specs read from configs: defaults, both spellings of a model, and every refusal."""

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from sgate_serve.architecture.rope import Rope
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.architecture.stock_shape import is_stock_shape
from sgate_serve.errors import CheckpointError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 10,
    "vocab_size": 7,
}
SGATE = LLAMA | {
    "model_type": "sgate",
    "head_dim": 4,
    "sgate": {"version": 1, "family": "llama", "base_model_type": "llama"},
    "per_layer_config": {
        "0": {"skip": ["attention"], "intermediate_size": 4},
        "2": {"num_attention_heads": 2, "num_key_value_heads": 1, "skip": ["mlp"]},
    },
}


def spec_of(**changes: Any) -> ModelSpec:
    return ModelSpec.from_config(LLAMA | changes, "config.json")


def test_defaults_follow_from_what_is_given() -> None:
    assert spec_of(hidden_size=16).layers == (LayerShape(4, 2, 4, 10),) * 3
    assert spec_of(head_dim=6, num_key_value_heads=None).layers[0].num_kv_heads == 4


def test_partial_rotary_factor_counts_only_where_transformers_reads_it() -> None:
    assert spec_of(head_dim=8, partial_rotary_factor=0.5).rotary_dims(0) == 8
    phi = LLAMA | {"model_type": "phi3", "partial_rotary_factor": 0.5, "hidden_size": 32}
    phi["pad_token_id"] = 0
    assert ModelSpec.from_config(phi, "config.json").rotary_dims(0) == 4


def test_rows_of_fused_roles_follow_each_other_or_alternate_by_head() -> None:
    sizes = LLAMA | {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"pad_token_id": 0, "head_dim": None, "rotary_pct": 1.0}
    del sizes["head_dim"]
    phi, neox = (
        ModelSpec.from_config(sizes | {"model_type": name}, "config.json")
        for name in ("phi3", "gpt_neox")
    )
    assert phi.role_rows(0, "query").tolist() == list(range(8))
    assert phi.role_rows(0, "value").tolist() == [12, 13, 14, 15]
    assert neox.role_rows(0, "query").tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert neox.role_rows(0, "value").tolist() == [8, 9, 10, 11, 20, 21, 22, 23]
    assert neox.role_rows(0, "output").tolist() == list(range(8))
    module = neox.family.linear(0, "key")
    assert sorted(neox.module_rows(0, module)) == list(range(24))


def test_rows_of_fused_roles_alternate_by_key_head_in_recurrent_layers_of_qwen3_next() -> None:
    """Of two key heads each serves two values; queries and keys are one wide, values two."""
    sizes = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    sizes |= {"linear_key_head_dim": 1, "linear_value_head_dim": 2}
    config = LLAMA | {"model_type": "qwen3_next", "num_hidden_layers": 4, **sizes}
    spec = ModelSpec.from_config(config, "config.json")
    rows = {role: spec.role_rows(0, role).tolist() for role in spec.linear_shapes(0)}
    assert rows["query"] == [0, 10] and rows["key"] == [1, 11]
    assert rows["value"] == [2, 3, 4, 5, 12, 13, 14, 15]
    assert rows["output_gate"] == [6, 7, 8, 9, 16, 17, 18, 19]
    assert rows["renewal"] == [0, 1, 4, 5] and rows["decay"] == [2, 3, 6, 7]


def test_a_null_softcap_is_off_whatever_the_default() -> None:
    gemma = LLAMA | {"model_type": "gemma2", "head_dim": 8, "hidden_size": 32}
    spec = ModelSpec.from_config(gemma, "config.json")
    assert (spec.attention_softcap, spec.logit_softcap) == (50.0, 30.0)
    off = gemma | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    spec = ModelSpec.from_config(off, "config.json")
    assert (spec.attention_softcap, spec.logit_softcap) == (None, None)


def test_per_layer_sizes_and_skipped_blocks() -> None:
    spec = ModelSpec.from_config(SGATE, "config.json")
    assert spec.layers == (
        LayerShape(0, 0, 4, 4),
        LayerShape(4, 2, 4, 10),
        LayerShape(2, 1, 4, 0),
    )
    names = spec.tensor_shapes()
    assert "model.layers.0.self_attn.q_proj.weight" not in names
    assert "model.layers.0.input_layernorm.weight" not in names
    assert names["model.layers.2.self_attn.o_proj.weight"] == (12, 8)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 5e5},
    ],
)
def test_both_spellings_of_rope(spelling: dict[str, Any]) -> None:
    spec = spec_of(head_dim=4, **spelling)
    assert spec.ropes == (Rope({"rope_theta": 5e5, "rope_type": "default"}),) * 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            LLAMA | {"model_type": "mamba"},
            "'mamba' is not supported; supported families: bert, distilbert",
        ),
        (
            LLAMA | {"hidden_size": "wide"},
            "hidden_size must be a whole number of at least 1, found 'wide'",
        ),
        (
            LLAMA | {"vocab_size": None},
            "vocab_size must be a whole number of at least 1, found null; transformers refuses it",
        ),
        (LLAMA | {"head_dim": 4, "num_key_value_heads": 3}, "4 query heads, not a multiple of"),
        (LLAMA | {"head_dim": 3}, "layer 0: head_dim 3 must be even and positive"),
        (SGATE | {"sgate": {"version": 3}}, "sgate format version 3, this release reads 1 and 2"),
        (SGATE | {"per_layer_config": {"7": {}}}, r"per_layer_config names layers \[7\] of 3"),
        (
            SGATE | {"per_layer_config": {"1": {"num_key_value_heads": 0}}},
            "layer 1 has query or KV heads, not both",
        ),
    ],
)
def test_configs_that_cannot_be_a_model_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelSpec.from_config(config, "config.json")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2"])
@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize("head_dim", [10, 16])
def test_stock_shapes_are_those_that_transformers_builds(
    family: str, heads: int, head_dim: int
) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": heads, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 2, "intermediate_size": 8, "vocab_size": 9, "pad_token_id": 0}
    # Phi-3 derives the width.
    stated = {} if family == "phi3" else {"head_dim": head_dim}
    base = {"version": 1, "family": family, "base_model_type": family}
    uniform = {"model_type": "sgate", "sgate": base, "per_layer_config": {}}
    spec = ModelSpec.from_config({**sizes, "head_dim": head_dim, **uniform}, "config.json")
    try:
        with torch.device("meta"):
            config = AutoConfig.for_model(family, **sizes, **stated)
            model = AutoModelForCausalLM.from_config(config)
    except StrictDataclassError:
        assert not is_stock_shape(spec)
        return
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert is_stock_shape(spec) is (spec.tensor_shapes() == found)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"head_dim": 4}, True), ({"head_dim": 4, "num_attention_heads": 10}, False)],
)
def test_stock_shape_needs_a_head_count_that_divides_the_hidden_size(
    changes: dict[str, Any], expected: bool
) -> None:
    uneven = SGATE | {"per_layer_config": {}} | changes
    assert is_stock_shape(ModelSpec.from_config(uneven, "config.json")) is expected
    if not expected:
        with pytest.raises(CheckpointError, match="hidden_size 12 is not a multiple of num_att"):
            spec_of(**changes)
    assert not is_stock_shape(ModelSpec.from_config(SGATE, "config.json"))
