"""Text to documents to blocks, and each way that data can be unusable."""

import json
from pathlib import Path

import numpy as np
import pytest

from sgate_serve.data.documents import (
    end_token,
    pack,
    read_documents,
    read_tokenizer,
    split_documents,
)
from sgate_serve.data.records import Columns
from sgate_serve.errors import CheckpointError, TrainingError
from tests.text_model import byte_tokenizer, write_tokenizer


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_form_feeds_separate_the_documents_of_a_text_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "one\n\nstill one\f\n \ftwo")
    assert read_documents(path) == ["one\n\nstill one", "two"]


def test_paragraphs_are_gathered_and_lose_nothing(tmp_path: Path) -> None:
    text = "\n\n\n".join(f"paragraph {index} " * 50 for index in range(30))
    documents = read_documents(written(tmp_path / "a.txt", text))
    assert "".join(documents) == text
    assert len(documents) > 3
    assert all(document.startswith("paragraph") for document in documents)
    assert all(len(document) >= 4000 for document in documents[:-1])


def test_jsonl_and_csv_give_their_text(tmp_path: Path) -> None:
    texts = ["one, with a comma", "two\nlines", "3"]
    lines = [json.dumps({"text": text, "label": 1}) for text in texts]
    assert read_documents(written(tmp_path / "a.jsonl", "\n".join(lines) + "\n\n")) == texts
    rows = 'id,text\n1,"one, with a comma"\n2,"two\nlines"\n3,3\n'
    assert read_documents(written(tmp_path / "a.csv", rows)) == texts


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.parquet", "x", r"a\.parquet: data must be one of \.txt, \.jsonl, \.csv"),
        ("a.txt", " \n\n ", r"a\.txt holds no text; give a file with at least one document"),
        ("a.jsonl", "", "holds no text"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"txt": "b"}',
            "line 2: no string `text`; .* its columns are txt: choose one with --text-column; did",
        ),
        ("a.jsonl", '{"text": 3}', "line 1: `text` is 3, not a string"),
        ("a.jsonl", '{"text": "a"}\nnonsense', "line 2: not JSON: .*; give one object to a line"),
        ("a.jsonl", '["a", "b"]', r"line 1: \['a', 'b'\] is not an object; give one to a line"),
        (
            "a.csv",
            "sentence,label\nhello,1\n",
            "record 1: no string `text`; .* its columns are sentence, label: choose one with",
        ),
        ("a.csv", "id,text\n1\n", "record 1: `text` is None, not a string"),
        ("a.csv", "text;label\nhello;1\n", "columns are separated by semicolons; separate them"),
        ("a.csv", "text\tlabel\nhello\t1\n", "columns are separated by tabs; separate them by"),
        ("a.json", "[]", r"a\.json: data must be one of \.txt, \.jsonl, \.csv"),
    ],
)
def test_unusable_data_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_documents(written(tmp_path / name, text))


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "id,sentence\n1,one\n2,two\n")
    assert read_documents(path, columns=Columns(text="sentence")) == ["one", "two"]


def test_long_documents_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    long = "word " * 50_000
    for name in ("a.csv", "a.CSV"):
        (tmp_path / name).write_text(f"text\n{long}\n", encoding="utf-8-sig")
        assert read_documents(tmp_path / name) == [long]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": long}), encoding="utf-8-sig")
    assert read_documents(tmp_path / "a.jsonl") == [long]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "json", "parquet"])
def test_a_missing_file_is_called_missing(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"texts.{suffix}").write_text("here")
    with pytest.raises(TrainingError, match=rf"text\.{suffix}: no such file; did you mean .*texts"):
        read_documents(tmp_path / f"text.{suffix}")
    with pytest.raises(TrainingError, match=r"no such file; there is no folder .*nowhere either"):
        read_documents(tmp_path / "nowhere" / f"text.{suffix}")


def test_binary_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingError, match="cannot be read as UTF-8 text"):
        read_documents(tmp_path / "binary.txt")


def test_a_seeded_tenth_is_held_out_by_document() -> None:
    documents = [f"document {index}" for index in range(40)]
    train, held_out = split_documents(documents, seed=3)
    assert len(held_out) == 4
    assert sorted(train + held_out) == sorted(documents)
    assert split_documents(documents, seed=3) == (train, held_out)
    assert split_documents(documents, seed=4) != (train, held_out)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"line {number} of a long text without blank lines\n" for number in range(200)),
        " ".join(f"word{number}" for number in range(900)),
        "猫" * 5000,
    ],
    ids=["lines", "words", "characters"],
)
def test_the_end_of_a_single_document_is_held_out(tmp_path: Path, text: str) -> None:
    documents = read_documents(written(tmp_path / "a.txt", text))
    assert documents == [text]
    (train,), (held_out,) = split_documents(documents, seed=0)
    assert train + held_out == text
    assert 0.1 <= len(held_out) / len(text) < 0.12
    assert train[-1] in "\n 猫"


def test_a_document_too_short_to_hold_out_its_end_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"a single document too short .* or --eval-data"):
        split_documents(["a"], seed=0)


def test_documents_are_packed_one_after_the_other() -> None:
    tokenizer = byte_tokenizer()
    texts = ["the cat sat", "on the log"]
    stream = [token for text in texts for token in (*tokenizer.encode(text).ids, 1)]
    blocks = pack(texts, tokenizer, 1, 4)
    assert blocks.dtype == np.int64
    assert blocks.reshape(-1).tolist() == stream[: len(stream) // 4 * 4]


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), (-1, None), ([], None), (7, 7), ([8, 9], 8)]
)
def test_the_end_token_is_the_first_of_the_config(value: object, expected: int | None) -> None:
    assert end_token({"eos_token_id": value}) == expected


def test_too_little_text_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"has \d tokens, less than one block of 64; give more"):
        pack(["the cat"], byte_tokenizer(), None, 64)


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(TrainingError, match=r"tokenizer\.json is missing; put the model's"):
        read_tokenizer(file, 400)
    written(file, "{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read by the tok"):
        read_tokenizer(file, 400)
    size = write_tokenizer(tmp_path).get_vocab_size()
    with pytest.raises(TrainingError, match=f"has {size} tokens, but .* embeddings for 20; give"):
        read_tokenizer(file, 20)
    assert read_tokenizer(file, size).get_vocab_size() == size
