import json
from typing import Any

import httpx
import pytest

from sgate_serve.errors import RequestError
from tests.server.hash_engine import HashEngine
from tests.server.live import MODEL, VOCAB_SIZE, refusal, serving_engine

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": []}, "prompt", "`prompt` is an empty list; send at least one prompt"),
        ({"prompt": [[]]}, "prompt", "`prompt` has no tokens; send some text, or at least one"),
        ({"prompt": [1, 10**30]}, "prompt", f"ids are 0 to {VOCAB_SIZE - 1}"),
        ({"prompt": [1, -1]}, "prompt", "`prompt` has the token id -1; this model's ids"),
        ({"prompt": "x", "best_of": 2}, "best_of", "`best_of` is not supported; leave it out or"),
        ({"prompt": ["x"] * 9, "n": 128}, "n", "`n` is 128 for each of 9 prompts; at most 1024"),
        ({"prompt": "x", "wat": 2}, "wat", "`wat` is not a known field"),
        ({"prompt": "x", "\ud800": 2}, None, "the body has '\\ud800', half of a surrogate pair"),
        ({"prompt": ["x", "a\udfff"]}, None, "'\\udfff', half of a surrogate pair; send whole"),
        ({}, "prompt", "`prompt` is missing"),
    ],
)
def test_bad_completion_bodies(
    client: httpx.Client, body: dict[str, Any], param: str | None, message: str
) -> None:
    response = client.post("/v1/completions", content=json.dumps(body), headers=JSON)
    error = refusal(response)
    assert response.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]


def test_prompt_that_does_not_fit_says_what_does(client: httpx.Client) -> None:
    for stream in (False, True):
        body = {"prompt": [5] * 510, "max_tokens": 3, "stream": stream}
        response = client.post("/v1/completions", json=body)
        assert response.status_code == 400
        error = refusal(response)
        assert error["code"] == "context_length_exceeded"
        assert error["message"] == (
            "this model's maximum context length is 512 tokens, and `prompt` has 510, after which "
            "3 more may be generated; shorten it or lower max_tokens"
        )


@pytest.mark.parametrize("num_letters", [600, 70_000])
def test_conversation_that_fills_the_model_is_refused(
    client: httpx.Client, num_letters: int
) -> None:
    """In words that clients know: several tell by them that a conversation must be shortened."""
    messages = [{"role": "user", "content": "q" * num_letters}]
    error = refusal(client.post("/v1/chat/completions", json={"messages": messages}))
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    assert error["message"].startswith("the prompt is too long: ")
    assert "this model's maximum context length is 512 tokens" in error["message"]


def test_what_the_engine_itself_refuses_is_a_400_also_for_a_stream() -> None:
    engine = HashEngine(VOCAB_SIZE)
    with serving_engine(engine) as client:
        engine.add = _refuse  # type: ignore[method-assign]
        for stream in (False, True):
            body = {"prompt": [[5], [6]], "stream": stream}
            response = client.post("/v1/completions", json=body)
            assert response.status_code == 422
            assert refusal(response)["message"] == "not today"


def _refuse(request: object) -> None:
    raise RequestError("not today", status=422)


def test_unknown_model_is_a_404_like_openais(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={"model": "gpt", "prompt": "x"})
    assert response.status_code == 404
    error = refusal(response)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert error["message"] == f"the model 'gpt' is not served here; this server has {MODEL!r}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the body is not JSON: Expecting property name enclosed in double quotes at char"),
        (b"", "the body must be a JSON object sent with Content-Type: application/json"),
        (b"[]", "the body must be a JSON object"),
        (b'{"a":"\xff"}', "the body is not JSON: it has a byte that is not UTF-8 at 6"),
        (b"[" * 50_000, "the body is nested too deeply; at most 32 levels are read"),
        (b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", "the body is nested too deeply; at most 32"),
        (b'{"seed":' + b"9" * 5000 + b"}", "the body cannot be read: Exceeds the limit"),
        (b'{"user":{' + b'"":0,' * 17_000 + b'"b":1}}', "have 17002 members; at most 16384 are"),
        (b'{"prompt": "x", "temperature": NaN}', "`temperature` is nan"),
    ],
)
def test_malformed_bodies_are_400(client: httpx.Client, content: bytes, message: str) -> None:
    response = client.post("/v1/completions", content=content, headers=JSON)
    assert response.status_code == 400
    assert message in refusal(response)["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, "x", 2.5, None]}, "prompt.1"),
        ({"prompt": ["x", "y", 5, None]}, "prompt.2"),
        ({"prompt": [[1], [2, "x", "y"], ["z"]]}, "prompt.1.1"),
        ({"prompt": "x", "stop": ["a", 5, 6]}, "stop.1"),
        ({"prompt": "x", "temperature": "a", "top_p": "b", "seed": "c"}, "temperature"),
        ({"prompt": [None], "logit_bias": {"x": 1, "y": 1}}, "prompt.0"),
    ],
)
def test_the_first_wrong_item_is_named(
    client: httpx.Client, body: dict[str, Any], param: str
) -> None:
    assert refusal(client.post("/v1/completions", json=body))["param"] == param


def test_what_a_client_sent_is_quoted_in_part(client: httpx.Client) -> None:
    long = "x" * 20_000
    answers = [
        client.post("/v1/completions", json={"prompt": "a", "model": long}),
        client.post("/v1/completions", json={"prompt": "a", long: 1}),
        client.post("/v1/completions", json={"prompt": "a", "temperature": [long] * 3}),
        client.post("/v1/completions", json={"prompt": "a", "logit_bias": {long: 1}}),
        client.post("/v1/completions", json={"prompt": [10**4000]}),
        client.get(f"/v1/models/{long}"),
        client.get(f"/{long}"),
        client.request("PUT" + long, "/health"),
    ]
    for answer in answers:
        assert refusal(answer)["message"]
        assert len(answer.content) < 500


def test_body_that_is_not_sent_as_json_is_a_400(client: httpx.Client) -> None:
    response = client.post("/v1/completions", data={"prompt": "x"})
    assert response.status_code == 400
    assert "sent with Content-Type: application/json" in refusal(response)["message"]


def test_unknown_path_and_method(client: httpx.Client) -> None:
    response = client.get("/v1/audio/speech")
    assert response.status_code == 404
    assert refusal(response)["message"] == "there is no /v1/audio/speech; /docs lists the paths"
    near = refusal(client.post("/v1/chat/completion", json={}))["message"]
    assert near.endswith("/docs lists the paths; did you mean /v1/chat/completions?")
    response = client.get("/v1/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert (
        "/v1/completions does not take GET; /docs lists its methods" in refusal(response)["message"]
    )


def test_body_over_the_limit_is_a_413_announced_or_not(client: httpx.Client) -> None:
    big = b'{"prompt": "' + b"x" * 100_000 + b'"}'
    for content in (big, iter([big[:60_000], big[60_000:]])):
        response = client.post("/v1/completions", content=content, headers=JSON)
        assert response.status_code == 413
        assert "the body is over 100000 bytes, this server's limit" in refusal(response)["message"]


def test_api_key_guards_everything_but_health(caplog: pytest.LogCaptureFixture) -> None:
    engine = HashEngine(VOCAB_SIZE)
    with caplog.at_level("DEBUG"), serving_engine(engine, api_key="s3cret-é") as client:
        for path in ("/v1/models", "/metrics", "/version", "/docs", "/nowhere"):
            for given in ("", "Bearer wrong", "s3cret-é", "Basic s3cret-é"):
                response = client.get(path, headers=[(b"authorization", given.encode())])
                assert response.status_code == 401
                error = refusal(response)
                assert error["code"] == "invalid_api_key"
                assert "send it as `Authorization: Bearer KEY`" in error["message"]
        assert client.get("/health").status_code == 200
        for scheme in ("Bearer", "bearer", "BEARER"):
            right = [(b"authorization", f"{scheme} s3cret-é".encode())]
            assert client.get("/v1/models", headers=right).status_code == 200
    assert "s3cret" not in caplog.text


def test_bug_is_a_500_with_the_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(HashEngine):
        @property
        def max_model_len(self) -> int:
            raise ZeroDivisionError("a bug of the test")

        @max_model_len.setter
        def max_model_len(self, value: int) -> None:
            pass

    with serving_engine(Broken(VOCAB_SIZE)) as client:
        response = client.get("/v1/models")
        assert response.status_code == 500
        error = refusal(response)
    assert error["type"] == "server_error"
    assert "internal server error; the server's log has the traceback" in error["message"]
    assert "a bug of the test" in caplog.text
    assert response.headers["x-request-id"] in caplog.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "text"}, "prompt"),
        ({"prompt": [5], "stop": "x"}, "stop"),
        ({"prompt": [5], "echo": True}, "echo"),
    ],
)
def test_text_without_a_tokenizer_is_a_400_with_the_remedy(
    body: dict[str, Any], param: str
) -> None:
    with serving_engine(HashEngine(VOCAB_SIZE), codec=None) as client:
        response = client.post("/v1/completions", json=body)
    assert response.status_code == 400
    error = refusal(response)
    assert error["param"] == param
    assert error["message"].startswith(f"`{param}` needs a tokenizer and this model has none; put")
