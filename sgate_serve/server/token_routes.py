"""/tokenize and /detokenize, in vLLM's shapes; they need the tokenizer and never the engine."""

import asyncio
from typing import Any, Self

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.model import LoadedModel
from sgate_serve.server.protocol import Message
from sgate_serve.server.service import Service
from sgate_serve.server.strict_body import StrictBody, TokenIds


class TokenizeRequest(StrictBody):
    """The body of /tokenize: a prompt or a conversation."""

    prompt: str | None = Field(None, description="a string, or `messages` instead")
    messages: list[Message] | None = Field(
        None, min_length=1, description="a list of messages, or `prompt` instead"
    )
    add_special_tokens: bool | None = Field(
        None,
        description="true or false; by default true for `prompt`, and false for `messages`, whose "
        "template writes them",
    )
    return_token_strs: bool = Field(
        False, description="true or false; true adds the name of each token"
    )

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("send either `prompt` or `messages`", param="prompt")
        return self


class DetokenizeRequest(StrictBody):
    """The body of /detokenize."""

    tokens: TokenIds = Field(description="a list of token ids")


class TokenEndpoints:
    """Text to tokens and back."""

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
        """Return the text of token ids, special tokens included."""
        model = self._service.driver.model
        return JSONResponse(await asyncio.to_thread(_detokenize, body, model))


def _tokenize(body: TokenizeRequest, model: LoadedModel) -> dict[str, Any]:
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


def _detokenize(body: DetokenizeRequest, model: LoadedModel) -> dict[str, str]:
    model.check_name(body.model)
    codec = model.require_codec("tokens")
    model.check_ids(body.tokens, "tokens")
    return {"prompt": codec.decode(body.tokens, skip_special_tokens=False)}
