"""The endpoints of completions and chat completions."""

import asyncio
import time
from contextlib import ExitStack

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sgate_serve.server.execution.generation import Delta, Generation, joined
from sgate_serve.server.execution.jobs import Job, chat_job, completion_job
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
from sgate_serve.server.request_ids import rename_request
from sgate_serve.server.routes.body_route import BodyRoute
from sgate_serve.server.routes.json_answer import json_answer
from sgate_serve.server.routes.service import Service
from sgate_serve.server.routes.streaming import EventStream, EventWriter, until_disconnect
from sgate_serve.server.served_model import ServedModel


class GenerationEndpoints:
    """Each endpoint reads a body, runs a job and writes the response."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def router(self) -> APIRouter:
        router = APIRouter(route_class=BodyRoute)
        router.add_api_route("/v1/completions", self.complete, methods=["POST"])
        router.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        return router

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts."""
        model = self._service.model_for("generate", request)
        rename_request(request, body.request_id)
        self._service.driver.check_room(body.num_choices)
        work = asyncio.to_thread(completion_job, body, model)
        job = await until_disconnect(request.receive, work)
        head = _head(f"cmpl-{request.state.request_id}", body, model.name)
        return await self._run(job, body, request, CompletionWriter(head))

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        model = self._service.model_for("generate", request)
        rename_request(request, body.request_id)
        self._service.driver.check_room(body.num_choices)
        job = await until_disconnect(request.receive, self._chat_job(body, model))
        head = _head(f"chatcmpl-{request.state.request_id}", body, model.name)
        return await self._run(job, body, request, ChatWriter(head, body.answer_role))

    async def _chat_job(self, body: ChatRequest, model: ServedModel) -> Job:
        model.check_name(body.model)
        text = await self._service.render(body.messages, body.options, model)
        return await asyncio.to_thread(chat_job, body, text, model)

    async def _run(
        self, job: Job, body: GenerationRequest, request: Request, writer: ResponseWriter
    ) -> Response:
        """Run the job and return its response, whole or as a stream.

        A stream starts only when its first token is there, so that errors before it have a status.
        """
        service, deadline = self._service, request.state.deadline
        model = service.driver.model
        generation = Generation(job, service.driver, model.codec, service.metrics, deadline)

        def end() -> None:
            generation.close()
            request.state.log.update(
                model=model.name,
                prompt_tokens=generation.usage.prompt_tokens,
                completion_tokens=generation.usage.completion_tokens,
                finish_reasons=generation.finish_reasons,
            )

        with ExitStack() as cleanup:
            cleanup.callback(end)
            if not body.stream:
                return await until_disconnect(request.receive, _whole(generation, writer))
            deltas = generation.deltas()
            first = await until_disconnect(request.receive, anext(deltas))
            cleanup.pop_all()
        options = body.stream_options or StreamOptions()
        wants_each = body.return_token_ids or body.num_logprobs is not None
        every_token = wants_each or model.codec is None
        events = EventWriter(generation, writer, options, every_token=every_token)
        return EventStream(events.events(first, deltas), end)


def _head(response_id: str, body: GenerationRequest, model_name: str) -> ResponseHead:
    return ResponseHead(
        response_id,
        int(time.time()),
        model_name,
        shows_tokens=body.return_token_ids,
        shows_logprobs=body.num_logprobs is not None,
    )


async def _whole(generation: Generation, writer: ResponseWriter) -> Response:
    deltas: list[list[Delta]] = [[] for _ in range(generation.num_choices)]
    async for delta in generation.deltas():
        deltas[delta.index].append(delta)
    usage = generation.usage
    return await json_answer(lambda: writer.body([joined(own) for own in deltas], usage))
