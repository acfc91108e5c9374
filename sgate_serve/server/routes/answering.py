"""Runs a job and answers it, whole or as a stream, in the shape of any API."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from sgate_serve.server.execution.generation import Delta, Generation, Usage, joined
from sgate_serve.server.execution.jobs import Job, chat_job
from sgate_serve.server.protocol.anthropic_requests import CountTokensRequest
from sgate_serve.server.protocol.generation_requests import ChatRequest
from sgate_serve.server.protocol.renamed_fields import renaming
from sgate_serve.server.protocol.responses_requests import ResponsesRequest
from sgate_serve.server.routes.json_answer import json_answer
from sgate_serve.server.routes.service import Service
from sgate_serve.server.routes.streaming import EventStream, until_disconnect
from sgate_serve.server.served_model import ServedModel

# The whole response, of one delta for each choice.
WriteBody = Callable[[Sequence[Delta], Usage], dict[str, Any]]
# The events of a stream, from its first delta and the others.
WriteStream = Callable[[Generation, Delta, AsyncIterator[Delta]], AsyncIterator[bytes]]


async def prepared_chat(service: Service, body: ChatRequest, model: ServedModel) -> Job:
    """Render and encode a conversation; raise RequestError naming what cannot be served."""
    text = await service.render(body.messages, body.options, model)
    return await asyncio.to_thread(chat_job, body, text, model)


async def prepared_as_chat(
    service: Service, body: CountTokensRequest | ResponsesRequest, model: ServedModel
) -> Job:
    """Prepare what the body of another API says as a chat; errors name the fields of that API."""
    with renaming(body.chat_names):
        chat = await asyncio.to_thread(body.as_chat)
        return await prepared_chat(service, chat, model)


async def answered(
    service: Service,
    job: Job,
    request: Request,
    write_body: WriteBody,
    write_stream: WriteStream | None,
) -> Response:
    """Run the job and return its response: a stream if `write_stream` is given.

    A stream starts only when its first token is there, so that errors before it have a status.
    """
    deadline = request.state.deadline
    model = service.driver.model
    generation = Generation(
        job, service.driver, model.codec, service.metrics, deadline, service.shadow
    )

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
        if write_stream is None:
            return await until_disconnect(request.receive, _whole(generation, write_body))
        deltas = generation.deltas()
        first = await until_disconnect(request.receive, anext(deltas))
        cleanup.pop_all()
    return EventStream(write_stream(generation, first, deltas), end)


async def _whole(generation: Generation, write_body: WriteBody) -> Response:
    deltas: list[list[Delta]] = [[] for _ in range(generation.num_choices)]
    async for delta in generation.deltas():
        deltas[delta.index].append(delta)
    usage = generation.usage
    return await json_answer(lambda: write_body([joined(own) for own in deltas], usage))
