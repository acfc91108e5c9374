from typing import Any

import httpx

from sgate_serve.text.tokenization import TextCodec
from tests.server.hash_engine import HashEngine
from tests.server.live import (
    TOKENIZER,
    VOCAB_SIZE,
    events,
    refusal,
    serving_engine,
    speaking,
)
from tests.text_model import BOS, special_id

USER = {"role": "user", "content": "the cat"}
RENDERED = f"{BOS}user: the cat\nassistant:"


def chat(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json={"messages": [USER], **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_chat_has_openais_shape_and_vllms_members(client: httpx.Client) -> None:
    answer = chat(client, max_tokens=5)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    [choice] = answer["choices"]
    vllms = {"stop_reason", "token_ids"}
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason", *vllms}
    assert {choice[name] for name in vllms} == {None}
    assert {answer[name] for name in ("prompt_token_ids", "prompt_logprobs")} == {None}
    assert choice["message"].keys() == {"role", "content", "refusal"}
    assert choice["message"]["role"] == "assistant"


def test_prompt_is_the_rendered_template_with_one_start_token(client: httpx.Client) -> None:
    rendered = TOKENIZER.encode(RENDERED, add_special_tokens=False).ids
    assert rendered.count(special_id(TOKENIZER, BOS)) == 1
    answer = chat(client, max_tokens=8, return_token_ids=True, ignore_eos=True)
    assert answer["usage"]["prompt_tokens"] == len(rendered)
    body = {"prompt": rendered, "max_tokens": 8, "return_token_ids": True, "ignore_eos": True}
    completion = client.post("/v1/completions", json=body).json()
    assert completion["choices"][0]["token_ids"] == answer["choices"][0]["token_ids"]


def test_the_last_message_is_continued_where_the_client_asks(client: httpx.Client) -> None:
    messages = [USER, {"role": "assistant", "content": "sat on"}]
    wanted = {"add_generation_prompt": False, "continue_final_message": True}
    answer = chat(client, messages=messages, max_tokens=2, **wanted)
    text = f"{BOS}user: the cat\nassistant: sat on"
    assert answer["usage"]["prompt_tokens"] == len(
        TOKENIZER.encode(text, add_special_tokens=False).ids
    )
    body = client.post("/tokenize", json={"messages": messages, **wanted}).json()
    assert body["tokens"] == TOKENIZER.encode(text, add_special_tokens=False).ids
    ended = client.post("/tokenize", json={"messages": [USER], "add_generation_prompt": False})
    text = f"{BOS}user: the cat\n"
    assert ended.json()["tokens"] == TOKENIZER.encode(text, add_special_tokens=False).ids


def test_template_fields_without_sense_are_refused(client: httpx.Client) -> None:
    for fields, param in (
        ({"continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": 3}, "chat_template_kwargs"),
    ):
        response = client.post("/v1/chat/completions", json={"messages": [USER], **fields})
        assert refusal(response)["param"] == param
    assert chat(client, max_tokens=1, chat_template_kwargs={"enable_thinking": False})


def test_answer_may_fill_the_models_length_unless_limited() -> None:
    rendered = len(TOKENIZER.encode(RENDERED, add_special_tokens=False).ids)
    with serving_engine(HashEngine(VOCAB_SIZE, max_model_len=64)) as client:
        for limit, generated in (
            ({}, 64 - rendered),
            ({"max_tokens": 3}, 3),
            ({"max_completion_tokens": 4}, 4),
            ({"max_completion_tokens": 4, "max_tokens": 4}, 4),
        ):
            usage = chat(client, ignore_eos=True, **limit)["usage"]
            assert usage["completion_tokens"] == generated


def test_two_different_limits_are_refused(client: httpx.Client) -> None:
    body = {"messages": [USER], "max_tokens": 3, "max_completion_tokens": 4}
    error = refusal(client.post("/v1/chat/completions", json=body))
    assert "are two names of one limit and differ; send one" in error["message"]


def test_stream_begins_with_the_role_and_ends_with_the_reason() -> None:
    with serving_engine(speaking("the cat 🚀 sat")) as client:
        body = {"messages": [USER], "stream": True}
        chunks = events(client.post("/v1/chat/completions", json=body))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "the cat 🚀 sat"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]


def test_template_that_refuses_is_a_400(client: httpx.Client) -> None:
    body = {"messages": [{"role": "developer", "content": "x"}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert "refused the messages: no developer here" in refusal(response)["message"]


def test_without_a_template_or_a_tokenizer_chat_is_a_400_with_the_remedy() -> None:
    for codec, remedy in (
        (TextCodec(TOKENIZER), "put the base model's chat_template.jinja into the model folder"),
        (None, "put the base model's tokenizer.json into the model folder"),
    ):
        with serving_engine(HashEngine(VOCAB_SIZE), codec=codec) as client:
            response = client.post("/v1/chat/completions", json={"messages": [USER]})
        assert response.status_code == 400
        error = refusal(response)
        assert remedy in error["message"]
        assert error["param"] == "messages"
