"""The prompts of a load: random tokens or words, or the lines of a dataset.

A source gives the prompt of any index, the same one whenever it is asked, so that two servers can
be sent the same.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgate_serve.bench.load.options import LoadOptions
from sgate_serve.errors import BenchError

Content = str | list[int] | list[dict[str, Any]]

# Common English words, most of them one token; text of them gives the ids of random prompts.
TEXT = (
    "the of and to in is that for was on are with as his they at be this from have or by one had "
    "not but what all were when we there can an your which their said if do will each about how "
    "up out them then she many some so these would other into has more her two like him see time "
    "could no make than first been its who now people my made over did down only way find use may "
    "water long little very after words called just where most know get through back much before "
    "go good new write our used me man too any day same right look think also around another came "
    "come work three word must because does part even place well such here take why things help "
    "put years different away again off went old number great tell men say small every found "
    "still between name should home big give air line set own under read last never us left end "
    "along while might next sound below saw something thought both few those always looked show "
    "large often together asked house world going want school important until form food keep "
    "children feet land side without boy once animals life enough took sometimes four head above "
    "kind began almost live page"
)
WORDS = TEXT.split()
PREFIX_INDEX = 2**32


@dataclass(frozen=True)
class Prompt:
    """What one request sends: a text, token ids or messages, with its lengths in tokens.

    `input_len` is 0 where only the server can count. `is_exact` asks for `output_len` tokens
    whatever the model says; otherwise it may stop before.
    """

    content: Content
    input_len: int
    output_len: int
    is_exact: bool = True


Source = Callable[[int], Prompt]


def token_prompts(pool: Sequence[int], options: LoadOptions) -> Source:
    """Return prompts of ids drawn from `pool`, after a prefix that all share."""
    ids = np.asarray(pool)

    def draw(index: int, num: int) -> list[int]:
        found: list[int] = np.random.default_rng([options.seed, index]).choice(ids, num).tolist()
        return found

    prefix = draw(PREFIX_INDEX, options.shared_prefix_len)
    num_own = options.prompt_len - len(prefix)

    def prompt(index: int) -> Prompt:
        return Prompt(prefix + draw(index, num_own), options.prompt_len, options.answer_len)

    return prompt


def word_prompts(options: LoadOptions, *, is_chat: bool) -> Source:
    """Return prompts of as many random words as there should be tokens; the server counts them."""
    numbers = token_prompts(range(len(WORDS)), options)

    def prompt(index: int) -> Prompt:
        drawn = numbers(index)
        text = " ".join(WORDS[number] for number in drawn.content if isinstance(number, int))
        content: Content = [{"role": "user", "content": text}] if is_chat else text
        return Prompt(content, 0, drawn.output_len)

    return prompt


@dataclass(frozen=True)
class Dataset:
    """The prompts of a file, in its order, and the lines that they are on, for errors."""

    prompts: tuple[Prompt, ...]
    places: tuple[str, ...]
    is_chat: bool

    def prompt(self, index: int) -> Prompt:
        """Return a prompt; after the last one comes the first again."""
        return self.prompts[index % len(self.prompts)]


def read_dataset(path: Path, options: LoadOptions) -> Dataset:
    """Read JSON lines with `prompt` (a string or token ids) or `messages`, and `output_tokens`.

    Other fields are left alone. One line of messages makes all of them chats. Raises BenchError
    naming the line that cannot be sent.
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
    is_chat = options.chat or any(_is_chat(prompt) for _, prompt in found)
    prompts = tuple(_as_sent(where, prompt, is_chat) for where, prompt in found)
    return Dataset(prompts, tuple(where for where, _ in found), is_chat)


def _read_line(line: str, where: str, options: LoadOptions) -> tuple[str, Prompt]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{where}: not JSON ({error}); write one object on each line") from error
    if not isinstance(values, dict):
        raise BenchError(f"{where}: not an object; write one with `prompt` or `messages`")
    length = values.get("output_tokens")
    if length is not None and (type(length) is not int or length < 1):
        raise BenchError(f"{where}: `output_tokens` must be a whole number of at least 1")
    if ("prompt" in values) == ("messages" in values):
        raise BenchError(f"{where}: give either `prompt` or `messages`")
    content = values["prompt"] if "prompt" in values else values["messages"]
    if "messages" in values and not _is_list_of(content, dict):
        raise BenchError(f"{where}: `messages` must be a list of objects with role and content")
    is_prompt = (isinstance(content, str) and content != "") or _is_list_of(content, int)
    if "prompt" in values and not is_prompt:
        raise BenchError(f"{where}: `prompt` must be a string that is not empty, or token ids")
    num_input = len(content) if _is_list_of(content, int) else 0
    return where, Prompt(content, num_input, length or options.answer_len, length is not None)


def _is_list_of(value: Any, kind: type) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(item, kind) and type(item) is not bool for item in value)


def _is_chat(prompt: Prompt) -> bool:
    return _is_list_of(prompt.content, dict)


def _as_sent(where: str, prompt: Prompt, is_chat: bool) -> Prompt:
    if not is_chat or _is_chat(prompt):
        return prompt
    if not isinstance(prompt.content, str):
        raise BenchError(f"{where}: token ids cannot be sent as a chat; give `messages`")
    message = {"role": "user", "content": prompt.content}
    return Prompt([message], 0, prompt.output_len, prompt.is_exact)
