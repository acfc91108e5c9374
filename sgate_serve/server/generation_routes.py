"""The endpoints that continue text: each reads a body, runs a job and writes the answer."""

import asyncio
import time
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from sgate_serve.server.answers import Answer, AnswerHead, ChatAnswer, CompletionAnswer
from sgate_serve.server.generation import Delta, Generation, joined
from sgate_serve.server.jobs import Job, chat_job, completion_job
from sgate_serve.server.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    StreamOptions,
)
from sgate_serve.server.service import Service
from sgate_serve.server.streaming import EventStream, EventWriter, until_disconnect


class GenerationEndpoints:
    """Completions and chat completions."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/v1/completions", self.complete, methods=["POST"])
        router.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        return router

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts."""
        model = self._service.model_for("generate", request)
        job = await asyncio.to_thread(completion_job, body, model)
        head = _head(f"cmpl-{request.state.request_id}", body, model.name)
        return await self._run(job, body, request, CompletionAnswer(head))

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        model = self._service.model_for("generate", request)
        job = await asyncio.to_thread(chat_job, body, model)
        head = _head(f"chatcmpl-{request.state.request_id}", body, model.name)
        return await self._run(job, body, request, ChatAnswer(head))

    async def _run(
        self, job: Job, body: GenerationRequest, request: Request, answer: Answer
    ) -> Response:
        """Run the job and return its answer, whole or as a stream that has its first token."""
        model = self._service.driver.model
        generation = Generation(job, self._service.driver, model.codec, self._service.metrics)

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
                whole = _whole(generation, answer)
                return JSONResponse(await until_disconnect(request.receive, whole))
            deltas = generation.deltas()
            first = await until_disconnect(request.receive, anext(deltas))
            cleanup.pop_all()
        options = body.stream_options or StreamOptions()
        asks_for_each = body.return_token_ids or body.num_logprobs is not None
        every_token = asks_for_each or model.codec is None
        writer = EventWriter(generation, answer, options, every_token=every_token)
        return EventStream(writer.events(first, deltas), end)


def _head(answer_id: str, body: GenerationRequest, model_name: str) -> AnswerHead:
    return AnswerHead(
        answer_id,
        int(time.time()),
        model_name,
        shows_tokens=body.return_token_ids,
        shows_logprobs=body.num_logprobs is not None,
    )


async def _whole(generation: Generation, answer: Answer) -> dict[str, Any]:
    deltas: list[list[Delta]] = [[] for _ in range(generation.num_choices)]
    async for delta in generation.deltas():
        deltas[delta.index].append(delta)
    return answer.body([joined(own) for own in deltas], generation.usage)
