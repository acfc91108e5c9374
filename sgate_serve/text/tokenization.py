"""The tokenizer and chat template of a model folder, read with the `tokenizers` library alone.

Missing files are not errors here: without `tokenizer.json` there is no codec, and without a chat
template only chats are refused.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from sgate_serve.errors import CheckpointError, RequestError
from sgate_serve.json_fields import read_json
from sgate_serve.text.chat_template import ChatOptions, ChatTemplate
from sgate_serve.text.detokenization import Detokenizer
from sgate_serve.text.generation_settings import warn_unapplied
from sgate_serve.text.tokenizer_files import (
    TOKENIZER_FILE,
    VOCABULARY_FILES,
    read_settings,
    token_texts,
)
from sgate_serve.text.tokenizer_loading import load_tokenizer
from sgate_serve.text.truncation import Truncation, cut, truncate

logger = logging.getLogger(__name__)

LOWERCASE = {"type": "Lowercase"}  # in the notation of tokenizer.json
METASPACE = "\u2581"
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
# What decoding joins to the text before it if the tokenizer cleans up; only " ' " loses two spaces.
CLEANED_UP = {
    **{f" {end}": end for end in ".?!,"},
    " ' ": "'",
    **{f" {end}": end for end in ("n't", "'m", "'s", "'ve", "'re")},
}


def _byte_alphabet() -> dict[str, bytes]:
    """Return GPT-2's map of characters to bytes, in which printable bytes map to themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + index): bytes([byte]) for index, byte in enumerate(others)}
    return shifted | {chr(byte): bytes([byte]) for byte in printable}


BYTE_OF = _byte_alphabet()


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids with special tokens, and the segment of each token, None for a single segment."""

    ids: tuple[int, ...]
    token_types: tuple[int, ...] | None


@dataclass(frozen=True)
class TextCodec:
    """A folder's tokenizer and chat template, and the settings of the tokenizer's class.

    `settings` are those of tokenizer_config.json, as its users know them.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    cleans_up: bool = False
    marks_segments: bool = True
    truncation_side: str = "right"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "TextCodec | None":
        """Read a model folder; return None and warn if it has no tokenizer.

        Raises CheckpointError for files that exist but cannot be read.
        """
        if not (folder / TOKENIZER_FILE).exists():
            logger.warning(
                "%s has no %s: only prompts of token ids work; %s",
                folder,
                TOKENIZER_FILE,
                _remedy(folder),
            )
            return None
        loaded, settings = load_tokenizer(folder), read_settings(folder)
        return cls(
            loaded.tokenizer,
            ChatTemplate.load(folder, settings, loaded.special_tokens),
            loaded.special_tokens,
            loaded.cleans_up,
            loaded.marks_segments,
            loaded.truncation_side,
            {**settings, "tokenizer_class": loaded.class_name},
        )

    @property
    def info(self) -> dict[str, Any]:
        """The settings with the special tokens as texts and the chat template, as in vLLM."""
        info = token_texts({**self.settings, **self.special_tokens})
        template = self.chat_template
        return info if template is None else {**info, "chat_template": template.source}

    def encode(
        self, text: str, *, add_special_tokens: bool = True, truncation: Truncation | None = None
    ) -> tuple[int, ...]:
        """Return the token ids of a prompt, with the special tokens that the tokenizer adds.

        Raises RequestError if they leave no room for text.
        """
        if truncation is None:
            return tuple(self._encoding(text, add_special_tokens=add_special_tokens).ids)
        return self.encode_texts(
            text, truncation=truncation, add_special_tokens=add_special_tokens
        ).ids

    def _encoding(self, text: str, *, add_special_tokens: bool) -> Encoding:
        # Unlike `encode`, a batch lets other threads run meanwhile.
        [encoding] = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding

    def max_characters(self, num_tokens: int) -> int:
        """Return how long a text of so many tokens can be, if all are the longest there is.

        Tokenizers that drop spaces or have a token for unknown words may make fewer tokens of it.
        """
        return num_tokens * self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab(with_added_tokens=True)), default=1)

    def encode_texts(
        self,
        text: str,
        text_pair: str | None = None,
        truncation: Truncation | None = None,
        longest: tuple[int | None, int | None] = (None, None),
        *,
        add_special_tokens: bool = True,
    ) -> EncodedTexts:
        """Return the encoding of one text or of a pair, by default with special tokens.

        Each text keeps at most its own `longest` tokens. To fit, the longer text is cut first.
        Raises RequestError if there is no room for text.
        """
        first = self._encoding(text, add_special_tokens=False)
        second = None
        if text_pair is not None:
            second = self._encoding(text_pair, add_special_tokens=False)
        for own, most in zip((first, second), longest, strict=True):
            if own is not None and most is not None:
                cut(own, most)
        if truncation is not None and not truncation.cuts_special:
            count = self.tokenizer.num_special_tokens_to_add
            num_special = count(second is not None) if add_special_tokens else 0
            side = truncation.side or self.truncation_side
            truncate(first, second, truncation.room(num_special), side)
        whole = self.tokenizer.post_process(first, second, add_special_tokens)
        ids, types = tuple(whole.ids), tuple(whole.type_ids)
        if truncation is not None and truncation.cuts_special:
            ids, types = truncation.slice(ids), truncation.slice(types)
        has_types = self.marks_segments and any(types)
        return EncodedTexts(ids, types if has_types else None)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], options: ChatOptions | None = None
    ) -> str:
        """Return a conversation as text, by default ending where the assistant's turn begins.

        The template writes the special tokens. Raises RequestError if there is no chat template, or
        if it refuses the messages.
        """
        if self.chat_template is None:
            raise RequestError(
                "this model has no chat template; send text instead of `messages`, or put the base "
                "model's chat_template.jinja into the model folder",
                param="messages",
            )
        return self.chat_template.render(messages, options)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens, by default without special tokens."""
        # Like encoding, a batch lets other threads run.
        [text] = self.tokenizer.decode_batch([tokens], skip_special_tokens=skip_special_tokens)
        return _cleaned_up(text) if self.cleans_up else text

    def token_names(self, tokens: Sequence[int]) -> list[str]:
        """Return the vocabulary's name of each token, empty for an unknown id."""
        return [self.tokenizer.id_to_token(token) or "" for token in tokens]

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; for an added token, those of its name."""
        piece = self.tokenizer.id_to_token(token)
        if piece is None:  # a model's vocabulary may be padded
            return b""
        if token in self._added_ids:
            return piece.encode()
        if self._is_byte_level:
            return b"".join(BYTE_OF.get(character, character.encode()) for character in piece)
        if BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(piece[3:5])
        return piece.replace(METASPACE, " ").encode()

    def text_bytes(self, token: int) -> bytes:
        """Return the bytes that a token adds to a decoded text: none if it is special."""
        return b"" if token in self._special_ids else self.token_bytes(token)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self.tokenizer.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_added_tokens_decoder())

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel(" in str(self.tokenizer.decoder)

    def special_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """Return the ids of those `texts` that are special tokens, which decoding leaves out."""
        return frozenset(self.special_tokens_in(texts).values())

    def special_tokens_in(self, texts: Iterable[str]) -> dict[str, int]:
        """Return text → id of those `texts` that are special tokens."""
        special = {
            token.content: index
            for index, token in self.tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        return {text: special[text] for text in texts if text in special}

    def detokenizer(
        self, prompt: Sequence[int], *, skip_special_tokens: bool = True
    ) -> Detokenizer:
        """Return a detokenizer of the tokens after `prompt`."""
        if skip_special_tokens:
            return Detokenizer(self.decode, self.text_bytes, prompt)
        decode = partial(self.decode, skip_special_tokens=False)
        return Detokenizer(decode, self.token_bytes, prompt)

    def lower_cased(self) -> "TextCodec":
        """Return the codec with texts put into lower case first, as sentence-transformers does."""
        contents = json.loads(self.tokenizer.to_str())
        stage = contents["normalizer"]
        is_several = stage is not None and stage["type"] == "Sequence"
        stages = stage["normalizers"] if is_several else [stage] if stage is not None else []
        if LOWERCASE not in stages:
            contents["normalizer"] = {"type": "Sequence", "normalizers": [LOWERCASE, *stages]}
        tokenizer = Tokenizer.from_str(json.dumps(contents, ensure_ascii=False))
        tokenizer.encode_special_tokens = self.tokenizer.encode_special_tokens
        return replace(self, tokenizer=tokenizer)


def _remedy(folder: Path) -> str:
    """Return how to give the folder a `tokenizer.json`."""
    found = next((name for name in VOCABULARY_FILES if (folder / name).exists()), None)
    if found is None:
        return "copy the base model's tokenizer files there"
    return (
        f"make one from {found} with transformers: "
        f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    )


def _cleaned_up(text: str) -> str:
    """Drop the spaces that transformers' `clean_up_tokenization` drops, in its order."""
    for spaced, joined in CLEANED_UP.items():
        text = text.replace(spaced, joined)
    return text


def read_stop_token_ids(folder: Path, codec: TextCodec | None) -> frozenset[int]:
    """Return every id that ends a generation; name the other defaults that are not applied.

    The sources are `eos_token_id` of generation_config.json, or else of config.json (or its text
    part), and the tokenizer's `eos_token`. Raises CheckpointError for an invalid id.
    """
    warn_unapplied(folder)
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        stored = read_json(path) if path.exists() else {}
        text = stored.get("text_config")
        levels = (stored, text if isinstance(text, Mapping) else {})
        stated = (level.get("eos_token_id") for level in levels)
        value = next((ids for ids in stated if ids is not None), None)
        if value is not None:
            ids.update(_token_ids(value, path))
            break
    if codec is not None:
        eos = codec.tokenizer.token_to_id(codec.special_tokens.get("eos_token", ""))
        ids.update(() if eos is None else (eos,))
    return frozenset(ids)


def _token_ids(value: Any, path: Path) -> list[int]:
    """Return the ids in a config's field; negative ones mean that there is no such token."""
    ids = value if isinstance(value, list) else [value]
    if not all(type(index) is int for index in ids):
        raise CheckpointError(
            f"{path}: eos_token_id is {value!r}; it must be a token id or a list of token ids"
        )
    return [index for index in ids if index >= 0]
