"""A server that is loaded: its model, what it takes, and the requests that it is sent.

What it takes is found out before the load with one request of it, which warms it up too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sgate_serve.bench.load.client import Client
from sgate_serve.bench.load.dataset import Dataset
from sgate_serve.bench.load.options import LoadOptions
from sgate_serve.bench.load.prompts import TEXT, Prompt, Source, token_prompts, word_prompts
from sgate_serve.bench.load.trace import Trace, count_of
from sgate_serve.errors import BenchError

# What OpenAI's API does not have, or not everywhere; a server that refuses one is not sent it.
OPTIONAL: Mapping[str, Any] = {"ignore_eos": True, "stream_options": {"include_usage": True}}
TOKENS, WORDS = "random tokens", "random words"
# Fewer ids than this are no vocabulary.
FEWEST_IDS = 16
# The index of the prompt that is tried, which no load reaches.
TRIAL = 2**31
BAD_REQUEST, TOO_BIG_TO_READ = 400, 499


@dataclass
class Target:
    """A server with the model and the prompts that it is loaded with.

    `fields` are those of OPTIONAL that it takes; `prompt_kind` says what its prompts are.
    """

    client: Client
    model: str
    path: str
    source: Source
    prompt_kind: str
    version: str | None = None
    max_model_len: int | None = None
    fields: set[str] = field(default_factory=lambda: set(OPTIONAL))

    async def send(self, index: int) -> Trace:
        """Send the prompt of an index."""
        prompt = self.source(index)
        return await self.client.stream(self.path, self._body(prompt), prompt.input_len)

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        is_chat = self.path.endswith("/chat/completions")
        wanted = {"stream_options"} | ({"ignore_eos"} if prompt.is_exact else set())
        return {
            "model": self.model,
            "messages" if is_chat else "prompt": prompt.content,
            "max_tokens": prompt.output_len,
            "stream": True,
            **{name: OPTIONAL[name] for name in sorted(wanted & self.fields)},
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "url": self.client.url,
            "model": self.model,
            "version": self.version,
            "max_model_len": self.max_model_len,
            "endpoint": self.path,
            "prompts": self.prompt_kind,
            "fields": sorted(self.fields),
        }


async def prepare(client: Client, options: LoadOptions, dataset: Dataset | None) -> Target:
    """Ask a server what it serves, choose prompts that it reads, and send it one.

    Raises BenchError if it cannot be reached, has no model, or refuses the request.
    """
    card = await _model_card(client, options)
    is_chat = options.chat if dataset is None else dataset.is_chat
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    sources = await _sources(client, card["id"], options, dataset, is_chat=is_chat)
    (kind, source), *others = sources.items()
    target = Target(client, card["id"], path, source, kind)
    target.max_model_len = count_of(card.get("max_model_len"))
    target.version = await _version(client)
    _check_lengths(target, options, dataset)
    error = await _try(target)
    for kind, source in others if error else ():
        # Perhaps it reads no token ids; if words are refused too, the first reason is the better.
        target.source, target.prompt_kind = source, kind
        error = error if await _try(target) else ""
    if error:
        raise BenchError(
            f"{client.url} refuses the first request: {error}{_remedy(error, options)}"
        )
    return target


async def _sources(
    client: Client, model: str, options: LoadOptions, dataset: Dataset | None, *, is_chat: bool
) -> dict[str, Source]:
    """Return prompts by their kind, the better first: random tokens of the server's, or words."""
    if dataset is not None and not dataset.lacks_text:
        return {"dataset": dataset.source(options.seed)}
    found: dict[str, Source] = {}
    pool = [] if is_chat else await _token_pool(client, model)
    if len(pool) >= FEWEST_IDS:
        tokens = token_prompts(pool, options)
        found[TOKENS] = tokens if dataset is None else dataset.source(options.seed, pool)
    words = word_prompts(options, is_chat=is_chat)
    found[WORDS] = words if dataset is None else dataset.source(options.seed)
    return found


def _remedy(error: str, options: LoadOptions) -> str:
    """Return what may help against a refusal, besides what the server says."""
    if error.startswith("HTTP 404") and options.model is not None:
        return "; correct --model, or leave it out"
    return ""


async def _try(target: Target) -> str:
    """Send one prompt, without the fields that the server refuses; return why it fails."""
    trace = await target.send(TRIAL)
    refused = {name for name in target.fields if name in trace.error}
    if refused and BAD_REQUEST <= trace.status <= TOO_BIG_TO_READ:
        target.fields -= refused
        return await _try(target)
    return trace.error


async def _model_card(client: Client, options: LoadOptions) -> dict[str, Any]:
    answer = await client.ask("/v1/models", is_needed=options.model is None)
    found = answer.get("data") if isinstance(answer, dict) else None
    listed = found if isinstance(found, list) else []
    cards = [card for card in listed if isinstance(card, dict) and _is_name(card.get("id"))]
    if options.model is not None:
        named = (card for card in cards if card["id"] == options.model)
        return next(named, {"id": options.model})
    if not cards:
        raise BenchError(f"{client.url}/v1/models lists no model; name one with --model")
    return cards[0]


def _is_name(value: Any) -> bool:
    """Say whether a model's id is one that can be shown and sent back."""
    return isinstance(value, str) and value.isprintable() and value != ""


async def _version(client: Client) -> str | None:
    answer = await client.ask("/version")
    version = answer.get("version") if isinstance(answer, dict) else None
    return version if isinstance(version, str) else None


async def _token_pool(client: Client, model: str) -> list[int]:
    """Return the ids that the server's tokenizer gives ordinary text; none if it shows none."""
    # vLLM's and ours, then llama-server's.
    for body in ({"model": model, "prompt": TEXT, "add_special_tokens": False}, {"content": TEXT}):
        answer = await client.ask("/tokenize", body)
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        if isinstance(tokens, list) and all(type(token) is int for token in tokens):
            return sorted(set(tokens))
    return []


def _check_lengths(target: Target, options: LoadOptions, dataset: Dataset | None) -> None:
    most = target.max_model_len
    if most is None:
        return
    if dataset is None and options.prompt_len + options.answer_len > most:
        flags = "--input-len, --shared-prefix-len or --output-len"
        found = f"{options.prompt_len} + {options.answer_len} tokens"
        raise BenchError(
            f"{found} are more than the {most} that {target.client.url} takes; lower {flags}"
        )
    for record in dataset.records if dataset else ():
        prompt = record.prompt
        if prompt.input_len + prompt.output_len > most:
            raise BenchError(
                f"{record.where}: its {prompt.input_len} + {prompt.output_len} tokens are more "
                f"than the {most} that {target.client.url} takes; shorten it, or lower --output-len"
            )
