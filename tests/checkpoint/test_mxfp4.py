"""Experts in 4 bits: the same numbers as transformers dequantizes, and what is wrong in files."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.checkpoint.mxfp4 import NOTE, PackedStack, dequantized
from sgate_serve.checkpoint.outline.outline import Outline
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.stacks import StackedTensor
from sgate_serve.cli import main
from sgate_serve.errors import CheckpointError
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.models.experts import stacked_place
from sgate_serve.models.names import name_in
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.checkpoint.outline_models import both
from tests.converters.test_convert import write_gates
from tests.families.mxfp4_folders import WEIGHTS, Change, Tensors, pack_folder
from tests.families.zoo import ZOO, build, token_batch

VARIANT = ZOO["gpt_oss"][1]
HIDDEN, UNITS, EXPERTS, LAYERS = 64, 32, 5, 3
LAYER = "model.layers.0"
STACK = f"{LAYER}.mlp.experts.gate_up_proj"
Fields = dict[str, Any]


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("floats")
    build(VARIANT, 0, hidden_size=HIDDEN, intermediate_size=UNITS).save_pretrained(folder)
    return folder


def bits(array: Any) -> Any:
    return np.ascontiguousarray(array).view(np.uint16)


def in_transformers(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)
    )


def test_every_number_is_that_of_transformers() -> None:
    """All bytes with all scales but the one that is no number: also subnormal, also infinite."""
    byte = np.arange(256, dtype=np.uint8).reshape(16, 16)
    blocks = np.broadcast_to(byte, (255, 16, 16))
    scales = np.repeat(np.arange(255, dtype=np.uint8), 16).reshape(255, 16)
    pair = torch.tensor(blocks)[None], torch.tensor(scales)[None]
    expected = convert_moe_packed_tensors(*pair)[0].T.contiguous().view(torch.uint16).numpy()
    np.testing.assert_array_equal(bits(dequantized(blocks, scales)), expected)


def test_every_tensor_is_that_of_transformers(floats: Path, tmp_path: Path) -> None:
    folder = Checkpoint.open(pack_folder(floats, tmp_path / "packed"))
    theirs = in_transformers(folder.folder)
    parameters = dict(theirs.named_parameters())
    for name in folder.spec.tensor_shapes():
        own = name_in(theirs, folder.spec.family, name)
        if own not in parameters:
            stack, select = stacked_place(own, folder.spec.family)
            expected = select(parameters[stack])
        else:
            expected = parameters[own]
        found = folder.read(name)
        assert found.shape == tuple(expected.shape)
        raw = expected.detach().contiguous().view(torch.uint16).numpy()
        np.testing.assert_array_equal(bits(found), raw, err_msg=name)
    part = folder.tensors[f"{LAYER}.mlp.experts.1.up_proj.weight"]
    assert isinstance(part, StackedTensor) and isinstance(part.stack, PackedStack)
    whole = parameters[STACK].detach().view(torch.uint16).numpy()
    np.testing.assert_array_equal(bits(part.stack.read()), whole)


def test_sizes_are_those_of_the_files(floats: Path, tmp_path: Path) -> None:
    folder = Checkpoint.open(pack_folder(floats, tmp_path / "packed"))
    stored = load_file(folder.folder / WEIGHTS)
    assert folder.num_bytes == sum(value.nbytes for value in stored.values())


def test_a_base_in_4_bits_is_pruned_and_verified(
    floats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, gates, out = pack_folder(floats, tmp_path / "base"), tmp_path / "gates", tmp_path / "out"
    mlp = f"{LAYER}.mlp.experts.0.mlp_units"
    closed = {f"{LAYER}.experts": np.array([1, 1, 0, 1, 1]), mlp: np.arange(UNITS) >= 7}
    with caplog.at_level(logging.INFO):
        write_gates(Checkpoint.open(base), gates, **closed)
        arguments = ["convert", str(base), "--gates", str(gates), "--out", str(out)]
        assert main([*arguments, "--to", "hf,onnx"]) == 0
    assert caplog.messages.count(f"{base}: {NOTE}") == 1
    for engine in ("torch", "onnx"):
        result = verify(VerifyOptions(str(base), str(out), gates, engine))
        assert result.passed and result.base_read_alike, result.difference
    written = Checkpoint.open(out)
    assert "quantization_config" not in written.stored_config
    assert {info.dtype for info in written.tensors.values()} == {"BF16"}
    assert written.spec.layers[0].experts == (UNITS - 7, *[UNITS] * 3)


@pytest.mark.parametrize("is_uniform", [True, False])
def test_folders_with_fewer_experts_are_read(
    is_uniform: bool, floats: Path, tmp_path: Path
) -> None:
    """As REAP leaves them: blocks, scales, biases and routers of the experts that stay."""
    counts = [4, 4, 4] if is_uniform else [4, 2, 5]

    def change(fields: Fields, tensors: Tensors) -> None:
        for layer, count in enumerate(counts):
            for name in [name for name in tensors if f"layers.{layer}.mlp" in name]:
                tensors[name] = tensors[name][:count]
        fields["num_local_experts"] = max(counts)

    folder = Checkpoint.open(pack_folder(floats, tmp_path / "reap", change))
    assert [len(layer.experts) for layer in folder.spec.layers] == counts
    assert (folder.layout is None) == is_uniform
    out = tmp_path / "out"
    convert(ConvertOptions(str(folder.folder), out))
    result = verify(VerifyOptions(str(folder.folder), str(out), None, "torch"))
    assert result.passed and result.base_read_alike is (True if is_uniform else None)
    tokens = token_batch(VARIANT, 0)[0].numpy()
    masked = TorchModel.masked_dense(open_masked(folder.folder, None)).logits(tokens)
    found = TorchModel.converted(folder.folder).logits(tokens)
    np.testing.assert_allclose(found, masked, rtol=0, atol=1e-5)
    if is_uniform:
        theirs = TorchModel.by_transformers(folder).logits(tokens)
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5)
        assert not Outline.of(folder.folder).faults


def test_blocks_and_scales_may_be_in_different_files(floats: Path, tmp_path: Path) -> None:
    whole = Checkpoint.open(pack_folder(floats, tmp_path / "whole"))
    folder = pack_folder(floats, tmp_path / "shards")
    stored = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: f"{'b' if name.endswith('_scales') else 'a'}.safetensors" for name in stored}
    for file in set(places.values()):
        own = {name: value for name, value in stored.items() if places[name] == file}
        save_file(own, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    shards = Checkpoint.open(folder)
    assert (shards.digest, shards.fingerprint) == (whole.digest, whole.fingerprint)
    name = f"{LAYER}.mlp.experts.4.down_proj.weight"
    np.testing.assert_array_equal(bits(shards.read(name)), bits(whole.read(name)))


def test_a_layer_may_be_left_in_floats(floats: Path, tmp_path: Path) -> None:
    """What is stored decides, in transformers too, whatever `modules_to_not_convert` says."""

    def change(fields: Fields, tensors: Tensors) -> None:
        for name, value in load_file(floats / WEIGHTS).items():
            if name.startswith(f"{LAYER}.mlp.experts") and not name.endswith("bias"):
                del tensors[f"{name}_blocks"], tensors[f"{name}_scales"]
                tensors[name] = value.to(torch.bfloat16)

    folder = Checkpoint.open(pack_folder(floats, tmp_path / "mixed", change))
    tokens = token_batch(VARIANT, 0)[0].numpy()
    expected = TorchModel.by_transformers(folder).logits(tokens)
    found = TorchModel.masked_dense(open_masked(folder.folder, None)).logits(tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def without(*names: str) -> Change:
    def change(fields: Fields, tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


def cut(name: str, *sizes: int) -> Change:
    def change(fields: Fields, tensors: Tensors) -> None:
        tensors[name] = tensors[name][tuple(slice(size) for size in sizes)]

    return change


def stored_as(name: str, dtype: torch.dtype) -> Change:
    def change(fields: Fields, tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(dtype)

    return change


def doubled(fields: Fields, tensors: Tensors) -> None:
    tensors[STACK] = torch.zeros(EXPERTS, HIDDEN, 2 * UNITS)


def undeclared(fields: Fields, tensors: Tensors) -> None:
    del fields["quantization_config"]


def narrow(fields: Fields, tensors: Tensors) -> None:
    fields["hidden_size"] = HIDDEN // 2


# Change → what the reader says, and what `sgate inspect` finds in headers and config.
BROKEN: dict[str, tuple[Change, str, str]] = {
    "no scales": (
        without(f"{STACK}_scales"),
        f"model.safetensors: tensor {STACK}_blocks is there without {STACK}_scales; download",
        f"{STACK}: it has no scales",
    ),
    "no blocks": (
        without(f"{STACK}_blocks"),
        f"model.safetensors: tensor {STACK}_scales is there without {STACK}_blocks; download",
        f"{STACK}: it has no blocks",
    ),
    "signed blocks": (
        stored_as(f"{STACK}_blocks", torch.int8),
        f"tensor {STACK}_blocks is stored as I8, expected U8; download",
        f"{STACK}_blocks: it is stored as I8, expected U8",
    ),
    "scales as floats": (
        stored_as(f"{STACK}_scales", torch.float32),
        f"tensor {STACK}_scales is stored as F32, expected U8; download",
        f"{STACK}_scales: it is stored as F32, expected U8",
    ),
    "short blocks": (
        cut(f"{STACK}_blocks", 5, 64, 2, 8),
        f"tensor {STACK}_blocks has shape [5, 64, 2, 8], expected [experts, out, in / 32, 16]",
        f"{STACK}_blocks: it has shape [5, 64, 2, 8], expected [experts, out, in / 32, 16]",
    ),
    "scales of fewer experts": (
        cut(f"{STACK}_scales", 4),
        f"tensor {STACK}_scales has shape [4, 64, 2], expected [5, 64, 2], one for each block",
        f"{LAYER}.mlp: experts.gate_up_proj_scales holds 4 experts, and another stack 5",
    ),
    "fewer experts": (
        both(cut(f"{STACK}_blocks", 4), cut(f"{STACK}_scales", 4)),
        f"and expert 4 of tensor {STACK} is missing; is a shard lost",
        f"{LAYER}.mlp: experts.gate_up_proj_blocks holds 4 experts, and another stack 5",
    ),
    "in floats, too": (
        doubled,
        f"tensor {STACK} is there in 4 bits, too ({STACK}_blocks); keep one of them",
        "",
    ),
    "undeclared": (
        undeclared,
        "belongs to quantized weights; give the unquantized checkpoint",
        "quantization_config does not say quant_method mxfp4, so transformers leaves out",
    ),
    "another hidden size": (
        narrow,
        "embed_tokens.weight has shape [97, 64], config.json implies [97, 32]",
        f"{STACK}_blocks (and 2 more): it has 64 inputs, but config.json says hidden_size 32",
    ),
    "short bias": (
        cut(f"{STACK}_bias", 5, 62),
        f"experts.0.gate_proj.bias (in {STACK}_bias) has shape [31], config.json implies [32]",
        f"{STACK}_bias: it has shape [5, 62] for 64 outputs",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_in_files_is_named(kind: str, floats: Path, tmp_path: Path) -> None:
    change, message, fault = BROKEN[kind]
    folder = pack_folder(floats, tmp_path / "packed", change)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Checkpoint.open(folder)
    faults = Outline.of(folder).faults
    assert any(fault in found for found in faults) if fault else not faults


def test_a_scale_that_is_no_number_is_named_once_it_is_read(floats: Path, tmp_path: Path) -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        tensors[f"{STACK}_scales"][2, 5, 1] = 255

    folder = Checkpoint.open(pack_folder(floats, tmp_path / "packed", change))
    folder.read(f"{LAYER}.mlp.experts.2.gate_proj.weight")
    message = rf"model.safetensors: tensor {STACK}_scales holds 255, which is no number \(NaN\); do"
    with pytest.raises(CheckpointError, match=message):
        folder.read(f"{LAYER}.mlp.experts.2.up_proj.weight")
    with pytest.raises(CheckpointError, match=message):
        convert(ConvertOptions(str(folder.folder), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_families_and_methods_are_refused_by_name(tmp_path: Path) -> None:
    mxfp4, quark = {"quant_method": "mxfp4"}, {"quant_method": "quark"}
    text = {**mxfp4, "modules_to_not_convert": "lm_head"}
    for family, quantized, message in (
        ("mixtral", mxfp4, "quant_method mxfp4 is read for gpt_oss, not for model_type 'mixtral'"),
        ("gpt_oss", quark, "quant_method is 'quark', expected 'compressed-tensors'"),
        ("gpt_oss", text, "modules_to_not_convert must be a list of strings, found 'lm_head'"),
    ):
        folder = tmp_path / f"{family}-{len(message)}"
        model = build(ZOO[family][0], 0)
        model.config.quantization_config = quantized
        model.config.save_pretrained(folder)
        with pytest.raises(CheckpointError, match=re.escape(message)):
            Checkpoint.open(folder)
