"""Turns a validated body into engine requests: token ids, sampling parameters and limits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from sgate_serve.engines.contract import Grammar, Request, SamplingParams
from sgate_serve.errors import RequestError
from sgate_serve.server.execution.tool_use import ToolUse, call_grammar, tool_use
from sgate_serve.server.protocol.generation_requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
)
from sgate_serve.server.protocol.strict_body import TokenIds, as_list
from sgate_serve.server.served_model import ServedModel

# Clients may send any 64-bit seed, but generators take no negative ones.
SEED_MODULUS = 2**64
# Log-probabilities of one call, unless it has a single choice. Each takes about 500 bytes.
MAX_LOGPROB_VALUES = 2**19


@dataclass(frozen=True)
class Job:
    """The engine requests of one HTTP call, in the order of its choices.

    `stop` are the strings that end a choice, `echo` the text shown before each choice (empty by
    default). The `num_choices` requests of a prompt are adjacent. `tools` are None if there are
    none to call.
    """

    requests: tuple[Request, ...]
    stop: tuple[str, ...]
    echo: tuple[str, ...]
    num_choices: int = 1
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
    model.check_name(body.model)
    texts = as_list(body.prompt)
    prompts = [_encode(prompt, body.max_tokens, model) for prompt in texts]
    num_shown = sum(body.max_tokens + len(prompt) * body.echo for prompt in prompts)
    _check_logprobs(body, num_shown, model)
    sampling = _sampling(body, model, body.max_tokens)
    sampling = replace(sampling, grammar=_grammar(body, model))
    if body.echo:
        sampling = replace(sampling, prompt_logprobs=body.logprobs)
    requests = _requests(prompts, sampling, body.n)
    echo = tuple(_echo(body, prompt, model) for prompt in texts for _ in range(body.n))
    return Job(requests, body.stop_strings, echo, body.n)


def chat_job(body: ChatRequest, text: str, model: ServedModel) -> Job:
    """Encode a rendered conversation; raise RequestError naming what cannot be served."""
    model.check_text(text, "messages")
    prompt = model.require_codec("messages").encode(text, add_special_tokens=False)
    # At least 1, so that the check below refuses a prompt that leaves no room.
    max_tokens = body.limit or max(1, model.engine.max_model_len - len(prompt))
    _check_length(prompt, max_tokens, model, "messages")
    _check_logprobs(body, max_tokens, model)
    use = tool_use(body, model)
    grammar = _grammar(body, model) if use is None else call_grammar(body, use, model)
    sampling = replace(_sampling(body, model, max_tokens), grammar=grammar)
    requests = _requests([prompt], sampling, body.n)
    return Job(requests, body.stop_strings, ("",) * body.n, body.n, use)


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


def _encode(prompt: str | TokenIds, max_tokens: int, model: ServedModel) -> tuple[int, ...]:
    """Return the tokens of a prompt, whose length is checked before any work on it."""
    if isinstance(prompt, str):
        model.check_text(prompt, "prompt")
        prompt = [*model.require_codec("prompt").encode(prompt)]
    _check_length(prompt, max_tokens, model, "prompt")
    model.check_ids(prompt, "prompt")
    return tuple(prompt)


def _echo(body: CompletionRequest, prompt: str | TokenIds, model: ServedModel) -> str:
    if not body.echo:
        return ""
    return prompt if isinstance(prompt, str) else model.require_codec("echo").decode(prompt)


def _sampling(body: GenerationRequest, model: ServedModel, max_tokens: int) -> SamplingParams:
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
        logprobs=body.num_logprobs,
        drafted_tokens=body.prompt_lookup_num_tokens,
    )


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


def _check_logprobs(body: GenerationRequest, num_tokens: int, model: ServedModel) -> None:
    """Refuse a call whose log-probabilities would take gigabytes; `num_tokens` are for each `n`."""
    if body.num_logprobs is None:
        return
    num_each = 1 + body.num_logprobs
    most = max(MAX_LOGPROB_VALUES, num_each * model.engine.max_model_len)
    if body.n * num_tokens * num_each > most:
        raise RequestError(
            f"this call may have {body.n * num_tokens * num_each} log-probabilities, and at most "
            f"{most} are returned; lower n, max_tokens or `logprobs`, or send fewer prompts",
            param="logprobs",
        )
