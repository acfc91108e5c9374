"""Scores pairs of texts: by a cross-encoder, which reads both, or by two embeddings' cosine."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import PoolingRequest
from sgate_serve.errors import RequestError
from sgate_serve.server.execution.pooling import TextReader, numbered
from sgate_serve.server.protocol.scoring_requests import ScoringBody
from sgate_serve.server.served_model import ServedModel

Vector = NDArray[np.float32]
# The least length of torch's cosine_similarity, with which a zero vector is like no other.
LEAST_LENGTH = 1e-8
# Of all pairs of a call, in which one text may be many times.
MAX_CHARACTERS = 2**23


def num_scored(body: ScoringBody, model: ServedModel) -> int:
    """Return how many texts or pairs the engine reads for a body."""
    return body.num_pairs if model.task == "classify" else sum(map(len, body.texts))


def scoring_requests(body: ScoringBody, model: ServedModel) -> list[PoolingRequest]:
    """Encode the pairs, or each text by itself; raise RequestError naming what cannot be served."""
    most = (body.max_tokens_per_query or None, body.max_tokens_per_doc or None)
    _check_most(body, model)
    (name, first), (other, second) = body.sides.items()
    truncation = body.truncation(model.engine.max_model_len)
    if model.task == "classify":
        reader = TextReader(model, truncation, (name, other), most)
        queries = first * len(second) if len(first) == 1 else first
        _check_characters(queries, second, (name, other))
        encoded = [reader.read(*pair) for pair in zip(queries, second, strict=True)]
    else:
        encoded = [
            TextReader(model, truncation, (param, ""), (longest, None), model.prompt).read(text)
            for param, longest, texts in zip((name, other), most, (first, second), strict=True)
            for text in texts
        ]
    return numbered(encoded)


def scores_of(outputs: Sequence[Vector], body: ScoringBody, model: ServedModel) -> list[float]:
    """Return the score of each pair, for the outputs of `scoring_requests`."""
    if model.head is not None:
        head = model.head.bare() if body.use_activation is False else model.head
        return [head.relevance(own) for own in outputs]
    num_first = len(body.texts[0])
    first, second = outputs[:num_first], outputs[num_first:]
    queries = [*first] * len(second) if num_first == 1 else first
    return [_cosine(*pair) for pair in zip(queries, second, strict=True)]


def _check_characters(first: list[str], second: list[str], params: tuple[str, str]) -> None:
    """Refuse a long text that would be read together with each of many others."""
    total = sum(map(len, first)) + sum(map(len, second))
    if total > MAX_CHARACTERS:
        raise RequestError(
            f"the pairs of `{params[0]}` and `{params[1]}` have {total} characters; at most "
            f"{MAX_CHARACTERS} are read, so send shorter or fewer texts",
            param=params[0],
        )


def _cosine(one: Vector, other: Vector) -> float:
    lengths = [max(float(np.linalg.norm(vector)), LEAST_LENGTH) for vector in (one, other)]
    return float(np.dot(one, other)) / (lengths[0] * lengths[1])


def _check_most(body: ScoringBody, model: ServedModel) -> None:
    limit = model.engine.max_model_len
    for param in ("max_tokens_per_query", "max_tokens_per_doc"):
        asked = getattr(body, param)
        if asked >= limit:
            raise RequestError(
                f"`{param}` is {asked}, but this model reads {limit} tokens, those of the other "
                "text included; send fewer, or 0",
                param=param,
            )
