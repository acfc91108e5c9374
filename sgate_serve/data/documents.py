"""Reads documents from text files and packs their tokens into blocks of equal length. Numpy only.

`.jsonl` and `.csv` hold one document per record, in one column; others are ignored. In `.txt` a
form feed ends a document; without any, paragraphs are grouped into documents of about 4,000
characters.
"""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sgate_serve.data.hub import FILE_SUFFIXES, TRAIN, check_exists, is_dataset_name
from sgate_serve.data.records import OWN_COLUMNS, TEXT_FLAG, Columns, read_records, read_text
from sgate_serve.errors import TrainingError
from sgate_serve.text.tokenizer_loading import load_tokenizer

Blocks = NDArray[np.int64]

HELD_OUT_SHARE = 0.1
DOCUMENT_CHARACTERS = 4000


def read_documents(
    path: Path, splits: tuple[str, ...] = TRAIN, columns: Columns = OWN_COLUMNS
) -> list[str]:
    """Return the non-blank documents of a file, or of the first of `splits` a dataset has.

    Raises TrainingError for a missing or empty file, an unknown suffix, or a record without text.
    """
    check_exists(path)
    if path.suffix.lower() not in FILE_SUFFIXES and not is_dataset_name(path):
        raise TrainingError(f"{path}: data must be one of {', '.join(FILE_SUFFIXES)}")
    if path.suffix.lower() == ".txt":
        documents = list(_split_text(read_text(path)))
    else:
        records = read_records(path, splits)
        documents = [record.text(columns.text, TEXT_FLAG) for record in records]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise TrainingError(f"{path} holds no text; give a file with at least one document")
    return documents


def split_documents(documents: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Return (training, held-out) documents; a random tenth is held out, at least one.

    The end of a single document is held out. Raises TrainingError if it is too short for that.
    """
    if len(documents) == 1:
        return _without_end(documents[0])
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    held_out = set(order[: max(1, round(len(order) * HELD_OUT_SHARE))])
    train = [text for index, text in enumerate(documents) if index not in held_out]
    return train, [documents[index] for index in sorted(held_out)]


def _without_end(document: str) -> tuple[list[str], list[str]]:
    """Return a document up to a line, or else a word, that starts its last tenth, and the rest."""
    cut = len(document) - max(1, round(len(document) * HELD_OUT_SHARE))
    breaks = (document.rfind(separator, 0, cut) + 1 for separator in ("\n", " "))
    # The break must not double what is held out.
    cut = next((at for at in breaks if at > 2 * cut - len(document)), cut)
    train, held_out = document[:cut], document[cut:]
    if not train.strip() or not held_out.strip():
        raise TrainingError(
            "the data is a single document too short to hold its end out; give more text, or "
            "--eval-data"
        )
    return [train], [held_out]


def read_tokenizer(file: Path, vocab_size: int) -> Tokenizer:
    """Load `tokenizer.json` with the settings beside it, without padding or truncation.

    Raises TrainingError if it is missing or of another model, CheckpointError if it is malformed.
    """
    if not file.is_file():
        raise TrainingError(f"{file} is missing; put the model's tokenizer.json there")
    tokenizer = load_tokenizer(file.parent).tokenizer
    if tokenizer.get_vocab_size() > vocab_size:
        raise TrainingError(
            f"{file} has {tokenizer.get_vocab_size()} tokens, but the model has embeddings for "
            f"{vocab_size}; give the model's own tokenizer"
        )
    return tokenizer


def end_token(config: Mapping[str, Any]) -> int | None:
    """Return the config's `eos_token_id`, the first if it is a list, or None.

    A negative id, which transformers accepts, means that there is none.
    """
    value = config.get("eos_token_id")
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None or value < 0 else int(value)


def pack(
    documents: Iterable[str], tokenizer: Tokenizer, end_token: int | None, seq_len: int
) -> Blocks:
    """Return blocks [num_blocks, seq_len] of the concatenated tokens of the documents.

    `end_token` follows each document, and an incomplete last block is dropped. Raises TrainingError
    if there are too few tokens for one block.
    """
    end = [] if end_token is None else [end_token]
    tokens = [
        token
        for encoding in tokenizer.encode_batch(list(documents))
        for token in (*encoding.ids, *end)
    ]
    num_blocks = len(tokens) // seq_len
    if not num_blocks:
        raise TrainingError(
            f"the text has {len(tokens)} tokens, less than one block of {seq_len}; give more text "
            "or a smaller --seq-len"
        )
    return np.asarray(tokens[: num_blocks * seq_len], np.int64).reshape(num_blocks, seq_len)


def evenly_spaced(blocks: Blocks, count: int) -> Blocks:
    """Return at most `count` blocks, spread over all, as the first may be of a single document."""
    return blocks[:: max(1, len(blocks) // count)][:count]


def _split_text(text: str) -> Iterator[str]:
    if "\f" in text:
        yield from text.split("\f")
        return
    document = ""
    # The separator stays with its paragraph, so that the documents concatenate to the file.
    for paragraph in re.split(r"(?<=\n\n)(?!\n)", text):
        document += paragraph
        if len(document) >= DOCUMENT_CHARACTERS:
            yield document
            document = ""
    yield document
