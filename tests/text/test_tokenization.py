import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from sgate_serve.errors import CheckpointError, RequestError
from sgate_serve.text.chat_template import ChatTemplate
from sgate_serve.text.mistral_words import WORDS as MISTRAL_WORDS
from sgate_serve.text.tokenization import TextCodec, read_stop_token_ids
from sgate_serve.text.tokenizer_pipelines import QWEN2_WORDS
from sgate_serve.text.truncation import Side, Truncation, cut
from tests.text_model import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    SENTENCES,
    byte_tokenizer,
    pair_tokenizer,
    write_tokenizer,
)

CODEC = TextCodec(byte_tokenizer())
BYTES = byte_tokenizer(vocab_size=258)
PAIRS = pair_tokenizer()
VOCAB_SIZE = CODEC.tokenizer.get_vocab_size()


def load(folder: Path) -> TextCodec:
    codec = TextCodec.load(folder)
    assert codec is not None
    return codec


def streamed(codec: TextCodec, prompt: list[int], tokens: list[int]) -> list[str]:
    """The pieces of text of each token, and at last what was held."""
    detokenizer = codec.detokenizer(prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


def byte_tokens(text: str) -> list[int]:
    """One token for each UTF-8 byte of the text, the finest way to cut it."""
    return list(BYTES.encode(text, add_special_tokens=False).ids)


def test_no_tokenizer_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert TextCodec.load(tmp_path) is None
    assert "has no tokenizer.json: only prompts of token ids work" in caplog.text


def test_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 1}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read by the token"):
        TextCodec.load(tmp_path)


@pytest.mark.parametrize("kind", [models.WordLevel, models.WordPiece])
def test_a_vocabulary_without_the_token_for_unknown_words_is_refused(
    tmp_path: Path, kind: Callable[..., Any]
) -> None:
    Tokenizer(kind({"the": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the vocabulary lacks '\[UNK\]'"):
        TextCodec.load(tmp_path)


def test_encode_adds_what_the_tokenizer_adds_and_decode_hides_it(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    codec = load(tmp_path)
    ids = codec.encode("the cat")
    assert ids[0] == tokenizer.token_to_id(BOS)
    assert codec.decode(ids) == "the cat"


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = load(tmp_path)
    assert codec.decode(codec.encode(SENTENCES[0])) == SENTENCES[0]
    assert len(codec.encode("the")) < 4


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_detokenizer_shows_whole_characters_and_loses_none(text: str) -> None:
    pieces = streamed(CODEC, [], byte_tokens(text))
    assert "".join(pieces) == text
    assert text.count("\ufffd") == sum(piece.count("\ufffd") for piece in pieces)


@given(st.lists(st.integers(0, VOCAB_SIZE + 5), max_size=30))
def test_detokenizer_agrees_with_decode_on_any_tokens(tokens: list[int]) -> None:
    assert "".join(streamed(CODEC, [], tokens)) == CODEC.decode(tokens)


def test_detokenizer_shows_a_character_as_soon_as_it_is_complete() -> None:
    pieces = streamed(CODEC, [], byte_tokens("a🚀b"))
    assert pieces == ["a", "", "", "", "🚀", "b", ""]


def test_detokenizer_does_not_hold_complete_text_before_half_a_character() -> None:
    merged = TextCodec(
        Tokenizer(
            models.BPE(
                vocab={token: i for i, token in enumerate("ðŁļĢa")} | {"að": 5},
                merges=[("a", "ð")],
            )
        )
    )
    merged.tokenizer.decoder = decoders.ByteLevel()
    assert streamed(merged, [], [5, 1, 2, 3]) == ["a", "", "", "🚀", ""]


def test_detokenizer_flushes_a_character_that_was_never_completed() -> None:
    assert streamed(CODEC, [], byte_tokens("a🚀")[:3]) == ["a", "", "", "\ufffd"]


def test_endless_invalid_bytes_are_shown_after_a_while() -> None:
    continuation = byte_tokens("🚀")[-1]
    pieces = streamed(CODEC, [], [continuation] * 100)
    assert "".join(pieces) == "\ufffd" * 100
    assert pieces[-1].count("\ufffd") < 40


def test_detokenizer_keeps_the_space_that_a_metaspace_decoder_strips_at_the_start() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁Paris": 0, "▁is": 1, "▁nice": 2}, unk_token="▁is"))
    tokenizer.decoder = decoders.Metaspace()
    codec = TextCodec(tokenizer)
    assert streamed(codec, [0, 1], [2, 0]) == [" nice", " Paris", ""]
    assert streamed(codec, [], [2, 0]) == ["nice", " Paris", ""]


@pytest.mark.parametrize("place", ["inline", "named", "file"])
def test_chat_template_is_found_and_rendered(tmp_path: Path, place: str) -> None:
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": CHAT_TEMPLATE}]
    in_config = {"inline": CHAT_TEMPLATE, "named": named, "file": "overridden"}[place]
    write_tokenizer(tmp_path, chat_template=in_config)
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    codec = load(tmp_path)
    text = codec.render_chat([{"role": "user", "content": "the cat"}])
    assert text == f"{BOS}user: the cat\nassistant:"


def test_missing_chat_template_names_the_remedy(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(RequestError, match=r"no chat template; send text instead of `messages`"):
        load(tmp_path).render_chat([{"role": "user", "content": "hi"}])


def test_template_that_refuses_is_a_refused_request(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=CHAT_TEMPLATE)
    with pytest.raises(RequestError, match="template refused the messages: no developer here"):
        load(tmp_path).render_chat([{"role": "developer", "content": "hi"}])


@pytest.mark.parametrize("template", ["{% if %}", 5, [{"name": "default", "template": 5}], ["x"]])
def test_invalid_template_is_refused_at_load(tmp_path: Path, template: object) -> None:
    write_tokenizer(tmp_path, chat_template=template)
    with pytest.raises(CheckpointError, match="the chat template is not a valid Jinja template"):
        TextCodec.load(tmp_path)


def test_template_environment_is_that_of_transformers(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}\n"
        "    {% if loop.index == 2 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}\n"
        "{% endfor %}\n"
        "{{ strftime_now('%Y') | length }}{{ missing }}{{ eos_token }}"
    )
    template = ChatTemplate.load(tmp_path, {"chat_template": source}, {"eos_token": EOS})
    assert template is not None
    messages = [{"content": "<é>"}, {"content": "second"}]
    assert template.render(messages) == '{"content": "<é>"}4' + EOS


def test_template_is_sandboxed(tmp_path: Path) -> None:
    source = "{{ messages.__class__.__mro__[1].__subclasses__() }}{{ messages.append(1) }}"
    template = ChatTemplate.load(tmp_path, {"chat_template": source}, {})
    assert template is not None
    with pytest.raises(RequestError, match="access to attribute '__class__'"):
        template.render([])


def test_stop_token_ids_come_from_generation_config_then_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}', encoding="utf-8")
    assert read_stop_token_ids(tmp_path, None) == {7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}', encoding="utf-8")
    assert read_stop_token_ids(tmp_path, None) == {8, 9}
    tokenizer = write_tokenizer(tmp_path)
    eos = tokenizer.token_to_id(EOS)
    assert read_stop_token_ids(tmp_path, load(tmp_path)) == {8, 9, eos}


def test_negative_stop_token_ids_mean_none(tmp_path: Path) -> None:
    for value, expected in ((-1, set()), ([-1, 7], {7})):
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}), encoding="utf-8")
        assert read_stop_token_ids(tmp_path, None) == expected


@pytest.mark.parametrize("value", ["x", [1, "x"], -1.0, True])
def test_stop_token_id_that_is_no_id_is_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="it must be a token id or a list of token ids"):
        read_stop_token_ids(tmp_path, None)


def test_special_ids_are_those_of_special_tokens_only(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    assert load(tmp_path).special_ids([EOS, "the", "nowhere"]) == {tokenizer.token_to_id(EOS)}


@given(st.text("ab ", max_size=30), st.none() | st.text("ab ", max_size=30), st.integers(4, 40))
def test_texts_of_an_encoder_are_cut_as_the_library_cuts_them(
    text: str, pair: str | None, limit: int
) -> None:
    codec, cutting = TextCodec(PAIRS), pair_tokenizer()
    cutting.enable_truncation(limit, strategy="longest_first")
    for tokenizer, truncation in ((PAIRS, None), (cutting, Truncation(limit))):
        expected = tokenizer.encode(text) if pair is None else tokenizer.encode(text, pair)
        encoded = codec.encode_texts(text, pair, truncation)
        assert list(encoded.ids) == expected.ids
        assert list(encoded.token_types or [0] * len(encoded.ids)) == expected.type_ids


@pytest.mark.parametrize(("pair", "num_special"), [(None, 2), ("b", 3)])
def test_texts_need_room_beside_the_special_tokens(pair: str | None, num_special: int) -> None:
    codec = TextCodec(PAIRS)
    with pytest.raises(RequestError, match=f"{num_special} tokens leave no room for text in add"):
        codec.encode_texts("a", pair, Truncation(num_special))
    room = Truncation(num_special + 1)
    assert len(codec.encode_texts("a", pair, room).ids) == num_special + 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_cut_on_either_side(side: Side) -> None:
    ids = TextCodec(PAIRS).encode("the cat sat on the mat")
    kept = ids[-4:] if side == "left" else ids[:4]
    text = ids[1:-1][-2:] if side == "left" else ids[1:-1][:2]
    for truncation, expected in (
        (Truncation(4, side, cuts_special=True), kept),
        (Truncation(4, side), (ids[0], *text, ids[-1])),
        (Truncation(99, side, cuts_special=True), ids),
        (Truncation(99, side), ids),
    ):
        assert TextCodec(PAIRS).encode("the cat sat on the mat", truncation=truncation) == expected


def test_special_tokens_are_text_where_they_are_not_skipped() -> None:
    codec, ids = TextCodec(PAIRS), PAIRS.encode("the cat").ids
    shown = {}
    for skips in (True, False):
        detokenizer = codec.detokenizer(ids[:1], skip_special_tokens=skips)
        shown[skips] = "".join(map(detokenizer.push, ids[1:])) + detokenizer.flush()
    assert shown == {True: "the cat", False: f"the cat{EOS}"}


@pytest.mark.parametrize("words", [QWEN2_WORDS, MISTRAL_WORDS], ids=["qwen2", "mistral"])
@pytest.mark.parametrize(
    "unit", [" ", "\n", " \n", "a", "A", "aA", "'", "!", " .", "\r\n", "\u0301"]
)
def test_our_words_take_linear_time(words: str, unit: str) -> None:
    split = pre_tokenizers.Split(Regex(words), "isolated")
    start = time.monotonic()
    assert split.pre_tokenize_str(unit * 100_000 + "\x01")
    assert time.monotonic() - start < 3  # a hundred times what it takes, and less than a square


def test_no_text_of_so_many_tokens_is_longer_than_it_can_be(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    codec = load(tmp_path)
    for text in (*SENTENCES, EOS * 5, " " * 50):
        assert len(text) <= codec.max_characters(len(codec.encode(text, add_special_tokens=False)))


@given(st.integers(0, 3000), st.integers(0, 40), st.sampled_from(["left", "right"]))
def test_cutting_by_halves_is_cutting(length: int, most: int, side: Side) -> None:
    encoding = BYTES.encode("a" * length, add_special_tokens=False)
    ids = encoding.ids
    cut(encoding, most, side)
    kept = ids[max(0, len(ids) - most) :] if side == "left" else ids[:most]
    assert encoding.ids == kept == encoding.ids[: len(encoding.type_ids)]
    assert len(encoding.overflowing) <= 3
