"""The endpoints of completions and chat completions."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sgate_serve.server.execution.generation import Delta, Generation
from sgate_serve.server.execution.jobs import Job, completion_job
from sgate_serve.server.protocol.generation_requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    StreamOptions,
)
from sgate_serve.server.protocol.generation_responses import (
    ChatWriter,
    CompletionWriter,
    ResponseHead,
    ResponseWriter,
)
from sgate_serve.server.protocol.tools import NamedTool
from sgate_serve.server.request_ids import rename_request
from sgate_serve.server.routes.answering import answered, prepared_chat
from sgate_serve.server.routes.body_route import BodyRoute
from sgate_serve.server.routes.models import Models
from sgate_serve.server.routes.service import Service
from sgate_serve.server.routes.streaming import EventWriter, until_disconnect


class GenerationEndpoints:
    """Each endpoint reads a body, runs a job and writes the response."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def router(self) -> APIRouter:
        router = APIRouter(route_class=BodyRoute)
        router.add_api_route("/v1/completions", self.complete, methods=["POST"])
        router.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        return router

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts."""
        service = await self._models.named(body.model, request)
        model = service.model_for("generate", request)
        rename_request(request, body.request_id)
        service.driver.check_room(body.num_choices)
        work = asyncio.to_thread(completion_job, body, model)
        job = await until_disconnect(request.receive, work)
        head = _head(f"cmpl-{request.state.request_id}", body, model.name)
        return await _answer(service, job, body, request, CompletionWriter(head))

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        service = await self._models.named(body.model, request)
        model = service.model_for("generate", request)
        rename_request(request, body.request_id)
        service.driver.check_room(body.num_choices)
        work = prepared_chat(service, body, model)
        job = await until_disconnect(request.receive, work)
        head = _head(f"chatcmpl-{request.state.request_id}", body, model.name)
        head = replace(head, names_tool=isinstance(body.tool_choice, NamedTool))
        return await _answer(service, job, body, request, ChatWriter(head, body.answer_role))


async def _answer(
    service: Service, job: Job, body: GenerationRequest, request: Request, writer: ResponseWriter
) -> Response:
    options = body.stream_options or StreamOptions()
    wants_each = body.return_token_ids or body.num_logprobs is not None
    every_token = wants_each or service.driver.model.codec is None

    def stream(
        generation: Generation, first: Delta, deltas: AsyncIterator[Delta]
    ) -> AsyncIterator[bytes]:
        events = EventWriter(generation, writer, options, every_token=every_token)
        return events.events(first, deltas)

    write_stream = stream if body.stream else None
    return await answered(service, job, request, writer.body, write_stream)


def _head(response_id: str, body: GenerationRequest, model_name: str) -> ResponseHead:
    return ResponseHead(
        response_id,
        int(time.time()),
        model_name,
        shows_tokens=body.return_token_ids,
        shows_logprobs=body.num_logprobs is not None,
    )
