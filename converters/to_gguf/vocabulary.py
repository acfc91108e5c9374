"""The tokenizer of a model folder as a GGUF file holds it.

Two kinds exist here: byte-level BPE (`gpt2`), and BPE over characters with a fallback to bytes
(`llama`, SentencePiece's), which llama.cpp merges by the scores of tokens. A tokenizer that
llama.cpp would cut text with otherwise is refused.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from converters.to_gguf.sentence_pieces import check_merges, prefix_space, scores_of
from sgate_serve.errors import CheckpointError
from sgate_serve.text.chat_template import DEFAULT_NAME, TOOLS_NAME, ChatTemplate
from sgate_serve.text.pre_tokenizers import NAMES, pre_tokenizer_name
from sgate_serve.text.tokenization import BYTE_PIECE, TextCodec, read_stop_token_ids
from sgate_serve.text.tokenizer_files import TOKENIZER_FILE

logger = logging.getLogger(__name__)

BYTE_LEVEL, SENTENCE_PIECES = "gpt2", "llama"
# Special tokens by their names in tokenizer_config.json, and the names of their keys in a file.
SPECIAL_KEYS: Mapping[str, str] = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unk",
    "sep_token": "sep",
    "pad_token": "pad",
    "mask_token": "mask",
}
_TYPES = gguf.TokenType


@dataclass(frozen=True)
class Vocabulary:
    """The tokens in the order of their ids, and how text becomes them.

    `kind` is the tokenizer in llama.cpp's terms, `pre` its name for the cutting into words; `ids`
    has the special tokens by the names of their keys.
    """

    kind: str
    tokens: list[str]
    types: list[int]
    ids: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    pre: str = "default"
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    adds_space: bool | None = None
    template: ChatTemplate | None = None

    @classmethod
    def read(cls, folder: Path, size: int) -> "Vocabulary | None":
        """Read the tokenizer of a folder whose embedding has `size` rows; None without one.

        Raises CheckpointError for a tokenizer that llama.cpp has no equal of.
        """
        codec = TextCodec.load(folder)
        if codec is None:
            return None
        source = folder / TOKENIZER_FILE
        serialized = json.loads(codec.tokenizer.to_str())
        kind, own = _cutting(serialized, source)
        tokens, types = _tokens(serialized, size, source)
        if kind == SENTENCE_PIECES:
            own["scores"] = scores_of(serialized["model"]["merges"], tokens)
        else:
            own["merges"] = [" ".join(pair) for pair in serialized["model"]["merges"]]
        ids = _special_ids(codec, folder)
        adds_bos, adds_eos = _frame(codec, ids, source)
        return cls(
            kind, tokens, types, ids, adds_bos, adds_eos, template=codec.chat_template, **own
        )

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.adds_space is not None:
            writer.add_add_space_prefix(self.adds_space)
        for name, index in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(index)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.template is not None:
            writer.add_chat_template(_templates(self.template))


def _templates(template: ChatTemplate) -> str | list[dict[str, str]]:
    if template.for_tools is None:
        return template.source
    named = {DEFAULT_NAME: template, TOOLS_NAME: template.for_tools}
    return [{"name": name, "template": each.source} for name, each in named.items()]


def _cutting(serialized: Mapping[str, Any], source: Path) -> tuple[str, dict[str, Any]]:
    """Return the kind of a tokenizer, and the fields of `Vocabulary` that its steps decide."""
    model = serialized["model"]
    strange = [
        key
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if model.get(key)
    ]
    is_bpe = model.get("type") == "BPE"
    if not is_bpe or strange:
        found = f"{strange[0]} {model[strange[0]]!r}" if is_bpe else f"a {model.get('type')} model"
        raise CheckpointError(
            f"{source} has {found}, which is not written as GGUF: BPE is, over bytes or over "
            "characters with byte_fallback; leave out gguf"
        )
    if model.get("byte_fallback"):
        added = {token["content"] for token in serialized.get("added_tokens", ())}
        check_merges(model, added, source)
        return SENTENCE_PIECES, {"adds_space": prefix_space(serialized, source)}
    pre, normalizer = pre_tokenizer_name(serialized), serialized.get("normalizer") or {}
    if pre is None or normalizer.get("type") not in (None, "NFC"):
        stage = "pre_tokenizer" if pre is None else "normalizer"
        raise CheckpointError(
            f"{source}: llama.cpp is not known to have an equal of its {stage} "
            f"{json.dumps(serialized[stage], ensure_ascii=False):.160} (known: "
            f"{', '.join(NAMES.values())}); leave out gguf"
        )
    if normalizer:
        logger.info("%s composes characters first (NFC), and llama.cpp does not", source)
    return BYTE_LEVEL, {"pre": pre}


def _tokens(serialized: Mapping[str, Any], size: int, source: Path) -> tuple[list[str], list[int]]:
    """Return the text and the type of every id; ids without a token are unused ones."""
    model = serialized["model"]
    tokens, types = [f"[PAD{index}]" for index in range(size)], [int(_TYPES.UNUSED)] * size
    added = {token["id"]: token for token in serialized.get("added_tokens", ())}
    texts = {index: text for text, index in model["vocab"].items()}
    texts |= {index: token["content"] for index, token in added.items()}
    if max(texts, default=0) >= size:
        raise CheckpointError(
            f"{source} has the token id {max(texts)}, and the embedding has {size} rows; llama.cpp "
            "refuses a token without a row: leave out gguf"
        )
    for index, text in texts.items():
        tokens[index] = text
        if index in added:
            types[index] = _TYPES.CONTROL if added[index]["special"] else _TYPES.USER_DEFINED
        else:
            is_byte = model.get("byte_fallback") and BYTE_PIECE.fullmatch(text)
            types[index] = _TYPES.BYTE if is_byte else _TYPES.NORMAL
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None and model.get("byte_fallback"):
        types[unknown] = _TYPES.UNKNOWN
    stripping = [t["content"] for t in added.values() if t["lstrip"] or t["rstrip"]]
    if stripping:
        logger.info("%s: llama.cpp keeps the spaces beside %s", source, ", ".join(stripping[:3]))
    return tokens, [int(kind) for kind in types]


def _special_ids(codec: TextCodec, folder: Path) -> dict[str, int]:
    """Return the ids of the special tokens that there are, and of a second end of text (`eot`)."""
    texts = {key: codec.special_tokens.get(name) for name, key in SPECIAL_KEYS.items()}
    found = {key: codec.tokenizer.token_to_id(text) for key, text in texts.items() if text}
    ids = {key: index for key, index in found.items() if index is not None}
    ends = sorted(read_stop_token_ids(folder, codec))
    if ends:
        ids.setdefault("eos", ends[0])
    others = [index for index in ends if index != ids["eos"]]
    return ids | ({"eot": others[0]} if others else {})


def _frame(codec: TextCodec, ids: Mapping[str, int], source: Path) -> tuple[bool, bool]:
    """Say whether texts begin with the first special token and end with the last."""
    whole, bare = (list(codec.encode("a", add_special_tokens=adds)) for adds in (True, False))
    bos, eos = ids.get("bos"), ids.get("eos")
    for adds_bos, adds_eos in ((False, False), (True, False), (False, True), (True, True)):
        if whole == [*([bos] if adds_bos else []), *bare, *([eos] if adds_eos else [])]:
            return adds_bos, adds_eos
    raise CheckpointError(
        f"{source} encodes {bare} as {whole}, and llama.cpp puts no more than its bos_token before "
        "a text and its eos_token after it; leave out gguf"
    )
