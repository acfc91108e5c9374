"""The prompts of a verification: random tokens that reach special positions, and real text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from converters.to_onnx.rope import max_positions
from sgate_serve.architecture.family import CAUSAL_LM, CLASSIFICATION
from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.documents import read_documents
from sgate_serve.data.hub import HELD_OUT
from sgate_serve.engines.model_protocols import Tokens
from sgate_serve.engines.table import ONNX, VLLM
from sgate_serve.errors import EngineError
from sgate_serve.loaders.logits import logits_engine
from sgate_serve.text.tokenization import TextCodec
from sgate_serve.text.tokenizer_files import TOKENIZER_FILE
from sgate_serve.text.truncation import Truncation
from sgate_serve.verify.verify_options import VerifyOptions

# The long prompt ends after the first chunk of a prompt that the onnx engine reads, 128 tokens,
# and after a sliding window if that takes at most LONGEST tokens.
REACH = 160
PAST_WINDOW = 16
LONGEST = 1040
# Logits of one prompt that a comparison may hold: 1 GiB in fp32. vLLM makes an object of each.
MAX_LOGITS, MAX_LOGITS_OF_VLLM = 2**28, 2**22
TEXT_PROMPTS, TEXT_TOKENS, TEXT_DOCUMENTS = 16, 256, 256
DEFAULT_TOKENS: int = VerifyOptions.prompt_tokens

Item = TypeVar("Item")


@dataclass(frozen=True)
class Prompt:
    """Token ids [T] and, for a text pair, their segment ids [T]."""

    tokens: Tokens
    types: Tokens | None = None


@dataclass(frozen=True)
class PromptSet:
    """The prompts for one engine: random ones, and those of real text in a file called `data`."""

    engine: str
    random: Sequence[Prompt]
    text: Sequence[Prompt] = ()
    data: str | None = None

    @property
    def all(self) -> Sequence[Prompt]:
        return (*self.random, *self.text)

    @property
    def longest(self) -> int:
        return max(len(prompt.tokens) for prompt in self.all)

    def measures(self, prompt: Prompt) -> bool:
        """Say whether the cost of rounding is measured on it: on text, where there is some."""
        return any(prompt is each for each in self.text or self.random)


def make_prompts(options: VerifyOptions, out: Checkpoint, base: Checkpoint) -> PromptSet:
    """Return the prompts of a verification, texts read by the base's tokenizer.

    Raises SgateError as `text_prompts` does.
    """
    engine = logits_engine(options.engine, out)
    random = random_prompts(options, out, engine)
    if options.data is None:
        return PromptSet(engine, random)
    return PromptSet(engine, random, text_prompts(options.data, base, engine), options.data.name)


def longest_prompt(engine: str, spec: ModelSpec) -> int:
    """Return the longest prompt whose outputs an engine gives."""
    if engine == ONNX:
        return max_positions(spec)
    # vLLM generates one token after each prompt.
    return spec.max_positions - (engine == VLLM and spec.task == CAUSAL_LM)


def random_prompts(options: VerifyOptions, model: Checkpoint, engine: str) -> list[Prompt]:
    """Return `num_prompts` prompts of `prompt_tokens` uniformly random ids, and a longer one.

    Every second prompt is a pair if the model has segments. Padding ids that change a model's
    outputs are among the tokens. Raises EngineError for more tokens than the engine gives outputs
    of; the default is cut to them.
    """
    spec, generator = model.spec, np.random.default_rng(options.seed)
    longest = longest_prompt(engine, spec)
    if options.prompt_tokens > longest and options.prompt_tokens != DEFAULT_TOKENS:
        raise EngineError(
            f"--prompt-tokens {options.prompt_tokens} exceeds the {longest} positions of "
            f"{model.folder} on {engine}; give at most that"
        )
    length = min(options.prompt_tokens, longest)
    lengths = [length] * options.num_prompts
    reach = min(_reach(engine, spec), longest)
    lengths += [reach] if reach > length else []
    prompts = [generator.integers(0, spec.vocab_size, length) for length in lengths]
    _put_padding(prompts, model, engine)
    return [
        Prompt(tokens, _second_half(len(tokens)) if spec.num_types > 1 and index % 2 else None)
        for index, tokens in enumerate(prompts)
    ]


def text_prompts(path: Path, model: Checkpoint, engine: str) -> list[Prompt]:
    """Return texts of a file as prompts: TEXT_PROMPTS of at most TEXT_TOKENS ids, spread over it.

    A language model's are whole blocks of the running text. Raises SgateError for a file without
    text, or a model without tokenizer.
    """
    codec = TextCodec.load(model.folder)
    if codec is None:
        raise EngineError(
            f"--data {path}: {model.folder / TOKENIZER_FILE} is missing, so texts cannot be read; "
            "omit --data, or put the model's tokenizer.json there"
        )
    longest = min(TEXT_TOKENS, longest_prompt(engine, model.spec))
    documents = _spread(read_documents(path, HELD_OUT), TEXT_DOCUMENTS)
    if model.spec.task == CAUSAL_LM:
        texts = list(_blocks(codec, documents, longest))
    else:
        texts = [codec.encode_texts(text, truncation=Truncation(longest)).ids for text in documents]
    prompts = [Prompt(np.array(ids, np.int64)) for ids in _spread(texts, TEXT_PROMPTS) if ids]
    if not prompts or max(max(prompt.tokens) for prompt in prompts) >= model.spec.vocab_size:
        raise EngineError(
            f"--data {path}: the tokenizer in {model.folder} makes no tokens of this model of it; "
            "give text, and the model's own tokenizer.json"
        )
    return prompts


def unreached(spec: ModelSpec, prompts: Sequence[Prompt]) -> Iterator[str]:
    """Yield what the prompts do not reach: windows, and positions after the longest prompt."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    for window in sorted({window for window in spec.windows if window and window >= longest}):
        yield (
            f"outputs after more than a sliding window of {window} tokens "
            f"(--prompt-tokens {window + PAST_WINDOW})"
        )
    if longest < spec.max_positions:
        yield f"outputs after {longest} tokens; the model reads up to {spec.max_positions}"


def has_padding(model: Checkpoint) -> bool:
    """Say whether padding ids inside a text change the outputs: positions or the token to read."""
    spec = model.spec
    reads_last = spec.task == CLASSIFICATION and not spec.is_encoder
    padding = model.config.get("pad_token_id")
    is_token = isinstance(padding, int) and 0 <= padding < spec.vocab_size
    return is_token and (spec.family.has_padded_positions or reads_last)


def reads_padding(model: Checkpoint, engine: str) -> bool:
    """Say whether an engine treats padding ids as transformers does: vLLM's own models do not.

    Our encoders on vLLM do; our classifying decoders there classify by the very last token.
    """
    is_own = model.config["model_type"] == SGATE_MODEL_TYPE and model.spec.is_encoder
    return engine != VLLM or is_own


def _reach(engine: str, spec: ModelSpec) -> int:
    """Return how long a prompt is wanted and affordable."""
    windows = [window + PAST_WINDOW for window in spec.windows if window]
    wanted = max([REACH, *(length for length in windows if length <= LONGEST)])
    if spec.task != CAUSAL_LM:
        return wanted
    return min(wanted, (MAX_LOGITS_OF_VLLM if engine == VLLM else MAX_LOGITS) // spec.vocab_size)


def _put_padding(prompts: list[Tokens], model: Checkpoint, engine: str) -> None:
    """Put padding ids inside the first prompt and at the end of the last, if they matter."""
    if has_padding(model) and reads_padding(model, engine):
        prompts[0][len(prompts[0]) // 2] = prompts[-1][-1] = model.config["pad_token_id"]


def _second_half(length: int) -> Tokens:
    return (np.arange(length) >= length // 2).astype(np.int64)


def _blocks(codec: TextCodec, documents: Sequence[str], size: int) -> Iterator[tuple[int, ...]]:
    """Yield blocks of `size` ids of the running text, or all of it if it is shorter."""
    ids = [token for text in documents for token in codec.encode(text)]
    if len(ids) < size:
        yield tuple(ids)
    yield from (tuple(ids[at : at + size]) for at in range(0, len(ids) - size + 1, size))


def _spread(items: Sequence[Item], count: int) -> Sequence[Item]:
    """Return at most `count` of the items, spread over all: the first may be of one kind."""
    if len(items) <= count:
        return items
    return [items[index * len(items) // count] for index in range(count)]
