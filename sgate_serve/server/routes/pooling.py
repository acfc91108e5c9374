"""The endpoints of encoders: embeddings and classification."""

import asyncio
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from sgate_serve.engines.contract import PoolingRequest
from sgate_serve.server.execution.pooling import cohere_requests, pooled, pooling_requests
from sgate_serve.server.protocol.cohere_embeddings import (
    CohereEmbedRequest,
    embeddings_by_type_json,
)
from sgate_serve.server.protocol.pooling_requests import (
    ClassifyRequest,
    EmbeddingRequest,
    PoolingBody,
)
from sgate_serve.server.protocol.pooling_responses import (
    classes_json,
    embeddings_json,
    shortened,
    unit_length,
)
from sgate_serve.server.protocol.renamed_fields import renaming
from sgate_serve.server.request_ids import rename_request
from sgate_serve.server.routes.body_route import BodyRoute
from sgate_serve.server.routes.json_answer import json_answer
from sgate_serve.server.routes.models import Models
from sgate_serve.server.routes.service import Service
from sgate_serve.server.routes.streaming import until_disconnect
from sgate_serve.server.served_model import ServedModel

COHERE_EMBED_PATH = "/v2/embed"


class PoolingEndpoints:
    """Each endpoint reads a body, runs its texts and writes the response."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def router(self) -> APIRouter:
        router = APIRouter(route_class=BodyRoute)
        router.add_api_route("/v1/embeddings", self.embed, methods=["POST"])
        router.add_api_route(COHERE_EMBED_PATH, self.embed_by_type, methods=["POST"])
        router.add_api_route("/classify", self.classify, methods=["POST"])
        return router

    async def embed(self, body: EmbeddingRequest, request: Request) -> Response:
        """Return the embedding of each text."""
        service = await self._models.named(body.model, request)
        model = service.model_for("embed", request)
        requests = await _requests(service, body, request, model)
        vectors = await _run(service, requests, request)
        vectors = shortened(vectors, body.dimensions, model.widths)
        if model.normalize if body.use_activation is None else body.use_activation:
            vectors = [unit_length(vector) for vector in vectors]
        num_tokens = _num_tokens(requests)
        return await json_answer(lambda: embeddings_json(vectors, body, model.name, num_tokens))

    async def embed_by_type(self, body: CohereEmbedRequest, request: Request) -> Response:
        """Return the embedding of each text, in one or several types (Cohere's shape)."""
        service = await self._models.named(body.model, request)
        model = service.model_for("embed", request)
        service.driver.check_room(len(body.texts))
        encoding = asyncio.to_thread(cohere_requests, body, model)
        requests = await until_disconnect(request.receive, encoding)
        vectors = await _run(service, requests, request)
        with renaming({"dimensions": "output_dimension"}):
            vectors = shortened(vectors, body.output_dimension, model.widths)
        if model.normalize:
            vectors = [unit_length(vector) for vector in vectors]
        first = {"id": f"embd-{request.state.request_id}"}
        num_tokens = _num_tokens(requests)
        return await json_answer(lambda: first | embeddings_by_type_json(vectors, body, num_tokens))

    async def classify(self, body: ClassifyRequest, request: Request) -> Response:
        """Return the best label of each text or pair, and the scores of all labels."""
        service = await self._models.named(body.model, request)
        model = service.model_for("classify", request)
        assert model.head is not None
        head = model.head.bare() if body.use_activation is False else model.head
        requests = await _requests(service, body, request, model)
        logits = await _run(service, requests, request)
        first = {"id": f"classify-{request.state.request_id}"}
        num_tokens = _num_tokens(requests)
        return await json_answer(lambda: first | classes_json(logits, head, model.name, num_tokens))


async def _requests(
    service: Service, body: PoolingBody, request: Request, model: ServedModel
) -> list[PoolingRequest]:
    rename_request(request, body.request_id)
    service.driver.check_room(body.num_inputs)
    return await until_disconnect(request.receive, _encoded(service, body, model))


async def _encoded(service: Service, body: PoolingBody, model: ServedModel) -> list[PoolingRequest]:
    text = None
    if body.messages is not None:
        text = await service.render(body.messages, body.options, model)
    return await asyncio.to_thread(pooling_requests, body, text, model)


async def _run(
    service: Service, requests: Sequence[PoolingRequest], request: Request
) -> Sequence[NDArray[np.float32]]:
    name = service.driver.model.name
    request.state.log.update(model=name, prompt_tokens=_num_tokens(requests))
    work = pooled(requests, service.driver, service.metrics, request.state.deadline)
    return await until_disconnect(request.receive, work)


def _num_tokens(requests: Sequence[PoolingRequest]) -> int:
    return sum(len(request.prompt) for request in requests)
