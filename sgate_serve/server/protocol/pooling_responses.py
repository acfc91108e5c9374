"""The JSON of embeddings (OpenAI's shape) and of classifications (vLLM's)."""

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import RequestError
from sgate_serve.server.classifier_head import ClassifierHead
from sgate_serve.server.protocol.pooling_requests import EmbeddingRequest

Json = dict[str, Any]
Vector = NDArray[np.float32]
# The least divisor of torch's normalize, with which a zero vector stays zero.
LEAST_NORM = 1e-12


def unit_length(vector: Vector) -> Vector:
    """Return a vector [width] scaled to the Euclidean length 1."""
    return np.asarray(vector / max(np.linalg.norm(vector), np.float32(LEAST_NORM)))


def embeddings_json(
    vectors: Sequence[Vector], body: EmbeddingRequest, model_name: str, num_tokens: int
) -> Json:
    """Return the list object; raise RequestError if the client asked for another width."""
    width = len(vectors[0])
    if body.dimensions not in (None, width):
        raise RequestError(
            f"`dimensions` is {body.dimensions}, but this model's embeddings have {width}; leave "
            "it out",
            param="dimensions",
        )
    write: Callable[[Vector], Any] = _base64 if body.encoding_format == "base64" else _numbers
    data = [
        {"object": "embedding", "index": index, "embedding": write(vector)}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": model_name, "usage": _usage(num_tokens)}


def classes_json(
    logits: Sequence[Vector], head: ClassifierHead, model_name: str, num_tokens: int
) -> Json:
    """Return the list object with the best label and all scores of each input."""
    data = []
    for index, own in enumerate(logits):
        scores = head.scores(own)
        label = head.names[int(scores.argmax())]
        entry = {"label": label, "probs": _numbers(scores), "num_classes": len(scores)}
        data.append({"index": index, **entry})
    envelope = {"object": "list", "created": int(time.time()), "model": model_name}
    return {**envelope, "data": data, "usage": _usage(num_tokens) | {"completion_tokens": 0}}


def _numbers(vector: Vector) -> list[float]:
    return [float(value) for value in vector]


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _usage(num_tokens: int) -> Json:
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
