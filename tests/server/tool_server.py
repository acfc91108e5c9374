"""Servers of models that call tools: engines of tests with a chat template that shows tools."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tokenizers import AddedToken

from sgate_serve.text.chat_template import ChatTemplate
from sgate_serve.text.tokenization import TextCodec
from tests.server.hash_engine import HashEngine
from tests.server.live import EOS_ID, TOKENIZER, serving_engine
from tests.text_model import BOS, EOS, byte_tokenizer
from tests.tool_templates import CLOCK, TEMPLATES, WEATHER

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "the weather?"}
BODY: dict[str, Any] = {"messages": [USER], "tools": [WEATHER, CLOCK]}
PARIS = '{"city": "Paris", "unit": "C"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'
CLOCK_CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
# A prompt with tools is hundreds of bytes, and so are its tokens here.
LONG: dict[str, Any] = {"max_position_embeddings": 2048}


def tool_codec(template: str, *markers: str) -> TextCodec:
    """A codec whose tokenizer has the `markers` as special tokens."""
    named = {"bos_token": BOS, "eos_token": EOS}
    shown = ChatTemplate.load(Path(), {"chat_template": template}, named)
    tokenizer = TOKENIZER
    if markers:
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in markers])
    return TextCodec(tokenizer, shown, named)


@contextmanager
def saying(
    text: str, template: str = TEMPLATES["hermes"], markers: tuple[str, ...] = ()
) -> Iterator[httpx.Client]:
    """Run a server of a model that says this text, then stops."""
    codec = tool_codec(template, *markers)
    script = [*codec.encode(text, add_special_tokens=False), EOS_ID]
    size = codec.tokenizer.get_vocab_size()
    with serving_engine(HashEngine(size, script=script, max_model_len=4096), codec) as client:
        yield client


def ask(client: httpx.Client, path: str = CHAT, **body: Any) -> Any:
    """The answer to a request, which must succeed."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def calls_of(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    """The names and arguments of a choice's calls, which must have OpenAI's shape."""
    calls = choice["message"].get("tool_calls", [])
    assert all(call.keys() == {"id", "type", "function"} for call in calls)
    assert all(call["id"].startswith("call_") and call["type"] == "function" for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    functions = [call["function"] for call in calls]
    return [(own["name"], json.loads(own["arguments"])) for own in functions]
