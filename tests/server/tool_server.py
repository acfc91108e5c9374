"""Servers of models that call tools: engines of tests with a chat template that shows tools."""

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
from tests.tool_templates import TEMPLATES


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


def ask(client: httpx.Client, path: str = "/v1/chat/completions", **body: Any) -> Any:
    """The answer to a request, which must succeed."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()
