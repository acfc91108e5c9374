"""Random prompts and those of datasets, and the lines that are refused."""

from pathlib import Path

import pytest

from sgate_serve.bench.load.options import LoadOptions
from sgate_serve.bench.load.prompts import (
    WORDS,
    Prompt,
    read_dataset,
    token_prompts,
    word_prompts,
)
from sgate_serve.errors import BenchError


def test_random_tokens_are_of_the_pool_and_of_the_seed() -> None:
    options = LoadOptions(input_len=6, output_len=3, shared_prefix_len=4)
    prompt = token_prompts([5, 7, 11], options)
    first, second = prompt(0), prompt(1)
    assert isinstance(first.content, list) and isinstance(second.content, list)
    assert len(first.content) == first.input_len == 10 and first.output_len == 3
    assert set(first.content) <= {5, 7, 11}
    assert first.content[:4] == second.content[:4] and first.content != second.content
    assert token_prompts([5, 7, 11], options)(1) == second
    other = token_prompts([5, 7, 11], LoadOptions(input_len=10, seed=1))(0)
    assert other.content != first.content


def test_random_words_are_as_many_as_tokens_are_wanted() -> None:
    prompt = word_prompts(LoadOptions(input_len=6), is_chat=False)(2)
    assert isinstance(prompt.content, str) and prompt.input_len == 0
    words = prompt.content.split(" ")
    assert len(words) == 6 and set(words) <= set(WORDS)
    chat = word_prompts(LoadOptions(input_len=6), is_chat=True)(2)
    assert chat.content == [{"role": "user", "content": prompt.content}]


def write(folder: Path, text: str) -> LoadOptions:
    path = folder / "d.jsonl"
    path.write_text(text, encoding="utf-8")
    return LoadOptions(dataset=path, output_len=9)


def read(options: LoadOptions) -> list[Prompt]:
    assert options.dataset is not None
    return list(read_dataset(options.dataset, options).prompts)


def test_a_dataset_of_prompts(tmp_path: Path) -> None:
    lines = '\ufeff{"prompt": "a b", "id": 3}\n\n{"prompt": [4, 5], "output_tokens": 2}\n'
    options = write(tmp_path, lines)
    assert read(options) == [Prompt("a b", 0, 9, False), Prompt([4, 5], 2, 2, True)]
    assert options.dataset is not None
    dataset = read_dataset(options.dataset, options)
    assert not dataset.is_chat
    assert dataset.prompt(2) == dataset.prompt(0)


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
