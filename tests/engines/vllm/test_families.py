"""Every family in vLLM: masked dense equals converted, however it was converted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from sgate_serve.architecture.family import CAUSAL_LM, CLASSIFICATION
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.contract import Request
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.table import load_engine
from sgate_serve.errors import EngineError
from sgate_serve.loaders.logits import load_logits_model
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.engines.drive import greedy, prompt, run
from tests.engines.vllm.start import vllm_engine
from tests.families import zoo
from tests.families.test_equivalence import check_verified, converted
from tests.families.zoo import ZOO, Variant

pytestmark = pytest.mark.vllm

# vLLM's experts clamp units by the published numbers alone.
VARIANTS = [variant for variant in zoo.ON_ENGINES if "swiglu_limit" not in variant.config]
FIRST = {variant.family: variant for variant in reversed(VARIANTS) if variant.task == CAUSAL_LM}
# Logits of the others are compared, and their tokens in `make test-all`.
DECODERS = [
    pytest.param(variant, marks=() if variant in FIRST.values() else pytest.mark.slow)
    for variant in VARIANTS
    if variant.task == CAUSAL_LM
]
# One of each kind: gated and not, sequential norms, post norms, fused linears, parallel blocks,
# recurrent ones, encoders.
SLICED = [
    variant
    for variant in VARIANTS
    if str(variant)
    in (
        *("llama-plain", "llama-classifier", "phi3-longrope", "gemma2-soft-capped"),
        *("gpt2-tied", "gpt_neox-pythia", "qwen3_5_text-tied", "qwen3_next-tied"),
        *("bert-pooled", "distilbert-classifier", "modernbert-biased-mean-classifier"),
    )
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_family_verifies_with_lowered_linears(variant: Variant, tmp_path: Path) -> None:
    at = converted(variant, tmp_path, skip=0, index_price=0)
    assert Checkpoint.open(at["out"]).spec.lowered
    check_verified(at, "vllm")


@pytest.mark.parametrize("variant", SLICED, ids=str)
def test_every_kind_verifies_with_whole_linears(variant: Variant, tmp_path: Path) -> None:
    at = converted(variant, tmp_path, skip=1, index_price=10**9)
    assert not Checkpoint.open(at["out"]).spec.lowered
    check_verified(at, "vllm")


@pytest.mark.parametrize("variant", DECODERS, ids=str)
def test_generated_tokens_are_those_of_transformers(variant: Variant, tmp_path: Path) -> None:
    """The prompt is longer than every window, so that a wrong mask or cache shows."""
    out = converted(variant, tmp_path, skip=1, index_price=0)["out"]
    requests = [Request(f"r{seed}", prompt(9 + seed, seed), greedy(8)) for seed in range(2)]
    reference = load_engine("torch", out, SlotOptions(slots=2))
    # vLLM itself would end Phi-3 where its long factors begin.
    with vllm_engine(out, max_model_len=48) as engine:
        assert run(engine, requests) == run(reference, requests)


def test_pairs_are_read_with_their_segments(tmp_path: Path) -> None:
    classifier = next(model for model in ZOO["bert"] if model.task == CLASSIFICATION)
    out = converted(classifier, tmp_path, skip=0)["out"]
    tokens = np.array(prompt(12))
    pair, one_text = np.repeat([0, 1], [7, 5]), np.zeros(12, np.int64)
    reference = load_logits_model("torch", Checkpoint.open(out), len(tokens))
    expected = [reference.logits(tokens, types) for types in (pair, one_text)]
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    with vllm_engine(out) as engine:
        found = [engine.logits(tokens, types) for types in (pair, one_text)]
        with pytest.raises(EngineError, match="zeros and then ones only"):
            engine.logits(tokens, pair[::-1])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_tokens_in_a_text_have_a_position_of_their_own(tmp_path: Path) -> None:
    out = converted(ZOO["roberta"][1], tmp_path, skip=0)["out"]
    tokens = np.array(prompt(12))
    padded = tokens.copy()
    padded[[0, 4, 5, -1]] = Checkpoint.open(out).config["pad_token_id"]
    reference = load_logits_model("torch", Checkpoint.open(out), len(tokens))
    with vllm_engine(out) as engine:
        found = [engine.logits(each) for each in (tokens, padded)]
    expected = [reference.logits(each) for each in (tokens, padded)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_positions_of_packed_texts_do_not_count_padding() -> None:
    from sgate_serve.engines.vllm.encoder import positions_without_padding

    texts = [torch.tensor(text) for text in ([5, 1, 6, 1, 1, 7], [1, 1, 8], [9, 4], [1])]
    counted = torch.cat([torch.arange(len(text)) for text in texts])
    # transformers adds the padding id, here 1, and gives padding itself that position.
    embed = RobertaEmbeddings.create_position_ids_from_input_ids
    expected = torch.cat([embed(text[None], 1)[0] for text in texts])
    found = positions_without_padding(torch.cat(texts) == 1, counted)
    assert (found + 2).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["down_proj.weight", "input_layernorm.weight", "lm_head.weight"])
def test_a_changed_weight_fails(name: str, tmp_path: Path) -> None:
    at = converted(ZOO["llama"][0], tmp_path, skip=0, index_price=0)
    path = at["out"] / "model.safetensors"
    weights = load_file(path)
    changed = max(key for key in weights if key.endswith(name))
    weights[changed] = weights[changed] + np.float32(0.05)
    save_file(weights, path, metadata={"format": "pt"})
    result = verify(VerifyOptions(str(at["base"]), str(at["out"]), at["gates"], "vllm"))
    assert not result.passed
    assert result.max_abs_diff > result.tolerance
    assert result.difference is not None and changed in result.difference
