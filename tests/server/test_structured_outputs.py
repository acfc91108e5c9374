"""Structured output over HTTP, on the real engine: a tiny random Llama that writes noise."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI
from pydantic import BaseModel

from sgate_serve.text.grammars import MAX_CHARACTERS
from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, events, refusal, serving_engine
from tests.server.onnx_server import serving_folder, tiny_folder
from tests.server.test_hostile_requests import health_answers
from tests.server.test_openai_sdk import OPTIONS
from tests.text.test_grammars import crossed
from tests.text_model import EOS

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "pet": {"enum": ["cat", "dog", None]},
    },
    "required": ["name", "age", "pet"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "the cat"}]
ROOM: dict[str, Any] = {"max_tokens": 200, "prompt": "the cat"}
ENDLESS = {**ROOM, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving_folder(tiny_folder(tmp_path_factory.mktemp("tiny")), slots=4) as client:
        yield client


def texts(client: httpx.Client, **body: Any) -> list[str]:
    """The texts of a completion, all of which must have ended by themselves."""
    response = client.post("/v1/completions", json={**ROOM, **body})
    assert response.status_code == 200, response.text
    choices = response.json()["choices"]
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    return [choice["text"] for choice in choices]


def token_key(client: httpx.Client, text: str) -> str:
    """The id of the one token that writes a text, as `logit_bias` spells it."""
    [_, token] = client.post("/tokenize", json={"prompt": text}).json()["tokens"]
    return str(token)


def schema_format(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    own = {"name": "answer", "schema": schema, **more}
    return {"type": "json_schema", "json_schema": own}


def check_person(text: str) -> None:
    person = json.loads(text)
    assert person.keys() == {"name", "age", "pet"}
    assert re.fullmatch("[A-Za-z]{1,8}", person["name"])
    assert 0 <= person["age"] <= 150
    assert person["pet"] in ("cat", "dog", None)


def compact(**constraint: Any) -> dict[str, Any]:
    """A constraint on JSON in which noise has no room for spaces."""
    return {**constraint, "disable_any_whitespace": True}


@pytest.mark.parametrize("as_text", [False, True])
def test_choices_follow_a_schema(noise: httpx.Client, as_text: bool) -> None:
    own = json.dumps(PERSON) if as_text else PERSON
    found = texts(noise, structured_outputs=compact(json=own), n=4, seed=1)
    assert len(set(found)) > 1
    for text in found:
        check_person(text)


def test_a_chat_follows_its_response_format(noise: httpx.Client) -> None:
    schema = {**PERSON, "x-guidance": {"whitespace_flexible": False}}
    for strict in (True, False):
        own = schema_format(schema, strict=strict, description="a person")
        body = {"messages": MESSAGES, "response_format": own, "seed": 2, "max_tokens": 200}
        [choice] = noise.post("/v1/chat/completions", json=body).json()["choices"]
        assert choice["finish_reason"] == "stop"
        check_person(choice["message"]["content"])


def test_an_object_is_any_object(noise: httpx.Client) -> None:
    # Noise would write on and on: a bias makes it close what it opens.
    close = {token_key(noise, "}"): 100}
    for own in (
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
    ):
        assert texts(noise, **own, logit_bias=close) == ["{}"]


def test_any_text_is_the_default(noise: httpx.Client) -> None:
    body = {**ROOM, "temperature": 0, "max_tokens": 8}
    plain, text = (
        noise.post("/v1/completions", json={**body, **own}).json()["choices"]
        for own in ({}, {"response_format": {"type": "text"}})
    )
    assert plain == text


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        # Not \d, which means more digits to the newer Unicode of llguidance than to Python.
        ({"regex": "[a-f]{3}-[0-9]{2}"}, "[a-f]{3}-[0-9]{2}"),
        ({"choice": ["yes", "no 🚀", 'per"haps\n']}, 'yes|no 🚀|per"haps\n'),
        ({"grammar": 'start: "<" NAME ">"\nNAME: /[a-z]{1,5}/'}, "<[a-z]{1,5}>"),
        ({"grammar": 'root ::= "a" [xy] [xy]'}, "a[xy][xy]"),
    ],
)
def test_texts_match_their_constraint(
    noise: httpx.Client, constraint: dict[str, Any], pattern: str
) -> None:
    found = texts(noise, structured_outputs=constraint, n=6, seed=3)
    assert len(set(found)) > 1
    assert all(re.fullmatch(pattern, text) for text in found)
    with_text = texts(noise, structured_outputs=constraint, response_format={"type": "text"}, n=1)
    assert re.fullmatch(pattern, with_text[0])


def test_streams_have_the_same_text_and_tokens(noise: httpx.Client) -> None:
    body = {**ROOM, "structured_outputs": compact(json=PERSON), "seed": 4}
    body |= {"stream_options": {"include_usage": True}, "stream": True, "return_token_ids": True}
    with noise.stream("POST", "/v1/completions", json=body) as response:
        *chunks, usage = events(response)
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert [text] == texts(noise, structured_outputs=compact(json=PERSON), seed=4)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    tokens = [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]]
    assert usage["usage"]["completion_tokens"] == len(tokens)


def test_limits_stops_and_echo_act_as_usual(noise: httpx.Client) -> None:
    own = {"structured_outputs": {"regex": "[a-c]{9}X[a-c]{9}"}, "temperature": 0}
    [whole] = texts(noise, **own)
    assert texts(noise, **own, echo=True) == [ROOM["prompt"] + whole]
    assert texts(noise, **own, stop="X") == [whole[:9]]
    assert texts(noise, **own, prompt_lookup_num_tokens=5) == [whole]
    assert texts(noise, **own, min_tokens=100) == [whole]
    assert texts(noise, **own, ignore_eos=True) == [whole]
    body = {**ROOM, **own, "max_tokens": 3}
    [choice] = noise.post("/v1/completions", json=body).json()["choices"]
    assert (choice["finish_reason"], whole.startswith(choice["text"])) == ("length", True)
    biased = texts(noise, structured_outputs={"choice": ["q", "z"]}, logit_bias={"5": 100}, n=3)
    assert set(biased) <= {"q", "z"}


def test_the_end_is_allowed_where_the_text_may_end(noise: httpx.Client) -> None:
    own = {"structured_outputs": {"regex": "[a-z]{3,40}"}, "n": 8, "seed": 5}
    lengths = {len(text) for text in texts(noise, **own)}
    assert min(lengths) >= 3
    end = {token_key(noise, EOS): 100}
    soon = {"structured_outputs": {"regex": "x{3,40}"}, "logit_bias": end}
    assert texts(noise, **soon) == ["xxx"]
    assert texts(noise, **soon, ignore_eos=True) == ["x" * 40]


def test_log_probabilities_are_of_allowed_tokens(noise: httpx.Client) -> None:
    body = {**ROOM, "structured_outputs": {"choice": ["q", "z"]}, "logprobs": 5}
    [choice] = noise.post("/v1/completions", json=body).json()["choices"]
    [top] = choice["logprobs"]["top_logprobs"]
    assert top.keys() == {"q", "z"}


def test_the_openai_sdk_parses_into_a_pydantic_model(noise: httpx.Client) -> None:
    class Pet(BaseModel):
        name: str
        is_cat: bool

    # Strings of noise are long: a bias on the quotation mark ends them.
    with OpenAI(base_url=f"{noise.base_url}/v1", **OPTIONS) as client:
        answer = client.chat.completions.parse(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "the cat"}],
            response_format=Pet,
            logit_bias={token_key(noise, '"'): 100},
            temperature=0,
        )
    assert isinstance(answer.choices[0].message.parsed, Pet)


SO, FORMAT = "structured_outputs", "response_format"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({SO: {}}, SO, "takes exactly one of json, regex, choice, grammar, json_object; it has no"),
        ({SO: {"regex": "a", "choice": ["a"]}}, SO, "it has choice, regex"),
        ({SO: {"regex": "("}}, f"{SO}.regex", "cannot be followed: unclosed group"),
        ({SO: {"regex": 5}}, f"{SO}.regex", "is 5: Input should be a valid string"),
        ({SO: {"choice": []}}, f"{SO}.choice", "at least 1 item"),
        ({SO: {"json": "{"}}, f"{SO}.json", "`structured_outputs.json` is not JSON"),
        ({SO: {"json": "[" * 99}}, f"{SO}.json", "`structured_outputs.json` is not JSON"),
        ({SO: {"json": "[" * 99 + "]" * 99}}, f"{SO}.json", "nested too deeply"),
        ({SO: {"json": "true"}}, f"{SO}.json", "cannot be followed: Expecting object schema"),
        ({SO: {"json_object": False}}, f"{SO}.json_object", "Input should be True"),
        ({SO: {"structural_tag": "x"}}, f"{SO}.structural_tag", "is not a known field"),
        ({SO: {"jsn": {}}}, f"{SO}.jsn", "leave it out; did you mean json?"),
        (
            {SO: {"regex": "a", "disable_any_whitespace": True}},
            f"{SO}.disable_any_whitespace",
            "is for JSON; leave it out",
        ),
        ({SO: {"grammar": "start: x"}}, f"{SO}.grammar", "unknown name"),
        ({SO: {"regex": "a"}, FORMAT: {"type": "json_object"}}, SO, "both constrain the answer"),
        ({FORMAT: {"type": "xml"}}, f"{FORMAT}.type", "Input should be 'text', 'json_object' or"),
        ({FORMAT: {"type": "json_schema"}}, f"{FORMAT}.json_schema", "goes with the type"),
        (
            {FORMAT: {"type": "text", "json_schema": {"name": "x", "schema": {}}}},
            f"{FORMAT}.json_schema",
            "goes with the type `json_schema`, and with no other",
        ),
        (
            {FORMAT: {"type": "json_schema", "json_schema": {"name": "x"}}},
            f"{FORMAT}.json_schema.schema",
            "`response_format.json_schema.schema` is missing",
        ),
        (
            {FORMAT: schema_format({"type": "strin"})},
            f"{FORMAT}.json_schema.schema",
            "cannot be followed: Invalid type: strin",
        ),
        (
            {FORMAT: schema_format({"const": "x" * MAX_CHARACTERS["json"]})},
            f"{FORMAT}.json_schema.schema",
            f"characters; at most {MAX_CHARACTERS['json']} are read",
        ),
        # With null left out, this schema would allow any value.
        (
            {FORMAT: schema_format({"const": None, "enum": [1]})},
            f"{FORMAT}.json_schema.schema",
            "cannot be followed: Unsatisfiable schema",
        ),
    ],
)
def test_bad_constraints_are_refused_by_name(
    client: httpx.Client, body: dict[str, Any], param: str, message: str
) -> None:
    for path, own in (
        ("/v1/completions", {"prompt": "x", "max_tokens": 2}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2}),
    ):
        response = client.post(path, json={**own, **body})
        error = refusal(response)
        assert (response.status_code, error["param"]) == (400, param)
        assert message in error["message"]
        assert len(error["message"]) < 400


def test_null_is_a_value_in_a_schema_and_absent_elsewhere(noise: httpx.Client) -> None:
    own = {"response_format": schema_format({"const": None}, strict=None, description=None)}
    assert texts(noise, **own, structured_outputs=None) == ["null"]


def test_without_a_tokenizer_constraints_are_refused() -> None:
    with serving_engine(HashEngine(VOCAB_SIZE), codec=None) as client:
        body = {"prompt": [5], SO: {"regex": "a"}}
        error = refusal(client.post("/v1/completions", json=body))
        assert error["param"] == f"{SO}.regex"
        assert "needs a tokenizer and this model has none" in error["message"]


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"json": crossed(8)}, "schema too large"),
        ({"regex": "((a{1,1000}){1,1000}){1,1000}"}, "too many expressions"),
        ({"regex": "(" * 8000 + ")" * 8000}, "nested parentheses"),
        (
            {"json": {"anyOf": [{"properties": {f"p{index}": {}}} for index in range(2000)]}},
            "cannot be followed",
        ),
        ({"grammar": 'start: (("a" | "b"){0,3000}){0,3000}'}, "cannot be followed"),
    ],
)
def test_hostile_constraints_delay_no_one(
    noise: httpx.Client, constraint: dict[str, Any], message: str
) -> None:
    with health_answers(noise):
        response = noise.post("/v1/completions", json={**ENDLESS, SO: constraint}, timeout=60)
    assert response.status_code == 400
    assert message in refusal(response)["message"]
    assert texts(noise, structured_outputs={"choice": ["ok"]}) == ["ok"]


def test_a_stream_that_fails_says_why(noise: httpx.Client) -> None:
    own = {SO: {"regex": "((a{1,1000}){1,1000}){1,1000}"}, "stream": True}
    with noise.stream("POST", "/v1/completions", json={**ENDLESS, **own}) as response:
        last = events(response)[-1]
    assert last["error"]["param"] == f"{SO}.regex"
    assert "too many expressions" in last["error"]["message"]


def test_bodies_state_their_fields(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    constraints = schemas["StructuredOutputs"]["properties"].keys()
    assert {"json", "regex", "choice", "grammar", "json_object"} <= constraints
    assert schemas["JsonSchema"]["required"] == ["name", "schema"]
    assert schemas["ResponseFormat"]["properties"]["type"]["enum"] == [
        "text",
        "json_object",
        "json_schema",
    ]
