"""The endpoints of the tokenizer and the chat template, which do not need the engine."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sgate_serve.errors import RequestError
from sgate_serve.server.paths import TOKENIZER_INFO_PATH
from sgate_serve.server.protocol.token_requests import (
    ApplyTemplateRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from sgate_serve.server.routes.body_route import BodyRoute
from sgate_serve.server.routes.json_answer import json_answer
from sgate_serve.server.routes.models import Models
from sgate_serve.server.routes.service import Service
from sgate_serve.server.routes.streaming import until_disconnect
from sgate_serve.server.served_model import LONG_TEXT, ServedModel


class TokenEndpoints:
    """Each endpoint writes vLLM's response, and that of /apply-template llama.cpp's."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def router(self) -> APIRouter:
        router = APIRouter(route_class=BodyRoute)
        router.add_api_route("/tokenize", self.tokenize, methods=["POST"])
        router.add_api_route("/detokenize", self.detokenize, methods=["POST"])
        router.add_api_route("/apply-template", self.apply_template, methods=["POST"])
        router.add_api_route(TOKENIZER_INFO_PATH, self.show_tokenizer)
        return router

    async def tokenize(self, body: TokenizeRequest, request: Request) -> Response:
        """Return the token ids of a prompt or of a conversation."""
        service = await self._models.named(body.model, request)
        return await until_disconnect(request.receive, _tokens(service, body))

    async def detokenize(self, body: DetokenizeRequest, request: Request) -> Response:
        """Return the text of token ids, including special tokens."""
        model = (await self._models.named(body.model, request)).driver.model
        return await json_answer(lambda: _detokenize(body, model))

    async def apply_template(self, body: ApplyTemplateRequest, request: Request) -> Response:
        """Return a conversation as the text that the chat template makes of it."""
        service = await self._models.named(body.model, request)
        model = service.driver.model
        work = service.render(body.messages, body.options, model)
        text = await until_disconnect(request.receive, work)
        return await json_answer(lambda: {"prompt": text})

    async def show_tokenizer(self) -> Response:
        """Return the settings of the tokenizer, including the chat template."""
        codec = self._models.first.driver.model.codec
        if codec is None:
            raise RequestError("this model has no tokenizer", status=404)
        return await json_answer(lambda: codec.info)


async def _tokens(service: Service, body: TokenizeRequest) -> Response:
    model = service.driver.model
    text = body.prompt
    if text is None:
        text = await service.render(body.messages or (), body.options, model)
    return await json_answer(lambda: _tokenize(text, body, model))


def _tokenize(text: str, body: TokenizeRequest, model: ServedModel) -> dict[str, Any]:
    param = "messages" if body.prompt is None else "prompt"
    # Special tokens of a conversation are written by its template.
    adds = body.prompt is not None if body.add_special_tokens is None else body.add_special_tokens
    model.check_text(text, param, LONG_TEXT)
    codec = model.require_codec(param)
    tokens = codec.encode(text, add_special_tokens=adds)
    return {
        "count": len(tokens),
        "max_model_len": model.engine.max_model_len,
        "tokens": list(tokens),
        "token_strs": codec.token_names(tokens) if body.return_token_strs else None,
    }


def _detokenize(body: DetokenizeRequest, model: ServedModel) -> dict[str, str]:
    codec = model.require_codec("tokens")
    model.check_ids(body.tokens, "tokens")
    return {"prompt": codec.decode(body.tokens, skip_special_tokens=False)}
