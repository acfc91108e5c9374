"""The prompts of a file, and the times at which they are to be sent, if it has them.

A file with times is a trace: a load that was recorded, and is repeated at its own pace. Records may
state lengths instead of a text, as in Mooncake's traces (blocks.py).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from sgate_serve.bench.load.blocks import BLOCK_LEN, Blocks
from sgate_serve.bench.load.options import LoadOptions
from sgate_serve.bench.load.prompts import WORDS, Content, Prompt, Source, words_of
from sgate_serve.errors import BenchError
from sgate_serve.options import flag_of

FIELDS = "give either `prompt` or `messages`, or `input_length` for random tokens"
LENGTHS = ("output_tokens", "output_length")
# Times are no larger, whatever their unit and origin.
LATEST = 2.0**63


@dataclass(frozen=True)
class Record:
    """A line of a dataset: where it is, for errors, its prompt, and its time in milliseconds.

    With `blocks` the prompt has no text yet.
    """

    where: str
    prompt: Prompt
    blocks: Blocks | None = None
    timestamp: float | None = None


@dataclass(frozen=True)
class Dataset:
    """The records of a file, in its order."""

    records: tuple[Record, ...]
    is_chat: bool

    @property
    def is_trace(self) -> bool:
        """Whether the records have times."""
        return self.records[0].timestamp is not None

    @property
    def arrivals(self) -> list[float]:
        """The times of a trace, in seconds after its first."""
        times = [record.timestamp or 0.0 for record in self.records]
        return [(time - times[0]) / 1000 for time in times]

    @property
    def lacks_text(self) -> bool:
        """Whether a record has only lengths."""
        return any(record.blocks for record in self.records)

    def source(self, seed: int, pool: Sequence[int] = ()) -> Source:
        """Return the prompts; those without text have random tokens of `pool`, or words if empty.

        After the last one comes the first again, with other random tokens.
        """

        def prompt(index: int) -> Prompt:
            turn, number = divmod(index, len(self.records))
            found, blocks = self.records[number].prompt, self.records[number].blocks
            if blocks is None:
                return found
            drawn = blocks.draw(len(pool or WORDS), (seed, turn), number)
            if pool:
                return replace(found, content=[pool[each] for each in drawn])
            # Only the server can count the tokens of words.
            return replace(found, content=words_of(drawn, is_chat=self.is_chat), input_len=0)

        return prompt


def read_dataset(path: Path, options: LoadOptions) -> Dataset:
    """Read JSON lines with `prompt` (a string or token ids), `messages`, or `input_length`.

    `output_tokens` or `output_length` is the length of the answer, `timestamp` the time to send it;
    other fields are left alone. One line of messages makes all of them chats. Raises BenchError
    naming the line that cannot be sent, or the flag that a trace leaves without effect.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BenchError(f"--dataset {path} cannot be read as UTF-8 text: {error}") from error
    except OSError as error:
        raise BenchError(f"--dataset {path} cannot be read: {error.strerror}") from error
    found = [
        _read_line(line, f"--dataset {path}, line {number}", options)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise BenchError(f"--dataset {path} is empty; write one JSON object on each line")
    _check_times(found)
    is_chat = options.chat or any(_is_chat(record.prompt) for record in found)
    dataset = Dataset(tuple(_as_sent(record, is_chat) for record in found), is_chat)
    if dataset.is_trace:
        _check_flags(path, options, len(found))
    return dataset


def _read_line(line: str, where: str, options: LoadOptions) -> Record:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{where}: not JSON ({error}); write one object on each line") from error
    if not isinstance(values, dict):
        raise BenchError(f"{where}: not an object; write one with `prompt` or `messages`")
    length, blocks = _answer_len(values, where), _blocks(values, where)
    if blocks is None:
        content = _content(values, where)
        num_input = len(content) if _is_list_of(content, int) else 0
    else:
        content, num_input = "", blocks.num_tokens
    prompt = Prompt(content, num_input, length or options.answer_len, length is not None)
    return Record(where, prompt, blocks, _timestamp(values, where))


def _content(values: Mapping[str, Any], where: str) -> Content:
    if ("prompt" in values) == ("messages" in values):
        raise BenchError(f"{where}: {FIELDS}")
    if "messages" in values:
        messages: Content = values["messages"]
        if not _is_list_of(messages, dict):
            raise BenchError(f"{where}: `messages` must be a list of objects with role and content")
        return messages
    prompt: Content = values["prompt"]
    if not prompt or not (isinstance(prompt, str) or _is_list_of(prompt, int)):
        raise BenchError(f"{where}: `prompt` must be a string that is not empty, or token ids")
    return prompt


def _answer_len(values: Mapping[str, Any], where: str) -> int | None:
    given = [name for name in LENGTHS if values.get(name) is not None]
    if len(given) > 1:
        raise BenchError(f"{where}: give either `output_tokens` or `output_length`")
    return _count(values, given[0], where) if given else None


def _count(values: Mapping[str, Any], name: str, where: str) -> int:
    value: Any = values[name]
    if type(value) is not int or value < 1:
        raise BenchError(f"{where}: `{name}` must be a whole number of at least 1")
    return value


def _timestamp(values: Mapping[str, Any], where: str) -> float | None:
    value = values.get("timestamp")
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) < LATEST:
        raise BenchError(
            f"{where}: `timestamp` must be milliseconds; leave it out to send prompts without times"
        )
    return float(value)


def _blocks(values: Mapping[str, Any], where: str) -> Blocks | None:
    """Return what a record without text states of its prompt; None for one with text."""
    if "input_length" not in values or "prompt" in values or "messages" in values:
        return None
    num_tokens, hashes = _count(values, "input_length", where), values.get("hash_ids") or []
    if hashes and not (_is_list_of(hashes, int) and min(hashes) >= 0):
        raise BenchError(f"{where}: `hash_ids` must be a list of whole numbers of at least 0")
    most = math.ceil(num_tokens / BLOCK_LEN)
    if len(hashes) > most:
        raise BenchError(
            f"{where}: {len(hashes)} `hash_ids`, but blocks of {BLOCK_LEN} tokens in an "
            f"`input_length` of {num_tokens}: {most}; give one for each block"
        )
    return Blocks(num_tokens, tuple(hashes))


def _check_times(records: Sequence[Record]) -> None:
    """Raise BenchError unless all records have times, which do not decrease, or none has one."""
    without = [record.where for record in records if record.timestamp is None]
    if 0 < len(without) < len(records):
        raise BenchError(f"{without[0]}: no `timestamp`; give every line one, or none")
    for before, record in pairwise(records):
        if (record.timestamp or 0) < (before.timestamp or 0):
            raise BenchError(
                f"{record.where}: `timestamp` {record.timestamp:.15g} comes after "
                f"{before.timestamp:.15g}; sort the lines by time"
            )


def _check_flags(path: Path, options: LoadOptions, num_records: int) -> None:
    """Raise BenchError for a flag that decides what a trace has decided."""
    for name in ("sweep", "request_rate", "ramp_up_strategy"):
        if getattr(options, name):
            raise BenchError(
                f"{flag_of(name)}: --dataset {path} has the times of its requests; leave one of "
                "them out"
            )
    if (options.num_prompts or 0) > num_records:
        raise BenchError(
            f"--num-prompts {options.num_prompts}: --dataset {path} has the times of {num_records} "
            "requests; give no more, or leave it out"
        )


def _is_list_of(value: Any, kind: type) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(item, kind) and type(item) is not bool for item in value)


def _is_chat(prompt: Prompt) -> bool:
    return _is_list_of(prompt.content, dict)


def _as_sent(record: Record, is_chat: bool) -> Record:
    prompt = record.prompt
    if not is_chat or _is_chat(prompt) or record.blocks:
        return record
    if not isinstance(prompt.content, str):
        raise BenchError(f"{record.where}: token ids cannot be sent as a chat; give `messages`")
    message = {"role": "user", "content": prompt.content}
    return replace(record, prompt=Prompt([message], 0, prompt.output_len, prompt.is_exact))
