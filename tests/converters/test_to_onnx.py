"""The ONNX graph of small models against transformers: dense, padded, biased, uneven."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import LlamaForCausalLM

from converters.to_onnx import write_onnx
from converters.to_onnx.activations import OPERATORS
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.onnx.engine import load_runner, residuals
from sgate_serve.engines.runner import all_logits
from tests.small_llama import (
    EMPTY,
    UNEVEN,
    Kept,
    dense_llama,
    random_tokens,
    reference_logits,
    save,
    save_pruned,
    silence_biases,
)

OPTIONS = SlotOptions(slots=1, max_model_len=64, threads=1)
TOLERANCE = 1e-4


def relative_error(checkpoint: Checkpoint, oracle: Any) -> float:
    """Return the largest logit difference on 40 tokens, relative to the largest logit."""
    folder = checkpoint.folder / "onnx"
    write_onnx(checkpoint, folder)
    tokens = random_tokens(40)
    expected = reference_logits(oracle, tokens)
    found = all_logits(load_runner(folder, OPTIONS), tokens)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("head_dim", [2, 8, 12, 16, 20, 64])
def test_dense_model_with_any_even_head_width(tmp_path: Path, head_dim: int) -> None:
    model = dense_llama(head_dim=head_dim)
    assert relative_error(save(model, tmp_path), model) < TOLERANCE


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_dense_model_with_and_without_biases_and_tied_head(
    tmp_path: Path, tied: bool, bias: bool
) -> None:
    model = dense_llama(tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias, head_dim=12)
    assert relative_error(save(model, tmp_path), model) < TOLERANCE


@pytest.mark.parametrize("activation", sorted(OPERATORS))
def test_every_activation(tmp_path: Path, activation: str) -> None:
    model = dense_llama(hidden_act=activation, num_hidden_layers=1)
    assert relative_error(save(model, tmp_path), model) < TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
def test_uneven_layers_and_skipped_blocks(tmp_path: Path, bias: bool) -> None:
    model = dense_llama(num_hidden_layers=5, attention_bias=bias, mlp_bias=bias)
    checkpoint = save_pruned(model, UNEVEN, tmp_path / "pruned")
    assert relative_error(checkpoint, model) < TOLERANCE


@pytest.mark.parametrize("kept", [Kept((), (1, 2)), Kept((), ())], ids=["no attention", "nothing"])
def test_model_without_any_attention(tmp_path: Path, kept: Kept) -> None:
    model = dense_llama(tie_word_embeddings=True)
    checkpoint = save_pruned(model, [kept] * 3, tmp_path / "pruned")
    assert relative_error(checkpoint, model) < TOLERANCE


def test_extra_biases_on_some_of_the_packed_linears(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    extra = [family.linear(0, "key"), family.linear(0, "output"), family.linear(1, "up")]
    model = dense_llama(attention_bias=True, mlp_bias=True, head_dim=12)
    kept = [Kept((0,), (0, 5)), Kept((0, 1), (1, 2, 3)), EMPTY]
    silence_biases(model, save(model, tmp_path / "dense").spec, extra)
    checkpoint = save_pruned(model, kept, tmp_path / "pruned", extra)
    assert checkpoint.spec.extra_biases == frozenset(extra)
    assert relative_error(checkpoint, model) < TOLERANCE


def test_residual_of_every_layer_is_exposed(tmp_path: Path) -> None:
    model = dense_llama(num_hidden_layers=5)
    checkpoint = save_pruned(model, UNEVEN, tmp_path / "pruned")
    write_onnx(checkpoint, tmp_path / "onnx")
    tokens = random_tokens(9)
    expected: list[Any] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: expected.append(output))
    reference_logits(model, tokens)
    found = residuals(tmp_path / "onnx", tokens)
    assert len(found) == 5
    for stream, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(stream, wanted[0].numpy(), atol=1e-4)


def test_residual_before_the_first_block_is_the_embedding(tmp_path: Path) -> None:
    model = dense_llama()
    kept = [EMPTY, EMPTY, Kept((0,), (0,))]
    checkpoint = save_pruned(model, kept, tmp_path / "pruned")
    write_onnx(checkpoint, tmp_path / "onnx")
    tokens = random_tokens(5)
    embedded = model.model.embed_tokens.weight.detach().numpy()[tokens]
    first, second, third = residuals(tmp_path / "onnx", tokens)
    np.testing.assert_array_equal(first, embedded)
    np.testing.assert_array_equal(second, embedded)
    assert np.abs(third - embedded).max() > 0.01


def test_half_precision_weights_are_upcast_exactly(tmp_path: Path) -> None:
    checkpoint = save(dense_llama().to(torch.bfloat16), tmp_path / "half")
    assert checkpoint.tensors["model.norm.weight"].dtype == "BF16"
    # Loaded anew: a cast model would have rounded its rotary table too.
    model = LlamaForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
    assert relative_error(checkpoint, model) < TOLERANCE


def test_tied_head_shares_the_embedding(tmp_path: Path) -> None:
    for name, tied in (("tied", True), ("untied", False)):
        write_onnx(save(dense_llama(tie_word_embeddings=tied), tmp_path / name), tmp_path / name)
    tied_bytes, untied_bytes = (
        (tmp_path / name / "model.onnx.data").stat().st_size for name in ("tied", "untied")
    )
    assert untied_bytes - tied_bytes == 97 * 48 * 4


def test_graph_interface_and_metadata(tmp_path: Path) -> None:
    model = dense_llama(num_hidden_layers=5)
    checkpoint = save_pruned(model, UNEVEN, tmp_path / "pruned")
    write_onnx(checkpoint, tmp_path / "onnx")
    graph = ir.load(tmp_path / "onnx" / "model.onnx")
    past = [f"past_key_values.{i}.{kind}" for i in (1, 3, 4) for kind in ("key", "value")]
    present = [name.replace("past_key_values", "present") for name in past]
    tokens = ["input_ids", "unpack_index", "pack_index"]
    rows = ["seqlens_k", "total_sequence_length", "query_seqlens"]
    assert [v.name for v in graph.graph.inputs] == [*tokens, *rows, *past, "logit_index"]
    assert [value.name for value in graph.graph.outputs] == [*present, "logits"]
    assert graph.opset_imports[""] == 21 and graph.ir_version == 10
    weights = (tmp_path / "onnx" / "model.onnx.data").read_bytes()
    assert graph.metadata_props == {
        "sgate.onnx_version": "3",
        "sgate.kind": "generate",
        "sgate.family": "llama",
        "sgate.fingerprint": checkpoint.fingerprint,
        "sgate.digest": checkpoint.digest,
        "sgate.weights_digest": hashlib.sha256(weights).hexdigest(),
        "sgate.capacity": "256",
        "sgate.num_layers": "5",
        "sgate.precision": "fp32",
        "sgate.block": "0",
        "sgate.row_multiple": "1",
    }


def test_capacity_is_capped(tmp_path: Path) -> None:
    model = dense_llama(max_position_embeddings=131072, num_hidden_layers=1)
    write_onnx(save(model, tmp_path / "m"), tmp_path / "onnx")
    metadata = ir.load(tmp_path / "onnx" / "model.onnx").metadata_props
    assert metadata["sgate.capacity"] == "32768"
