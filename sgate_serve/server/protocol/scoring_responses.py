"""The JSON of scores and rankings, in vLLM's shapes."""

import time
from collections.abc import Sequence
from typing import Any

from sgate_serve.server.protocol.scoring_requests import RerankRequest

Json = dict[str, Any]


def scores_json(scores: Sequence[float], model_name: str, num_tokens: int) -> Json:
    """Return the list object with the score of each pair."""
    data = [
        {"index": index, "object": "score", "score": score} for index, score in enumerate(scores)
    ]
    envelope = {"object": "list", "created": int(time.time()), "model": model_name, "data": data}
    return envelope | {"usage": _usage(num_tokens) | {"completion_tokens": 0}}


def ranking_json(
    scores: Sequence[float], body: RerankRequest, model_name: str, num_tokens: int
) -> Json:
    """Return the documents, the most relevant first; of equals, the one that was sent first."""
    _, documents = body.texts
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results = [
        {
            "index": index,
            **({"document": {"text": documents[index]}} if body.return_documents else {}),
            "relevance_score": scores[index],
        }
        for index in order[: body.top_n or None]
    ]
    return {"model": model_name, "usage": _usage(num_tokens), "results": results}


def _usage(num_tokens: int) -> Json:
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
