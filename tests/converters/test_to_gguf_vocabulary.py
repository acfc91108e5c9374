"""The tokenizer of a GGUF file: read by transformers and by llama.cpp, it cuts text alike."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")

from converters.to_gguf.storage import STORAGES  # noqa: E402
from converters.to_gguf.tensors import FileModel  # noqa: E402
from converters.to_gguf.writer import check_model, write_gguf  # noqa: E402
from sgate_serve.architecture.llama_families import LLAMA  # noqa: E402
from sgate_serve.checkpoint.reader import Checkpoint  # noqa: E402
from sgate_serve.errors import CheckpointError  # noqa: E402
from sgate_serve.text.pre_tokenizers import NAMES, OTHER_NAMES, serialized_steps  # noqa: E402
from sgate_serve.text.tokenization import TextCodec  # noqa: E402
from tests.converters.gguf_forward import GgufModel  # noqa: E402
from tests.families.small_models import small_model  # noqa: E402
from tests.text_model import BOS, CHAT_TEMPLATE, EOS, SENTENCES, byte_tokenizer  # noqa: E402

TEXTS = [
    *SENTENCES,
    "It's 12345 o'clock, WE'LL see ²³½ ٣٤ 3.14 a1b2",
    "def f(x):\n\n\treturn x**2  # two  spaces\r\n \n",
    f"  before {EOS} between{BOS}after ",
    "",
]
SIZE = 420


def pre_tokenized(name: str) -> Tokenizer:
    """Return a tokenizer that is trained behind the steps of this name."""
    found = serialized_steps(name)
    assert found is not None
    contents = json.loads(byte_tokenizer().to_str()) | {"pre_tokenizer": found[0]}
    contents["model"] |= {"vocab": {}, "merges": []}
    empty = Tokenizer.from_str(json.dumps({**contents, "post_processor": None, "added_tokens": []}))
    alphabet = pre.ByteLevel.alphabet()
    empty.train_from_iterator(
        [*SENTENCES, "1234567 12 It's IT'S"],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[BOS, EOS],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    trained = json.loads(empty.to_str())
    trained["model"]["ignore_merges"] = found[1]
    return Tokenizer.from_str(json.dumps(trained))


def piece_tokenizer(prefix: bool = True) -> Tokenizer:
    """Return a BPE over characters with bytes to fall back on, as SentencePiece's become."""
    special = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=SIZE - 5, special_tokens=special, show_progress=False),
    )
    contents = json.loads(tokenizer.to_str())
    contents["added_tokens"] = contents["added_tokens"][:3]
    contents["model"]["merges"] = all_merges(contents["model"])
    contents["post_processor"] = json.loads(
        TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)]).__getstate__()
    )
    return Tokenizer.from_str(json.dumps(contents))


def all_merges(model: dict[str, Any]) -> list[list[str]]:
    """Return every pair of tokens that makes a token, in the order in which tokens were learned."""
    vocab = model["vocab"]
    texts = [text for text, index in vocab.items() if index > 258 and len(text) > 1]
    pairs = [(t[:i], t[i:]) for t in texts for i in range(1, len(t))]
    return [list(pair) for pair in pairs if pair[0] in vocab and pair[1] in vocab]


def write_model(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    """Write a small model with this tokenizer and its GGUF file; return the path of the file."""
    small_model(LLAMA, vocab_size=SIZE, num_hidden_layers=1, eos_token_id=[2, 1]).save_pretrained(
        folder
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": BOS, "eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    text = json.dumps({**named, "clean_up_tokenization_spaces": False, **settings})
    (folder / "tokenizer_config.json").write_text(text)
    base, path = Checkpoint.open(folder), folder / "model.gguf"
    check_model(base.spec, folder)
    write_gguf(FileModel.of(base.spec, STORAGES[None], base.read), folder, path)
    return path


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    **{name: partial(pre_tokenized, name) for name in NAMES.values()},
    "adds-bos": byte_tokenizer,
    "pieces": piece_tokenizer,
    "pieces-without-prefix": lambda: piece_tokenizer(prefix=False),
}
# transformers drops the digits of smollm, and it reads no framing and no space that is left out.
READ_OTHERWISE = ("smollm", "adds-bos", "pieces-without-prefix")


@pytest.mark.parametrize("name", sorted(TOKENIZERS.keys() - set(READ_OTHERWISE)))
def test_transformers_cuts_text_alike(name: str, tmp_path: Path) -> None:
    path = write_model(tmp_path, TOKENIZERS[name]())
    codec = TextCodec.load(tmp_path)
    assert codec is not None
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in TEXTS[:-2]:
        expected = list(codec.encode(text, add_special_tokens=False))
        assert read.encode(text, add_special_tokens=False) == expected, text


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_cuts_text_alike(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from tests.converters.llama_cpp_logits import llama_cpp_tokens

    path = write_model(tmp_path, TOKENIZERS[name]())
    codec = TextCodec.load(tmp_path)
    assert codec is not None
    assert llama_cpp_tokens(path, TEXTS) == [list(codec.encode(text)) for text in TEXTS]


def test_expressions_are_those_of_transformers() -> None:
    module = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    splits = module.GGUF_PRE_TOKENIZER_SPLITS
    names = [*OTHER_NAMES, *NAMES.values()]
    assert len(set(names)) == len(names)
    for name in set(names) & splits.keys():
        found = serialized_steps(name)
        assert found is not None
        assert found[0]["pretokenizers"][0]["pattern"] == {"Regex": splits[name]}, name
    assert set(NAMES.values()) - splits.keys() == {"gpt-2", "smollm"}


@pytest.mark.parametrize(
    ("class_name", "name"),
    [("Qwen2Tokenizer", "qwen2"), ("GPT2Tokenizer", "gpt-2"), ("LlamaTokenizer", "pieces")],
)
def test_the_steps_of_a_class_count(class_name: str, name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    tokenizer.pre_tokenizer = pre.Whitespace()
    path = write_model(tmp_path, tokenizer, tokenizer_class=class_name)
    fields = GgufModel(path).fields
    expected = "default" if name == "pieces" else name
    assert fields["tokenizer.ggml.pre"] == expected


def test_spaces_that_llama_cpp_adds_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = piece_tokenizer(prefix=False)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
    with caplog.at_level(logging.INFO, "converters"):
        write_model(tmp_path, tokenizer)
    assert "puts a space before a text that begins with one too" in caplog.text


def test_the_file_names_tokens_ends_and_template(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    path = write_model(tmp_path, tokenizer, chat_template=CHAT_TEMPLATE, pad_token=EOS)
    found = {
        name.removeprefix("tokenizer."): value
        for name, value in GgufModel(path).fields.items()
        if name.startswith("tokenizer.")
    }
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    ids = {key: found[f"ggml.{key}_token_id"] for key in ("bos", "eos", "padding", "eot")}
    bos, eos = vocabulary[BOS], vocabulary[EOS]
    assert ids == {"bos": bos, "eos": eos, "padding": eos, "eot": 2}
    tokens, types = found["ggml.tokens"], found["ggml.token_type"]
    assert len(tokens) == len(types) == SIZE and tokens[-1] == f"[PAD{SIZE - 1}]"
    assert {text: tokens.index(text) for text in vocabulary} == vocabulary
    kinds = gguf.TokenType
    places = (bos, vocabulary["<think>"], vocabulary["e"], SIZE - 1)
    assert [types[place] for place in places] == [
        kinds.CONTROL,
        kinds.USER_DEFINED,
        kinds.NORMAL,
        kinds.UNUSED,
    ]
    assert found["ggml.add_bos_token"] is True and found["ggml.add_eos_token"] is False
    assert found["chat_template"] == CHAT_TEMPLATE


def test_templates_for_tools_and_composed_characters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.normalizer = normalizers.NFC()
    named = {"default": CHAT_TEMPLATE, "tool_use": "{{ tools }}"}
    templates = [{"name": name, "template": text} for name, text in named.items()]
    with caplog.at_level(logging.INFO, "converters"):
        path = write_model(tmp_path, tokenizer, chat_template=templates)
    fields = GgufModel(path).fields
    assert fields["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert fields["tokenizer.chat_template.tool_use"] == "{{ tools }}"
    assert "composes characters first (NFC), and llama.cpp does not" in caplog.text


def test_a_model_without_tokenizer_has_none(tmp_path: Path) -> None:
    small_model(LLAMA, num_hidden_layers=1).save_pretrained(tmp_path)
    base = Checkpoint.open(tmp_path)
    write_gguf(FileModel.of(base.spec, STORAGES[None], base.read), tmp_path, tmp_path / "m.gguf")
    fields = GgufModel(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.model"] == "no_vocab" and fields["llama.vocab_size"] == 97


def word_pieces() -> Tokenizer:
    return Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))


def changed(**parts: Any) -> Callable[[], Tokenizer]:
    """Return a call that makes a byte-level tokenizer with other parts."""

    def made() -> Tokenizer:
        tokenizer = byte_tokenizer()
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        return tokenizer

    return made


def lacking_a_merge() -> Tokenizer:
    contents = json.loads(piece_tokenizer().to_str())
    made = ["".join(pair) for pair in contents["model"]["merges"]]
    twice = next(text for text in made if made.count(text) > 1)
    del contents["model"]["merges"][made.index(twice)]
    return Tokenizer.from_str(json.dumps(contents))


def with_tokens(count: int) -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{index}>" for index in range(count)])
    return tokenizer


FRAMED = TemplateProcessing(single=f"{EOS} $A", special_tokens=[(EOS, 1)])
REFUSED: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "words": (word_pieces, r"tokenizer\.json has a WordPiece model, which is not written as GGUF"),
    "steps": (
        changed(pre_tokenizer=pre.Sequence([pre.Split(Regex("x+"), "isolated"), pre.ByteLevel()])),
        r'equal of its pre_tokenizer {"type": "Sequence".* \(known: gpt-2, smollm, ',
    ),
    "normalizer": (changed(normalizer=normalizers.NFKC()), "equal of its normalizer"),
    "frame": (changed(post_processor=FRAMED), r"encodes \[\d+\] as \[1, \d+\], and llama.cpp puts"),
    "size": (lambda: with_tokens(SIZE), rf"and the embedding has {SIZE} rows"),
    "merges": (lacking_a_merge, "a pair of tokens that makes a token and is no merge"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_without_an_equal_is_refused(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    with pytest.raises(CheckpointError, match=message):
        write_model(tmp_path, make())
    assert not (tmp_path / "model.gguf").exists()
