"""Requests that embeddings and classification refuse, and the messages."""

from typing import Any

import httpx
import pytest

from tests.server.encoders import encoder_of
from tests.server.live import refusal, serving_model

LONG = "the cat " * 60


@pytest.mark.parametrize(
    ("texts", "pair"),
    [("a", ["b"]), (["a"], "b"), (["a", "b"], ["c"]), ([5, 6], ["a"]), ([5, 6], "a"), ("a", [])],
)
def test_pairs_that_do_not_match_are_refused(
    classifier: httpx.Client, texts: Any, pair: Any
) -> None:
    response = classifier.post("/classify", json={"input": texts, "text_pair": pair})
    assert response.status_code == 400
    error = refusal(response)
    assert error["param"] == "text_pair"
    assert "`text_pair` does not match `input`; send two strings, or two lists" in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "send either `input` or `messages`"),
        (
            {"input": "a", "embed_dtype": "float16"},
            "embed_dtype",
            "only for `encoding_format` base",
        ),
        ({"input": "a", "endianness": "big"}, "endianness", "only for `encoding_format` base64"),
        ({"input": "a", "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs", "is only for"),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "messages",
            "has no chat template; send",
        ),
        ({"input": "a", "messages": []}, "messages", "at least 1 item"),
        ({"input": []}, "input", "`input` is an empty list; send at least one text"),
        ({"input": [[]]}, "input", "`input` has no tokens; send some text, or at least one"),
        ({"input": [10**9]}, "input", "`input` has the token id 1000000000; this model's ids are"),
        ({"input": "a", "text_pair": "b"}, "text_pair", "`text_pair` is not supported; leave it"),
        ({"input": "a", "dimensions": 0}, "dimensions", "the width of the model's embeddings"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'int8'"),
        ({"input": "a", "stream": True}, "stream", "`stream` is not a known field; leave it out"),
        ({"input": "a", "model": "gpt"}, "model", "the model 'gpt' is not served here"),
        ({"input": LONG}, "input", "this model reads 64 tokens, but `input` has 123; shorten it"),
        (
            {"input": "a", "truncate_prompt_tokens": 65},
            "truncate_prompt_tokens",
            "is 65, but at most 64 tokens fit; send at most that, or -1",
        ),
        (
            {"input": "a", "truncate_prompt_tokens": 0},
            "truncate_prompt_tokens",
            "`truncate_prompt_tokens` 0 leaves nothing to read; send -1 for as many as fit",
        ),
        (
            {"input": "a", "truncate_prompt_tokens": 2},
            "truncate_prompt_tokens",
            "2 tokens leave no room for text in addition to 2 special tokens; allow more",
        ),
    ],
)
def test_bad_bodies(embedder: httpx.Client, body: dict[str, Any], param: str, message: str) -> None:
    response = embedder.post("/v1/embeddings", json=body)
    assert response.status_code == (404 if param == "model" else 400)
    error = refusal(response)
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(
    ("task", "path", "message"),
    [
        ("embed", "/classify", "/classify needs a classifier, but 'some/tiny-model' is an embed"),
        ("embed", "/v1/completions", "ask it at /v1/embeddings"),
        ("classify", "/v1/chat/completions", "is a classifier; ask it at /classify"),
        ("classify", "/v1/embeddings", "/v1/embeddings needs an embedding model, but"),
    ],
)
def test_endpoint_of_another_task_says_which_one_to_ask(
    embedder: httpx.Client, classifier: httpx.Client, task: str, path: str, message: str
) -> None:
    client = {"embed": embedder, "classify": classifier}[task]
    messages = [{"role": "user", "content": "a"}]
    body = {"messages": messages} if "chat" in path else {"prompt": "a"}
    if "completions" not in path:
        body = {"input": "a"}
    response = client.post(path, json=body)
    assert response.status_code == 400
    error = refusal(response)
    assert error["code"] == "wrong_endpoint"
    assert message in error["message"]


def test_generative_model_is_no_encoder(client: httpx.Client) -> None:
    for path in ("/v1/embeddings", "/classify"):
        error = refusal(client.post(path, json={"input": "a"}))
        assert "is a generative model; ask it at /v1/completions or /v1/chat" in error["message"]


def test_text_without_a_tokenizer_is_refused_and_token_ids_work() -> None:
    with serving_model(encoder_of("classify", codec=None)) as client:
        assert client.post("/classify", json={"input": [5, 6]}).is_success
        error = refusal(client.post("/classify", json={"input": "a"}))
    assert error["message"].endswith("into the model folder, or send token ids to /classify")
