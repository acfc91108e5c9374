"""The steps of tokenizers before BPE, and llama.cpp's names for those before byte-level BPE.

llama.cpp has the steps in code, by a name in the file (`tokenizer.ggml.pre`). Its own converter
recognises vocabularies; here the steps themselves are compared, so that any vocabulary trained
behind known steps is named, and one behind unknown steps is refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sgate_serve.text.tokenization import METASPACE

# Normalizers of SentencePiece's kind: spaces become marks, and a text may begin with one.
SPACES: Mapping[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE}
PREFIX: Mapping[str, Any] = {"type": "Prepend", "prepend": METASPACE}

Step = tuple[Any, ...]

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def _cased(ending: str, digits: str) -> str:
    """Return the expression that also cuts where small letters are followed by capitals."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{_UPPER}*{_LOWER}+{ending}|{before}{_UPPER}+{_LOWER}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(expression: str) -> tuple[Step, ...]:
    return (("Split", expression, "Isolated", False), ("ByteLevel", False, False))


_WORDS: Step = ("ByteLevel", False, True)
# The name of each sequence of steps, which also depends on whether a word that is a token is left
# alone (`ignore_merges`).
NAMES: Mapping[tuple[tuple[Step, ...], bool], str] = {
    ((_WORDS,), False): "gpt-2",
    ((("Digits", True), _WORDS), False): "smollm",
    (_split(_LLAMA3), True): "llama-bpe",
    (_split(_LLAMA3), False): "smaug-bpe",
    (_split(_LLAMA3.replace("{1,3}", "")), False): "qwen2",
    (_split(_cased(_CONTRACTION, r"\p{N}{1,3}")), False): "gpt-4o",
    (_split(_cased("", r"\p{N}")), True): "tekken",
}
# Names in files that stand for the same as one of these.
OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("olmo", "mpt", "phi-2", "jais", "trillion", "exaone4"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("dbrx",), "smaug-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), "qwen2"),
    **dict.fromkeys(("llama4",), "gpt-4o"),
}


def pre_tokenizer_name(serialized: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name for the steps of a tokenizer.json; None if it has none."""
    steps = tuple(_steps(serialized.get("pre_tokenizer") or {}))
    return NAMES.get((steps, bool(serialized["model"].get("ignore_merges"))))


def serialized_steps(name: str) -> tuple[dict[str, Any], bool] | None:
    """Return the `pre_tokenizer` of a tokenizer.json and `ignore_merges` for a name, if known."""
    own = OTHER_NAMES.get(name, name)
    found = next((key for key, known in NAMES.items() if known == own), None)
    if found is None:
        return None
    steps, ignores_merges = found
    parts = [_serialized(step) for step in steps]
    return {"type": "Sequence", "pretokenizers": parts}, ignores_merges


def _steps(stage: Mapping[str, Any]) -> Iterator[Step]:
    """Yield what matters of each step, in order."""
    kind = stage.get("type")
    if kind == "Sequence":
        for part in stage["pretokenizers"]:
            yield from _steps(part)
    elif kind == "ByteLevel":
        yield (kind, stage["add_prefix_space"], stage.get("use_regex", True))
    elif kind == "Digits":
        yield (kind, stage["individual_digits"])
    elif kind == "Split":
        yield (kind, stage["pattern"].get("Regex"), stage["behavior"], stage["invert"])
    else:
        yield (kind,)


def _serialized(step: Step) -> dict[str, Any]:
    kind, *values = step
    if kind == "ByteLevel":
        flags = dict(zip(("add_prefix_space", "use_regex"), values, strict=True))
        return {"type": kind, "trim_offsets": True, **flags}
    if kind == "Digits":
        return {"type": kind, "individual_digits": values[0]}
    return {
        "type": kind,
        "pattern": {"Regex": values[0]},
        "behavior": values[1],
        "invert": values[2],
    }
