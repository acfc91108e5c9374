"""GGUF files: as llama.cpp computes them, they equal the masked dense model."""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")

from converters.convert import ConvertOptions, convert, open_masked  # noqa: E402
from converters.to_gguf import GGUF_FILE  # noqa: E402
from sgate_serve.checkpoint.reader import Checkpoint  # noqa: E402
from sgate_serve.cli import main  # noqa: E402
from sgate_serve.errors import CheckpointError, PlanError  # noqa: E402
from sgate_serve.loaders.torch_model import TorchModel  # noqa: E402
from sgate_serve.plan import Target  # noqa: E402
from sgate_serve.verify.verification import verify  # noqa: E402
from sgate_serve.verify.verify_options import VerifyOptions  # noqa: E402
from tests.converters.gguf_forward import GgufModel  # noqa: E402
from tests.converters.test_convert import random_gates, write_gates  # noqa: E402
from tests.converters.test_to_onnx_lowered import row_col_gates  # noqa: E402
from tests.families.zoo import ZOO, Variant, build  # noqa: E402
from tests.families.zoo_configs import WINDOW  # noqa: E402
from tests.small_llama import random_tokens  # noqa: E402

TOLERANCE = 2e-5
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def variant_named(family: str, name: str) -> Variant:
    return next(variant for variant in ZOO[family] if variant.name == name)


def lost_dimensions(base: Checkpoint) -> None:
    """Let nothing write some residual dimensions, so that the stream becomes narrower."""
    tensors = {name: base.read(name).copy() for name in base.tensors}
    for name, tensor in tensors.items():
        dead = np.s_[:, :5] if name.endswith("embed_tokens.weight") else np.s_[:5]
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            tensor[dead] = 0
    save_file(tensors, base.folder / "model.safetensors", metadata={"format": "pt"})


@dataclass(frozen=True)
class Case:
    """A model, the blocks that its gates close besides random units, and the file's architecture.

    `closed` has (layer, kind of gates) that are closed entirely.
    """

    name: str
    architecture: str
    family: str = "llama"
    variant: str = "plain"
    config: dict[str, Any] = field(default_factory=dict)
    closed: tuple[tuple[int, str], ...] = ()
    share: float = 0.3
    row_col: bool = False
    prepare: Callable[[Checkpoint], None] | None = None
    uniform: bool = False
    precision: str | None = "fp32"

    def __str__(self) -> str:
        return self.name


NOTHING = ((0, "kv_groups"), (0, "mlp_units"))
CASES = [
    Case("llama", "llama", share=0, config={"rms_norm_eps": 0.3}),
    Case("biases", "llama", variant="biased-tied", uniform=True),
    Case("uneven", "deci", config={"rope_parameters": LLAMA3}),
    Case("linear-rope", "deci", config={"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    Case("no-attention-first", "deci", closed=((0, "kv_groups"),)),
    Case("no-attention-later", "deci", closed=((1, "kv_groups"),)),
    Case("no-mlp", "deci", closed=((1, "mlp_units"), (2, "mlp_units"))),
    Case("dropped-layer", "deci", closed=NOTHING),
    Case("uneven-biases", "deci", variant="biased-tied"),
    Case("index-vectors", "deci", row_col=True),
    Case("narrow-stream", "llama", prepare=lost_dimensions, share=0, config={"rms_norm_eps": 0.3}),
    Case("mistral", "deci", "mistral", "full"),
    Case("phi3", "deci", "phi3", "sliding", {"sliding_window": None}),
    Case("qwen2-uneven", "deci", "qwen2", "tied"),
    Case("qwen2-fewer-heads", "llama", "qwen2", "tied", uniform=True, share=0.6),
    Case("blocks", "deci", precision="int8", config={"hidden_size": 64, "intermediate_size": 160}),
]
# Read back by transformers. Its qwen3 takes every head for 128 wide.
STOCK = [
    Case("stock-llama", "llama", uniform=True),
    Case("stock-mistral", "llama", "mistral", "full", uniform=True),
    Case("stock-qwen2", "qwen2", "qwen2", "tied", share=0),
    Case("stock-qwen3", "qwen3", "qwen3", "tied", {"head_dim": 128}, uniform=True),
]


def converted(case: Case, root: Path) -> GgufModel:
    variant = variant_named(case.family, case.variant)
    build(variant, seed=0, **case.config).save_pretrained(root / "base")
    if case.prepare is not None:
        case.prepare(Checkpoint.open(root / "base"))
    base = Checkpoint.open(root / "base")
    values = random_gates(base, seed=1, closed=case.share)
    for layer, kind in case.closed:
        name = f"{base.spec.family.layer_name(layer)}.{kind}"
        values[name] = np.zeros_like(values[name])
    if case.row_col:
        values = row_col_gates(base, 0.25)
    write_gates(base, root / "gates", **values)
    convert(
        ConvertOptions(
            str(root / "base"),
            root / "out",
            root / "gates",
            ("hf", "gguf"),
            case.precision,
            target=Target(uniform=case.uniform),
            index_price=0 if case.row_col else None,
        )
    )
    return GgufModel(root / "out" / GGUF_FILE)


def expected_logits(root: Path, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    return TorchModel.masked_dense(open_masked(root / "base", root / "gates")).logits(tokens)


def check_equal(found: NDArray[Any], expected: NDArray[Any], tolerance: float = TOLERANCE) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_llama_cpp_computes_is_the_masked_dense_model(case: Case, tmp_path: Path) -> None:
    model, tokens = converted(case, tmp_path), random_tokens(20)
    assert model.name == case.architecture
    # Q8_0 rounds by up to 1 in 254 of the largest in a block, in each matrix.
    tolerance = 0.05 if case.precision == "int8" else TOLERANCE
    check_equal(model.logits(tokens), expected_logits(tmp_path, tokens), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, *STOCK], ids=str)
def test_llama_cpp_itself_agrees(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from tests.converters.llama_cpp_logits import llama_cpp_logits

    model, tokens = converted(case, tmp_path), random_tokens(20)
    found = llama_cpp_logits(tmp_path / "out" / GGUF_FILE, tokens)
    if case.precision == "int8":
        # Activations are rounded too, unlike in the reference here.
        check_equal(found, model.logits(tokens), 0.05)
    else:
        check_equal(found, expected_logits(tmp_path, tokens))


@pytest.mark.parametrize("case", STOCK, ids=str)
def test_transformers_reads_a_file_of_layers_that_are_alike(case: Case, tmp_path: Path) -> None:
    assert converted(case, tmp_path).name == case.architecture
    path, tokens = tmp_path / "out" / GGUF_FILE, random_tokens(20)
    read = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    with torch.no_grad():
        found = read(torch.from_numpy(tokens)[None]).logits[0].numpy()
    check_equal(found, expected_logits(tmp_path, tokens))


def test_blocks_get_widths_that_they_fill(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "blocks")
    model = converted(replace(case, precision="int4"), tmp_path)
    plan = json.loads((tmp_path / "out" / "config.json").read_text())["per_layer_config"]
    own = [layer["intermediate_size"] for layer in plan.values()]
    stored = model.per_layer("feed_forward_length")
    assert any(width % 32 for width in own) and not any(width % 32 for width in stored)
    down = model.tensors["blk.0.ffn_down.weight"]
    assert (down[:, -1] == 0).all() and (down[:, 0] != 0).any()
    assert model.kinds["blk.0.ffn_down.weight"] == "Q4_0"
    assert model.kinds["token_embd.weight"] == "Q8_0"
    assert model.kinds["blk.0.attn_norm.weight"] == "F32"
    assert model.fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0


def test_rows_that_blocks_do_not_fill_are_halves(tmp_path: Path) -> None:
    model = converted(replace(CASES[0], precision="int8"), tmp_path)
    assert model.kinds["blk.0.attn_q.weight"] == model.kinds["token_embd.weight"] == "F16"
    assert model.kinds["blk.0.ffn_down.weight"] == "Q8_0"


def test_halves_are_the_default_and_one_file_is_the_same_every_time(tmp_path: Path) -> None:
    case = replace(CASES[0], precision=None)
    for name in ("one", "two"):
        assert converted(case, tmp_path / name).kinds["blk.0.attn_q.weight"] == "F16"
    one, two = ((tmp_path / name / "out" / GGUF_FILE).read_bytes() for name in ("one", "two"))
    assert one == two and os.fsencode(tmp_path) not in one


@pytest.mark.parametrize("precision", [None, "int4"])
def test_verify_compares_the_file_too(
    precision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if case.name == "blocks")
    converted(replace(case, precision=precision), tmp_path)
    options = VerifyOptions(
        str(tmp_path / "base"), str(tmp_path / "out"), tmp_path / "gates", "torch"
    )
    result = verify(options)
    assert result.passed, result.difference
    path = tmp_path / "out" / GGUF_FILE
    stored = bytearray(path.read_bytes())
    key = b"deci.context_length"
    length = stored.index(key) + len(key) + 4
    # The last bytes are padding.
    for place, message in ((-40, "tensor output.weight"), (length, "its metadata, tokenizer or")):
        edited = stored.copy()
        edited[place] ^= 1
        path.write_bytes(edited)
        result = verify(options)
        assert not result.passed and f"{GGUF_FILE}: {message}" in str(result.difference)
    path.write_bytes(b"GGUF?")
    assert "is not a GGUF file of a type" in str(verify(options).difference)
    monkeypatch.setattr(
        "sgate_serve.environment.find_spec", lambda name: None if name == "gguf" else True
    )
    with pytest.raises(
        CheckpointError, match=r"model\.gguf is compared too, which needs gguf, not"
    ):
        verify(options)


@pytest.mark.parametrize(
    ("case", "note"),
    [
        (
            Case("", "", "mistral", "sliding"),
            "its context ends at 5 of 64 tokens, as llama.cpp has",
        ),
        (Case("", "", closed=((0, "kv_groups"), (1, "mlp_units"))), "1 MLPs are wider by units"),
        (Case("", "", closed=((0, "kv_groups"),)), "the first layer has a head that is zero"),
        (Case("", "", row_col=True), "matrices have zeros for what index vectors leave out"),
        (Case("", "", precision="int4"), "in Q4_0 and Q8_0; 3 MLPs .* matrices are in F16, as"),
    ],
)
def test_what_the_file_has_otherwise_is_said(
    case: Case, note: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "converters"):
        model = converted(case, tmp_path)
    said = next(line for line in caplog.messages if line.startswith("model.gguf: llama.cpp's"))
    assert re.search(note, said)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "gguf/model.gguf" in card and "ONNX" not in card
    assert model.key("context_length") == (WINDOW if case.family == "mistral" else 64)


@pytest.mark.parametrize(
    ("family", "variant", "config", "message"),
    [
        ("mixtral", 0, {}, "family mixtral is not written"),
        ("gpt2", 0, {}, r"family gpt2 is not written as GGUF \(families that are: llama, "),
        ("gemma2", 0, {}, "family gemma2 is not written"),
        ("llama", "classifier", {}, "LlamaForSequenceClassification is not a causal LM"),
        ("llama", 0, {"hidden_act": "gelu"}, "llama with hidden_act 'gelu': llama.cpp computes"),
        ("llama", 0, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not"),
        ("qwen3", "biased-sliding", {}, "has a bias, which llama.cpp's qwen3 does not add"),
        ("phi3", "partial-rotary", {}, "phi3: 50% of each head rotates, and llama.cpp rotates"),
        ("smollm3", 0, {}, "smollm3: its layers rotate differently"),
        ("phi3", "longrope", {}, "phi3 with rope_type 'longrope' is not written as GGUF"),
        (
            "qwen3",
            0,
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "llama.cpp's qwen3 turns pairs unscaled",
        ),
    ],
)
def test_what_llama_cpp_lacks_is_refused_before_any_work(
    family: str, variant: str | int, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    found = ZOO[family][0] if isinstance(variant, int) else variant_named(family, variant)
    build(found, seed=0, **config).save_pretrained(tmp_path / "base")
    options = ConvertOptions(str(tmp_path / "base"), tmp_path / "out", to=("gguf",))
    with pytest.raises(PlanError, match=message):
        convert(options)
    assert not (tmp_path / "out").exists()


def test_uneven_layers_with_normed_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"family qwen3 have different widths .*; add --uniform"):
        converted(Case("", "qwen3", "qwen3", "tied"), tmp_path)
    assert not (tmp_path / "out").exists()


def test_values_beyond_halves_are_refused(tmp_path: Path) -> None:
    base = build(ZOO["llama"][0], seed=0)
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(PlanError, match=r"blk\.0\.ffn_up\.weight has values beyond fp16"):
        convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out", to=("gguf",)))


def test_the_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(ZOO["llama"][0], seed=0).save_pretrained(tmp_path / "base")
    monkeypatch.setattr(
        "sgate_serve.environment.find_spec", lambda name: None if name == "gguf" else True
    )
    words = ["convert", str(tmp_path / "base"), "--to", "gguf", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "--to gguf needs gguf, not installed here; run: " in message and '[gguf]"' in message


def test_four_bits_need_a_format_that_has_them(tmp_path: Path) -> None:
    options = ConvertOptions("base", tmp_path / "out", precision="int4")
    with pytest.raises(PlanError, match="add --to hf,onnx or --to hf,gguf"):
        convert(options)
