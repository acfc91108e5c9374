"""Asks a server in each of its APIs, whole or streamed, and returns the texts of the answer.

All answers are greedy or have seeds, so that they must be the same whatever else the server does.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx

MAX_TOKENS = 32
PROMPTS: Sequence[str] = (
    "def parse_args(self, args=None",
    "import os\nimport sys\n\n",
    "The capital of France is",
    "Once upon a time",
    "class Node:\n    def __init__(self, value, left=None, right=None):\n        self.value =",
    "1, 1, 2, 3, 5, 8,",
    "猫がマットの上に座った 🚀",
    "a gate that is closed lets nothing through. " * 6,
)
SAMPLING = {"temperature": 0.8, "top_p": 0.95}


class AnswerError(Exception):
    """The server answered, but not as it must."""


def post(client: httpx.Client, path: str, body: Mapping[str, Any]) -> Any:
    """Return the JSON of an answer; raise AnswerError if it is refused."""
    response = client.post(path, json=body)
    if response.status_code != 200:
        raise AnswerError(f"{path} answered {response.status_code}: {response.text[:200]}")
    return response.json()


def events(client: httpx.Client, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the JSON events of a stream; raise AnswerError if it is refused."""
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        if response.status_code != 200:
            text = response.read().decode(errors="replace")
            raise AnswerError(f"{path} answered {response.status_code}: {text[:200]}")
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def _choices(client: httpx.Client, path: str, body: Mapping[str, Any], stream: bool) -> list[str]:
    """Return the text of each choice of a completion or chat."""
    if not stream:
        return [_text(choice, "message") for choice in post(client, path, body)["choices"]]
    texts, reasons = [""] * body.get("n", 1), set()
    for event in events(client, path, body):
        for choice in event["choices"]:
            texts[choice["index"]] += _text(choice, "delta")
            if choice["finish_reason"] is not None:
                reasons.add(choice["index"])
    if len(reasons) != len(texts):
        raise AnswerError(f"{path} broke a stream off")
    return texts


def _text(choice: Mapping[str, Any], own: str) -> str:
    text = choice["text"] if "text" in choice else choice[own].get("content")
    return text or ""


def completion(client: httpx.Client, index: int, stream: bool) -> list[str]:
    body = {"prompt": PROMPTS[index], "max_tokens": MAX_TOKENS, "temperature": 0}
    return _choices(client, "/v1/completions", body, stream)


def sampled(client: httpx.Client, index: int, stream: bool) -> list[str]:
    body = {"prompt": PROMPTS[index], "max_tokens": MAX_TOKENS, "n": 3, "seed": index, **SAMPLING}
    return _choices(client, "/v1/completions", body, stream)


def _user(index: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPTS[index]}]


def chat(client: httpx.Client, index: int, stream: bool) -> list[str]:
    body = {"messages": _user(index), "max_tokens": MAX_TOKENS, "temperature": 0}
    return _choices(client, "/v1/chat/completions", body, stream)


def response(client: httpx.Client, index: int, stream: bool) -> list[str]:
    """Return the text of a response, which is that of the chat."""
    path = "/v1/responses"
    body = {"input": PROMPTS[index], "max_output_tokens": MAX_TOKENS, "temperature": 0}
    if not stream:
        return _output(post(client, path, body))
    found = [*events(client, path, body)]
    texts = _output(found[-1].get("response", {"output": []}))
    deltas = [event["delta"] for event in found if event["type"] == "response.output_text.delta"]
    if texts != ["".join(deltas)]:
        raise AnswerError(f"{path} ended with {texts}, not with what it streamed")
    return texts


def _output(response: Mapping[str, Any]) -> list[str]:
    parts = [part for item in response["output"] for part in item["content"]]
    return [part["text"] for part in parts]


def message(client: httpx.Client, index: int, stream: bool) -> list[str]:
    """Return the text of a message, which is that of the chat."""
    path = "/v1/messages"
    body = {"messages": _user(index), "max_tokens": MAX_TOKENS, "temperature": 0}
    if not stream:
        return ["".join(block["text"] for block in post(client, path, body)["content"])]
    found = [*events(client, path, body)]
    if found[-1]["type"] != "message_stop":
        raise AnswerError(f"{path} broke a stream off")
    deltas = [event["delta"] for event in found if event["type"] == "content_block_delta"]
    return ["".join(delta["text"] for delta in deltas)]


Ask = Callable[[httpx.Client, int, bool], list[str]]
# Name → how it is asked, and the one whose texts are the same.
COMPARED: Mapping[str, tuple[Ask, Ask]] = {
    "completions": (completion, completion),
    "choices": (sampled, sampled),
    "chats": (chat, chat),
    "responses": (response, chat),
    "messages": (message, chat),
}
