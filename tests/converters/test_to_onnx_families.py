"""Constants of the forward as configs spell them: defaults left out, nulls, old and new names."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.convert import ConvertOptions, convert
from converters.to_onnx import write_onnx
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.runner import all_logits
from sgate_serve.errors import EngineError
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.onnx_format.names import MAX_CHUNK
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_stacks_in_files import restacked
from tests.families.zoo import ZOO, build
from tests.families.zoo_configs import VOCABULARY
from tests.small_llama import random_tokens

OPTIONS = SlotOptions(slots=1, max_model_len=64, threads=1)
RMS_FAMILIES = [
    name
    for name, variants in ZOO.items()
    if variants[0].task == CAUSAL_LM and FAMILIES[name].norm == "rms"
]


def saved(root: Path, family: str, number: int = 0, **config: Any) -> Checkpoint:
    build(ZOO[family][number], seed=0, **config).save_pretrained(root / "model")
    return Checkpoint.open(root / "model")


def edited(
    checkpoint: Checkpoint, fields: Mapping[str, Any] | None = None, without: tuple[str, ...] = ()
) -> Checkpoint:
    path = checkpoint.folder / "config.json"
    config = json.loads(path.read_text()) | dict(fields or {})
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in without}))
    return Checkpoint.open(checkpoint.folder)


def check_against_transformers(checkpoint: Checkpoint) -> np.ndarray[Any, Any]:
    graph = checkpoint.folder / "onnx"
    write_onnx(checkpoint, graph)
    tokens = random_tokens(40, vocab_size=VOCABULARY)
    expected = TorchModel.converted(checkpoint.folder).logits(tokens)
    found = all_logits(load_runner(graph, OPTIONS), tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    return found


def bases(checkpoint: Checkpoint) -> list[float]:
    return [rope.settings["rope_theta"] for rope in checkpoint.spec.ropes if rope is not None]


@pytest.mark.parametrize("options", [(True, True), (True, False), (False, True), (False, False)])
def test_attention_scales_of_gpt2(tmp_path: Path, options: tuple[bool, bool]) -> None:
    flags = dict(
        zip(("scale_attn_weights", "scale_attn_by_inverse_layer_idx"), options, strict=True)
    )
    check_against_transformers(saved(tmp_path, "gpt2", **flags))


def test_heads_of_gpt2_of_an_odd_width(tmp_path: Path) -> None:
    check_against_transformers(saved(tmp_path, "gpt2", n_embd=36, n_head=4))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_constants_that_a_config_leaves_out_are_those_of_its_class(
    tmp_path: Path, family: str
) -> None:
    keys = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
    checkpoint = edited(saved(tmp_path, family), without=keys)
    spec = checkpoint.spec
    caps = (50.0, 30.0) if family == "gemma2" else (None, None)
    assert (spec.attention_softcap, spec.logit_softcap) == caps
    assert spec.attention_scales[0] == 256**-0.5
    check_against_transformers(checkpoint)


def test_caps_that_are_null_are_off(tmp_path: Path) -> None:
    nulls = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    checkpoint = edited(saved(tmp_path, "gemma2"), nulls)
    spec = checkpoint.spec
    assert spec.attention_softcap is None and spec.logit_softcap is None
    check_against_transformers(checkpoint)


FULL = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
SLIDING = {"rope_type": "default", "rope_theta": 20.0}


def test_rotary_settings_of_each_kind_of_layer(tmp_path: Path) -> None:
    nested = {"full_attention": FULL, "sliding_attention": SLIDING}
    checkpoint = saved(tmp_path, "gemma3_text", rope_parameters=nested)
    assert bases(checkpoint) == [20.0, 20.0, 500.0]
    check_against_transformers(checkpoint)


def test_partial_rotation_of_one_kind_is_ignored_as_in_transformers(tmp_path: Path) -> None:
    partly = SLIDING | {"partial_rotary_factor": 0.5}
    nested = {"full_attention": FULL, "sliding_attention": partly}
    checkpoint = edited(saved(tmp_path, "gemma3_text"), {"rope_parameters": nested})
    check_against_transformers(checkpoint)


def test_old_spelling_of_the_two_rotary_settings(tmp_path: Path) -> None:
    old = {
        "rope_theta": 500.0,
        "rope_local_base_freq": 20.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    }
    checkpoint = saved(tmp_path, "gemma3_text")
    default = check_against_transformers(checkpoint)
    (checkpoint.folder / "onnx").rename(tmp_path / "default")
    checkpoint = edited(checkpoint, old, without=("rope_parameters",))
    assert np.abs(check_against_transformers(checkpoint) - default).max() > 0.01


def test_rotary_bases_that_a_config_leaves_out(tmp_path: Path) -> None:
    checkpoint = edited(saved(tmp_path, "gemma3_text"), without=("rope_parameters",))
    assert bases(checkpoint) == [1e4, 1e4, 1e6]
    check_against_transformers(checkpoint)


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_partial_rotation_of_odd_and_even_counts(tmp_path: Path, share: float) -> None:
    # Of 12 dimensions 3 and 9: transformers turns the dimension behind an odd count as well.
    check_against_transformers(saved(tmp_path, "phi3", partial_rotary_factor=share))


def test_longrope_ends_at_the_original_length(tmp_path: Path) -> None:
    sizes = {"original_max_position_embeddings": 64, "max_position_embeddings": 512}
    checkpoint = saved(tmp_path, "phi3", 1, **sizes)
    rope = checkpoint.spec.ropes[0]
    assert rope is not None and rope.settings["factor"] == 8
    check_against_transformers(checkpoint)
    with pytest.raises(EngineError, match="max_model_len 65 exceeds the graph's capacity of 64"):
        load_runner(checkpoint.folder / "onnx", replace(OPTIONS, max_model_len=65))


def test_tables_that_turn_alike_are_shared(tmp_path: Path) -> None:
    sizes = {}
    for name, theta in (("one", 500.0), ("two", 20.0)):
        nested = {"full_attention": {"rope_type": "default", "rope_theta": 500.0}}
        nested["sliding_attention"] = {"rope_type": "default", "rope_theta": theta}
        checkpoint = saved(tmp_path / name, "gemma3_text", rope_parameters=nested)
        write_onnx(checkpoint, tmp_path / name / "onnx")
        sizes[name] = (tmp_path / name / "onnx" / "model.onnx.data").stat().st_size
    assert sizes["two"] - sizes["one"] == 2 * (64 + MAX_CHUNK) * 8 * 4


@pytest.mark.parametrize("family", RMS_FAMILIES)
def test_removed_residual_dimensions(tmp_path: Path, family: str) -> None:
    # An epsilon that shows: it is scaled too.
    base = saved(tmp_path, family, rms_norm_eps=0.3)
    dead = [0, 3, 17, 40, 47]
    tensors = {name: base.read(name).copy() for name in base.tensors}
    post_norms = tuple(f"{name}.weight" for name in base.spec.family.post_norms.values())
    for name, tensor in tensors.items():
        if name.endswith("embed_tokens.weight"):
            tensor[:, dead] = 0
        elif name.rpartition(".")[0].endswith(("o_proj", "out_proj", "down_proj", "w2")):
            tensor[dead] = 0
        elif post_norms and name.endswith(post_norms):
            tensor[dead] = -1
    if base.is_stacked:
        counts = [len(layer.experts) for layer in base.spec.layers]
        tensors = restacked(tensors, counts, alternates=True)
    save_file(tensors, base.folder / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    convert(ConvertOptions(str(base.folder), out, to=("hf", "onnx")))
    spec = Checkpoint.open(out).spec
    assert (spec.hidden_size, spec.norm_size) == (43, 48)
    result = verify(VerifyOptions(str(base.folder), str(out), None, "onnx"))
    assert result.passed, result.difference


def test_bias_of_a_head_is_added_before_the_soft_cap(tmp_path: Path) -> None:
    base = saved(tmp_path, "gemma2")
    bias = np.random.default_rng(0).normal(0, 3, VOCABULARY).astype(np.float32)
    tensors = {name: base.read(name) for name in base.tensors} | {"lm_head.bias": bias}
    save_file(tensors, base.folder / "model.safetensors", metadata={"format": "pt"})
    fields = {
        "model_type": "sgate",
        "architectures": ["SGateGemma2ForCausalLM"],
        "sgate": {"version": 2, "family": "gemma2", "extra_biases": ["lm_head"]},
    }
    biased = edited(base, fields)
    assert np.abs(check_against_transformers(biased)).max() <= 4.0
