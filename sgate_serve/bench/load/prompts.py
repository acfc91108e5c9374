"""The prompts of a load: random tokens or words; dataset.py has those of a file.

A source gives the prompt of any index, the same one whenever it is asked, so that two servers can
be sent the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgate_serve.bench.load.options import LoadOptions

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
        ids = [number for number in drawn.content if isinstance(number, int)]
        return Prompt(words_of(ids, is_chat=is_chat), 0, drawn.output_len)

    return prompt


def words_of(numbers: Sequence[int], *, is_chat: bool) -> Content:
    """Return the words of these numbers as a text, or as a chat of one message."""
    text = " ".join(WORDS[number] for number in numbers)
    return [{"role": "user", "content": text}] if is_chat else text
