"""Runs texts through an encoder: one request for each text, one vector for each request."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import PoolingRequest
from sgate_serve.errors import RequestError
from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.prometheus import ServerMetrics
from sgate_serve.server.protocol.cohere_embeddings import CohereEmbedRequest
from sgate_serve.server.protocol.pooling_requests import PoolingBody
from sgate_serve.server.protocol.renamed_fields import renaming
from sgate_serve.server.protocol.strict_body import TokenIds
from sgate_serve.server.served_model import LONG_TEXT, SHORT_TEXT, ServedModel
from sgate_serve.text.tokenization import EncodedTexts
from sgate_serve.text.truncation import Truncation


def pooling_requests(
    body: PoolingBody, conversation: str | None, model: ServedModel
) -> list[PoolingRequest]:
    """Encode the inputs, or a rendered conversation; raise RequestError for what cannot be served.

    Of a conversation, the text is what the chat template writes.
    """
    truncation, adds = body.truncation(model.engine.max_model_len), body.adds_special_tokens
    reader = TextReader(model, truncation, prompt=model.prompt, adds_special_tokens=adds)
    inputs = body.inputs
    if conversation is not None:
        reader = replace(reader, params=("messages", ""), prompt="")
        inputs = [(conversation, None)]
    return numbered(reader.read(text, text_pair) for text, text_pair in inputs)


def cohere_requests(body: CohereEmbedRequest, model: ServedModel) -> list[PoolingRequest]:
    """Encode the texts; raise RequestError for what cannot be served."""
    reader = TextReader(
        model,
        body.truncation(model.engine.max_model_len),
        ("texts", ""),
        prompt=body.prompt(model.prompt, model.prompts),
        remedy="truncate: END",
    )
    with renaming({"truncate_prompt_tokens": "max_tokens"}):
        requests = numbered(map(reader.read, body.texts))
    longest = max(len(request.prompt) for request in requests)
    if body.max_tokens is not None and longest > body.max_tokens:
        raise RequestError(
            f"`texts` has {longest} tokens, over `max_tokens`; shorten it, or send `truncate: END`",
            param="texts",
        )
    return requests


def numbered(texts: Iterable[EncodedTexts]) -> list[PoolingRequest]:
    """Return a request for each text."""
    job_id = uuid4().hex
    return [
        PoolingRequest(f"{job_id}-{index}", own.ids, own.token_types)
        for index, own in enumerate(texts)
    ]


async def pooled(
    requests: Sequence[PoolingRequest],
    driver: EngineDriver,
    metrics: ServerMetrics,
    deadline: float | None,
) -> list[NDArray[np.float32]]:
    """Return the engine's outputs in the order of the requests.

    Raises RequestError if the engine refuses or fails. If cancelled, it aborts the requests.
    """
    start = perf_counter()
    lengths = {request.request_id: len(request.prompt) for request in requests}
    vectors: dict[str, NDArray[np.float32]] = {}
    group = driver.open_pooling(requests, deadline)
    try:
        async for output in group:
            vectors[output.request_id] = output.values
            metrics.count_prompt(lengths[output.request_id])
            metrics.count_end(perf_counter() - start, "stop")
    finally:
        group.close()
        for _ in lengths.keys() - vectors.keys():
            metrics.count_end(perf_counter() - start, "abort")
    return [vectors[request.request_id] for request in requests]


@dataclass(frozen=True)
class TextReader:
    """Encodes the texts of a body; `params` are the fields of the two sides of a pair.

    Of each side, at most `longest` tokens are read, after `prompt`. `remedy` is what a client sends
    to have texts cut.
    """

    model: ServedModel
    truncation: Truncation | None
    params: tuple[str, str] = ("input", "text_pair")
    longest: tuple[int | None, int | None] = (None, None)
    prompt: str = ""
    adds_special_tokens: bool = True
    remedy: str = "truncate_prompt_tokens: -1"

    def read(self, text: str | TokenIds, text_pair: str | None = None) -> EncodedTexts:
        """Return the tokens of a text or pair; raise RequestError naming what cannot be served."""
        if not isinstance(text, str):
            return self._read_ids(text)
        model, truncation = self.model, self.truncation
        # What is cut may be longer than the model holds.
        least = SHORT_TEXT if truncation is None and self.longest == (None, None) else LONG_TEXT
        for own, param in zip((text, text_pair or ""), self.params, strict=True):
            model.check_text(own, param, least)
        encoded = model.require_codec(self.params[0]).encode_texts(
            self.prompt + text,
            text_pair,
            truncation,
            self.longest,
            add_special_tokens=self.adds_special_tokens,
        )
        self._check_length(encoded.ids)
        return encoded

    def _read_ids(self, tokens: TokenIds) -> EncodedTexts:
        if self.truncation is not None:
            tokens = self.truncation.slice(tokens)
        self._check_length(tokens)
        self.model.check_ids(tokens, self.params[0])
        return EncodedTexts(tuple(tokens), None)

    def _check_length(self, tokens: Sequence[int]) -> None:
        limit, param = self.model.engine.max_model_len, self.params[0]
        if not tokens:
            raise RequestError(
                f"`{param}` has no tokens; send some text, or at least one token id", param=param
            )
        if len(tokens) > limit:
            raise RequestError(
                f"this model reads {limit} tokens, but `{param}` has {len(tokens)}; shorten it, or "
                f"send `{self.remedy}` to cut off its end",
                param=param,
                code="context_length_exceeded",
            )
