"""The JSON of embeddings (OpenAI's shape) and of classifications (vLLM's)."""

import base64
import time
from collections.abc import Callable, Sequence
from functools import partial
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


def shortened(
    vectors: Sequence[Vector], dimensions: int | None, widths: Sequence[int] | None
) -> Sequence[Vector]:
    """Return the first numbers of each embedding, if it was trained to be cut to `widths`.

    None stands for none, and no widths at all for any. Raises RequestError for another width.
    """
    width = len(vectors[0])
    if dimensions in (None, width):
        return vectors
    assert dimensions is not None
    if widths is None:
        found, remedy = f"this model's embeddings have {width}", "leave it out"
    elif dimensions < width and (not widths or dimensions in widths):
        return [vector[:dimensions] for vector in vectors]
    else:
        known = ", ".join(map(str, widths)) or f"at most {width}"
        found, remedy = f"this model's embeddings can have {known}", "send one of these"
    raise RequestError(f"`dimensions` is {dimensions}, but {found}; {remedy}", param="dimensions")


def embeddings_json(
    vectors: Sequence[Vector], body: EmbeddingRequest, model_name: str, num_tokens: int
) -> Json:
    """Return the list object."""
    write: Callable[[Vector], Any] = numbers
    if body.encoding_format == "base64":
        write = partial(base64_text, dtype=body.embed_dtype, endianness=body.endianness)
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
        entry = {"label": label, "probs": numbers(scores), "num_classes": len(scores)}
        data.append({"index": index, **entry})
    envelope = {"object": "list", "created": int(time.time()), "model": model_name}
    return {**envelope, "data": data, "usage": _usage(num_tokens) | {"completion_tokens": 0}}


def numbers(vector: Vector) -> list[float]:
    """Return a vector as JSON writes it."""
    return [float(value) for value in vector]


def base64_text(vector: Vector, dtype: str | None = None, endianness: str | None = None) -> str:
    """Return the bytes of a vector, by default of little-endian float32."""
    order = {"big": ">", "native": "="}.get(endianness or "", "<")
    if dtype == "bfloat16":
        values: NDArray[Any] = _upper_halves(vector)
    else:
        with np.errstate(over="ignore"):
            values = vector.astype(dtype or "float32")
    ordered = values.astype(np.dtype(order + values.dtype.str[1:]))
    return base64.b64encode(ordered.tobytes()).decode()


def _upper_halves(vector: Vector) -> NDArray[np.uint16]:
    """Return the bits of a vector as bfloat16, rounded to the nearest, of two to the even one."""
    bits = vector.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    # Rounding would carry a NaN into the exponent.
    return np.where(np.isnan(vector), 0x7FC0, rounded).astype(np.uint16)


def _usage(num_tokens: int) -> Json:
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
