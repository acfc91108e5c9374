"""What the structure of a folder does in vLLM: cache blocks, head widths, narrow streams, heads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import Target
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_convert import write_gates
from tests.engines.vllm.start import vllm_engine
from tests.families.test_equivalence import check_verified, converted
from tests.families.zoo import ZOO, build
from tests.families.zoo_configs import VOCABULARY
from tests.small_llama import Kept, dense_llama, random_tokens, save, save_pruned
from tests.text.test_pooling import write_modules

pytestmark = pytest.mark.vllm

UNITS = tuple(range(30))


def num_blocks(folder: Path) -> int:
    with vllm_engine(folder) as engine:
        blocks: int = engine.engine.vllm_config.cache_config.num_gpu_blocks
    return blocks


def test_the_same_memory_holds_more_tokens_with_fewer_kv_heads(tmp_path: Path) -> None:
    dense = save(dense_llama(head_dim=32), tmp_path / "dense")
    half = [Kept((0,), UNITS), Kept((1,), UNITS[:7]), Kept((0,), UNITS)]
    third = [Kept((), UNITS), Kept((0, 1), UNITS[:7]), Kept((), UNITS)]
    blocks = num_blocks(dense.folder)
    for name, kept, share in (("half", half, 2), ("third", third, 3)):
        save_pruned(dense_llama(head_dim=32), kept, tmp_path / name)
        # 6 KV heads of the dense model against 3 and 2; rounding takes a block at most.
        assert abs(num_blocks(tmp_path / name) - share * blocks) <= share


@pytest.mark.parametrize("head_dim", [12, 40])
def test_heads_that_the_backend_does_not_take_are_padded(head_dim: int, tmp_path: Path) -> None:
    llama = ZOO["llama"][0]
    wide = replace(llama, config={**llama.config, "head_dim": head_dim})
    at = converted(wide, tmp_path, skip=0, index_price=0)
    assert Checkpoint.open(at["out"]).spec.layers[1].head_dim == head_dim
    check_verified(at, "vllm")


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_pooling_of_embeddings_does_not_reach_a_classifier(family: str, tmp_path: Path) -> None:
    classifier = next(model for model in ZOO[family] if model.task == "classification")
    at = converted(classifier, tmp_path, skip=0)
    # As an older conversion left it, or the maker of a classifier from a sentence encoder.
    write_modules(at["out"], ("Transformer", "Pooling"), {"pooling_mode_mean_tokens": True})
    result = verify(VerifyOptions(str(at["base"]), str(at["out"]), at["gates"], "vllm"))
    assert result.max_abs_diff <= result.tolerance and result.tokens_equal == result.num_tokens
    # The files are the only difference: no conversion of this base writes them.
    assert result.difference is not None
    assert result.difference.startswith("1_Pooling/config.json is there")


def test_a_uniform_result_loads_as_the_stock_class(tmp_path: Path) -> None:
    base = save(dense_llama(head_dim=32), tmp_path / "base")
    closed = {f"model.layers.{i}.mlp_units": np.arange(30) >= 10 + i for i in range(3)}
    gates = write_gates(base, tmp_path / "gates", **closed)
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates, target=Target(20)))
    with vllm_engine(tmp_path / "out") as engine:
        assert engine.engine.model_config.architecture == "LlamaForCausalLM"
    check_verified({"base": base.folder, "gates": gates, "out": tmp_path / "out"}, "vllm")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma4_text", "olmo2"])
def test_removed_residual_dimensions_keep_the_norms(family: str, tmp_path: Path) -> None:
    dead = [0, 17, 47]
    build(ZOO[family][0], seed=0).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    weights = load_file(path)
    for name, tensor in weights.items():
        if name.endswith("embed_tokens.weight"):
            tensor[:, dead] = 0
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[dead] = 0
    save_file(weights, path, metadata={"format": "pt"})
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out"))
    spec = Checkpoint.open(tmp_path / "out").spec
    assert (spec.hidden_size, spec.norm_size) == (45, 48)
    check_verified({"base": tmp_path / "base", "out": tmp_path / "out"}, "vllm")


@pytest.mark.parametrize("tied", [False, True])
def test_a_bias_of_the_head_is_added(tied: bool, tmp_path: Path) -> None:
    """A constant that conversion folds forward can end in the head, which then has a bias."""
    folder = converted(ZOO["llama"][1 if tied else 0], tmp_path, skip=0, index_price=0)["out"]
    bias = np.random.default_rng(0).normal(size=VOCABULARY).astype(np.float32)
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"lm_head.bias": bias}, path, metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["sgate"]["extra_biases"] = [*config["sgate"].get("extra_biases", ()), "lm_head"]
    (folder / "config.json").write_text(json.dumps(config))
    tokens = random_tokens(20)
    expected = TorchModel.converted(folder).logits(tokens)
    with vllm_engine(folder) as engine:
        torch.testing.assert_close(
            torch.from_numpy(engine.logits(tokens)), torch.from_numpy(expected), rtol=0, atol=1e-4
        )
