"""Two worker processes on two cores: tensor parallel where nothing divides, and pipeline parallel.

vLLM 0.32 on CPU allocates what a pipeline stage receives while it compiles, so that case compiles.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.contract import Request
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.table import load_engine
from sgate_serve.loaders.torch_model import TorchModel
from tests.engines.drive import greedy, prompt, run
from tests.engines.vllm.start import vllm_engine, worker_engine
from tests.families.test_equivalence import converted
from tests.families.zoo import ZOO, Variant
from tests.families.zoo_configs import DECODER, HYBRID
from tests.small_llama import random_tokens

pytestmark = pytest.mark.vllm

# 3 KV groups of 2 heads and 31 units: after pruning nothing divides by 2, and little before.
ODD = Variant(
    "llama",
    "odd",
    "causal-lm",
    DECODER
    | {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16}
    | {"intermediate_size": 31, "attention_bias": True, "mlp_bias": True},
)
TOKENS = 1 + random_tokens(20, vocab_size=96)
TWO_SHARDS = ["--tensor-parallel-size=2"]
REQUESTS = [Request(f"r{seed}", prompt(9 + seed, seed), greedy(8)) for seed in range(3)]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    folder = converted(ODD, tmp_path, skip=0, index_price=0)["out"]
    spec = Checkpoint.open(folder).spec
    assert spec.lowered
    assert any(layer.num_kv_heads % 2 for layer in spec.layers)
    assert any(layer.mlp_units % 2 for layer in spec.layers)
    return folder


def check_decoder(folder: Path, arguments: list[str]) -> None:
    reference = load_engine("torch", folder, SlotOptions(slots=3))
    expected = run(reference, REQUESTS)
    with vllm_engine(folder) as engine:
        assert run(engine, REQUESTS) == expected
    with worker_engine(folder, arguments) as engine:
        assert run(engine, REQUESTS) == expected
        found = engine.logits(TOKENS)
    np.testing.assert_allclose(found, reference.logits(TOKENS), rtol=0, atol=1e-4)


def test_tensor_parallel_shards_of_uneven_layers(odd: Path) -> None:
    check_decoder(odd, TWO_SHARDS)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [3, 1])
def test_tensor_parallel_norms_over_all_heads(kv_heads: int, tmp_path: Path) -> None:
    """Three KV heads for two shards, which get a fourth of zeros; and one that both have."""
    joint = replace(ODD, family="olmo2", config={**ODD.config, "num_key_value_heads": kv_heads})
    check_decoder(converted(joint, tmp_path, skip=0, index_price=0)["out"], TWO_SHARDS)


@pytest.mark.slow
def test_tensor_parallel_keys_that_are_values(tmp_path: Path) -> None:
    """Both shards have the one KV head of layers without a window."""
    folder = converted(ZOO["gemma4_text"][0], tmp_path, skip=0, index_price=0)["out"]
    check_decoder(folder, TWO_SHARDS)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [3, 1])
def test_tensor_parallel_recurrent_layers(kv_heads: int, tmp_path: Path) -> None:
    """Three key heads for two shards, of which one is padded; and one that both have."""
    recurrent = HYBRID | {"num_hidden_layers": 4, "full_attention_interval": 2}
    recurrent |= {"num_key_value_heads": kv_heads, "linear_num_key_heads": kv_heads}
    heads, values = {3: (6, 9), 1: (8, 4)}[kv_heads]
    recurrent |= {"num_attention_heads": heads, "linear_num_value_heads": values}
    model = Variant("qwen3_5_text", "odd", "causal-lm", recurrent | {"attention_bias": True})
    folder = converted(model, tmp_path, skip=3, index_price=0)["out"]
    layers = [layer for layer in Checkpoint.open(folder).spec.layers if layer.is_recurrent]
    assert max(layer.num_kv_heads for layer in layers) == kv_heads
    check_decoder(folder, TWO_SHARDS)


@pytest.mark.slow
def test_pipeline_parallel_stages(odd: Path) -> None:
    check_decoder(odd, ["--pipeline-parallel-size=2", "--no-enforce-eager"])


@pytest.mark.slow
def test_pipeline_parallel_states(tmp_path: Path) -> None:
    layers = HYBRID | {"num_hidden_layers": 6, "full_attention_interval": 3}
    model = Variant("qwen3_5_text", "stages", "causal-lm", layers)
    folder = converted(model, tmp_path, skip=1, index_price=0)["out"]
    check_decoder(folder, ["--pipeline-parallel-size=2", "--no-enforce-eager"])


@pytest.mark.slow
def test_tensor_parallel_encoder(tmp_path: Path) -> None:
    folder = converted(ZOO["bert"][1], tmp_path, skip=0, index_price=0)["out"]
    with worker_engine(folder, TWO_SHARDS) as engine:
        found = engine.logits(TOKENS)
    expected = TorchModel.converted(folder).logits(TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
