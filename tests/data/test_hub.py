"""Data by name: what the datasets library loads, here from a folder; the hub is the same call."""

import json
from pathlib import Path

import pytest

from sgate_serve.data.documents import read_documents
from sgate_serve.data.hub import HELD_OUT, TRAIN, is_dataset_name
from sgate_serve.data.records import read_examples
from sgate_serve.errors import TrainingError


def write_dataset(folder: Path, *splits: str) -> Path:
    folder.mkdir()
    for split in splits:
        line = json.dumps({"text": f"a {split} text", "label": 1, "other": 3})
        (folder / f"{split}.jsonl").write_text(line + "\n", encoding="utf-8")
    return folder


def test_a_dataset_is_read_by_split(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `data` is not installed")
    data = write_dataset(tmp_path / "named", "train", "validation")
    assert [example.text for example in read_examples(data, TRAIN)] == ["a train text"]
    (example,) = read_examples(data, HELD_OUT)
    assert example.text == "a validation text" and example.label == 1
    assert example.where.endswith("validation record 1")
    assert read_documents(data, HELD_OUT) == ["a validation text"]


def test_a_dataset_without_the_split_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `data` is not installed")
    data = write_dataset(tmp_path / "named", "train")
    with pytest.raises(TrainingError, match=r"has no split validation or .* \(it has train\)"):
        read_examples(data, HELD_OUT)


def test_a_name_that_is_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the extra `data` is not installed")
    with pytest.raises(TrainingError, match="nowhere is not a file, and datasets cannot load it"):
        read_examples(Path("nowhere"), TRAIN)


@pytest.mark.parametrize(
    ("name", "is_name"),
    [
        ("glue/sst2", True),
        ("imdb", True),
        ("owner/set-v1.2", True),
        ("data.json", False),
        ("owner/data.tsv", False),
        ("a/b/c", False),
        ("../data", False),
        ("~/data", False),
        ("/data", False),
    ],
)
def test_what_looks_like_a_path_is_no_name(name: str, is_name: bool) -> None:
    assert is_dataset_name(Path(name)) == is_name


def test_a_name_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgate_serve.environment.find_spec", lambda name: None)
    with pytest.raises(
        TrainingError,
        match=r'sst2 is not a file; give a .*dataset run: .*install.* -e ".*\[data\]"',
    ):
        read_examples(Path("glue/sst2"), TRAIN)
