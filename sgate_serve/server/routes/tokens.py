"""The endpoints /tokenize and /detokenize, which need the tokenizer but not the engine."""

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from sgate_serve.server.protocol.token_requests import DetokenizeRequest, TokenizeRequest
from sgate_serve.server.routes.service import Service
from sgate_serve.server.served_model import ServedModel


class TokenEndpoints:
    """Each endpoint reads a body and writes vLLM's response."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/tokenize", self.tokenize, methods=["POST"])
        router.add_api_route("/detokenize", self.detokenize, methods=["POST"])
        return router

    async def tokenize(self, body: TokenizeRequest) -> JSONResponse:
        """Return the token ids of a prompt or of a conversation."""
        model = self._service.driver.model
        return JSONResponse(await asyncio.to_thread(_tokenize, body, model))

    async def detokenize(self, body: DetokenizeRequest) -> JSONResponse:
        """Return the text of token ids, including special tokens."""
        model = self._service.driver.model
        return JSONResponse(await asyncio.to_thread(_detokenize, body, model))


def _tokenize(body: TokenizeRequest, model: ServedModel) -> dict[str, Any]:
    model.check_name(body.model)
    adds = body.add_special_tokens
    if body.prompt is not None:
        codec = model.require_codec("prompt")
        tokens = codec.encode(body.prompt, add_special_tokens=adds is not False)
    else:
        codec = model.require_codec("messages")
        messages = [message.variables for message in body.messages or ()]
        tokens = codec.encode_chat(messages, add_special_tokens=adds is True)
    return {
        "count": len(tokens),
        "max_model_len": model.engine.max_model_len,
        "tokens": list(tokens),
        "token_strs": codec.token_names(tokens) if body.return_token_strs else None,
    }


def _detokenize(body: DetokenizeRequest, model: ServedModel) -> dict[str, str]:
    model.check_name(body.model)
    codec = model.require_codec("tokens")
    model.check_ids(body.tokens, "tokens")
    return {"prompt": codec.decode(body.tokens, skip_special_tokens=False)}
