"""Several choices for a prompt: each a request of its own, the prompt counted once."""

from typing import Any

import httpx
import pytest

from tests.server.live import TOKENIZER, events

MESSAGES = [{"role": "user", "content": "the cat"}]
OPTIONS = {"max_tokens": 5, "ignore_eos": True, "return_token_ids": True}


def ask(client: httpx.Client, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    response = client.post(path, json={**OPTIONS, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_choices_have_seeds_of_their_own_that_repeat(client: httpx.Client) -> None:
    answer = ask(client, prompt=["the cat", "a gate"], n=3, seed=7)
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    tokens = [choice["token_ids"] for choice in choices]
    assert len({tuple(own) for own in tokens}) == 6
    assert [c["token_ids"] for c in ask(client, prompt="a gate", n=3, seed=7)["choices"]] == (
        tokens[3:]
    )
    assert ask(client, prompt="the cat", seed=7)["choices"][0]["token_ids"] == tokens[0]
    assert ask(client, prompt="the cat", seed=9)["choices"][0]["token_ids"] == tokens[2]
    greedy = ask(client, prompt="the cat", n=2, seed=7, temperature=0)["choices"]
    assert greedy[0]["token_ids"] == greedy[1]["token_ids"]


def test_usage_counts_a_prompt_once_and_every_generated_token(client: httpx.Client) -> None:
    usage = ask(client, prompt="the cat", n=4)["usage"]
    assert usage["prompt_tokens"] == len(TOKENIZER.encode("the cat").ids)
    assert usage["completion_tokens"] == 20


def test_each_choice_echoes_its_prompt(client: httpx.Client) -> None:
    choices = ask(client, prompt=["the cat", "a gate"], n=2, echo=True)["choices"]
    for choice, prompt in zip(choices, ["the cat"] * 2 + ["a gate"] * 2, strict=True):
        assert choice["text"].startswith(prompt)


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/completions", {"prompt": "the cat"}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
    ],
)
def test_streams_of_the_choices_interleave_by_index(
    client: httpx.Client, path: str, prompt: dict[str, Any]
) -> None:
    whole = ask(client, path, **prompt, n=3, seed=1)
    body = {**OPTIONS, **prompt, "n": 3, "seed": 1, "stream": True}
    options = {"include_usage": True}
    *chunks, last = events(client.post(path, json={**body, "stream_options": options}))
    assert last["usage"] == whole["usage"]
    pieces = [chunk["choices"][0] for chunk in chunks]
    for choice in whole["choices"]:
        own = [piece for piece in pieces if piece["index"] == choice["index"]]
        assert [token for piece in own for token in piece["token_ids"]] == choice["token_ids"]
        assert own[-1]["finish_reason"] == choice["finish_reason"] == "length"
    firsts = [piece["index"] for piece in pieces if piece["token_ids"]][:3]
    assert firsts == [0, 1, 2]
