"""/v2/embed, Cohere's API of embeddings, on an encoder of hashes."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.server.encoders import TOKENIZER, encoder_of, expected
from tests.server.hash_encoder import HashEncoder
from tests.server.live import MODEL, VOCAB_SIZE, refusal, serving_model

PATH = "/v2/embed"
LONG = "the cat " * 60
PROMPTS = {"query": "find ", "document": ""}
WIDE = 16


@pytest.fixture(scope="module")
def engine() -> HashEncoder:
    return HashEncoder(VOCAB_SIZE, WIDE)


@pytest.fixture(scope="module")
def wide(engine: HashEncoder) -> Iterator[httpx.Client]:
    model = encoder_of("embed", engine, prompt="say ", prompts=PROMPTS, widths=(8, 12))
    with serving_model(model) as client:
        yield client


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_embeddings_have_coheres_shape(wide: httpx.Client) -> None:
    texts = ["the cat", "a gate"]
    answer = ask(wide, model=MODEL, texts=texts)
    assert answer.pop("id").startswith("embd-")
    num_tokens = sum(len(TOKENIZER.encode(f"say {text}").ids) for text in texts)
    assert answer == {
        "embeddings": {"float": [expected(f"say {text}", width=WIDE).tolist() for text in texts]},
        "texts": texts,
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"input_tokens": num_tokens, "image_tokens": 0},
        },
        "response_type": "embeddings_by_type",
    }


def test_each_type_has_the_same_numbers(wide: httpx.Client) -> None:
    types = ["float", "base64", "binary", "ubinary"]
    found = ask(wide, texts=["the cat"], embedding_types=types)["embeddings"]
    own = expected("say the cat", width=WIDE)
    assert [*found] == types
    assert np.frombuffer(base64.b64decode(found["base64"][0]), "<f4").tolist() == own.tolist()
    bits = "".join("1" if number >= 0 else "0" for number in own.tolist())
    assert found["ubinary"] == [[int(bits[:8], 2), int(bits[8:], 2)]]
    assert found["binary"] == [[byte - 128 for byte in found["ubinary"][0]]]


def test_a_width_and_the_length_of_embeddings_are_those_of_the_model() -> None:
    with serving_model(encoder_of("embed", normalize=True, widths=(2,))) as client:
        [found] = ask(client, texts=["the cat"], output_dimension=2)["embeddings"]["float"]
    own = torch.tensor(expected("the cat"))[:2]
    assert found == pytest.approx(torch.nn.functional.normalize(own, dim=0).tolist(), abs=1e-6)


def test_a_prompt_is_chosen_by_its_name(wide: httpx.Client) -> None:
    for name, prompt in PROMPTS.items():
        found = ask(wide, texts=["the cat"], input_type=name)["embeddings"]["float"]
        assert found == [expected(f"{prompt}the cat", width=WIDE).tolist()]


def test_long_texts_are_cut_where_asked_and_keep_special_tokens(
    wide: httpx.Client, engine: HashEncoder
) -> None:
    engine.asked.clear()
    for body in ({}, {"truncate": "START"}, {"max_tokens": 6}, {"max_tokens": 6, "texts": ["a"]}):
        ask(wide, **{"texts": [LONG], "input_type": "document", **body})
    bos, *ids, eos = TOKENIZER.encode(LONG).ids
    most = engine.max_model_len - 2
    assert [list(request.prompt) for request in engine.asked] == [
        [bos, *ids[:most], eos],
        [bos, *ids[-most:], eos],
        [bos, *ids[:4], eos],
        TOKENIZER.encode("a").ids,
    ]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "texts", "`texts` is missing; expected a list of at most 1024 strings"),
        ({"texts": []}, "texts", "at least 1 item"),
        ({"texts": ["a"] * 1025}, "texts", "at most 1024"),
        ({"texts": "a"}, "texts", "expected a list of at most 1024 strings"),
        ({"images": ["a"]}, "images", "`images` is not supported; leave it out"),
        ({"inputs": [{"content": []}]}, "inputs", "`inputs` is not a known field; leave it out"),
        ({"embedding_types": ["int8"]}, "embedding_types.0", "a list of float, base64 (little"),
        ({"embedding_types": []}, "embedding_types", "at least 1 item"),
        ({"input_type": "x"}, "input_type", "no prompt of that name; send one of document, query"),
        ({"output_dimension": 9}, "output_dimension", "`output_dimension` is 9, but this model's"),
        (
            {"output_dimension": 12, "embedding_types": ["binary"]},
            "embedding_types",
            "the embeddings have 12 numbers, no multiple of 8; send float or base64",
        ),
        ({"max_tokens": 65}, "max_tokens", "`max_tokens` is 65, but at most 64 tokens fit"),
        ({"max_tokens": 2}, "max_tokens", "2 tokens leave no room for text"),
        ({"texts": [LONG], "truncate": "NONE"}, "texts", "or send `truncate: END` to cut off its"),
        ({"max_tokens": 4, "truncate": "NONE"}, "texts", "over `max_tokens`; shorten it, or send"),
    ],
)
def test_what_is_not_served_is_refused(
    wide: httpx.Client, body: dict[str, Any], param: str, message: str
) -> None:
    texts = {} if not body or "images" in body or "inputs" in body else {"texts": ["the cat"]}
    error = refusal(wide.post(PATH, json={**texts, **body}))
    assert (error["param"], message in error["message"]) == (param, True), error


def test_a_model_without_prompts_says_so(embedder: httpx.Client, classifier: httpx.Client) -> None:
    error = refusal(embedder.post(PATH, json={"texts": ["a"], "input_type": "search_query"}))
    assert "'search_query', but this model has no prompts; send none" in error["message"]
    assert refusal(classifier.post(PATH, json={"texts": ["a"]}))["code"] == "wrong_endpoint"
