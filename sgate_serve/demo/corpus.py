"""The corpus: sources of Python's standard library, real text that every machine has."""

import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sgate_serve.checkpoint.writer import FolderWriter
from sgate_serve.demo.sizes import DemoSizes

TRAIN_FILE, EVAL_FILE = "train.jsonl", "eval.jsonl"
TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
END_TOKEN = "<|endoftext|>"
HELD_OUT_OF_256 = 20

# Tests, data tables and installed packages are unlike the library itself.
TESTS = frozenset({"test", "tests"})
LEFT_OUT = TESTS | {"idlelib", "lib2to3", "encodings", "pydoc_data", "site-packages"}

# The model has seen only Python, so a chat becomes comments and a docstring.
CHAT_TEMPLATE = (
    "{% for message in messages %}# {{ message.role }}: {{ message.content }}\n{% endfor %}"
    '{% if add_generation_prompt %}"""{% endif %}'
)


def write_corpus(writer: FolderWriter, sizes: DemoSizes, *, with_tests: bool = False) -> None:
    """Write train.jsonl and eval.jsonl, a document per source file, and a BPE tokenizer.

    `with_tests` adds the library's tests to the training text, but not to the tokenizer's.
    """
    parts: dict[str, list[str]] = {TRAIN_FILE: [], EVAL_FILE: []}
    for _, text in list(read_sources())[: sizes.max_files]:
        parts[EVAL_FILE if is_held_out(text) else TRAIN_FILE].append(text)
    train_tokenizer(parts[TRAIN_FILE], sizes.vocab_size).save(str(writer.path(TOKENIZER_FILE)))
    if with_tests:
        parts[TRAIN_FILE] += [text for _, text in read_tests() if not is_held_out(text)]
    for name, texts in parts.items():
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        writer.path(name).write_text("".join(lines), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_TOKEN,
        "chat_template": CHAT_TEMPLATE,
    }
    writer.write_json(TOKENIZER_CONFIG_FILE, config)


def read_sources() -> Iterator[tuple[str, str]]:
    """Yield (path in the library, text) of its Python sources, sorted by path."""
    return _read_library(lambda parts: LEFT_OUT.isdisjoint(parts))


def read_tests() -> Iterator[tuple[str, str]]:
    """Yield (path in the library, text) of its tests, if they are installed."""
    tables = LEFT_OUT - TESTS
    return _read_library(lambda parts: tables.isdisjoint(parts) and not TESTS.isdisjoint(parts))


def _read_library(is_wanted: Callable[[tuple[str, ...]], bool]) -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if is_wanted(name.parts):
            yield name.as_posix(), path.read_text(encoding="utf-8", errors="replace")


def is_held_out(text: str) -> bool:
    """Say whether a file is held out; decided by its text, so that copies stay together."""
    return hashlib.sha256(text.encode()).digest()[0] < HELD_OUT_OF_256


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE on `texts`, which can encode and decode any string."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
