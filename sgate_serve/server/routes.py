"""The endpoints: each reads a body, runs a job and writes the answer."""

import asyncio
import time
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from sgate_serve import __version__
from sgate_serve.server.answers import Answer, AnswerHead, ChatAnswer, CompletionAnswer
from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.generation import Delta, Generation, joined
from sgate_serve.server.jobs import Job, chat_job, completion_job
from sgate_serve.server.metrics import ServerMetrics
from sgate_serve.server.middleware import HEALTH_PATH, METRICS_PATH
from sgate_serve.server.model import LoadedModel
from sgate_serve.server.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    StreamOptions,
)
from sgate_serve.server.streaming import EventStream, EventWriter, until_disconnect


class Endpoints:
    """The handlers of one server; its metrics begin with the model, whose name they carry."""

    def __init__(self, driver: EngineDriver) -> None:
        self._driver = driver
        self._metrics: ServerMetrics | None = None
        self._created = int(time.time())

    def router(self) -> APIRouter:
        """Return the table of paths."""
        router = APIRouter()
        router.add_api_route("/v1/completions", self.complete, methods=["POST"])
        router.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        router.add_api_route("/v1/models", self.list_models)
        router.add_api_route("/v1/models/{name:path}", self.show_model)
        router.add_api_route(HEALTH_PATH, self.show_health)
        router.add_api_route(METRICS_PATH, self.show_metrics)
        router.add_api_route("/version", self.show_version)
        return router

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts."""
        model = self._driver.model
        job_id = f"cmpl-{request.state.request_id}"
        job = await asyncio.to_thread(completion_job, body, model, job_id)
        return await self._run(job, body, request, CompletionAnswer(_head(job_id, body, model)))

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        model = self._driver.model
        job_id = f"chatcmpl-{request.state.request_id}"
        job = await asyncio.to_thread(chat_job, body, model, job_id)
        return await self._run(job, body, request, ChatAnswer(_head(job_id, body, model)))

    async def list_models(self) -> JSONResponse:
        """List the one model that is served."""
        return JSONResponse({"object": "list", "data": [self._model_card(self._driver.model)]})

    async def show_model(self, name: str) -> JSONResponse:
        """Describe the served model."""
        self._driver.model.check_name(name)
        return JSONResponse(self._model_card(self._driver.model))

    async def show_health(self) -> JSONResponse:
        """Answer 200 when requests can be served, 503 while loading, stopping or after a crash."""
        self._driver.check_ready()
        return JSONResponse({"status": self._driver.state})

    async def show_metrics(self) -> Response:
        """Expose Prometheus metrics; there are none before the model is loaded."""
        model = self._driver.loaded
        content = self._metrics_of(model).render(self._driver.stats) if model else b""
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    async def show_version(self) -> JSONResponse:
        """Tell the version of sgate-serve."""
        return JSONResponse({"version": __version__})

    async def _run(
        self, job: Job, body: GenerationRequest, request: Request, answer: Answer
    ) -> Response:
        """Run the job and return its answer, whole or as a stream that has its first token."""
        model = self._driver.model
        generation = Generation(job, self._driver, model.codec, self._metrics_of(model))
        with ExitStack() as cleanup:
            cleanup.callback(generation.close)
            if not body.stream:
                whole = _whole(generation, answer)
                return JSONResponse(await until_disconnect(request.receive, whole))
            deltas = generation.deltas()
            first = await until_disconnect(request.receive, anext(deltas))
            cleanup.pop_all()
        options = body.stream_options or StreamOptions()
        asks_for_each = body.return_token_ids or body.num_logprobs is not None
        every_token = asks_for_each or model.codec is None
        writer = EventWriter(generation, answer, options, every_token=every_token)
        return EventStream(writer.events(first, deltas), generation.close)

    def _metrics_of(self, model: LoadedModel) -> ServerMetrics:
        if self._metrics is None:
            self._metrics = ServerMetrics(model.name)
        return self._metrics

    def _model_card(self, model: LoadedModel) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "sgate-serve",
            "max_model_len": model.engine.max_model_len,
        }


def _head(job_id: str, body: GenerationRequest, model: LoadedModel) -> AnswerHead:
    return AnswerHead(
        job_id,
        int(time.time()),
        model.name,
        shows_tokens=body.return_token_ids,
        shows_logprobs=body.num_logprobs is not None,
    )


async def _whole(generation: Generation, answer: Answer) -> dict[str, Any]:
    deltas: list[list[Delta]] = [[] for _ in range(generation.num_choices)]
    async for delta in generation.deltas():
        deltas[delta.index].append(delta)
    return answer.body([joined(own) for own in deltas], generation.usage)
