"""The router of all endpoints, and the endpoints about the server itself."""

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from sgate_serve import __version__
from sgate_serve.server.paths import HEALTH_PATH, LOAD_PATH, METRICS_PATH
from sgate_serve.server.prometheus import text_of
from sgate_serve.server.routes.generation import GenerationEndpoints
from sgate_serve.server.routes.messages import MessagesEndpoints
from sgate_serve.server.routes.models import Models
from sgate_serve.server.routes.page import page_router
from sgate_serve.server.routes.pooling import PoolingEndpoints
from sgate_serve.server.routes.responses import ResponsesEndpoint
from sgate_serve.server.routes.scoring import ScoringEndpoints
from sgate_serve.server.routes.tokens import TokenEndpoints
from sgate_serve.server.served_model import ServedModel


def create_router(models: Models) -> APIRouter:
    """Return the router of all endpoints."""
    router = page_router()
    for endpoints in (
        GenerationEndpoints(models),
        ResponsesEndpoint(models),
        MessagesEndpoints(models),
        PoolingEndpoints(models),
        ScoringEndpoints(models),
        TokenEndpoints(models),
        ServerEndpoints(models),
    ):
        router.include_router(endpoints.router())
    return router


class ServerEndpoints:
    """Models, health, metrics and version."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._created = int(time.time())

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/v1/models", self.list_models)
        router.add_api_route("/v1/models/{name:path}", self.show_model)
        router.add_api_route(HEALTH_PATH, self.show_health)
        router.add_api_route(METRICS_PATH, self.show_metrics)
        router.add_api_route(LOAD_PATH, self.show_load)
        router.add_api_route("/version", self.show_version)
        return router

    async def list_models(self) -> JSONResponse:
        """List the models that are served, each under all of its names."""
        self._models.first.driver.check_ready()
        return JSONResponse({"object": "list", "data": list(self._cards())})

    async def show_model(self, name: str) -> JSONResponse:
        """Describe a served model."""
        first = self._models.first.driver.model
        found = next((card for card in self._cards() if card["id"] == name), None)
        if found is None:
            self._models.check_known(name)
            found = self._card(first.name, first)
        return JSONResponse(found)

    async def show_health(self) -> JSONResponse:
        """Answer 200 when requests can be served, 503 while loading, stopping or after a crash."""
        driver = self._models.first.driver
        driver.check_ready()
        return JSONResponse({"status": driver.state})

    async def show_metrics(self) -> Response:
        """Return the Prometheus metrics of the models that are loaded."""
        shadow = self._models.first.shadow
        registries = [service.counted() for service in self._models.loaded()]
        registries += [] if shadow is None else [shadow.tally.registry]
        return Response(text_of(registries), media_type=CONTENT_TYPE_LATEST)

    async def show_load(self) -> JSONResponse:
        """Return how many calls are being answered by the models (vLLM's shape)."""
        load = sum(service.driver.num_calls for service in self._models.loaded())
        return JSONResponse({"server_load": load})

    async def show_version(self) -> JSONResponse:
        """Return the version of sgate-serve."""
        return JSONResponse({"version": __version__})

    def _cards(self) -> Iterator[dict[str, Any]]:
        for service in self._models.loaded():
            model = service.driver.loaded
            assert model is not None
            yield from (self._card(name, model) for name in model.names)
        yield from (self._card(name, None) for name in self._models.unloaded())

    def _card(self, name: str, model: ServedModel | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "sgate-serve",
            "root": name if model is None else model.name,
            # Not known before a model is loaded.
            "max_model_len": None if model is None else model.engine.max_model_len,
        }
