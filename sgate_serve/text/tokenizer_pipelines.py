"""The classes of transformers 5 that build a tokenizer anew from the vocabulary in tokenizer.json.

Of tokenizer.json such a class keeps the vocabulary, the merges and the post-processor; the rest is
its own, shaped by tokenizer_config.json. Each entry here does what the class of its name does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

BPE, WORD_PIECE, UNIGRAM = "BPE", "WordPiece", "Unigram"
SPACE = "\u2581"
END_OF_TEXT = "<|endoftext|>"
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Here the marks of a letter belong to its word.
QWEN3_5_WORDS = QWEN2_WORDS.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)

Settings = Mapping[str, Any]
# Special tokens by name: text and id.
Named = Mapping[str, tuple[str, int]]


@dataclass(frozen=True)
class Vocabulary:
    """The model of tokenizer.json: tokens with ids or (Unigram) scores, and the merges of a BPE."""

    tokens: Any
    merges: Sequence[tuple[str, str]]
    charsmap: bytes | None = None


@dataclass(frozen=True)
class Pipeline:
    """How one class builds its tokenizer.

    `model` is the kind of vocabulary that it needs, `special` its default special tokens. `frame`
    returns a post-processor that replaces the file's, if the class has one of its own. With
    `marks_segments`, models get the token types of a pair.
    """

    model: str
    build: Callable[[Vocabulary, Settings], Tokenizer]
    special: Mapping[str, str | None]
    frame: Callable[[Named, Settings], Any] | None = None
    is_byte_level: bool = False
    marks_segments: bool = False
    # The file's post-processor is dropped.
    drops_frame: bool = False
    # All special tokens are registered, also those that the vocabulary has as ordinary tokens.
    registers_all: bool = False


def _llama(vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    adds_space = settings.get("add_prefix_space") is not False
    legacy = bool(settings.get("legacy", False))
    scheme = ("always" if legacy else "first") if adds_space else "never"
    tokenizer = Tokenizer(
        models.BPE(vocabulary.tokens, vocabulary.merges, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _gemma(vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary.tokens,
            vocabulary.merges,
            fuse_unk=True,
            unk_token=str(settings["unk_token"]),
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _byte_level(vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = Tokenizer(_byte_level_model(vocabulary))
    adds_space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _neox(vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = _byte_level(vocabulary, settings)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _qwen(words: str, vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = Tokenizer(_byte_level_model(vocabulary))
    tokenizer.normalizer = normalizers.NFC()
    adds_space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=adds_space, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_level_model(vocabulary: Vocabulary) -> models.BPE:
    return models.BPE(
        vocabulary.tokens,
        vocabulary.merges,
        continuing_subword_prefix="",
        end_of_word_suffix="",
        fuse_unk=False,
    )


def _bert(vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary.tokens, unk_token=str(settings["unk_token"])))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents"),
        lowercase=bool(settings.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _xlm_roberta(vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    # The class takes token 3 for the unknown one, whatever the file says.
    tokenizer = Tokenizer(models.Unigram(vocabulary.tokens, unk_id=3, byte_fallback=False))
    if vocabulary.charsmap is not None:
        tokenizer.normalizer = normalizers.Precompiled(vocabulary.charsmap)
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme=scheme)
    return tokenizer


def _bert_frame(named: Named, settings: Settings) -> Any:
    start, end = named["cls_token"], named["sep_token"]
    return processors.TemplateProcessing(
        single=f"{start[0]}:0 $A:0 {end[0]}:0",
        pair=f"{start[0]}:0 $A:0 {end[0]}:0 $B:1 {end[0]}:1",
        special_tokens=[start, end],
    )


def _roberta_frame(named: Named, settings: Settings) -> Any:
    return processors.RobertaProcessing(
        named["sep_token"],
        named["cls_token"],
        bool(settings.get("trim_offsets", True)),
        bool(settings.get("add_prefix_space", False)),
    )


def _xlm_roberta_frame(named: Named, settings: Settings) -> Any:
    start, end = named["bos_token"], named["eos_token"]
    return processors.TemplateProcessing(
        single=[start[0], "$A", end[0]],
        pair=[start[0], "$A", end[0], end[0], "$B", end[0]],
        special_tokens=[start, end],
    )


_GPT2 = dict.fromkeys(("unk_token", "bos_token", "eos_token"), END_OF_TEXT)
_SENTENCE = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_ROBERTA = {
    **_SENTENCE,
    "sep_token": "</s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_BERT = Pipeline(
    WORD_PIECE,
    _bert,
    {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    _bert_frame,
    marks_segments=True,
)
_QWEN2 = Pipeline(
    BPE,
    partial(_qwen, QWEN2_WORDS),
    {
        "unk_token": END_OF_TEXT,
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
    },
    is_byte_level=True,
    registers_all=True,
)
PIPELINES: Mapping[str, Pipeline] = {
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": replace(_BERT, marks_segments=False),
    "GPT2Tokenizer": Pipeline(BPE, _byte_level, {**_GPT2, "pad_token": None}, is_byte_level=True),
    "GPTNeoXTokenizer": Pipeline(
        BPE, _neox, {**_GPT2, "pad_token": "<|padding|>"}, is_byte_level=True, drops_frame=True
    ),
    "GemmaTokenizer": Pipeline(
        BPE,
        _gemma,
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    "LlamaTokenizer": Pipeline(BPE, _llama, _SENTENCE),
    "Qwen2Tokenizer": _QWEN2,
    "Qwen3_5Tokenizer": replace(_QWEN2, build=partial(_qwen, QWEN3_5_WORDS), registers_all=False),
    "RobertaTokenizer": Pipeline(BPE, _byte_level, _ROBERTA, _roberta_frame, is_byte_level=True),
    "XLMRobertaTokenizer": Pipeline(UNIGRAM, _xlm_roberta, _ROBERTA, _xlm_roberta_frame),
}
