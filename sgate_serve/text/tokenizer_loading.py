"""Builds the tokenizer that transformers' AutoTokenizer would build for a model folder.

The steps and their order are those of `TokenizersBackend` in transformers 5, because the ids of
added tokens depend on them.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, processors

from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import read_json
from sgate_serve.text.mistral_words import has_fixed_words, split_into_mistrals_words
from sgate_serve.text.tokenizer_class import PLAIN, base_model_type, class_of, heeds_class
from sgate_serve.text.tokenizer_files import (
    NAMED,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Token,
    TokenizerFiles,
    serialized_text,
)
from sgate_serve.text.tokenizer_pipelines import (
    BPE,
    PIPELINES,
    UNIGRAM,
    Named,
    Pipeline,
    Vocabulary,
)

CLEANS = "clean_up_tokenization_spaces"
CLEANS_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer, and what transformers keeps besides it.

    `special_tokens` are the named ones, as chat templates see them. With `cleans_up`, decoding
    drops spaces before punctuation. With `marks_segments`, models get the token types of pairs.
    """

    tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    cleans_up: bool = False
    marks_segments: bool = True
    truncation_side: str = "right"
    class_name: str = PLAIN


def load_tokenizer(folder: Path) -> LoadedTokenizer:
    """Read a folder that has a `tokenizer.json`; its settings for truncation do not apply.

    Raises CheckpointError for files that cannot be read, and for settings that cannot be applied.
    """
    config_path = folder / "config.json"
    config = read_json(config_path) if config_path.exists() else {}
    files = TokenizerFiles.read(folder)
    name = class_of(folder, config, files.settings)
    pipeline = PIPELINES.get(name)
    if pipeline is not None:
        _check_vocabulary(files, name, pipeline, config)
    try:
        tokenizer = _parsed(files) if pipeline is None else _built(files, pipeline)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(
            f"{folder / TOKENIZER_FILE} cannot be read by the tokenizers library: {error}"
        ) from error
    named = _named(files, pipeline)
    try:
        _finish(tokenizer, files, pipeline, named)
    except Exception as error:  # likewise
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG_FILE}: the special tokens of {name} cannot be applied "
            f"({error}); restore the tokenizer files of the base model"
        ) from error
    _check_unknown(files, tokenizer)
    if has_fixed_words(config, files.settings, tokenizer):
        split_into_mistrals_words(tokenizer)
    return replace(_loaded(tokenizer, files, pipeline, named), class_name=name)


def _loaded(
    tokenizer: Tokenizer,
    files: TokenizerFiles,
    pipeline: Pipeline | None,
    named: Mapping[str, Token | None],
) -> LoadedTokenizer:
    # Settings from training, stored in some files, that would truncate or pad every prompt.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return LoadedTokenizer(
        tokenizer,
        {key: str(token) for key, token in named.items() if token is not None},
        _cleans_up(files.settings, tokenizer),
        _marks_segments(files.settings, pipeline),
        files.settings.get("truncation_side") or _json_side(files) or "right",
    )


def _check_vocabulary(
    files: TokenizerFiles, name: str, pipeline: Pipeline, config: Mapping[str, Any]
) -> None:
    """Raise CheckpointError if the class would read another kind of tokenizer.json wrongly."""
    model = files.serialized.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    stages = [files.serialized.get(key) for key in ("pre_tokenizer", "decoder")]
    has_bytes = "ByteLevel" in serialized_text({"stages": stages})
    if kind not in (None, pipeline.model):
        found = f"a {kind} model"
    elif pipeline.model == BPE and pipeline.is_byte_level != has_bytes:
        found = "pieces of bytes" if has_bytes else "pieces of characters"
    else:
        return
    remedy = f"set tokenizer_class to {PLAIN} to read {TOKENIZER_FILE} as it stands"
    if not heeds_class(config):
        remedy = f"transformers reads every {base_model_type(config)} so; give the base's own files"
    raise CheckpointError(
        f"{files.folder / TOKENIZER_CONFIG_FILE}: the tokenizer class {name} does not fit "
        f"{TOKENIZER_FILE}, which has {found}; {remedy}"
    )


def _check_unknown(files: TokenizerFiles, tokenizer: Tokenizer) -> None:
    """Raise CheckpointError if the first word that the vocabulary lacks would be an error."""
    model = tokenizer.model
    if not isinstance(model, models.WordPiece | models.WordLevel):
        return
    if model.token_to_id(model.unk_token) is None:
        raise CheckpointError(
            f"{files.folder / TOKENIZER_FILE}: the vocabulary lacks {model.unk_token!r}, the token "
            f"for unknown words (unk_token, there or in {TOKENIZER_CONFIG_FILE}); restore the "
            "tokenizer files of the base model"
        )


def _parsed(files: TokenizerFiles) -> Tokenizer:
    return Tokenizer.from_file(str(files.folder / TOKENIZER_FILE))


def _built(files: TokenizerFiles, pipeline: Pipeline) -> Tokenizer:
    """Build a class's tokenizer from the vocabulary, with the post-processor of the file."""
    model = files.serialized["model"]
    merges = [_pair(merge) for merge in model.get("merges", ())]
    tokens = model["vocab"]
    if pipeline.model == UNIGRAM:
        tokens = [tuple(entry) for entry in tokens]
    unknown = {**pipeline.special, **files.special.named}["unk_token"]
    vocabulary = Vocabulary(tokens, merges, _charsmap(files.serialized.get("normalizer")))
    tokenizer = pipeline.build(vocabulary, {**files.settings, "unk_token": unknown})
    processor = None if pipeline.drops_frame else _parsed_frame(files, pipeline)
    if processor is not None:
        tokenizer.post_processor = processor
    return tokenizer


def _pair(merge: Any) -> tuple[str, str]:
    """Return the two pieces of a merge, which old files write as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _parsed_frame(files: TokenizerFiles, pipeline: Pipeline) -> Any:
    """Return the post-processor of tokenizer.json, without parsing its tokens where possible."""
    model = files.serialized["model"]
    if pipeline.model == UNIGRAM or "type" not in model:
        return _parsed(files).post_processor
    empty = {**model, "vocab": {}} | ({"merges": []} if pipeline.model == BPE else {})
    shell = {**files.serialized, "model": empty, "added_tokens": []}
    return Tokenizer.from_str(serialized_text(shell)).post_processor


def _charsmap(normalizer: Any) -> bytes | None:
    """Return the table of a SentencePiece normalizer, if the file has one."""
    stages = normalizer if isinstance(normalizer, list) else [normalizer or {}]
    if isinstance(normalizer, Mapping) and normalizer.get("type") == "Sequence":
        stages = normalizer["normalizers"]
    for stage in stages:
        if stage.get("type") == "Precompiled" and "precompiled_charsmap" in stage:
            return base64.b64decode(stage["precompiled_charsmap"])
    return None


def _named(files: TokenizerFiles, pipeline: Pipeline | None) -> dict[str, Token | None]:
    """Return the named special tokens in transformers' order; None for those that are ruled out."""
    defaults = {} if pipeline is None else pipeline.special
    padding = files.serialized.get("padding")
    if isinstance(padding, Mapping) and "pad_token" in padding:
        defaults = {"pad_token": padding["pad_token"], **defaults}
    named = {**defaults, **files.special.named}
    order = (*NAMED, *(key for key in named if key not in NAMED))
    return {key: named[key] for key in order if key in named}


def _finish(
    tokenizer: Tokenizer,
    files: TokenizerFiles,
    pipeline: Pipeline | None,
    named: Mapping[str, Token | None],
) -> None:
    """Add the tokens that the files name and the vocabulary lacks, then frame texts with them."""
    tokenizer.encode_special_tokens = bool(files.settings.get("split_special_tokens", False))
    given = [token for token in named.values() if token is not None]
    texts = set(map(str, given))
    missing: list[Token] = [files.added[index] for index in sorted(files.added)]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known |= set(map(str, missing))
    for token in (*given, *files.special.extra):
        if str(token) not in known and token not in missing:
            missing.append(token)
    tokenizer.add_tokens([_as_special(token, texts) for token in missing])
    if tokenizer.post_processor is None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A:0", pair="$A:0 $B:1", special_tokens=[]
        )
    if pipeline is not None and pipeline.frame is not None:
        tokenizer.post_processor = pipeline.frame(_with_ids(tokenizer, named), files.settings)
    if pipeline is not None and pipeline.registers_all:
        every = dict.fromkeys([*map(str, given), *map(str, files.special.extra)])
        tokenizer.add_tokens([AddedToken(text, special=True) for text in every])


def _as_special(token: Token, named: set[str]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if not token.special and str(token) in named:
        token.special = True
    return token


def _with_ids(tokenizer: Tokenizer, named: Mapping[str, Token | None]) -> Named:
    """Return the texts and ids of the named tokens that have both."""
    ids = {key: (str(token), tokenizer.token_to_id(str(token))) for key, token in named.items()}
    return {key: (text, index) for key, (text, index) in ids.items() if index is not None}


def _cleans_up(settings: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    is_bpe = type(tokenizer.model).__name__ == BPE
    return bool(settings.get(CLEANS)) and (not is_bpe or bool(settings.get(CLEANS_BPE)))


def _marks_segments(settings: Mapping[str, Any], pipeline: Pipeline | None) -> bool:
    names = settings.get("model_input_names")
    if names is not None:
        return "token_type_ids" in names
    return pipeline is not None and pipeline.marks_segments


def _json_side(files: TokenizerFiles) -> Any:
    """Return the side that tokenizer.json truncates on, transformers' default."""
    truncation = files.serialized.get("truncation")
    side = truncation.get("direction") if isinstance(truncation, Mapping) else None
    return side.lower() if isinstance(side, str) else None
