"""/openapi.json states what the server sends."""

from collections.abc import Iterator
from typing import Any

import httpx

from sgate_serve.server import ServerOptions
from sgate_serve.server.app import create_app
from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, models_of, serving_engine

REFUSED = {"400", "404", "408", "413", "500", "503"}


def responses(**options: Any) -> dict[str, set[str]]:
    """The statuses of each `METHOD path`."""
    own = ServerOptions(**options)
    app = create_app(models_of(HashEngine(VOCAB_SIZE), own), own)
    return {
        f"{method.upper()} {path}": set(operation["responses"])
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    }


def test_statuses_are_those_of_each_endpoint() -> None:
    own = responses()
    assert own == {
        "POST /v1/completions": {"200", "429", *REFUSED},
        "POST /v1/chat/completions": {"200", "429", *REFUSED},
        "POST /v1/responses": {"200", "429", *REFUSED},
        "POST /v1/messages": {"200", "429", *REFUSED},
        "POST /v1/messages/count_tokens": {"200", *REFUSED},
        "POST /v1/embeddings": {"200", "429", *REFUSED},
        "POST /v2/embed": {"200", "429", *REFUSED},
        "POST /classify": {"200", "429", *REFUSED},
        "POST /score": {"200", "429", *REFUSED},
        "POST /v1/score": {"200", "429", *REFUSED},
        "POST /rerank": {"200", "429", *REFUSED},
        "POST /v1/rerank": {"200", "429", *REFUSED},
        "POST /v2/rerank": {"200", "429", *REFUSED},
        "POST /tokenize": {"200", *REFUSED},
        "POST /detokenize": {"200", *REFUSED},
        "POST /apply-template": {"200", *REFUSED},
        "GET /tokenizer_info": {"200", "404", "500", "503"},
        "GET /load": {"200", "500"},
        "GET /v1/models": {"200", "500", "503"},
        "GET /v1/models/{name}": {"200", "404", "500", "503"},
        "GET /": {"200", "500"},
        "GET /health": {"200", "500", "503"},
        "GET /metrics": {"200", "500"},
        "GET /version": {"200", "500"},
    }


def test_options_add_their_statuses() -> None:
    plain, own = responses(), responses(api_key="k", request_timeout_seconds=1)
    for endpoint, statuses in own.items():
        added = {"401"} if endpoint not in ("GET /health", "GET /") else set()
        assert statuses - plain[endpoint] == added | ({"504"} if "POST" in endpoint else set())


def calls(client: httpx.Client) -> Iterator[httpx.Response]:
    right = {"authorization": "Bearer k"}
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"):
        yield client.post(path, json={})
        for body in ({"prompt": "a"}, {"prompt": "a", "model": "x"}, {"prompt": "a" * 9000}):
            yield client.post(path, json=body, headers=right)
        yield client.post(path, json={"prompt": ["a"] * 5}, headers=right)
    for path in ("/v1/models", "/v1/models/x", "/metrics", "/version", "/health"):
        yield client.get(path)
        yield client.get(path, headers=right)


def test_what_is_sent_is_stated() -> None:
    options: dict[str, Any] = {"api_key": "k", "max_body_bytes": 5000, "max_queue": 4}
    with serving_engine(HashEngine(VOCAB_SIZE), **options) as client:
        headers = {"authorization": "Bearer k"}
        schema = client.get("/openapi.json", headers=headers).json()
        found = set()
        for response in calls(client):
            path = response.url.path
            path = "/v1/models/{name}" if path.startswith("/v1/models/") else path
            method = response.request.method.lower()
            stated = schema["paths"][path][method]["responses"][str(response.status_code)]
            assert response.headers["content-type"] in stated["content"]
            found.add(response.status_code)
    assert found == {200, 400, 401, 404, 413}


def test_errors_have_a_schema_of_their_own() -> None:
    options = ServerOptions()
    schema = create_app(models_of(HashEngine(VOCAB_SIZE), options), options).openapi()
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    error = schema["paths"]["/classify"]["post"]["responses"]["400"]
    reference = error["content"]["application/json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/Error"
    assert schema["components"]["schemas"]["Error"]["required"] == ["error"]
