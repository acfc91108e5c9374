"""GGUF files as models: dequantized once, read as the model that they were written from."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")

from converters.to_gguf import writer  # noqa: E402
from converters.to_gguf.metadata import add_metadata  # noqa: E402
from converters.to_gguf.storage import STORAGES  # noqa: E402
from converters.to_gguf.tensors import FileModel  # noqa: E402
from converters.to_gguf.writer import write_gguf  # noqa: E402
from sgate_serve.architecture.family import Family  # noqa: E402
from sgate_serve.architecture.llama_families import LLAMA, QWEN2, QWEN3  # noqa: E402
from sgate_serve.checkpoint.reader import Checkpoint  # noqa: E402
from sgate_serve.cli import main  # noqa: E402
from sgate_serve.errors import CheckpointError  # noqa: E402
from sgate_serve.loaders.gguf_folder import model_folder  # noqa: E402
from sgate_serve.loaders.torch_model import TorchModel  # noqa: E402
from sgate_serve.models.gguf import GgufFile  # noqa: E402
from sgate_serve.text.tokenization import TextCodec, read_stop_token_ids  # noqa: E402
from tests.converters.test_to_gguf_vocabulary import TEXTS, TOKENIZERS, write_model  # noqa: E402
from tests.families.small_models import small_model  # noqa: E402
from tests.small_llama import random_tokens  # noqa: E402
from tests.text_model import CHAT_TEMPLATE  # noqa: E402

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# As wide as Llama 3's heads, so that some pairs are scaled in part.
WIDE = {"head_dim": 128, "max_position_embeddings": 512}
CASES: dict[str, tuple[Family, dict[str, Any]]] = {
    "llama": (LLAMA, {"tie_word_embeddings": True}),
    "llama3": (LLAMA, {"rope_parameters": LLAMA3, **WIDE}),
    "linear": (LLAMA, {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "qwen2": (QWEN2, {"head_dim": 12}),
    "qwen3": (QWEN3, {}),
}


def write_file(model: PreTrainedModel, folder: Path, precision: str = "fp32") -> Path:
    """Write a model as a folder, and as a GGUF file alone in another folder; return the file."""
    model.save_pretrained(folder / "own")
    base, path = Checkpoint.open(folder / "own"), folder / "alone" / "model.gguf"
    path.parent.mkdir()
    write_gguf(FileModel.of(base.spec, STORAGES[precision], base.read), base.folder, path)
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_the_model_that_it_was_written_from(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family, config = CASES[name]
    path, tokens = write_file(small_model(family, **config), tmp_path), random_tokens(40)
    with caplog.at_level(logging.INFO, "sgate_serve"):
        folder = model_folder(str(path))
    assert f"{path}: dequantized to fp32 in {folder}" in caplog.messages
    # A folder with nothing but the file is the same, and is not dequantized again.
    assert model_folder(str(path.parent)) == folder
    found = TorchModel.converted(Path(folder)).logits(tokens)
    expected = TorchModel.converted(tmp_path / "own").logits(tokens)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.abs(expected).max()))
    stored = Checkpoint.open(folder)
    assert stored.spec.family == family
    assert str(tmp_path) not in (Path(folder) / "config.json").read_text()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_its_tokenizer_cuts_text_as_the_one_that_it_was_written_from(
    name: str, tmp_path: Path
) -> None:
    templates = [
        {"name": "default", "template": CHAT_TEMPLATE},
        {"name": "tool_use", "template": f"{{{{ tools }}}}{CHAT_TEMPLATE}"},
    ]
    path = write_model(tmp_path / "own", TOKENIZERS[name](), chat_template=templates)
    # What lies beside a file is not read with it.
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(path, tmp_path / "alone")
    (tmp_path / "alone" / "tokenizer.json").write_text("{}")
    folder = Path(model_folder(str(alone)))
    own, found = TextCodec.load(path.parent), TextCodec.load(folder)
    assert own is not None and found is not None
    for text in TEXTS:
        assert found.encode(text) == own.encode(text), text
    messages = [{"role": "user", "content": "hi"}]
    assert found.render_chat(messages) == own.render_chat(messages)
    assert found.chat_template is not None and found.chat_template.for_tools is not None
    assert found.tokenizer.get_vocab_size() == Checkpoint.open(folder).spec.vocab_size
    assert read_stop_token_ids(folder, found) == read_stop_token_ids(path.parent, own)


def test_commands_take_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_file(small_model(LLAMA), tmp_path, "int8")
    assert main(["inspect", str(path)]) == 0
    assert "llama family, model_type llama" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["convert", str(path.parent), "--out", str(out)]) == 0
    assert main(["verify", str(path), str(out), "--engine", "torch"]) == 0


def edited(path: Path, old: bytes, new: bytes) -> None:
    contents = path.read_bytes()
    assert old in contents and len(old) == len(new)
    path.write_bytes(contents.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"llama", b"mamba", r"architecture mamba is not read from GGUF \(llama, qwen2, qwen3 are"),
        (b"GGUF", b"GGML", r"model\.gguf cannot be read as GGUF"),
        (b"head_count_kv", b"head_count_xx", "its metadata and tensors contradict each other"),
        (b"blk.0.ffn_up.", b"blk.0.ffn_xx.", "transformers loads it with missing keys, such as "),
        (b"no_vocab", b"tok_kind", r"a tokenizer 'tok_kind' with the steps 'default' is not read"),
    ],
)
def test_what_is_not_read_is_named(old: bytes, new: bytes, message: str, tmp_path: Path) -> None:
    path = write_file(small_model(LLAMA, num_hidden_layers=1), tmp_path)
    edited(path, old, new)
    with pytest.raises(CheckpointError, match=message):
        model_folder(str(path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "llama.rope.dimension_count",
            4,
            "rotates 4 of 16 dimensions of a head, which is not read",
        ),
        ("llama.attention.layer_norm_rms_epsilon", None, "lacks llama.attention.layer_norm_rms_ep"),
        ("llama.block_count", 2**31 - 1, "block_count is 2147483647, and there are 1"),
        ("tokenizer.ggml.eos_token_id", "x", "eos_token_id is 'x', and there are "),
        ("tokenizer.ggml.eot_token_id", 10**6, "eot_token_id is 1000000, and there are "),
        ("tokenizer.chat_template", [3], "tokenizer.chat_template is not a text"),
    ],
)
def test_metadata_that_would_be_passed_over_is_refused(
    key: str, value: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "own", TOKENIZERS["gpt-2"]())
    get = GgufFile.get
    monkeypatch.setattr(
        GgufFile,
        "get",
        lambda self, asked, *rest: value if asked == key else get(self, asked, *rest),
    )
    with pytest.raises(CheckpointError, match=message):
        model_folder(str(path))


def test_an_id_of_minus_one_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "own", TOKENIZERS["gpt-2"]())
    get, key = GgufFile.get, "tokenizer.ggml.eos_token_id"
    monkeypatch.setattr(
        GgufFile, "get", lambda self, asked, *rest: -1 if asked == key else get(self, asked, *rest)
    )
    folder = Path(model_folder(str(path)))
    assert "eos_token" not in json.loads((folder / "tokenizer_config.json").read_text())
    assert Checkpoint.open(folder).config.get("eos_token_id") is None


def test_what_transformers_cannot_use_is_one_line(tmp_path: Path) -> None:
    path = write_model(tmp_path, TOKENIZERS["gpt-2"]())
    edited(path, b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz")
    with pytest.raises(CheckpointError, match=r"transformers [\d.]+ does not read it \(\w+Error: "):
        model_folder(str(path))


def test_rotation_that_no_config_says_is_refused(tmp_path: Path) -> None:
    settings = LLAMA3 | {"original_max_position_embeddings": 100}
    path = write_file(small_model(LLAMA, rope_parameters=settings, **WIDE), tmp_path)
    with pytest.raises(CheckpointError, match="otherwise than by one factor or as Llama 3 does"):
        model_folder(str(path))


@pytest.mark.parametrize("kind", [None, "LINEAR", "YARN"])
def test_a_factor_in_the_metadata_scales_rotation(
    kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_scaled(metadata: Any, model: FileModel) -> None:
        add_metadata(metadata, model)
        metadata.add_rope_scaling_factor(4.0)
        if kind is not None:
            metadata.add_rope_scaling_type(gguf.RopeScalingType[kind])

    monkeypatch.setattr(writer, "add_metadata", add_scaled)
    path = write_file(small_model(LLAMA, num_hidden_layers=1), tmp_path)
    if kind == "YARN":
        with pytest.raises(CheckpointError, match=r"scales its rotation \(yarn\) otherwise than"):
            model_folder(str(path))
        return
    rope = Checkpoint.open(model_folder(str(path))).spec.ropes[0]
    assert rope is not None
    assert (rope.rope_type, rope.settings["factor"]) == ("linear", 4.0)


def test_biases_that_transformers_leaves_out_are_refused(tmp_path: Path) -> None:
    path = write_file(small_model(LLAMA, attention_bias=True), tmp_path)
    with pytest.raises(CheckpointError, match=r"has the bias blk\.0\.attn_k\.bias, which transf"):
        model_folder(str(path))


def test_of_several_files_one_must_be_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files; give one of them, such as .*a"):
        model_folder(str(tmp_path))


def test_the_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr(
        "sgate_serve.environment.find_spec", lambda name: None if name == "gguf" else True
    )
    assert main(["inspect", str(tmp_path / "a.gguf")]) == 2
    message = capsys.readouterr().err
    assert "a.gguf is dequantized by transformers, which needs gguf, not installed" in message
    assert '[train,gguf]"' in message
