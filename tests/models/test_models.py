"""Pruned folders through transformers' own Auto classes: loading, generating, saving again."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM

import sgate_serve.models
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError
from sgate_serve.models.loading import load_model
from tests.families.zoo import ZOO, build, token_batch
from tests.small_llama import EMPTY, UNEVEN, Kept, dense_llama, random_tokens, save_pruned

KEPT = {"uneven": UNEVEN, "no attention": [Kept((), (1, 2))] * 5, "empty": [EMPTY] * 5}


@pytest.fixture(params=KEPT, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LlamaForCausalLM, Path]:
    """A masked dense model and the folder of what is left of it."""
    model = dense_llama(num_hidden_layers=5, tie_word_embeddings=True)
    save_pruned(model, KEPT[request.param], tmp_path / "pruned")
    return model, tmp_path / "pruned"


def test_logits_and_cached_generation_equal_the_masked_model(
    pair: tuple[LlamaForCausalLM, Path],
) -> None:
    dense, folder = pair
    pruned = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(pruned) is sgate_serve.models.MODELS["llama"]["causal-lm"]
    prompts = torch.from_numpy(random_tokens(24).reshape(2, 12))
    with torch.no_grad():
        torch.testing.assert_close(pruned(prompts).logits, dense(prompts).logits)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompts)
    with_cache = pruned.generate(prompts, attention_mask=mask, **settings)
    assert torch.equal(with_cache, dense.generate(prompts, attention_mask=mask, **settings))
    without = pruned.generate(prompts, attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(with_cache, without)


def test_base_model_class_gives_the_same_hidden_states(
    pair: tuple[LlamaForCausalLM, Path],
) -> None:
    dense, folder = pair
    stack = AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert type(stack) is sgate_serve.models.MODELS["llama"]["base"]
    prompt = torch.from_numpy(random_tokens(9))[None]
    with torch.no_grad():
        found, expected = stack(prompt), dense.model(prompt)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)


def test_save_pretrained_round_trip(pair: tuple[LlamaForCausalLM, Path], tmp_path: Path) -> None:
    _, folder = pair
    first = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    first.save_pretrained(tmp_path / "again")
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    prompt = torch.from_numpy(random_tokens(9))[None]
    with torch.no_grad():
        assert torch.equal(first(prompt).logits, second(prompt).logits)


def test_config_keeps_per_layer_sizes_and_the_largest_at_the_top(
    pair: tuple[LlamaForCausalLM, Path],
) -> None:
    config = AutoConfig.from_pretrained(pair[1])
    assert config.model_type == "sgate"
    sizes = [layer.intermediate_size for layer in config.per_layer_config]
    assert config.intermediate_size >= max(sizes)


def test_folder_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "sgate", "sgate": {"version": 1, "family": "mamba"}}'
    )
    with pytest.raises(CheckpointError, match="supported families: bert, distilbert"):
        AutoConfig.from_pretrained(tmp_path)


def test_the_torch_engine_computes_soft_caps(tmp_path: Path) -> None:
    variant = ZOO["gemma2"][0]
    stock = build(variant, seed=0)
    stock.save_pretrained(tmp_path)
    loaded = load_model(Checkpoint.open(tmp_path)).eval()
    tokens = token_batch(variant, 0)
    with torch.no_grad():
        found = loaded(tokens).logits
        stock.set_attn_implementation("sdpa")  # transformers' default, without the caps
        uncapped = stock(tokens).logits
        stock.set_attn_implementation("eager")
        torch.testing.assert_close(found, stock(tokens).logits)
    assert (found - uncapped).abs().max() > 0.1
