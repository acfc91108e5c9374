"""Text piece by piece, for the three kinds of tokenizers that models have."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from sgate_serve.text.detokenization import MAX_HELD_TOKENS, REPLACEMENT, Detokenizer
from sgate_serve.text.tokenization import TextCodec
from tests.text_model import SENTENCES, byte_tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """As Llama 2 has it: words begin with ▁, and what the vocabulary lacks is spelt in bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh,.", "é", "猫"]
    merges = [("▁", "a"), ("a", "b"), ("c", "d"), ("▁", "c"), ("▁a", "b"), ("▁", "▁")]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(
        vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def word_piece_tokenizer() -> Tokenizer:
    """As BERT has it: pieces within a word begin with ##, and decoding tidies punctuation."""
    words = [
        "[UNK]",
        *"abcdefghé猫🚀,.?!'",
        *(f"##{letter}" for letter in "abcdefghé猫🚀"),
        "n't",
        "do",
    ]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(["[CLS]"])
    return tokenizer


CODECS = {
    "byte-level": TextCodec(byte_tokenizer()),
    "bytes only": TextCodec(byte_tokenizer(vocab_size=258)),
    "byte fallback": TextCodec(byte_fallback_tokenizer()),
    "word piece": TextCodec(word_piece_tokenizer()),
}
TEXTS = st.one_of(
    st.sampled_from(SENTENCES),
    st.text(st.sampled_from("abcdeé猫座🚀🙂👩‍👧 ,.'!"), max_size=24),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)


def streamed(codec: TextCodec, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    detokenizer = codec.detokenizer(prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@pytest.mark.parametrize("kind", CODECS)
@given(text=TEXTS)
def test_pieces_are_the_decoding_of_all(kind: str, text: str) -> None:
    codec = CODECS[kind]
    tokens = codec.encode(text)
    whole = codec.decode(tokens)
    pieces = streamed(codec, [], tokens)
    assert "".join(pieces) == whole
    assert sum(piece.count(REPLACEMENT) for piece in pieces) == whole.count(REPLACEMENT)


@pytest.mark.parametrize("kind", CODECS)
@given(text=TEXTS, more=TEXTS)
@example(text="a\ufffd", more="b")
@example(text="\ufffd\ufffd\ufffd\ufffd", more="座")
@example(text="\ufffd", more="\ufffd")
def test_pieces_follow_a_prompt(kind: str, text: str, more: str) -> None:
    codec = CODECS[kind]
    prompt, tokens = codec.encode(text), codec.encode(more, add_special_tokens=False)
    pieces = streamed(codec, prompt, tokens)
    assert codec.decode(prompt) + "".join(pieces) == codec.decode([*prompt, *tokens])


@pytest.mark.parametrize("kind", ["byte-level", "bytes only", "word piece"])
@given(data=st.data())
def test_pieces_of_any_tokens_are_the_decoding_of_all(kind: str, data: st.DataObject) -> None:
    codec = CODECS[kind]
    ids = st.integers(0, codec.tokenizer.get_vocab_size() + 3)
    tokens = data.draw(st.lists(ids, max_size=40))
    assert "".join(streamed(codec, [], tokens)) == codec.decode(tokens)


def byte_pieces(text: str) -> list[int]:
    """The tokens of Llama's vocabulary for the bytes of a text, whatever else it could be."""
    tokenizer = CODECS["byte fallback"].tokenizer
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    return [index for index in ids if index is not None]


def test_character_begun_by_the_prompt_is_completed_and_no_other_repeated() -> None:
    codec = CODECS["byte fallback"]
    for text in ("座", "猫🚀 座", "ab座", "座座座座"):
        tokens = byte_pieces(text)
        assert streamed(codec, tokens[:-1], tokens[-1:]) == ["座", ""]
        assert streamed(codec, tokens[:-2], tokens[-2:]) == ["", "座", ""]
        assert streamed(codec, tokens, byte_pieces("🚀")) == ["", "", "", "🚀", ""]


def test_text_before_a_character_begun_by_the_prompt_is_not_repeated() -> None:
    """The last token of the prompt is a letter and the first byte of a character."""
    vocab = {token: index for index, token in enumerate(["ð", "Ł", "ļ", "Ģ", "a", "að"])}
    codec = TextCodec(Tokenizer(models.BPE(vocab, [("a", "ð")])))
    codec.tokenizer.decoder = decoders.ByteLevel()
    assert codec.decode([4, 5]) == f"aa{REPLACEMENT}"
    assert streamed(codec, [4, 5], [1, 2, 3, 4]) == ["", "", "🚀", "a", ""]


def test_invalid_bytes_do_not_take_back_characters_that_were_shown() -> None:
    codec = CODECS["byte fallback"]
    cat, rocket = byte_pieces("猫"), byte_pieces("🚀")
    assert streamed(codec, [], [*cat, *rocket[:2]]) == ["", "", "猫", "", "", REPLACEMENT * 2]
    [letter] = codec.encode("a", add_special_tokens=False)
    pieces = streamed(codec, [], [*cat, *rocket[:2], letter, *cat])
    assert "".join(pieces) == f"猫{REPLACEMENT * 2} a猫"


def test_prompt_of_invalid_bytes_is_no_hindrance() -> None:
    codec = CODECS["bytes only"]
    broken = codec.encode("座", add_special_tokens=False)[-1:] * 20
    [*_, last] = codec.encode("a", add_special_tokens=False)
    assert "".join(streamed(codec, broken, [last, last])).endswith("aa")


@pytest.mark.parametrize("kind", ["byte fallback", "word piece"])
def test_endless_tokens_without_text_keep_the_window_small(kind: str) -> None:
    codec = CODECS[kind]
    special = max(codec.tokenizer.get_added_tokens_decoder())
    letter = codec.encode("a", add_special_tokens=False)
    decoded: list[int] = []

    def decode(tokens: Sequence[int]) -> str:
        decoded.append(len(tokens))
        return codec.decode(tokens)

    detokenizer = Detokenizer(decode, codec.text_bytes, [])
    text = "".join(detokenizer.push(token) for token in [*letter, *[special] * 500, *letter])
    assert text == "a a"
    assert max(decoded) <= MAX_HELD_TOKENS + 2
