"""The endpoints that score pairs of texts: /score, and /rerank for one query."""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sgate_serve.errors import RequestError
from sgate_serve.server.execution.pooling import pooled
from sgate_serve.server.execution.scoring import num_scored, scores_of, scoring_requests
from sgate_serve.server.protocol.scoring_requests import RerankRequest, ScoreRequest, ScoringBody
from sgate_serve.server.protocol.scoring_responses import ranking_json, scores_json
from sgate_serve.server.request_ids import rename_request
from sgate_serve.server.routes.body_route import BodyRoute
from sgate_serve.server.routes.json_answer import json_answer
from sgate_serve.server.routes.models import Models
from sgate_serve.server.routes.streaming import until_disconnect
from sgate_serve.server.served_model import SERVED_AT, ServedModel

SCORE_PATHS = ("/score", "/v1/score")
RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")


class ScoringEndpoints:
    """Each endpoint reads a body, runs its pairs and writes the response."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def router(self) -> APIRouter:
        router = APIRouter(route_class=BodyRoute)
        for path in SCORE_PATHS:
            router.add_api_route(path, self.score, methods=["POST"])
        for path in RERANK_PATHS:
            router.add_api_route(path, self.rerank, methods=["POST"])
        return router

    async def score(self, body: ScoreRequest, request: Request) -> Response:
        """Return how well the texts of each pair belong together."""
        scores, model, num_tokens = await self._scores(body, request)
        first = {"id": f"score-{request.state.request_id}"}
        return await json_answer(lambda: first | scores_json(scores, model.name, num_tokens))

    async def rerank(self, body: RerankRequest, request: Request) -> Response:
        """Return the documents in the order of their relevance for the query."""
        scores, model, num_tokens = await self._scores(body, request)
        first = {"id": f"score-{request.state.request_id}"}
        return await json_answer(lambda: first | ranking_json(scores, body, model.name, num_tokens))

    async def _scores(
        self, body: ScoringBody, request: Request
    ) -> tuple[Sequence[float], ServedModel, int]:
        """Return the scores of the pairs, the model, and the tokens that it read."""
        service = await self._models.named(body.model, request)
        model = service.driver.model
        _check_scores(model, request.url.path)
        rename_request(request, body.request_id)
        service.driver.check_room(num_scored(body, model))
        encoding = asyncio.to_thread(scoring_requests, body, model)
        requests = await until_disconnect(request.receive, encoding)
        num_tokens = sum(len(own.prompt) for own in requests)
        request.state.log.update(model=model.name, prompt_tokens=num_tokens)
        work = pooled(requests, service.driver, service.metrics, request.state.deadline)
        outputs = await until_disconnect(request.receive, work)
        return await asyncio.to_thread(scores_of, outputs, body, model), model, num_tokens


def _check_scores(model: ServedModel, path: str) -> None:
    """Raise RequestError unless the model scores pairs: a cross-encoder, or one of embeddings."""
    num_labels = 1 if model.head is None else len(model.head.names)
    if model.task == "generate" or num_labels != 1:
        kind, endpoint = SERVED_AT[model.task]
        found = kind if model.head is None else f"{kind} with {num_labels} labels"
        raise RequestError(
            f"{path} needs an embedding model, or a classifier with one label, but {model.name!r} "
            f"is {found}; ask it at {endpoint}",
            code="wrong_endpoint",
        )
