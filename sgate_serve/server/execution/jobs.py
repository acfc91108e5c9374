"""Turns a validated body into engine requests: token ids, sampling parameters and limits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

import numpy as np

from sgate_serve.engines.contract import Grammar, Request, SamplingParams
from sgate_serve.errors import RequestError
from sgate_serve.server.excerpt import excerpt
from sgate_serve.server.execution.logprob_counts import LogprobCounts
from sgate_serve.server.execution.tool_use import ToolUse, call_grammar, tool_use
from sgate_serve.server.protocol.generation_requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
)
from sgate_serve.server.protocol.strict_body import TokenIds, as_list
from sgate_serve.server.served_model import LONG_TEXT, SHORT_TEXT, ServedModel
from sgate_serve.text.truncation import Truncation

# Clients may send any 64-bit seed, but generators take no negative ones.
SEED_MODULUS = 2**64


@dataclass(frozen=True)
class Display:
    """How the tokens of a job become text and log-probabilities, by the fields of the body.

    With `lists_stop` the stop token that ends a choice is one of its tokens, as in vLLM. `echoed`
    and `prompt` say how many likeliest tokens are shown with those of an echoed prompt, and in
    `prompt_logprobs`; None for no log-probabilities.
    """

    skips_special_tokens: bool = True
    shows_stop: bool = False
    lists_stop: bool = False
    tokens_as_ids: bool = False
    echoed: int | None = None
    prompt: int | None = None

    @classmethod
    def of(cls, body: GenerationRequest, counts: LogprobCounts) -> "Display":
        return cls(
            body.skip_special_tokens,
            body.include_stop_str_in_output,
            body.return_token_ids,
            body.return_tokens_as_token_ids,
            counts.echoed,
            counts.prompt,
        )


@dataclass(frozen=True)
class Job:
    """The engine requests of one HTTP call, in the order of its choices.

    `stop` are the strings that end a choice, `stop_ids` the tokens that do so only in this call,
    `echo` the text shown before each choice (empty by default). The `num_choices` requests of a
    prompt are adjacent. `tools` are None if there are none to call.
    """

    requests: tuple[Request, ...]
    stop: tuple[str, ...]
    echo: tuple[str, ...]
    num_choices: int = 1
    display: Display = field(default_factory=Display)
    stop_ids: frozenset[int] = frozenset()
    tools: ToolUse | None = None

    @property
    def num_prompt_tokens(self) -> tuple[int, ...]:
        """The prompt tokens to count for each request: all with the first choice of a prompt."""
        return tuple(
            0 if index % self.num_choices else len(request.prompt)
            for index, request in enumerate(self.requests)
        )


def completion_job(body: CompletionRequest, model: ServedModel) -> Job:
    """Encode the prompts of a completion; raise RequestError naming what cannot be served."""
    texts = as_list(body.prompt)
    truncation = body.truncation(model.engine.max_model_len - body.max_tokens, "left")
    prompts = [_encode(prompt, body, model, truncation) for prompt in texts]
    counts = LogprobCounts.of(body, model.engine.vocab_size, echoes=body.echo)
    num_tokens = (len(prompts) * body.max_tokens * body.n, sum(map(len, prompts)) * body.n)
    counts.check(*num_tokens, model.engine.max_model_len)
    sampling = _sampling(body, model, body.max_tokens, counts)
    sampling = replace(sampling, grammar=_grammar(body, model))
    requests = _requests(prompts, sampling, body.n)
    echo = [""] * len(prompts)
    if body.echo:
        shown = prompts if truncation is not None else texts
        echo = [_echo(prompt, body, model) for prompt in shown]
    echoes = tuple(text for text in echo for _ in range(body.n))
    display = Display.of(body, counts)
    return Job(requests, body.stop_strings, echoes, body.n, display, _own_stops(body, model))


def chat_job(body: ChatRequest, text: str, model: ServedModel) -> Job:
    """Encode a rendered conversation; raise RequestError naming what cannot be served."""
    truncation = body.truncation(model.engine.max_model_len - (body.limit or 1), "left")
    model.check_text(text, "messages", SHORT_TEXT if truncation is None else LONG_TEXT)
    prompt = model.require_codec("messages").encode(
        text, add_special_tokens=bool(body.add_special_tokens), truncation=truncation
    )
    # At least 1, so that the check below refuses a prompt that leaves no room.
    max_tokens = body.limit or max(1, model.engine.max_model_len - len(prompt))
    _check_length(prompt, max_tokens, model, "messages")
    counts = LogprobCounts.of(body, model.engine.vocab_size)
    counts.check(max_tokens * body.n, len(prompt) * body.n, model.engine.max_model_len)
    use = tool_use(body, model)
    grammar = _grammar(body, model) if use is None else call_grammar(body, use, model)
    sampling = replace(_sampling(body, model, max_tokens, counts), grammar=grammar)
    requests = _requests([prompt], sampling, body.n)
    model.check_text(body.echoed_text, "messages")
    echo = (body.echoed_text,) * body.n
    display = Display.of(body, counts)
    return Job(requests, body.stop_strings, echo, body.n, display, _own_stops(body, model), use)


def _requests(
    prompts: Sequence[tuple[int, ...]], sampling: SamplingParams, n: int
) -> tuple[Request, ...]:
    """Return `n` adjacent requests for each prompt, each with a seed of its own.

    Their ids are new, because several clients may send the same `x-request-id` at once.
    """
    job_id = uuid4().hex
    samplings = [sampling] * n
    if sampling.seed is not None:
        seeds = [(sampling.seed + index) % SEED_MODULUS for index in range(n)]
        samplings = [replace(sampling, seed=seed) for seed in seeds]
    pairs = [(prompt, own) for prompt in prompts for own in samplings]
    return tuple(
        Request(f"{job_id}-{index}", prompt, own) for index, (prompt, own) in enumerate(pairs)
    )


def _encode(
    prompt: str | TokenIds,
    body: CompletionRequest,
    model: ServedModel,
    truncation: Truncation | None,
) -> tuple[int, ...]:
    """Return the tokens of a prompt, whose length is checked before any work on it."""
    tokens: Sequence[int]
    if isinstance(prompt, str):
        model.check_text(prompt, "prompt", SHORT_TEXT if truncation is None else LONG_TEXT)
        tokens = model.require_codec("prompt").encode(
            prompt, add_special_tokens=body.add_special_tokens is not False, truncation=truncation
        )
    else:
        tokens = prompt if truncation is None else truncation.slice(prompt)
    _check_length(tokens, body.max_tokens, model, "prompt")
    model.check_ids(tokens, "prompt")
    return tuple(tokens)


def _echo(prompt: str | Sequence[int], body: CompletionRequest, model: ServedModel) -> str:
    """Return the text of a prompt as it was sent, or else of its tokens."""
    if isinstance(prompt, str):
        return prompt
    codec = model.require_codec("echo")
    return codec.decode(prompt, skip_special_tokens=body.skip_special_tokens)


def _sampling(
    body: GenerationRequest, model: ServedModel, max_tokens: int, counts: LogprobCounts
) -> SamplingParams:
    """Return the sampling parameters; a stop string that is a special token becomes an id."""
    if body.min_tokens > max_tokens:
        raise RequestError(
            f"`min_tokens` is {body.min_tokens}, but only {max_tokens} may be generated; lower it "
            "or raise max_tokens",
            param="min_tokens",
        )
    bias = tuple((int(token), value) for token, value in body.logit_bias.items())
    model.check_ids((token for token, _ in bias), "logit_bias")
    model.check_ids(body.stop_token_ids, "stop_token_ids")
    allowed = body.allowed_token_ids
    model.check_ids(allowed or (), "allowed_token_ids")
    model.check_ids(body.logprob_token_ids, "logprob_token_ids")
    stop_ids = frozenset(body.stop_token_ids)
    if not body.ignore_eos:
        stop_ids |= model.stop_token_ids
    if body.stop_strings:
        stop_ids |= model.require_codec("stop").special_ids(body.stop_strings)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=None if body.seed is None else body.seed % SEED_MODULUS,
        stop_token_ids=stop_ids,
        top_k=max(0, body.top_k),
        min_p=body.min_p,
        min_tokens=body.min_tokens,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=bias,
        logprobs=counts.new,
        prompt_logprobs=counts.read,
        logprob_token_ids=tuple(body.logprob_token_ids),
        drafted_tokens=body.prompt_lookup_num_tokens,
        allowed_token_ids=None if allowed is None else np.unique(np.array(allowed, np.int64)),
        bad_words=tuple(_bad_words(body.bad_words, model)),
    )


def _own_stops(body: GenerationRequest, model: ServedModel) -> frozenset[int]:
    """Return the stop tokens of a body that would not end a choice anyway."""
    ends: frozenset[int] = frozenset() if body.ignore_eos else model.stop_token_ids
    return frozenset(body.stop_token_ids) - ends


def _grammar(body: GenerationRequest, model: ServedModel) -> Grammar | None:
    """Compile the grammar of a body; raise RequestError naming the field that has a bad one."""
    source = body.grammar
    return None if source is None else model.grammar_compiler(source.param).compile(source)


def _check_length(prompt: Sequence[int], max_tokens: int, model: ServedModel, param: str) -> None:
    limit = model.engine.max_model_len
    if not prompt:
        raise RequestError(
            f"`{param}` has no tokens; send some text, or at least one token id", param=param
        )
    if len(prompt) + max_tokens > limit:
        # Clients know these words, and shorten the conversation.
        found = f"this model's maximum context length is {limit} tokens, and `{param}` has "
        if len(prompt) >= limit:
            reason = f"the prompt is too long: {found}{len(prompt)}; shorten it"
        else:
            reason = (
                f"{found}{len(prompt)}, after which {max_tokens} more may be generated; shorten it "
                "or lower max_tokens"
            )
        raise RequestError(reason, param=param, code="context_length_exceeded")


def _bad_words(words: Sequence[str], model: ServedModel) -> Iterator[tuple[int, ...]]:
    """Yield the tokens of each word, at the beginning of a text and, if they differ, inside of it.

    As in vLLM, the form with a space counts if it has as many tokens and another first one.
    """
    for word in words:
        codec = model.require_codec("bad_words")
        plain, spaced = (
            codec.encode(space + word.lstrip(), add_special_tokens=False) for space in ("", " ")
        )
        if not plain:
            raise RequestError(
                f"`bad_words` has {excerpt(word)}, which has no tokens; leave it out",
                param="bad_words",
            )
        yield plain
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            yield spaced
