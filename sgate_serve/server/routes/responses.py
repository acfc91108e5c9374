"""The endpoint /v1/responses."""

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sgate_serve.errors import RequestError
from sgate_serve.server.execution.generation import Delta, Generation
from sgate_serve.server.protocol.responses_output import Json, OutputItems, ResponseShape
from sgate_serve.server.protocol.responses_requests import ResponsesRequest
from sgate_serve.server.routes.answering import answered, prepared_as_chat
from sgate_serve.server.routes.body_route import BodyRoute
from sgate_serve.server.routes.models import Models
from sgate_serve.server.routes.streaming import named_event, until_disconnect


class ResponsesEndpoint:
    """Reads a body, answers it as a chat, and writes OpenAI's response or typed events."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def router(self) -> APIRouter:
        router = APIRouter(route_class=BodyRoute)
        router.add_api_route("/v1/responses", self.respond, methods=["POST"])
        return router

    async def respond(self, body: ResponsesRequest, request: Request) -> Response:
        """Answer a conversation, without storing the answer."""
        service = await self._models.named(body.model, request)
        model = service.model_for("generate", request)
        service.driver.check_room(1)
        job = await until_disconnect(request.receive, prepared_as_chat(service, body, model))
        shape = ResponseShape(
            f"resp_{request.state.request_id}", int(time.time()), model.name, body
        )
        await asyncio.to_thread(lambda: shape.repeated)
        write_stream = ResponseStream(shape).events if body.stream else None
        return await answered(service, job, request, shape.body, write_stream)


class ResponseStream:
    """Writes the events of one response, numbered."""

    def __init__(self, shape: ResponseShape) -> None:
        self._shape = shape
        self._number = 0

    async def events(
        self, generation: Generation, first: Delta, deltas: AsyncIterator[Delta]
    ) -> AsyncIterator[bytes]:
        """Yield the stream up to the whole response, or to the failed one."""
        items = self._shape.items()
        for status in ("created", "in_progress"):
            yield await self._response(status, self._shape.response("in_progress"))
        try:
            for event in await self._of(first, items):
                yield event
            async for delta in deltas:
                for event in await self._of(delta, items):
                    yield event
            ended = self._shape.ended(items, generation.usage)
            yield await self._response(ended["status"], ended)
        except RequestError as error:
            yield await self._response("failed", self._shape.failed(items, error))

    async def _of(self, delta: Delta, items: OutputItems) -> list[bytes]:
        events = items.push(delta)
        if delta.finish_reason is not None:
            events += items.finish(delta.finish_reason == "length")
        if delta.finish_reason is None or not self._shape.request.shows_logprobs:
            return [self._event(event) for event in events]
        # The last events repeat the log-probabilities of all tokens.
        return await asyncio.to_thread(
            lambda: [self._event(event, is_long=True) for event in events]
        )

    async def _response(self, status: str, response: Json) -> bytes:
        """Write the event of a response, which repeats tools that may be long."""
        event = {"type": f"response.{status}", "response": response}
        return await asyncio.to_thread(self._event, event, is_long=True)

    def _event(self, event: Json, *, is_long: bool = False) -> bytes:
        self._number += 1
        return named_event({**event, "sequence_number": self._number - 1}, is_long=is_long)
