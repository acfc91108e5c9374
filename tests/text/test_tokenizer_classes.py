"""Token ids and texts are those of AutoTokenizer, whatever the files beside tokenizer.json say."""

import importlib
import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sgate_serve.architecture.wholes import WHOLES
from sgate_serve.checkpoint.companions import restated_settings
from sgate_serve.errors import CheckpointError
from sgate_serve.text.tokenization import TextCodec
from sgate_serve.text.tokenizer_class import BUILT, PLAIN, UNSUPPORTED, chosen_class
from sgate_serve.text.tokenizer_pipelines import PIPELINES
from sgate_serve.text.truncation import Truncation
from tests.text.small_tokenizers import CORPUS, KINDS, byte_level

transformers = pytest.importorskip("transformers")

TEXTS = [
    "hello HELLO World",
    " two  spaces ",
    "a<tool>b <tool> c",
    "<s>[CLS]</s>[SEP]<mask>[MASK]<|endoftext|><|im_start|>user",
    "café naïve e\u0301 é 你好世界 座った 🚀👩\u200d👧 \x00\x07",
    "नमस्ते",
    "x .\ny ?  don 't ' n't",
    "\n\n  tabs\tand\r\nlines 12345",
    "",
]
PIECES = st.sampled_from(
    ["<tool>", "<s>", " ", "The", "é", "座", "🚀", "\n", "don't", "<mask>", "hello"]
)
CHARACTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
ANY_TEXT = st.lists(PIECES | CHARACTERS, max_size=8).map("".join)

FLAG = st.booleans()
ADDED = ["<tool>", "<|im_start|>", "hello", "</s>", "<mask>", "[MASK]", "cat"]


def as_added(content: str, flags: tuple[bool, ...], **more: Any) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"content": content, **dict(zip(names, flags, strict=True)), **more}


FLAGS = st.tuples(FLAG, FLAG, FLAG, FLAG, FLAG)
ADDED_TOKEN = st.builds(as_added, st.sampled_from(ADDED), FLAGS)
NAMED_TOKEN = st.sampled_from(ADDED) | st.builds(
    lambda token: {**token, "__type": "AddedToken"}, ADDED_TOKEN
)
TOKEN_LIST = st.lists(st.sampled_from(ADDED), max_size=3, unique=True)
TOKENIZER_CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "added_tokens_decoder": st.dictionaries(
            st.integers(0, 400).map(str), ADDED_TOKEN, max_size=3
        ),
        "additional_special_tokens": TOKEN_LIST,
        "extra_special_tokens": TOKEN_LIST
        | st.dictionaries(st.sampled_from(["image_token", "tool"]), st.sampled_from(ADDED)),
        "bos_token": NAMED_TOKEN | st.none(),
        "eos_token": NAMED_TOKEN,
        "pad_token": NAMED_TOKEN | st.none(),
        "image_token": NAMED_TOKEN,
        "add_bos_token": FLAG,
        "add_eos_token": FLAG,
        "add_prefix_space": FLAG,
        "do_lower_case": FLAG,
        "strip_accents": FLAG,
        "tokenize_chinese_chars": FLAG,
        "legacy": FLAG,
        "trim_offsets": FLAG,
        "clean_up_tokenization_spaces": FLAG,
        "split_special_tokens": FLAG,
        "truncation_side": st.sampled_from(["left", "right"]),
        "model_max_length": st.sampled_from([8, 1e30]),
        "model_input_names": st.sampled_from([["input_ids"], ["input_ids", "token_type_ids"]]),
    },
)
SPECIAL_MAP = st.fixed_dictionaries(
    {},
    optional={
        "eos_token": st.sampled_from(ADDED) | ADDED_TOKEN,
        "image_token": st.sampled_from(ADDED) | ADDED_TOKEN,
        "additional_special_tokens": TOKEN_LIST,
        "extra_special_tokens": TOKEN_LIST,
    },
)
SERIALIZED = st.fixed_dictionaries(
    {},
    optional={
        "padding": st.just(
            {
                "strategy": "BatchLongest",
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<tool>",
            }
        ),
        "truncation": st.just(
            {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        ),
        "post_processor": st.none(),
    },
)


@cache
def contents(kind: str) -> str:
    return KINDS[kind][0]().to_str()


def write(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    special: Mapping[str, Any] | None = None,
    added: Mapping[str, int] | None = None,
    serialized: Mapping[str, Any] | None = None,
) -> None:
    _, model_type, tokenizer_class = KINDS[kind]
    stated = {} if tokenizer_class is None else {"tokenizer_class": tokenizer_class}
    files: dict[str, Any] = {
        "config.json": {"model_type": model_type},
        "tokenizer.json": {**json.loads(contents(kind)), **(serialized or {})},
        "tokenizer_config.json": {**stated, **config},
    }
    if special is not None:
        files["special_tokens_map.json"] = special
    if added is not None:
        files["added_tokens.json"] = added
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")


def compare(folder: Path, texts: list[str]) -> None:
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    except TypeError:  # such as for `"bos_token": null` where the class needs one
        with pytest.raises(CheckpointError, match=r"the special tokens of \w+ cannot be applied"):
            TextCodec.load(folder)
        return
    codec = TextCodec.load(folder)
    assert codec is not None
    assert codec.special_tokens == theirs.special_tokens_map
    for text in texts:
        for adds in (True, False):
            expected = theirs(text, add_special_tokens=adds)["input_ids"]
            assert list(codec.encode(text, add_special_tokens=adds)) == expected, text
        for skips in (True, False):
            assert codec.decode(expected, skip_special_tokens=skips) == theirs.decode(
                expected, skip_special_tokens=skips
            )
    num_special = theirs.num_special_tokens_to_add(pair=True)
    for first, second in zip(texts, reversed(texts), strict=True):
        for limit in (None, num_special + 3):
            batch = theirs([first], [second], truncation=limit is not None, max_length=limit)
            truncation = None if limit is None else Truncation(limit)
            encoded = codec.encode_texts(first, second, truncation)
            assert list(encoded.ids) == batch["input_ids"][0]
            types = batch.get("token_type_ids", [[0] * len(encoded.ids)])[0]
            assert list(encoded.token_types or [0] * len(encoded.ids)) == types


TOOL = "<tool>"
DECODED = {"added_tokens_decoder": {"290": {"content": TOOL, "special": True}}}
SPACED = {"add_prefix_space": True, "do_lower_case": False}
LEGACY = {"add_prefix_space": False, "legacy": True, "strip_accents": False}
TWO_LISTS = {"additional_special_tokens": [TOOL], "extra_special_tokens": {"a": "b"}}
AS_OBJECT = {"bos_token": {"__type": "AddedToken", "content": TOOL, "normalized": False}}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    config=TOKENIZER_CONFIG,
    special=st.none() | SPECIAL_MAP,
    added=st.none() | st.dictionaries(st.sampled_from(ADDED), st.integers(0, 500)),
    serialized=SERIALIZED,
    text=ANY_TEXT,
)
@example({}, None, None, {}, "")
@example(SPACED, None, None, {}, "")
@example(LEGACY, None, None, {}, "")
@example(DECODED, None, None, {}, "")
@example(TWO_LISTS, None, None, {}, "")
@example({}, {"eos_token": {"content": TOOL, "lstrip": True}}, {TOOL: 0}, {}, "")
@example(AS_OBJECT, None, {TOOL: 0}, {}, "")
def test_ids_and_texts_are_autotokenizers(
    kind: str,
    config: dict[str, Any],
    special: dict[str, Any] | None,
    added: dict[str, int] | None,
    serialized: dict[str, Any],
    text: str,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), kind, config, special, added, serialized)
        compare(Path(name), [*TEXTS, CORPUS[0], text])


def test_every_class_of_transformers_is_built_refused_or_reads_the_file_as_it_stands() -> None:
    auto = transformers.models.auto.tokenization_auto
    backend = transformers.PreTrainedTokenizerFast
    names = {name for name in auto.TOKENIZER_MAPPING_NAMES.values() if name}
    names |= {name for name in dir(transformers) if name.endswith(("Tokenizer", "TokenizerFast"))}
    # As an attribute of transformers the name is the module's function once that was imported.
    slow_to_fast = importlib.import_module("transformers.convert_slow_tokenizer")
    names |= set(slow_to_fast.SLOW_TO_FAST_CONVERTERS)
    names -= {"AutoTokenizer", "BasicTokenizer", "CharacterTokenizer", "MecabTokenizer"}
    names -= {"WordpieceTokenizer", "NoneType"}
    for name in names:
        their = auto.tokenizer_class_from_name(name)
        ours = chosen_class({"model_type": "llama"}, {"tokenizer_class": name})
        if their in (backend, transformers.PreTrainedTokenizer, None):
            assert ours == PLAIN, name
        else:
            assert ours in UNSUPPORTED or ours == their.__name__, name
    assert set(PIPELINES) == BUILT


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (
            "llama",
            {"tokenizer_class": "CamembertTokenizer"},
            "CamembertTokenizer is not supp",
        ),
        ("llama", {"tokenizer_class": "OwnTokenizer", "auto_map": ["a.B", None]}, "comes with"),
        ("llama 3", {"tokenizer_class": "LlamaTokenizerFast"}, "LlamaTokenizer does not fit token"),
        (
            "roberta",
            {"tokenizer_class": "BertTokenizer"},
            "which has a BPE model; set token",
        ),
        ("qwen2", {}, "transformers reads every qwen2 so; give the base's own files"),
        ("llama", {"init_inputs": [1]}, "init_inputs is not supported; remove it, or save"),
        ("llama", {"fast_tokenizer_files": ["tokenizer.4.0.json"]}, "fast_tokenizer_files is not"),
        ("bert", {"unk_token": "NEW"}, "the vocabulary lacks 'NEW', the token for unknown words"),
        ("llama", {"legacy": "yes"}, "tokenizer_config.json: legacy must be true or false"),
        ("llama", {"truncation_side": "top"}, 'truncation_side must be "left" or "right"'),
        ("llama", {"added_tokens_decoder": {"x": {}}}, "special or added tokens in tokenizer_conf"),
        ("llama", {"extra_special_tokens": "<x>"}, "are malformed .*; restore the files of the"),
    ],
)
def test_what_cannot_be_applied_is_refused_by_name(
    tmp_path: Path, kind: str, config: dict[str, Any], message: str
) -> None:
    write(tmp_path, kind, config)
    if kind == "qwen2":
        (tmp_path / "tokenizer.json").write_text(contents("llama"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        TextCodec.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_converted_folder_is_read_like_its_base(tmp_path: Path, kind: str) -> None:
    """By us, and by AutoTokenizer, which no longer sees the model type of the base."""
    pytest.importorskip("sgate_serve.models")
    write(tmp_path, kind, {})
    base = TextCodec.load(tmp_path)
    model_type = KINDS[kind][1]
    family = WHOLES[model_type].family if model_type in WHOLES else model_type
    block = {"version": 2, "family": family, "base_model_type": family}
    config = {"model_type": "sgate", "sgate": block}
    written = restated_settings(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if written is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(written), encoding="utf-8")
    converted = TextCodec.load(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert base is not None
    assert converted is not None
    for text in (*TEXTS, *CORPUS[:3]):
        assert base.encode(text) == converted.encode(text) == tuple(theirs(text)["input_ids"])


def test_the_text_part_of_a_whole_is_read_like_the_whole(tmp_path: Path) -> None:
    """AutoTokenizer heeds the class that published files state for the one, not for the other."""
    write(tmp_path, "qwen3.5", {"processor_class": "Qwen3VLProcessor"})
    base = TextCodec.load(tmp_path)
    config = {"model_type": "qwen3_5_text"}
    written = restated_settings(tmp_path, config)
    assert written == {"tokenizer_class": "Qwen3_5Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(written), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert restated_settings(tmp_path, config) is None
    text, theirs = TextCodec.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert base is not None and text is not None
    for words in (*TEXTS, *CORPUS[:3]):
        assert base.encode(words) == text.encode(words) == tuple(theirs(words)["input_ids"])


@pytest.mark.parametrize("stage", ["sequence", "single"])
def test_words_of_large_mistral_vocabularies_are_corrected_where_transformers_does(
    tmp_path: Path, stage: str
) -> None:
    serialized = json.loads(byte_level("<s>", "</s>").to_str())
    vocab = serialized["model"]["vocab"]
    vocab |= {f"unused{index}": index for index in range(len(vocab), 100_001)}
    if stage == "sequence":
        split = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated"}
        bytes_stage = {**serialized["pre_tokenizer"], "use_regex": False}
        stages = [{**split, "invert": False}, bytes_stage]
        serialized["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": stages}
    (tmp_path / "tokenizer.json").write_text(json.dumps(serialized), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"fix_mistral_regex": true}')
    for model_type, version in (("mistral", "4.40.0"), ("mistral", "5.1.0"), ("llama", "4.40.0")):
        config = {"model_type": model_type, "transformers_version": version}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        compare(tmp_path, ["theCAT sat/on 2024\n", "don't HELLO"])
