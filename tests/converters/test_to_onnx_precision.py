"""Graphs in other precisions than fp32: close to what they mean, and exact token by token."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import nn
from transformers import PreTrainedModel

from converters.convert import ConvertOptions, convert
from converters.to_onnx import write_onnx
from converters.to_onnx.comparison import first_difference
from converters.to_onnx.integer_blocks import round_to_4_bits, round_to_8_bits
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import OnnxOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.onnx.runner import OnnxRunner
from sgate_serve.engines.runner import TokenChunk, all_logits
from sgate_serve.errors import CheckpointError, EngineError
from sgate_serve.onnx_format.precision import PRECISIONS, Precision
from tests.converters.integer_blocks import dequantized
from tests.families.test_equivalence import converted
from tests.families.zoo import ON_ENGINES, ZOO, Variant, build
from tests.small_llama import (
    Kept,
    dense_llama,
    random_tokens,
    reference_logits,
    save,
    save_pruned,
)

Floats = NDArray[np.float32]

DECODERS = [v for v in ON_ENGINES if v.task == "causal-lm" and v.name != "longrope"]
NAMES = {
    *("llama-plain", "qwen2-tied", "qwen3-biased-sliding", "gemma2-soft-capped", "gpt2-tied"),
    *("qwen3_5_text-biased-half-rotary", "qwen2_moe-shared", "glm4_moe-normalized"),
    *("gpt_oss-alternating", "gemma4_text-experts"),
}
# Wider than the blocks of 4 and of 8 bits.
WIDE = {"hidden_size": 192, "moe_intermediate_size": 160, "shared_expert_intermediate_size": 160}
SOME = [variant for variant in DECODERS if str(variant) in NAMES]
SOME += [replace(v, name="wide", config={**v.config, **WIDE}) for v in ZOO["qwen2_moe"][:1]]
ROWS = " in rows"
QUANTIZED = ["int8", f"int8{ROWS}", "int4"]
SIZES = OnnxOptions(slots=4, max_model_len=48, threads=1, prefill_chunk=16, batch_invariant=True)


def held(precision: str) -> Precision:
    own = PRECISIONS[precision.removesuffix(ROWS)]
    return replace(own, in_rows=precision.endswith(ROWS))


def runner_of(checkpoint: Checkpoint, precision: str) -> OnnxRunner:
    folder = checkpoint.folder / precision
    write_onnx(checkpoint, folder, held(precision))
    return load_runner(folder, SIZES)


def relative_error(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def error_of_most(found: Floats, expected: Floats) -> float:
    """Return the median over tokens, since rounding changes more for some of them.

    It may choose other experts, or a norm after a block magnifies it where the block writes little.
    """
    return float(np.median(np.abs(found - expected).max(axis=-1)) / np.abs(expected).max())


def rounded_weights(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """Put into every linear and table what its blocks mean; heads need no padding here.

    Rows have one scale, which is about the same here: a row is one block.
    """
    own = held(precision)
    assert own.block is not None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            weight = module.weight.detach().numpy()
            four = own.bits == 4 and name.endswith(("o_proj", "gate_proj", "up_proj"))
            blocks = (round_to_4_bits if four else round_to_8_bits)(weight, own.block)
            module.weight.data = torch.from_numpy(dequantized(blocks, weight.shape[1]))
    return model


def test_4_bits_are_rounded_for_a_text_where_there_is_a_tokenizer(tmp_path: Path) -> None:
    model = dense_llama(num_hidden_layers=2, mlp_bias=True)
    checkpoint = save(model, tmp_path)
    write_onnx(checkpoint, tmp_path / "plain", PRECISIONS["int4"])
    letters = {chr(code): code - 32 for code in range(32, 127)}
    tokenizer = Tokenizer(WordLevel(letters, unk_token=" "))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_onnx(checkpoint, tmp_path / "onnx", PRECISIONS["int4"])
    assert {file.name for file in (tmp_path / "onnx").iterdir()} == {
        "model.onnx",
        "model.onnx.data",
    }
    graphs = [ir.load(tmp_path / name / "model.onnx").graph for name in ("plain", "onnx")]
    read = [graph.initializers["model.layers.1.gate_up.values"].const_value for graph in graphs]
    one, other = (tensor.numpy() for tensor in read if tensor is not None)
    assert (one != other).any()
    assert first_difference(checkpoint, tmp_path / "onnx", PRECISIONS["int4"]) is None
    # Another model's weights are not near.
    torch.manual_seed(1)
    nn.init.normal_(model.model.layers[1].mlp.up_proj.weight, std=0.1)
    changed = save(model, tmp_path / "other")
    found = first_difference(changed, tmp_path / "onnx", PRECISIONS["int4"])
    assert found == "weight model.layers.1.gate_up is not that of the folder's tensors"


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("tied", [False, True])
def test_a_graph_is_the_model_of_its_rounded_weights(
    precision: str, tied: bool, tmp_path: Path
) -> None:
    """But for activations, which are rounded to 8 bits; weights of 4 bits cost far more."""
    model = dense_llama(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    runner, tokens = runner_of(save(model, tmp_path), precision), random_tokens(40)
    found, exact = all_logits(runner, tokens), reference_logits(model, tokens)
    meant = reference_logits(rounded_weights(model, precision), tokens)
    # Activations of a token then have one scale instead of one for each block.
    assert relative_error(found, meant) < (0.15 if precision.endswith(ROWS) else 0.08)
    if precision == "int4":
        assert relative_error(found, exact) > 2 * relative_error(found, meant)


@pytest.mark.parametrize("variant", DECODERS, ids=str)
@pytest.mark.parametrize("is_lowered", [False, True])
def test_every_family_in_every_precision(
    variant: Variant, is_lowered: bool, tmp_path: Path
) -> None:
    if is_lowered:
        out = converted(variant, tmp_path, 1, index_price=0)["out"]
    else:
        build(variant, 0).save_pretrained(out := tmp_path / "out")
    checkpoint, tokens = Checkpoint.open(out), random_tokens(20)
    assert bool(checkpoint.spec.lowered) == is_lowered
    family, exact = checkpoint.spec.family, all_logits(runner_of(checkpoint, "fp32"), tokens)
    has_uneven_errors = family.mixture is not None or family.residual == "after"
    has_uneven_errors |= family.has_value_norm
    for precision, error in (("fp16", 0.02), ("int8", 0.2), (f"int8{ROWS}", 0.2), ("int4", 1.0)):
        found = all_logits(runner_of(checkpoint, precision), tokens)
        assert 0 < error_of_most(found, exact) < error
        assert has_uneven_errors or relative_error(found, exact) < error
        assert first_difference(checkpoint, out / precision, held(precision)) is None


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("variant", SOME, ids=str)
def test_decoding_is_exact_in_any_batch(variant: Variant, precision: str, tmp_path: Path) -> None:
    out = converted(variant, tmp_path, 1, index_price=0)["out"]
    runner, tokens = runner_of(Checkpoint.open(out), precision), random_tokens(12).tolist()

    def decode(beside: tuple[int, ...]) -> Floats:
        logits = [runner.forward([TokenChunk(1, tokens[:5])])]
        for slot in beside:
            runner.forward([TokenChunk(slot, random_tokens(4 + slot, seed=slot).tolist())])
        for step, token in enumerate(tokens[5:]):
            others = [TokenChunk(slot, (step + slot,)) for slot in beside]
            logits.append(runner.forward([TokenChunk(1, (token,)), *others])[:1])
        for slot in (1, *beside):
            runner.release(slot)
        return np.concatenate(logits)

    alone = decode(())
    for beside in ((0,), (2, 3), (0, 2, 3)):
        np.testing.assert_array_equal(decode(beside), alone)


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("tied", [False, True])
def test_all_but_attention_is_exact_beside_a_prompt_too(
    precision: str, tied: bool, tmp_path: Path
) -> None:
    """Attention sums in another order where rows differ in length, in fp32 as well."""
    model = dense_llama(tie_word_embeddings=tied, mlp_bias=True)
    kept = [Kept((), (1, 2, 7)), Kept((), tuple(range(30))), Kept((), ())]
    runner = runner_of(save_pruned(model, kept, tmp_path / "pruned"), precision)
    tokens = random_tokens(9).tolist()
    alone = np.concatenate([runner.forward([TokenChunk(1, (token,))]) for token in tokens])
    runner.release(1)
    for token, expected in zip(tokens, alone, strict=True):
        for length in (1, 2, 9, 16):
            prompt = random_tokens(length, seed=length).tolist()
            found = runner.forward([TokenChunk(0, prompt), TokenChunk(1, (token,), 1)])
            np.testing.assert_array_equal(found[1], expected)
            runner.release(0)
            runner.release(1)
    np.testing.assert_array_equal(runner.forward([TokenChunk(2, tokens, num_logits=9)]), alone)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_tied_embedding_is_stored_once(precision: str, tmp_path: Path) -> None:
    sizes = []
    for tied in (True, False):
        model = dense_llama(tie_word_embeddings=tied, vocab_size=1000)
        runner_of(save(model, tmp_path / str(tied)), precision)
        sizes.append((tmp_path / str(tied) / precision / "model.onnx.data").stat().st_size)
    width = held(precision).block
    assert width is not None
    # Blocks hold the 48 columns: a byte for each of their weights, and one scale.
    assert sizes[1] - sizes[0] == 1000 * -(-48 // width) * (width + 4)


@pytest.mark.parametrize(("precision", "role"), [("int8", "down"), (f"int8{ROWS}", "output")])
def test_an_int8_folder_gives_its_own_numbers_to_what_is_not_rescaled(
    precision: str, role: str, tmp_path: Path
) -> None:
    """In blocks as in rows."""
    save(dense_llama(), tmp_path / "base")
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out", precision="int8"))
    out = Checkpoint.open(tmp_path / "out")
    write_onnx(out, tmp_path / "onnx", held(precision))
    graph = ir.load(tmp_path / "onnx" / "model.onnx").graph
    module = {"down": "mlp.down_proj", "output": "self_attn.o_proj"}[role]
    values, scales = (
        out.read(f"model.layers.1.{module}.{part}") for part in ("weight", "weight_scale")
    )
    name = f"model.layers.1.{role}"
    read = {part: graph.initializers[f"{name}.{part}"].const_value for part in ("values", "scales")}
    found = {part: value.numpy() for part, value in read.items() if value is not None}
    if precision.endswith(ROWS):
        np.testing.assert_array_equal(found["values"].T, values)
        np.testing.assert_array_equal(found["scales"], scales[:, 0])
        return
    own = found["values"].reshape(len(values), -1)[:, : values.shape[1]].astype(np.int64) - 128
    np.testing.assert_array_equal(own, values)
    np.testing.assert_array_equal(found["scales"], np.broadcast_to(scales, found["scales"].shape))


@pytest.mark.parametrize("is_lowered", [False, True])
def test_an_int8_folder_is_the_same_model_in_fp32_and_int8(
    is_lowered: bool, tmp_path: Path
) -> None:
    variant = next(v for v in DECODERS if str(v) == "phi3-partial-rotary")
    options = {"index_price": 0} if is_lowered else {}
    out = converted(variant, tmp_path, 1, precision="int8", **options)["out"]
    checkpoint, tokens = Checkpoint.open(out), random_tokens(20)
    exact = all_logits(runner_of(checkpoint, "fp32"), tokens)
    assert 0 < relative_error(all_logits(runner_of(checkpoint, "int8"), tokens), exact) < 0.2


def test_half_precision_graphs_have_half_the_bytes_and_a_half_kv_cache(tmp_path: Path) -> None:
    checkpoint = save(dense_llama(), tmp_path)
    runners = {name: runner_of(checkpoint, name) for name in ("fp32", "fp16")}
    sizes = [(tmp_path / name / "model.onnx.data").stat().st_size for name in runners]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.02)
    assert runners["fp16"].cache.array("past_key_values.0.key").dtype == np.float16
    assert all_logits(runners["fp16"], random_tokens(5)).dtype == np.float32


def test_weights_too_large_for_fp16_are_refused(tmp_path: Path) -> None:
    model = dense_llama()
    model.model.norm.weight.data[3] = 1e5
    checkpoint = save(model, tmp_path)
    with pytest.raises(EngineError, match=r"model\.norm\.weight holds 1\.0e\+05, too large for a"):
        write_onnx(checkpoint, tmp_path / "onnx", PRECISIONS["fp16"])
    assert not list((tmp_path / "onnx").iterdir())


@pytest.mark.parametrize("precision", QUANTIZED)
def test_weights_that_no_integer_can_hold_are_refused(precision: str, tmp_path: Path) -> None:
    model = dense_llama()
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = torch.nan
    checkpoint = save(model, tmp_path / "model")
    message = r"layers\.1\.down hold NaN or infinite values, which .* repair the checkpoint"
    with pytest.raises(CheckpointError, match=message):
        write_onnx(checkpoint, tmp_path / "onnx", held(precision))
    assert not list((tmp_path / "onnx").iterdir())
