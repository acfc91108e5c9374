"""docs/server.md names everything that the code has."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import httpx
import pytest

from sgate_serve.options import flag_of
from sgate_serve.server import ServerOptions, connection, excerpt, middleware, served_model
from sgate_serve.server.app import create_app
from sgate_serve.server.execution import logprob_counts, scoring
from sgate_serve.server.protocol import generation_requests, json_body
from sgate_serve.server.protocol.anthropic_requests import MessagesRequest
from sgate_serve.server.protocol.generation_requests import ChatRequest, CompletionRequest
from sgate_serve.server.protocol.pooling_requests import ClassifyRequest, EmbeddingRequest
from sgate_serve.server.protocol.responses_requests import ResponsesRequest
from sgate_serve.server.protocol.scoring_requests import RerankRequest, ScoreRequest
from sgate_serve.server.protocol.strict_body import MAX_PROMPTS, StrictBody
from sgate_serve.server.protocol.token_requests import (
    ApplyTemplateRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from sgate_serve.server.protocol.unsupported_parameters import IGNORED
from sgate_serve.text import grammars, template_process, template_worker
from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, models_of

SERVER = Path(__file__).parents[2] / "sgate_serve" / "server"
PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
BODIES = (
    CompletionRequest,
    ChatRequest,
    ResponsesRequest,
    MessagesRequest,
    EmbeddingRequest,
    ClassifyRequest,
    ScoreRequest,
    RerankRequest,
    TokenizeRequest,
    DetokenizeRequest,
    ApplyTemplateRequest,
)


def named() -> set[str]:
    """All that the page has between backquotes."""
    return set(re.findall(r"`([^`\n]+)`", PAGE))


def routes() -> Iterator[str]:
    options = ServerOptions()
    app = create_app(models_of(HashEngine(VOCAB_SIZE), options), options)
    for path, methods in app.openapi()["paths"].items():
        yield from (f"{method.upper()} {path}" for method in methods)


def test_every_route_is_named_and_no_other() -> None:
    on_page = {name for name in named() if re.match("(GET|POST) ", name)}
    assert on_page == set(routes())


@pytest.mark.parametrize("field", fields(ServerOptions), ids=lambda field: field.name)
def test_every_option_is_named(field: object) -> None:
    name = getattr(field, "name", "")
    assert flag_of(name) in named()


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_every_field_is_named(body: type[StrictBody]) -> None:
    assert body.model_fields.keys() <= named()


def test_every_ignored_parameter_and_every_code_is_named() -> None:
    assert named() >= IGNORED
    source = "".join(path.read_text(encoding="utf-8") for path in SERVER.rglob("*.py"))
    codes = set(re.findall(r'\bcode="(\w+)"', source))
    assert "queue_full" in codes
    assert codes <= named()
    statuses = set(re.findall(r"\bstatus=(\d{3})\b", source))
    assert {"429", "504"} <= statuses <= set(re.findall(r"\b\d{3}\b", PAGE))


def test_every_limit_is_named() -> None:
    limits = {value for name, value in vars(generation_requests).items() if name.startswith("MAX_")}
    assert {str(limit) for limit in limits | {MAX_PROMPTS}} <= set(re.findall(r"\d+", PAGE))


def test_every_limit_on_hostile_requests_is_named() -> None:
    section = PAGE.partition("## Limits")[2].partition("\n## ")[0]
    limits = {
        connection.MAX_HEADER_BYTES,
        connection.HEADER_SECONDS,
        middleware.BODY_SECONDS,
        json_body.MAX_VALUES,
        json_body.MAX_MEMBERS,
        json_body.MAX_DEPTH,
        served_model.SHORT_TEXT,
        served_model.LONG_TEXT,
        template_worker.JOB_SECONDS,
        template_process.MAX_CHARACTERS,
        logprob_counts.MAX_LOGPROB_VALUES,
        scoring.MAX_CHARACTERS,
        *grammars.MAX_CHARACTERS.values(),
    }
    assert {f"{limit:.0f}" for limit in limits} <= set(re.findall(r"\d+", section))
    assert (
        f"at most {excerpt.MAX_SHOWN} characters of what was sent ({grammars.MAX_MESSAGE} of"
        in PAGE
    )
    mebibytes = ServerOptions().max_body_bytes // 2**20
    assert f"by default {mebibytes} MiB" in PAGE


def test_security_page_has_the_servers_limits() -> None:
    page = (SERVER.parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    header, body = connection.HEADER_SECONDS, middleware.BODY_SECONDS
    assert f"bodies end after {header:g} s and {body:g} s" in page
    assert f"ended after {template_worker.JOB_SECONDS:g} s" in page
    assert template_process.MAX_MEMORY == 2**30
    assert "1 GiB of memory" in page
    quoted = f"at most {excerpt.MAX_SHOWN} characters of a request, or {grammars.MAX_MESSAGE} of"
    assert quoted in " ".join(page.split())


def test_every_metric_is_named(client: httpx.Client) -> None:
    lines = client.get("/metrics").text.splitlines()
    metrics = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {name for name in metrics if not name.endswith("_created")} == {
        name for name in named() if name.startswith("vllm:")
    }
