"""The router of all endpoints, and the endpoints about the server itself."""

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from sgate_serve import __version__
from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.paths import HEALTH_PATH, LOAD_PATH, METRICS_PATH
from sgate_serve.server.routes.generation import GenerationEndpoints
from sgate_serve.server.routes.messages import MessagesEndpoints
from sgate_serve.server.routes.page import page_router
from sgate_serve.server.routes.pooling import PoolingEndpoints
from sgate_serve.server.routes.responses import ResponsesEndpoint
from sgate_serve.server.routes.scoring import ScoringEndpoints
from sgate_serve.server.routes.service import Service
from sgate_serve.server.routes.tokens import TokenEndpoints
from sgate_serve.server.served_model import ServedModel
from sgate_serve.server.shadow.shadow import Shadow


def create_router(driver: EngineDriver, shadow: Shadow | None = None) -> APIRouter:
    """Return the router of all endpoints on one driver."""
    service = Service(driver, shadow)
    router = page_router()
    for endpoints in (
        GenerationEndpoints(service),
        ResponsesEndpoint(service),
        MessagesEndpoints(service),
        PoolingEndpoints(service),
        ScoringEndpoints(service),
        TokenEndpoints(service),
        ServerEndpoints(service),
    ):
        router.include_router(endpoints.router())
    return router


class ServerEndpoints:
    """Models, health, metrics and version."""

    def __init__(self, service: Service) -> None:
        self._service = service
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
        """List the one model that is served, under each of its names."""
        model = self._service.driver.model
        cards = [self._model_card(model, name) for name in model.names]
        return JSONResponse({"object": "list", "data": cards})

    async def show_model(self, name: str) -> JSONResponse:
        """Describe the served model."""
        model = self._service.driver.model
        model.check_name(name)
        return JSONResponse(self._model_card(model, name if name in model.names else model.name))

    async def show_health(self) -> JSONResponse:
        """Answer 200 when requests can be served, 503 while loading, stopping or after a crash."""
        self._service.driver.check_ready()
        return JSONResponse({"status": self._service.driver.state})

    async def show_metrics(self) -> Response:
        """Return the Prometheus metrics, of which there are none before the model is loaded."""
        driver, shadow = self._service.driver, self._service.shadow
        content = self._service.metrics.render(driver.stats) if driver.loaded else b""
        if shadow is not None:
            content += shadow.tally.render()
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    async def show_load(self) -> JSONResponse:
        """Return how many calls are being answered by the model (vLLM's shape)."""
        return JSONResponse({"server_load": self._service.driver.num_calls})

    async def show_version(self) -> JSONResponse:
        """Return the version of sgate-serve."""
        return JSONResponse({"version": __version__})

    def _model_card(self, model: ServedModel, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "sgate-serve",
            "max_model_len": model.engine.max_model_len,
        }
