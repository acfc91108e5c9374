"""Runs texts through an encoder: one request for each text, one vector for each request."""

from collections.abc import Sequence
from time import perf_counter
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import PoolingRequest
from sgate_serve.errors import RequestError
from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.prometheus import ServerMetrics
from sgate_serve.server.protocol.pooling_requests import PoolingBody
from sgate_serve.server.protocol.strict_body import TokenIds
from sgate_serve.server.served_model import LONG_TEXT, SHORT_TEXT, ServedModel
from sgate_serve.text.tokenization import EncodedTexts
from sgate_serve.text.truncation import Truncation


def pooling_requests(body: PoolingBody, model: ServedModel) -> list[PoolingRequest]:
    """Encode the inputs; raise RequestError naming what cannot be served."""
    model.check_name(body.model)
    truncation = body.truncation(model.engine.max_model_len)
    job_id = uuid4().hex
    requests = []
    for index, (text, text_pair) in enumerate(body.inputs):
        encoded = _encode(text, text_pair, model, truncation)
        _check_length(encoded.ids, model)
        requests.append(PoolingRequest(f"{job_id}-{index}", encoded.ids, encoded.token_types))
    return requests


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


def _encode(
    text: str | TokenIds, text_pair: str | None, model: ServedModel, truncation: Truncation | None
) -> EncodedTexts:
    if isinstance(text, str):
        # What is cut may be longer than the model holds.
        least = SHORT_TEXT if truncation is None else LONG_TEXT
        model.check_text(text, "input", least)
        model.check_text(text_pair or "", "text_pair", least)
        return model.require_codec("input").encode_texts(model.prompt + text, text_pair, truncation)
    tokens = text if truncation is None else truncation.slice(text)
    _check_length(tokens, model)
    model.check_ids(tokens, "input")
    return EncodedTexts(tuple(tokens), None)


def _check_length(tokens: Sequence[int], model: ServedModel) -> None:
    limit = model.engine.max_model_len
    if not tokens:
        raise RequestError(
            "`input` has no tokens; send some text, or at least one token id", param="input"
        )
    if len(tokens) > limit:
        raise RequestError(
            f"this model reads {limit} tokens, but `input` has {len(tokens)}; shorten it, or send "
            "`truncate_prompt_tokens: -1` to cut off its end",
            param="input",
            code="context_length_exceeded",
        )
