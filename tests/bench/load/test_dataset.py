"""The lines of datasets and traces, and those that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.bench.load.dataset import Dataset, read_dataset
from sgate_serve.bench.load.options import LoadOptions
from sgate_serve.bench.load.prompts import WORDS, Prompt
from sgate_serve.errors import BenchError


def write(folder: Path, text: str) -> LoadOptions:
    path = folder / "d.jsonl"
    path.write_text(text, encoding="utf-8")
    return LoadOptions(dataset=path, output_len=9)


def dataset_of(options: LoadOptions) -> Dataset:
    assert options.dataset is not None
    return read_dataset(options.dataset, options)


def read(options: LoadOptions) -> list[Prompt]:
    return [record.prompt for record in dataset_of(options).records]


def test_a_dataset_of_prompts(tmp_path: Path) -> None:
    lines = '\ufeff{"prompt": "a b", "id": 3}\n\n{"prompt": [4, 5], "output_tokens": 2}\n'
    options = write(tmp_path, lines)
    assert read(options) == [Prompt("a b", 0, 9, False), Prompt([4, 5], 2, 2, True)]
    dataset = dataset_of(options)
    assert not (dataset.is_chat or dataset.is_trace or dataset.lacks_text)
    prompt = dataset.source(seed=0)
    assert prompt(2) == prompt(0) == read(options)[0]


def test_a_line_of_messages_makes_all_lines_chats(tmp_path: Path) -> None:
    message = {"role": "user", "content": "hi"}
    lines = '{"prompt": "a"}\n{"messages": [{"role": "user", "content": "hi"}]}\n'
    found = [prompt.content for prompt in read(write(tmp_path, lines))]
    assert found == [[{"role": "user", "content": "a"}], [message]]
    with pytest.raises(BenchError, match="line 1: token ids cannot be sent as a chat"):
        read(write(tmp_path, '{"prompt": [1]}\n{"messages": [{"role": "user"}]}\n'))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON .*; write one object on each line"),
        ("[1]", "line 2: not an object; write one with `prompt` or `messages`"),
        ("{}", "line 2: give either `prompt` or `messages`"),
        ('{"prompt": "a", "messages": []}', "line 2: give either"),
        ('{"prompt": ""}', "line 2: `prompt` must be a string that is not empty, or token ids"),
        ('{"prompt": [true]}', "line 2: `prompt` must be"),
        ('{"messages": "a"}', "line 2: `messages` must be a list of objects"),
        ('{"prompt": "a", "output_tokens": 0}', "line 2: `output_tokens` must be a whole number"),
        ('{"prompt": "a", "output_length": "9"}', "line 2: `output_length` must be a whole number"),
        (
            '{"prompt": "a", "output_length": 9, "output_tokens": 9}',
            "line 2: give either `output_tokens` or `output_length`",
        ),
        ('{"input_length": 0}', "line 2: `input_length` must be a whole number of at least 1"),
        ('{"input_length": 9, "hash_ids": [-1]}', "line 2: `hash_ids` must be a list of whole nu"),
        ('{"input_length": 9, "hash_ids": "a"}', "line 2: `hash_ids` must be a list of whole nu"),
        (
            '{"input_length": 512, "hash_ids": [1, 2]}',
            "line 2: 2 `hash_ids`, but blocks of 512 tokens in an `input_length` of 512: 1; give",
        ),
        ('{"prompt": "a", "timestamp": "1 s"}', "line 2: `timestamp` must be milliseconds; leave"),
        ('{"prompt": "a", "timestamp": NaN}', "line 2: `timestamp` must be milliseconds; leave"),
        ('{"prompt": "a", "timestamp": 5}', "line 1: no `timestamp`; give every line one, or none"),
    ],
)
def test_a_line_that_cannot_be_sent_is_named(tmp_path: Path, line: str, message: str) -> None:
    options = write(tmp_path, f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(BenchError, match=message):
        read(options)


def test_a_dataset_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"d\.jsonl is empty; write one JSON object"):
        read(write(tmp_path, "\n"))
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xff")
    with pytest.raises(BenchError, match=r"d\.jsonl cannot be read as UTF-8"):
        read(LoadOptions(dataset=tmp_path / "d.jsonl"))
    with pytest.raises(BenchError, match="cannot be read: No such file"):
        read(LoadOptions(dataset=tmp_path / "none.jsonl"))


def trace(folder: Path, *records: dict[str, Any], **options: Any) -> Dataset:
    path = folder / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return dataset_of(LoadOptions(dataset=path, **options))


def recorded(timestamp: float, length: int, *hash_ids: int) -> dict[str, Any]:
    return {
        "timestamp": timestamp,
        "input_length": length,
        "output_length": 3,
        "hash_ids": hash_ids,
    }


def test_equal_hashes_are_equal_blocks_of_tokens(tmp_path: Path) -> None:
    records = (recorded(0, 1100, 7, 8, 9), recorded(0, 1300, 7, 8, 10), recorded(0, 600, 11))
    dataset = trace(tmp_path, *records, {"timestamp": 0, "input_length": 520})
    assert dataset.lacks_text and dataset.is_trace
    pool = list(range(1000, 5000))
    prompt = dataset.source(0, pool)
    prompts = [prompt(index) for index in range(8)]
    first, second, third, own, *again = (each.content for each in prompts)
    assert [(each.input_len, each.output_len, each.is_exact) for each in prompts[:4]] == [
        (1100, 3, True),
        (1300, 3, True),
        (600, 3, True),
        (520, 64, False),
    ]
    for content, num_tokens in zip(
        (first, second, third, own), (1100, 1300, 600, 520), strict=True
    ):
        assert isinstance(content, list) and len(content) == num_tokens
        assert set(content) <= set(pool)
    assert first[:1024] == second[:1024] and first[1024:] != second[1024:1100]
    assert first[:512] != first[512:1024] and third[:512] != first[:512] and own != third[:520]
    # A second pass is no repetition, which the server may remember, but shares as much.
    assert again[0][:1024] == again[1][:1024] != first[:1024] and again[3] != own
    assert prompt(5) == dataset.source(0, pool)(5)
    assert dataset.source(1, pool)(0).content != first


def test_a_server_that_shows_no_tokens_gets_words(tmp_path: Path) -> None:
    records = (recorded(0, 3, 5), recorded(0, 2, 5), {"prompt": "text", "timestamp": 1})
    prompt = trace(tmp_path, *records).source(0)
    first, second = prompt(0), prompt(1)
    assert isinstance(first.content, str) and set(first.content.split(" ")) <= set(WORDS)
    assert (len(first.content.split(" ")), first.input_len) == (3, 0)
    assert second.content == first.content.rpartition(" ")[0]
    assert prompt(2).content == "text"
    chats = trace(tmp_path, *records, chat=True).source(0)
    assert chats(0).content == [{"role": "user", "content": first.content}]
    assert chats(2).content == [{"role": "user", "content": "text"}]


def test_times_are_seconds_after_the_first(tmp_path: Path) -> None:
    times = {"a": 90, "b": 90, "c": 340.5}
    texts = [{"prompt": name, "timestamp": time} for name, time in times.items()]
    dataset = trace(tmp_path, *texts)
    assert dataset.arrivals == pytest.approx([0, 0, 0.2505])
    assert [record.prompt.content for record in dataset.records] == ["a", "b", "c"]
    with pytest.raises(BenchError, match="line 3: `timestamp` 1 comes after 1732912345678; sort"):
        trace(tmp_path, texts[0], recorded(1732912345678, 3), recorded(1, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request_rate": "4"}, r"--request-rate: --dataset .*t\.jsonl has the times of its"),
        ({"sweep": True}, "--sweep: --dataset .* has the times"),
        (
            {"ramp_up_strategy": "linear", "ramp_up_start_rps": 1.0, "ramp_up_end_rps": 2.0},
            "--ramp-up-strategy: --dataset .* has the times",
        ),
        ({"num_prompts": 3}, "--num-prompts 3: --dataset .* has the times of 2 requests; give no"),
    ],
)
def test_flags_that_set_what_a_trace_has_set(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        trace(tmp_path, recorded(0, 3), recorded(5, 3), **options)
