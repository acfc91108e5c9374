"""The endpoints /v1/messages and /v1/messages/count_tokens."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sgate_serve.errors import RequestError
from sgate_serve.server.execution.generation import Delta, Generation
from sgate_serve.server.paths import MESSAGES_PATH
from sgate_serve.server.protocol.anthropic_output import MessageBlocks, MessageShape
from sgate_serve.server.protocol.anthropic_requests import CountTokensRequest, MessagesRequest
from sgate_serve.server.protocol.renamed_fields import renaming
from sgate_serve.server.routes.answering import answered, prepared_as_chat
from sgate_serve.server.routes.body_route import BodyRoute
from sgate_serve.server.routes.json_answer import json_answer
from sgate_serve.server.routes.models import Models
from sgate_serve.server.routes.service import Service
from sgate_serve.server.routes.streaming import named_event, until_disconnect
from sgate_serve.server.served_model import LONG_TEXT, ServedModel


class MessagesEndpoints:
    """Each endpoint reads a body, treats it as a chat, and writes Anthropic's response."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def router(self) -> APIRouter:
        router = APIRouter(route_class=BodyRoute)
        router.add_api_route(MESSAGES_PATH, self.answer, methods=["POST"])
        router.add_api_route(f"{MESSAGES_PATH}/count_tokens", self.count, methods=["POST"])
        return router

    async def answer(self, body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation."""
        service = await self._models.named(body.model, request)
        model = service.model_for("generate", request)
        service.driver.check_room(1)
        job = await until_disconnect(request.receive, prepared_as_chat(service, body, model))
        shape = MessageShape(f"msg_{request.state.request_id}", model.name)
        write_stream = MessageStream(shape).events if body.stream else None
        return await answered(service, job, request, shape.body, write_stream)

    async def count(self, body: CountTokensRequest, request: Request) -> Response:
        """Count the tokens of a conversation."""
        service = await self._models.named(body.model, request)
        model = service.model_for("generate", request)
        num_tokens = await until_disconnect(request.receive, _num_tokens(service, body, model))
        return await json_answer(lambda: {"input_tokens": num_tokens})


async def _num_tokens(service: Service, body: CountTokensRequest, model: ServedModel) -> int:
    """Count the tokens of a conversation, which may be longer than the model reads."""
    with renaming(body.chat_names):
        chat = await asyncio.to_thread(body.as_chat)
        text = await service.render(chat.messages, chat.options, model)
        model.check_text(text, "messages", LONG_TEXT)
    codec = model.require_codec("messages")
    return len(await asyncio.to_thread(codec.encode, text, add_special_tokens=False))


class MessageStream:
    """Writes the events of one message."""

    def __init__(self, shape: MessageShape) -> None:
        self._shape = shape

    async def events(
        self, generation: Generation, first: Delta, deltas: AsyncIterator[Delta]
    ) -> AsyncIterator[bytes]:
        """Yield the stream up to `message_stop`, or to an error."""
        blocks, last = MessageBlocks(), first
        yield named_event(self._shape.start(generation.usage))
        try:
            for event in blocks.push(first):
                yield named_event(event)
            async for last in deltas:
                for event in blocks.push(last):
                    yield named_event(event)
            for event in blocks.close() + self._shape.end(last, generation.usage):
                yield named_event(event)
        except RequestError as error:
            yield named_event(self._shape.error(error))
