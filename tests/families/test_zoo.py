"""The zoo of small models: every switch has an effect, batches are valid, outputs differ."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.families.float64 import logits64
from tests.families.zoo import VARIANTS, ZOO, Variant, build, padded_batch, token_batch
from tests.families.zoo_configs import GRANITE, VOCABULARY, WINDOW

FULL = ["full_attention"] * 3
SAME_ROPE = {
    kind: {"rope_type": "default", "rope_theta": 10_000.0}
    for kind in ("full_attention", "sliding_attention")
}
# Each entry switches off one feature of a variant; tensor shapes stay the same.
SWITCHES: list[tuple[str, int, dict[str, Any]]] = [
    ("mistral", 1, {"sliding_window": None}),
    ("qwen2", 1, {"use_sliding_window": False}),
    ("qwen2", 1, {"max_window_layers": 2}),
    ("qwen3", 1, {"layer_types": FULL}),
    ("smollm3", 0, {"no_rope_layer_interval": 9}),
    ("smollm3", 1, {"no_rope_layers": [1, 1, 1]}),
    ("smollm3", 1, {"use_sliding_window": False}),
    *(("granite", 0, {key: 1.0}) for key in GRANITE),
    ("starcoder2", 1, {"sliding_window": None}),
    ("phi3", 0, {"partial_rotary_factor": 1.0}),
    ("phi3", 1, {"original_max_position_embeddings": 32}),
    ("phi3", 1, {"rope_scaling": None}),
    ("phi3", 2, {"sliding_window": None}),
    ("gemma2", 0, {"attn_logit_softcapping": None}),
    ("gemma2", 0, {"final_logit_softcapping": None}),
    ("gemma2", 0, {"query_pre_attn_scalar": 16}),
    ("gemma2", 0, {"layer_types": FULL}),
    ("gemma2", 1, {"layer_types": FULL}),
    ("gemma3_text", 0, {"rope_parameters": SAME_ROPE}),
    ("gemma3_text", 0, {"sliding_window": 3}),
    ("gemma3_text", 1, {"query_pre_attn_scalar": 16}),
    ("gpt2", 1, {"scale_attn_by_inverse_layer_idx": False}),
    ("gpt2", 1, {"activation_function": "gelu_new"}),
    ("gpt_neox", 0, {"use_parallel_residual": False}),
    ("gpt_neox", 0, {"rotary_pct": 1.0}),
    ("gpt_neox", 1, {"use_parallel_residual": True}),
    ("gpt_neox", 2, {"rotary_emb_base": 10.0}),
    ("distilbert", 2, {"activation": "gelu"}),
    ("modernbert", 0, {"global_attn_every_n_layers": 1}),
    ("modernbert", 0, {"global_attn_every_n_layers": 9}),
    ("modernbert", 0, {"local_attention": 2 * WINDOW + 2}),
    ("modernbert", 0, {"local_rope_theta": 160_000.0}),
    ("modernbert", 1, {"classifier_activation": "relu"}),
    ("modernbert", 1, {"local_attention": 24}),
    ("modernbert", 2, {"classifier_pooling": "cls"}),
    ("modernbert", 2, {"layer_types": FULL}),
]


@pytest.mark.parametrize(("family", "number", "off"), SWITCHES)
def test_the_feature_of_a_variant_changes_its_outputs(
    family: str, number: int, off: dict[str, Any]
) -> None:
    variant = ZOO[family][number]
    ids = token_batch(variant, seed=0)
    on, without = logits64(build(variant, 0), ids), logits64(build(variant, 0, **off), ids)
    assert np.abs(on - without).max() > 1e-2


@pytest.mark.parametrize(
    ("family", "number", "tensor"),
    [
        ("llama", 1, "self_attn.o_proj.bias"),
        ("llama", 1, "mlp.down_proj.bias"),
        ("qwen2", 0, "self_attn.v_proj.bias"),
        ("qwen3", 0, "self_attn.k_norm.weight"),
        ("qwen3", 1, "self_attn.o_proj.bias"),
        ("gemma2", 0, "post_feedforward_layernorm.weight"),
        ("gemma2", 1, "self_attn.o_proj.bias"),
        ("gemma3_text", 1, "self_attn.q_norm.weight"),
        ("starcoder2", 0, "mlp.c_fc.bias"),
        ("phi3", 0, "self_attn.qkv_proj.weight"),
        ("gpt2", 0, "attn.c_attn.weight"),
        ("gpt_neox", 0, "attention.query_key_value.bias"),
        ("bert", 0, "attention.self.query.bias"),
        ("distilbert", 0, "attention.q_lin.bias"),
        ("modernbert", 0, "attn.Wqkv.weight"),
        ("modernbert", 2, "mlp.Wi.bias"),
        ("modernbert", 2, "mlp_norm.bias"),
    ],
)
def test_the_tensors_of_a_variants_feature_are_random(
    family: str, number: int, tensor: str
) -> None:
    state = build(ZOO[family][number], seed=0).state_dict()
    found = [value for name, value in state.items() if name.endswith(f".0.{tensor}")]
    assert len(found) == 1
    assert found[0].std() > 0.05


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_models_follow_from_their_seed_and_outputs_differ_clearly(variant: Variant) -> None:
    ids = token_batch(variant, seed=0)
    model = build(variant, seed=0)
    assert not model.training
    output = logits64(model, ids)
    np.testing.assert_array_equal(output, logits64(build(variant, seed=0), ids))
    assert output.std() > 0.3
    assert np.abs(output - logits64(build(variant, seed=1), ids)).max() > 0.3
    assert np.abs(output - logits64(model, token_batch(variant, seed=1))).max() > 0.3
    # Nearest neighbours among the rows that a task must distinguish.
    rows = output.reshape(-1, output.shape[-1])
    gaps = np.abs(rows[:, None] - rows[None]).max(axis=-1)[~np.eye(len(rows), dtype=bool)]
    assert gaps.min() > 0.05


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_only_padded_batches_contain_padding_and_only_at_the_end(variant: Variant) -> None:
    pad = variant.config["pad_token_id"]
    many = torch.cat([token_batch(variant, seed) for seed in range(50)])
    assert set(many.flatten().tolist()) == set(range(VOCABULARY)) - {pad}
    ids, mask = padded_batch(variant, seed=0)
    assert mask.sum(dim=1).tolist() == [12, 8]
    assert torch.equal(ids != pad, mask == 1)
    assert torch.equal(mask.sort(dim=1, descending=True).values, mask)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_padding_does_not_change_the_outputs_of_real_tokens(variant: Variant) -> None:
    model = build(variant, seed=0)
    ids, mask = padded_batch(variant, seed=0)
    padded = logits64(model, ids, mask)[1:]
    alone = logits64(model, ids[1:, :8])
    real = padded if variant.task == "classification" else padded[:, :8]
    np.testing.assert_allclose(real, alone, rtol=0, atol=1e-12)


def test_building_does_not_change_a_variant() -> None:
    variant = ZOO["phi3"][1]
    before = repr(variant)
    build(variant, seed=0)
    assert repr(variant) == before
